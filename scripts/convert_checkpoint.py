"""Convert a GPT from another format to a directory for AutoModelForCausalLM, or back, and verify that the outputs are equal.

python scripts/convert_checkpoint.py gpt2/124M converted/gpt2-124m                 # OpenAI's TensorFlow checkpoint
python scripts/convert_checkpoint.py --download 124M converted/gpt2-124m           # fetched first, into ./124M
python scripts/convert_checkpoint.py path/to/hf-gpt2-or-llama converted/mine       # transformers' directories, or a Hub name
python scripts/convert_checkpoint.py SmolLM2-135M-Instruct-Q4_1.gguf converted/smollm2
python scripts/convert_checkpoint.py model.pth converted/book --tokenizer gpt2/124M --config_overrides n_heads=12
python scripts/convert_checkpoint.py ckpt.pt converted/nanogpt --tokenizer gpt2/124M
python scripts/convert_checkpoint.py converted/mine stock --to gpt2                # also llama, mistral, qwen2, qwen3
"""

if __name__ == "__main__":
    try:
        import _flags
    except ModuleNotFoundError:  # this file was copied without _flags.py: startup is merely slower
        pass
    else:
        _flags.check(__file__, __doc__)  # --help and checks of flags, before torch and transformers are imported


import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from gpt_scratch import GPTScratchConfig
from gpt_scratch.conflicts import check_conversion, parse_size
from gpt_scratch.conversion.convert import export_weights, import_weights
from gpt_scratch.conversion.formats import FORMATS, Options, recognize, without_tokenizer
from gpt_scratch.conversion.stock_layouts import LAYOUTS
from gpt_scratch.conversion.verify import verify
from gpt_scratch.errors import UserError, run_script
from gpt_scratch.files import atomic_directory, write_json
from gpt_scratch.hub.cards import keep_card, write_conversion_card
from gpt_scratch.progress import named
from gpt_scratch.provenance import describe_environment
from gpt_scratch.ranges import check_flags
from gpt_scratch.training.arguments import parse_config_overrides


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", help="checkpoint: a file, a directory, a TensorFlow prefix or .index, or a Hub name")
    parser.add_argument("output", help="directory to write, new or empty")
    parser.add_argument(
        "--format", default="auto", choices=["auto", *FORMATS], help="format of the source; auto detects it and prints the reason"
    )
    parser.add_argument("--to", choices=LAYOUTS, help="write a stock transformers checkpoint from one of this package's")
    parser.add_argument(
        "--download", choices=["124M", "355M", "774M", "1558M"], help="download OpenAI's checkpoint of this size first"
    )
    parser.add_argument(
        "--tokenizer",
        help="tokenizer to save with the weights if the source has none: a directory, a Hub name or nanoGPT's meta.pkl",
    )
    parser.add_argument("--config_overrides", help="settings missing from the file, e.g. n_heads=12 or sliding_window=256")
    parser.add_argument("--lora_alpha", type=float, help="alpha of the book's LoRA layers, which are merged")
    parser.add_argument("--lora_scaling", choices=["alpha", "alpha_over_rank"], help="how the book's LoRA layers were scaled")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="dtype of the written weights; default: the source's"
    )
    parser.add_argument("--max_shard_size", default="5GB", help="maximum size of one safetensors file, e.g. 500MB")
    parser.add_argument("--overwrite", action="store_true", help="replace a directory that this package wrote")
    return check_flags(parser.parse_args(argv))


def main(args: argparse.Namespace) -> dict:
    """Convert, verify, and return the verification results. The output directory is written atomically."""
    check_conversion(args)
    args.source = args.source or args.download
    max_shard_bytes = parse_size(args.max_shard_size)
    dtype = getattr(torch, args.dtype) if args.dtype else None
    options = Options(
        parse_config_overrides(args.config_overrides, GPTScratchConfig), args.lora_alpha, args.lora_scaling, args.tokenizer
    )
    with atomic_directory(args.output, args.overwrite, (args.source, args.tokenizer)) as folder:
        if args.download:
            from gpt_scratch.conversion.openai_download import download_openai_checkpoint

            args.source = str(download_openai_checkpoint(args.download, args.source))
        checkpoint = recognize(args.source, options, args.format)
        print(f"{args.source}: format {checkpoint.format}, {checkpoint.reason}")
        for note in checkpoint.notes:
            print(f"note: {note}")
        if checkpoint.tokenizer is None:
            print(f"note: {without_tokenizer(checkpoint.config.vocab_size)}")
        if checkpoint.format == "gpt_scratch" and args.to is None:
            raise UserError(f"{args.source} is a checkpoint of this package already: pass --to {' or --to '.join(LAYOUTS)}")
        if checkpoint.format != "gpt_scratch" and args.to is not None:
            raise UserError(f"--to {args.to} starts from a checkpoint of this package: convert {args.source} without --to first")
        identical = None
        with named("writing the weights"):
            if args.to:
                export_weights(checkpoint, folder, args.to, dtype, max_shard_bytes)
            else:
                identical = import_weights(checkpoint, folder, dtype, max_shard_bytes)
        del checkpoint.source  # verification does not need its memory-mapped files
        with named("comparing what the model computes with the original"):
            proof = verify(folder, checkpoint.head, checkpoint.reference)
        proof.tensors_identical = identical
        record = {
            "format": checkpoint.format,
            "to": args.to,
            "head": checkpoint.head,
            "notes": checkpoint.notes,
            "proof": proof.as_dict(),
        }
        write_json(folder / "conversion.json", record | {"environment": describe_environment()})
        if not args.to:
            keep_card(args.output, str(folder))
            write_conversion_card(str(folder), Path(args.output).resolve().name, record)
    print(proof)
    print(f"written to {args.output}")
    return proof.as_dict()


if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
