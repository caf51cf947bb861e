"""One server for the tests of serving, and what they ask it."""

import pytest
from served import KEY, LIMITS, make_model, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    path = tmp_path_factory.mktemp("served")
    make_model(path / "model")
    flags = [word for name, value in vars(LIMITS).items() for word in (f"--{name}", str(value))]
    with serving(path / "model", path / "log", *flags, key=KEY) as server:
        yield server
    log = server.log.read_text(encoding="utf-8")
    assert "Traceback" not in log and KEY not in log, log


@pytest.fixture
def question(server):
    return {"model": server.model, "prompt": "one two", "max_tokens": 4, "temperature": 0}


@pytest.fixture
def chat(server):
    return {"model": server.model, "messages": [{"role": "user", "content": "one"}], "max_tokens": 4, "temperature": 0}
