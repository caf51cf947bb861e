"""The wheel, installed in a new environment, trains with a script and runs the README's example."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cwd / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_alone_runs_the_readme(tmp_path):
    pytest.importorskip("build", reason="needs the package build")
    source = tmp_path / "source"
    shutil.copytree(ROOT / "gpt_scratch", source / "gpt_scratch", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source, cwd=tmp_path)
    wheel = next(tmp_path.glob("gpt_scratch-*.whl"))

    environment = tmp_path / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # The dependencies of this environment; an editable install of this package is not among them, since that is a .pth file too.
    packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=tmp_path).strip())
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n", encoding="utf-8")
    shutil.rmtree(source)

    shutil.copy(ROOT / "scripts" / "pretrain.py", tmp_path)
    stories = packages / "gpt_scratch" / "data" / "samples" / "stories.jsonl"  # bundled with the package
    run(python, "pretrain.py", "--train_file", stories, "--vocab_size", "500", "--block_size", "64", "--max_steps", "2", "--use_cpu",
        "--config_overrides", "n_embd=32,n_layer=2,n_head=2", "--output_dir", "runs/quickstart", cwd=tmp_path)  # fmt: skip
    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    assert "from_pretrained" in example
    where = "import gpt_scratch; print(gpt_scratch.__file__)\n"
    printed = run(python, "-c", where + example, cwd=tmp_path).splitlines()
    assert Path(printed[0]).is_relative_to(packages)
    assert printed[1].startswith("One day, Anna") and len(printed[1]) > len("One day, Anna")
