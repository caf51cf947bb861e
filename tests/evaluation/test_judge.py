"""The judge against a server on loopback that can be set to fail: protocol, scores, retries, resuming, error messages."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gpt_scratch.errors import UserError
from gpt_scratch.evaluation.judge import Judge, judge_prompt, judge_replies, parse_score, read_verdicts, summarize

RECORDS = [{"instruction": f"Say {i}.", "input": "now" if i % 2 else "", "output": str(i)} for i in range(6)]
REPLIES = [f"reply {i}" for i in range(6)]


class Handler(BaseHTTPRequestHandler):
    """Answers `reply N` with 10 N; `server.plan` holds statuses to send first, `server.dies_after` ends it."""

    def do_POST(self):
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.questions.append((self.path, question))
        status = self.server.plan.pop(0) if self.server.plan else 200
        if question["model"] != "judge":
            status = 404
        if self.server.dies_after is not None and len(self.server.questions) > self.server.dies_after:
            status = 503
        text = question["messages"][0]["content"]
        number = text.split("reply ")[1][0]
        answer = self.server.answers.get(number, f"{number}0")
        message = {"role": "assistant", "content": answer}
        body = {"message": message} if self.path == "/api/chat" else {
            "id": "1", "object": "chat.completion", "created": 0, "model": "judge", "system_fingerprint": "", "usage": {
                "completion_tokens": 1, "prompt_tokens": 1, "total_tokens": 2},
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}]}  # fmt: skip
        data = json.dumps(body if status == 200 else {"error": "model not found" if status == 404 else "busy"}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.questions, server.plan, server.answers, server.dies_after = [], [], {}, None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def judge(server, api: str = "openai", **settings) -> Judge:
    root = f"http://127.0.0.1:{server.server_address[1]}"
    return Judge(
        root if api == "ollama" else f"{root}/v1", **{"model": "judge", "api": api, "first_pause": 0.01, "timeout": 5, **settings}
    )


@pytest.mark.parametrize("api", ["openai", "ollama"])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_every_reply_is_judged_in_order_and_the_wire_is_right(server, tmp_path, api, concurrency):
    server.answers = {"3": "I cannot say."}
    verdicts = judge_replies(judge(server, api), RECORDS, REPLIES, tmp_path / "v.jsonl", concurrency, progress=False)
    assert [verdict.score for verdict in verdicts] == [0, 10, 20, None, 40, 50]
    assert summarize(verdicts) == {"judged": 6, "scored": 5, "unparsable": 1, "unanswered": 0, "mean_score": 24}
    assert len(server.questions) == 6
    path, question = server.questions[0]
    assert question["messages"] == [{"role": "user", "content": judge_prompt(RECORDS[0], REPLIES[0], "0-100")}]
    if api == "ollama":
        assert path == "/api/chat" and question["options"]["temperature"] == 0 and question["options"]["seed"] == 123
        assert question["stream"] is False
    else:
        assert path == "/v1/chat/completions" and question["temperature"] == 0 and question["seed"] == 123


def test_the_published_question():
    prompt = judge_prompt({"instruction": "Add.", "input": "1 2", "output": "3"}, "4", "0-100")
    assert prompt == (
        "Given the input `Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 2` and correct output `3`, score the model response `4` on a scale from 0 to 100, where "
        "100 is the best score. Respond with the integer number only."
    )


def test_a_temporary_failure_is_retried(server, tmp_path):
    server.plan = [503, 429, 200, 500]
    verdicts = judge_replies(judge(server), RECORDS[:2], REPLIES[:2], tmp_path / "v.jsonl", progress=False)
    assert [verdict.score for verdict in verdicts] == [0, 10] and len(server.questions) == 5


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_server_that_dies_keeps_what_was_scored_and_nothing_is_asked_twice(server, tmp_path, concurrency):
    server.dies_after = 3
    path = tmp_path / "v.jsonl"
    with pytest.raises(UserError, match="status 503.*is the server running.*3 of 6 answers are kept"):
        judge_replies(judge(server, retries=1), RECORDS, REPLIES, path, concurrency, progress=False)
    answered = {question["messages"][0]["content"] for _, question in server.questions[:3]}
    server.dies_after, server.questions = None, []
    with path.open("a", encoding="utf-8") as file:
        file.write('{"key": "torn by a ki')  # as a killed process leaves it
    verdicts = judge_replies(judge(server), RECORDS, REPLIES, path, concurrency, progress=False)
    assert [verdict.score for verdict in verdicts] == [0, 10, 20, 30, 40, 50]
    asked = {question["messages"][0]["content"] for _, question in server.questions}
    assert len(server.questions) == 3 and not asked & answered
    assert len(read_verdicts(path)) == 6 == len(path.read_text(encoding="utf-8").splitlines())
    # Another rubric is another question.
    judge_replies(judge(server, rubric="1-5"), RECORDS[:1], REPLIES[:1], path, progress=False)
    assert len(server.questions) == 4


def test_a_wrong_model_name_ends_after_one_question(server, tmp_path):
    with pytest.raises(UserError, match=r"refuses the model 'llama9' or the question, with status 404.*model not found.*0 of 6"):
        judge_replies(judge(server, model="llama9"), RECORDS, REPLIES, tmp_path / "v.jsonl", 4, progress=False)
    assert len(server.questions) == 1


@pytest.mark.parametrize("api", ["openai", "ollama"])
def test_a_missing_server_is_reported(tmp_path, api):
    nobody = Judge("http://127.0.0.1:9", "judge", api, retries=1, first_pause=0.01)
    with pytest.raises(UserError, match="no answer from the judge at http://127.0.0.1:9 after 2 attempts.*is the server running"):
        judge_replies(nobody, RECORDS, REPLIES, tmp_path / "v.jsonl", progress=False)


@pytest.mark.parametrize(
    ("answer", "rubric", "score"),
    [
        ("85", "0-100", 85),
        (" 85.\n", "0-100", 85),
        ("Score: 85/100", "0-100", 85),
        ("I rate it 4 out of 5.", "1-5", 4),
        ("Total rating: 4", "1-5", 4),
        ("100", "0-100", 100),
        ("0", "0-100", 0),
        ("0", "1-5", None),
        ("101", "0-100", None),
        ("-5", "0-100", None),
        ("8.5", "0-100", None),
        ("between 60 and 70", "0-100", None),
        ("excellent", "0-100", None),
        ("", "0-100", None),
    ],
)
def test_scores_are_read_or_refused_and_never_guessed(answer, rubric, score):
    assert parse_score(answer, rubric) == score
