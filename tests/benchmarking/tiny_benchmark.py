"""The benchmark script at a size at which it says nothing about speed, but everything else can be checked."""

TINY = ["--n_layer", "1", "--n_head", "2", "--n_embd", "16", "--vocab_size", "97", "--repetitions", "2", "--shape", "2x8"]


def run(script, *argv: str) -> list[dict]:
    benchmark = script("benchmark")
    return benchmark.main(benchmark.parse(argv))
