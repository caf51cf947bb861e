"""Which callers and which requests the server accepts."""

import pytest
from served import KEY, MEBIBYTES

from gpt_scratch.errors import UserError
from gpt_scratch.inference.limits import COMPLETIONS
from gpt_scratch.inference.serving import serve

pytest.importorskip("uvicorn")
pytest.importorskip("openai")


@pytest.mark.parametrize(
    "headers, status, words",
    [
        pytest.param({"Host": "evil.example"}, 403, "Host", marks=pytest.mark.fault("a foreign Host header (DNS rebinding)", seconds=2, mebibytes=MEBIBYTES)),
        pytest.param({"Host": "127.0.0.1@evil.example"}, 400, "Host", marks=pytest.mark.fault("a Host header with a user", seconds=2, mebibytes=MEBIBYTES)),
        pytest.param({"Origin": "http://evil.example"}, 403, "origin is not allowed", marks=pytest.mark.fault("a request from another origin", seconds=2, mebibytes=MEBIBYTES)),
        pytest.param({"Origin": "null"}, 403, "origin is not allowed", marks=pytest.mark.fault("a request from a sandboxed page", seconds=2, mebibytes=MEBIBYTES)),
        pytest.param({"Content-Type": "text/plain"}, 415, "application/json", marks=pytest.mark.fault("JSON as plain text, which a page may send without asking", seconds=2, mebibytes=MEBIBYTES)),
        pytest.param({"Content-Encoding": "gzip"}, 415, "not compressed", marks=pytest.mark.fault("a compressed request", seconds=2, mebibytes=MEBIBYTES)),
        pytest.param({"Authorization": ""}, 401, "API key", marks=pytest.mark.fault("a request without the API key", seconds=2, mebibytes=MEBIBYTES)),
        pytest.param({"Authorization": f"Bearer {KEY}x"}, 401, "API key", marks=pytest.mark.fault("a wrong API key", seconds=2, mebibytes=MEBIBYTES)),
        pytest.param({"Authorization": "Bearer \xff"}, 401, "API key", marks=pytest.mark.fault("an API key that is not ASCII", seconds=2, mebibytes=MEBIBYTES)),
    ],
)  # fmt: skip
def test_unauthorized_callers_are_refused(server, question, headers, status, words):
    refused, error = server.error(COMPLETIONS, question, headers)
    assert refused == status and words in error["message"], error


def test_authorized_callers_are_answered(server, question):
    for headers in ({"Origin": f"http://127.0.0.1:{server.port}"}, {"Host": f"LOCALHOST:{server.port}"}, {"Host": "[::1]:1"}):
        assert server.ask(COMPLETIONS, question, headers)[0] == 200, headers
    assert server.ask("/health", headers={"Authorization": "", "Host": "probe"})[0] == 200


@pytest.mark.fault(
    "routes of the stock app: load a model, unload it, transcribe, read its own documentation", seconds=5, mebibytes=MEBIBYTES
)
def test_other_routes_are_closed(server, question):
    for path in (
        "/reset",
        "/v1/systemone",
        "/v1/audio/transcriptions",
        "/nowhere",
        "/v1/completions/",
        "//v1/completions",
        "/V1/completions",
    ):
        assert server.error(path, {})[0] == 404, path
    for path in ("/docs", "/openapi.json", "/redoc", "/v1/models/gpt2", "generation_config"):
        assert server.error(path)[0] == 404, path
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "TRACE"):
        assert server.error(COMPLETIONS, method=method)[0] == 405, method
    before = server.mebibytes
    for name in ("gpt2", "/etc", f"{server.model}/", f"{server.model}:weights.gguf", "../model", "a" * 900):
        assert server.error("/load_model", {"model": name})[0] == 404, name
        status, error = server.error(COMPLETIONS, question | {"model": name})
        assert (status, error["code"]) == (404, "model_not_found") and name not in error["message"]
    assert server.mebibytes - before < 50
    assert '"ready"' in server.ask("/load_model", {"model": server.model})[2]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_a_public_server_needs_a_key(tmp_path, host):
    with pytest.raises(UserError, match="set an API key in the variable GPT_SCRATCH_API_KEY"):
        serve(str(tmp_path), host=host)
