"""Throw-away environments, each with another release of transformers, which share one torch.

Torch, numpy and what torch needs are hundreds of megabytes and the same everywhere: an environment sees them through a folder of links to the
installation that they come from. All else (transformers and what that release asks for, accelerate) is installed from the package index. The folder of
links lies beside the environments, not in them: pip leaves alone what is outside of the environment that it works on.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from packaging.version import Version

CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"
OLDEST = "4.46.3"
MINORS = ("4.46", "4.57")  # of release 4; of release 5, every one
PINNED = ("transformers", "tokenizers", "huggingface_hub", "safetensors", "accelerate")

# Printed by the interpreter whose torch is shared: its version, torch's, and every file or folder of torch, numpy and all that these need.
SHARED = """
import json, re, sys
from importlib.metadata import PackageNotFoundError, distribution, distributions, version
cuda = [found.name for found in distributions() if found.name.startswith(("nvidia-", "cuda-"))]  # of a CUDA build, through extras
todo, seen, paths = ["torch", "numpy", *cuda], set(), {}
while todo:
    name = todo.pop()
    if name in seen:
        continue
    seen.add(name)
    try:
        found = distribution(name)
    except PackageNotFoundError:  # what another platform or an extra asks for
        continue
    tops = {file.parts[0] for file in found.files} - {"..", "__pycache__"}
    paths.update((top, str(found.locate_file(top))) for top in tops)
    todo += [re.match(r"[\\w.-]+", line)[0] for line in found.requires or () if "extra ==" not in line]
print(json.dumps({"python": "%d.%d" % sys.version_info[:2], "torch": version("torch"), "paths": paths}))
"""


class BuildError(RuntimeError):
    """An environment could not be built; the message is the last line of what the command printed."""


def run(*command: str | Path) -> str:
    """What a command prints. Raises [`BuildError`] if it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        lines = (
            [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines() or ["no output"]
        )
        raise BuildError(f"{' '.join(map(str, command[:4]))} ...: {lines[-1]}")
    return done.stdout


def pip(*arguments: str | Path) -> str:
    return run(sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments)


def newest_release(python: str) -> str:
    """The newest transformers that the index has for this Python today, as an unpinned install takes it."""
    report = pip(
        "--python", python, "install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed", "--report", "-", "transformers"
    )
    return json.loads(report)["install"][0]["metadata"]["version"]


def pinned_versions() -> dict[str, str]:
    """The versions of constraints.txt that an environment with the pinned transformers gets, by package."""
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", CONSTRAINTS.read_text(encoding="utf-8"), flags=re.MULTILINE))
    return {name: pins[name] for name in PINNED}


def supported_releases(available: Sequence[str]) -> list[str]:
    """The last patch of each supported minor release among `available`, oldest first."""
    last: dict[str, Version] = {}
    for version in sorted(map(Version, available)):
        minor = f"{version.major}.{version.minor}"
        if not version.is_prerelease and (version.major >= 5 or minor in MINORS):
            last[minor] = version
    return [str(version) for version in sorted(last.values())]


def listed_releases(python: str) -> list[str]:
    """The supported releases that the index has for this Python today."""
    listed = pip("--python", python, "index", "versions", "transformers")
    return supported_releases(re.search(r"Available versions: (.*)", listed)[1].split(", "))


def resolve(names: Sequence[str], python: str) -> dict[str, list[str]]:
    """The columns that `names` ask for, oldest first: title -> what to install.

    A name is a version, "oldest", "newest", "all" or "pinned". Only "pinned" installs everything as constraints.txt has it; with the others, pip chooses
    what goes with that release today. Raises [`BuildError`] for any other name.
    """
    fixed = {
        "oldest": lambda: [OLDEST],
        "newest": lambda: [newest_release(python)],
        "all": lambda: listed_releases(python),
        "pinned": list,
    }
    releases = {release for name in names for release in (fixed[name]() if name in fixed else [name])}
    for release in releases:
        if not re.fullmatch(r"\d+\.\d+\.\d+", release):
            raise BuildError(f"--releases {release}: give a version such as 5.0.0, or one of {', '.join(fixed)}")
    columns = {release: [f"transformers=={release}", "accelerate"] for release in sorted(releases, key=Version)}
    if "pinned" in names:
        pins = pinned_versions()
        columns[f"{pins['transformers']} pinned"] = [f"{name}=={version}" for name, version in pins.items()]
    return dict(sorted(columns.items(), key=lambda column: Version(column[0].split()[0])))


class Base:
    """The interpreter that environments are made from, and whose torch they share."""

    def __init__(self, python: str, folder: Path):
        found = json.loads(run(python, "-c", SHARED))
        self.python, self.paths, self.folder = python, found["paths"], folder
        self.name = f"python{found['python']}-torch{found['torch']}"
        self.versions = {"python": found["python"], "torch": found["torch"]}

    def link(self) -> Path:
        """The folder of links, brought up to date."""
        links = self.folder / f"{self.name}-shared"
        links.mkdir(parents=True, exist_ok=True)
        for name, target in self.paths.items():
            if not (links / name).exists():  # another run may be reading them
                (links / name).unlink(missing_ok=True)
                (links / name).symlink_to(target)
        return links

    def environment(self, title: str, requirements: Sequence[str], links: Path) -> Path:
        """The interpreter of one environment, which is built unless it is there."""
        folder = self.folder / f"{self.name}-transformers-{title.replace(' ', '-')}"
        python, installed = folder / "bin" / "python", folder / "installed"
        if not installed.exists() or installed.read_text(encoding="utf-8").split() != list(requirements):
            shutil.rmtree(folder, ignore_errors=True)
            run(self.python, "-m", "venv", "--without-pip", folder)
            (next(folder.glob("lib/python3*/site-packages")) / "shared.pth").write_text(f"{links}\n", encoding="utf-8")
            shared = f"torch=={self.versions['torch']}"  # an error where something asks for another one, which pip would install
            pip("--python", python, "install", "--quiet", "--no-compile", shared, *requirements)
            installed.write_text("\n".join(requirements), encoding="utf-8")
        return python
