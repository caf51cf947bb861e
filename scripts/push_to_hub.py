"""Upload a directory of a training script or `save_pretrained` to the Hugging Face Hub, and verify that it loads from there.

    hf auth login                                                      # once; or set HF_TOKEN
    python scripts/push_to_hub.py runs/quickstart my-first-gpt --dry_run
    python scripts/push_to_hub.py runs/quickstart my-first-gpt --private
    python scripts/push_to_hub.py runs/quickstart my-first-gpt --update --revision v2
    python scripts/push_to_hub.py runs/quickstart my-first-gpt-stock --layout gpt2   # needs no trust_remote_code

Lists the files, scans them for secrets and local paths, verifies reference_outputs.json, uploads them as one commit, downloads that commit
into an empty directory, compares all checksums, loads it in a new process without this package, and compares the outputs. After an
interruption, the same command resumes. Then anyone can load it:

    AutoModelForCausalLM.from_pretrained("user/my-first-gpt", trust_remote_code=True, revision="the commit printed at the end")
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
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gpt_scratch.conversion.stock_layouts import LAYOUTS
from gpt_scratch.errors import UserError, run_script
from gpt_scratch.hub.cards import name_repository
from gpt_scratch.hub.contents import Contents, list_contents, missing_parts, shown
from gpt_scratch.hub.secret_scan import Scan, find_secrets
from gpt_scratch.hub.stock_layout import write_stock_checkpoint
from gpt_scratch.hub.upload import open_repository, upload, verify_outputs, verify_upload
from gpt_scratch.progress import named


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="directory with config.json, safetensors, tokenizer and README.md")
    parser.add_argument("repository", help="user/name, or name for one of your own; created if it does not exist")
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        help="upload a stock transformers checkpoint, which loads without trust_remote_code, instead of this package's own",
    )
    parser.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    parser.add_argument("--revision", default="main", help="branch to commit to; created from main if it does not exist")
    parser.add_argument("--update", action="store_true", help="add a commit to a repository that is not empty")
    parser.add_argument("--message", default="Upload with gpt_scratch", help="commit message")
    parser.add_argument(
        "--exclude", nargs="*", default=[], help="patterns of files to leave out, e.g. 'mistakes.tsv' 'adapter/*'"
    )
    parser.add_argument(
        "--with_training_state",
        action="store_true",
        help="also upload optimizer, scheduler and checkpoint-N: two to three times the size",
    )
    parser.add_argument("--allow_paths", action="store_true", help="upload even if files contain absolute paths of a machine")
    parser.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="show what would be uploaded, and stop; needs no network"
    )
    return parser.parse_args(argv)


def size(count: int) -> str:
    """Human-readable size of `count` bytes."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"


def main(args: argparse.Namespace) -> str | None:
    """Upload and verify, with --layout in a stock layout; return the commit, or `None` after a dry run."""
    if args.layout is None:
        return push(args, list_contents(args.folder, args.with_training_state, tuple(args.exclude)))
    if args.with_training_state:
        raise UserError(f"--with_training_state goes with this package's own layout, not with --layout {args.layout}: drop one")
    with tempfile.TemporaryDirectory() as folder:
        return push(args, write_stock_checkpoint(args.folder, args.layout, Path(folder), tuple(args.exclude)))


def refuse_secrets(args: argparse.Namespace, scan: Scan) -> None:
    """Print what was searched for and found.

    Raises:
        UserError: a secret, or an absolute path without --allow_paths.
    """
    print(f"looked for: {scan.looks_for()}")
    for name, kind in scan.sealed.items():
        print(f"note: {name} is packed as {kind}, which is not unpacked here: check yourself whether it holds a secret")
    for finding in scan.findings:
        print(f"found {finding}")
    if not all(finding.is_path for finding in scan.findings):
        raise UserError(
            f"{shown(args.folder)} holds an access token, key or password: remove it from the files named above, and revoke it"
        )
    if scan.findings and not args.allow_paths:
        raise UserError(
            f"{shown(args.folder)} names paths of a machine: remove them from the files named above, --exclude these, or --allow_paths"
        )
    print("no secrets found" + (", and no paths of this machine" if not scan.findings else ""))


def push(args: argparse.Namespace, contents: Contents) -> str | None:
    """Upload and verify the files in `contents`; return the commit, or `None` after a dry run."""
    with named("looking for secrets"):
        scan = find_secrets(contents)
    for name in contents.files:
        print(f"{size(contents.size(name)):>12}  {scan.names[name]}")
    print(f"{size(sum(map(contents.size, contents.files))):>12}  in {len(contents.files)} files")
    for reason in sorted(set(contents.left_out.values())):
        names = [scan.names[name] for name, why in contents.left_out.items() if why == reason]
        print(f"stays here, {reason}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}")
    if "README.md" not in contents.files:
        print("note: there is no README.md; the Hub will show no model card")
    for note in missing_parts(contents):
        print(f"note: {note}")
    refuse_secrets(args, scan)
    with named("comparing what the model computes with its reference outputs"):
        verifiable = verify_outputs(contents)
    if verifiable:
        print("computes its reference_outputs.json without this package, with and without the cache")
    elif "config.json" in contents.files:
        print("note: there is no reference_outputs.json; it cannot be verified later that the model still computes the same")
    if args.dry_run:
        return None
    repository = open_repository(args.repository, args.private, args.revision)
    if name_repository(str(contents.folder), repository.id):
        print(f"README.md: its example now names {repository.id}")
    uploaded = upload(contents, repository, args.message, update=args.update)
    for name in uploaded.deleted:
        print(f"deleted there, since it belongs to other weights: {shown(name)}")
    print(f"uploaded to {shown(uploaded.url)}")
    with named("downloading it again and comparing checksums"):
        difference = verify_upload(contents, uploaded)
    logits = "" if difference is None else f"; loaded without this package, its logits differ by {difference:.1e}"
    print(f"downloaded again: {len(contents.files)} checksums equal{logits}")
    trust = "" if args.layout else "trust_remote_code=True, "
    print(f'load it with from_pretrained("{uploaded.repository}", {trust}revision="{uploaded.commit}")')
    if verifiable:
        command = f"python -m gpt_scratch.verify_checkpoint {uploaded.repository} --revision {uploaded.commit}"
        print(f"verify it with {command}{'' if args.layout else ' --trust_remote_code'}")
    return uploaded.commit


if __name__ == "__main__":
    run_script(lambda: main(parse(sys.argv[1:])))
