"""The generate script's flags and errors."""

import pytest
import torch

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.errors import UserError, printable
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tokenizer = train_byte_level_bpe(["One day, Anna lost her key. " * 20], vocab_size=300)
    torch.manual_seed(0)
    config = GPTScratchConfig(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.4)
    GPTScratchForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run(script, *argv: str) -> list[str]:
    module = script("generate")
    return module.main(module.parse(argv))


def test_prompts_are_printed_with_their_continuations(script, model_directory, capsys):
    texts = run(script, model_directory, "--prompt", "One day", "Anna", "--max_new_tokens", "8")
    assert capsys.readouterr().out == printable(f"One day{texts[0]}\n\nAnna{texts[1]}\n\n")
    assert run(script, model_directory, "--prompt", "One day", "--max_new_tokens", "8") == texts[:1]


def test_top_k_alone_samples(script, model_directory):
    greedy = run(script, model_directory, "--prompt", "One day", "--max_new_tokens", "20")
    sampled = {
        run(script, model_directory, "--prompt", "One day", "--max_new_tokens", "20", "--top_k", "50", "--seed", seed)[0]
        for seed in "123"
    }
    assert len(sampled) == 3 and sampled != set(greedy)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "-1"], "temperature is -1"),
        (["--max_new_tokens", "0"], "max_new_tokens is 0"),
        (["--top_p", "7", "--seed", "1"], "top_p is 7"),
    ],
)
def test_wrong_flags_are_refused(script, model_directory, flags, message):
    with pytest.raises(UserError, match=message):
        run(script, model_directory, *flags)


def test_weights_in_fewer_bytes(script, model_directory):
    plain = run(script, model_directory, "--prompt", "One day", "--max_new_tokens", "20", "--weights", "none")
    assert run(script, model_directory, "--prompt", "One day", "--max_new_tokens", "20") == plain
    assert run(script, model_directory, "--prompt", "One day", "--max_new_tokens", "20", "--weights", "float32") == plain
    assert run(script, model_directory, "--prompt", "One day", "--max_new_tokens", "20", "--weights", "int8")[0]


def test_beams_are_refused_with_weights(script, model_directory):
    with pytest.raises(UserError, match="leave out --num_beams"):
        run(script, model_directory, "--weights", "int8", "--num_beams", "2")


class Arrived(Exception):
    """What a function of the script was called with."""


def test_each_flag_reaches_generation(script, model_directory, monkeypatch):
    module = script("generate")

    def stop(model, tokenizer, prompts, *settings, **more):
        raise Arrived(model.dtype, prompts, settings, more)

    monkeypatch.setattr(module, "generate_texts", stop)
    flags = ["--prompt", "a", "b", "--max_new_tokens", "7", "--temperature", "0.6", "--seed", "5", "--stream", "--stop", ".", "!", "--top_k",
             "9", "--top_p", "0.8", "--min_p", "0.1", "--num_beams", "3", "--repetition_penalty", "1.5", "--no_repeat_ngram_size", "2",
             "--dtype", "bfloat16", "--parse_special_tokens"]  # fmt: skip
    with pytest.raises(Arrived) as arrived:
        module.main(module.parse([model_directory, *flags]))
    more = {"top_k": 9, "top_p": 0.8, "min_p": 0.1, "num_beams": 3, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2}
    assert arrived.value.args == (torch.bfloat16, ["a", "b"], (7, 0.6, 5, True, [".", "!"], True), more)
    for flags, temperature in ((["--top_p", "0.8"], 1.0), (["--num_beams", "3"], 0.0), ([], 0.0)):
        with pytest.raises(Arrived) as arrived:
            module.main(module.parse([model_directory, *flags]))
        assert arrived.value.args[0] == torch.float32 and arrived.value.args[2][1] == temperature
