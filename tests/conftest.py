"""Fixtures shared by all tests. Nothing here needs a network, and real data is optional."""

import os
import tempfile
import time
from pathlib import Path

import pytest

# Read when huggingface_hub and datasets are imported, as project_home does: a test that reaches out fails at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
_cache = tempfile.TemporaryDirectory(prefix="gpt_scratch-tests-")  # a cache of its own: an old one could hide an error
os.environ["HF_DATASETS_CACHE"] = _cache.name

from faults_table import table_of  # noqa: E402
from modules import load_script  # noqa: E402
from project_home import home  # noqa: E402, F401

# Two workers with two threads each, on two cores, wait for each other: up to 7 times the time. And the number of threads is not measured.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(os.environ.get("GPT_SCRATCH_SHARED", Path(__file__).resolve().parents[2] / "shared"))


FAULTS = pytest.StashKey[str]()


def pytest_sessionfinish():
    _cache.cleanup()  # workers of pytest-xdist end without finalizers, which would leave the folder behind


@pytest.hookimpl(tryfirst=True)  # before any are deselected
def pytest_collection_modifyitems(config, items):
    found = set()
    for item in items:
        quick = item.get_closest_marker("quick_cases")
        if quick and item.callspec.id not in quick.args:
            item.add_marker(pytest.mark.thorough)
        elif quick:
            found.add((item.function, item.callspec.id))
    if [Path(argument).resolve() for argument in config.args] == [Path(__file__).resolve().parent]:  # the whole suite
        config.stash[FAULTS] = table_of(items)
        named = {(item.function, case) for item in items for mark in item.iter_markers("quick_cases") for case in mark.args}
        assert named == found, f"no such cases: {named - found}"


@pytest.fixture(scope="session")
def faults(pytestconfig) -> str:
    """FAULTS.md as the tests that are collected would write it; skips where these are not all."""
    if FAULTS not in pytestconfig.stash:
        pytest.skip("only a run of the whole suite knows all faults")
    return pytestconfig.stash[FAULTS]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data (the-verdict, SMS Spam Collection, OpenAI's GPT-2 files); skips where it is absent."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no real data at {SHARED / 'data'}: set GPT_SCRATCH_SHARED to the folder that holds data/")
    return SHARED / "data"


@pytest.fixture(scope="session")
def script():
    """A function that imports `scripts/NAME.py` as a module."""
    return load_script


def _memory(field: str) -> float:
    """MiB of this process: VmRSS is resident now, VmHWM the peak since it was last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


@pytest.fixture(scope="session", autouse=True)
def fp32():
    """Training is in fp32 by default on every machine; processes that a test starts use the default of the machine."""
    import torch

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
            patch.setattr(torch.cpu, name, lambda: False)
        yield


@pytest.fixture(autouse=True)
def bounds_of_a_fault(request):
    """A test marked as a fault fails if it takes more time, or its process grows by more memory, than its mark says (memory: on Linux)."""
    mark = request.node.get_closest_marker("fault")
    if mark is None or "seconds" not in mark.kwargs:
        yield
        return
    measurable = Path("/proc/self/clear_refs").is_file()
    if measurable:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak begins anew
        before = _memory("VmRSS")
    start, busy = time.monotonic(), sum(os.times()[:4])
    yield
    seconds, busy = time.monotonic() - start, sum(os.times()[:4]) - busy
    # On a loaded machine a test waits for its turn: then its processor time counts, with that of the processes it started.
    seconds = seconds if seconds > 8 * mark.kwargs["seconds"] else min(seconds, busy)
    assert seconds <= mark.kwargs["seconds"], f"took {seconds:.1f} s, its mark says {mark.kwargs['seconds']}"
    if measurable and "mebibytes" in mark.kwargs:
        grown = _memory("VmHWM") - before
        assert grown <= mark.kwargs["mebibytes"], f"grew by {grown:.0f} MiB, its mark says {mark.kwargs['mebibytes']}"
