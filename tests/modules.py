"""Import a file that lies in no package: a script, a generator of samples."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"


def load_file(path: Path, name: str | None = None) -> ModuleType:
    """A new module of `path`, named after the file if no `name` is given, also in `sys.modules`."""
    spec = importlib.util.spec_from_file_location(name or path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


def load_script(name: str) -> ModuleType:
    """`scripts/NAME.py`."""
    return load_file(SCRIPTS / f"{name}.py")
