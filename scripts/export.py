"""Export a model to ONNX (ONNX Runtime) or GGUF (llama.cpp, ollama), read it back and compare the outputs.

python scripts/export.py onnx runs/quickstart exported/quickstart-onnx
python scripts/export.py gguf runs/quickstart exported/quickstart.gguf
python scripts/export.py gguf runs/quickstart exported/quickstart-q8_0.gguf --type q8_0
python scripts/export.py gguf runs/chat exported/chat.gguf --modelfile && ollama create chat -f exported/chat.Modelfile

The output is written atomically, and only if its outputs equal those of the model.
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

from gpt_scratch.conflicts import check_export
from gpt_scratch.errors import run_script
from gpt_scratch.export.gguf import TYPES, export_gguf
from gpt_scratch.export.onnx import export_onnx


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("to", choices=["onnx", "gguf"], help="format to write")
    parser.add_argument("model", help="directory or Hub name of a checkpoint of this package")
    parser.add_argument("output", help="onnx: directory to write, new or empty; gguf: file to write")
    parser.add_argument("--type", choices=list(TYPES), help="gguf: type of the matrices; default f32; q* and bf16 lose precision")
    parser.add_argument(
        "--modelfile", action="store_true", help="gguf: also write NAME.Modelfile for ollama, with the chat template"
    )
    parser.add_argument("--overwrite", action="store_true", help="onnx: replace a directory that this package wrote")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> dict:
    """Export, and return the comparison."""
    check_export(args)
    if args.to == "gguf":
        comparison = export_gguf(args.model, args.output, args.type or "f32", args.modelfile)
    else:
        comparison = export_onnx(args.model, args.output, args.overwrite)
    print(comparison)
    print(f"written to {args.output}")
    return comparison.as_dict()


if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
