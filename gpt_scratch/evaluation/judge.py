"""Another language model as judge of replies, over Ollama's API or any OpenAI-compatible endpoint.

Two rubrics: the published prompt for 0 to 100 (Raschka, "Build a Large Language Model (From Scratch)", chapter 7), and a graded one
from 1 to 5. Temperature 0 and a fixed seed. Every answer is appended to a file as it comes, so that a run that was killed goes on
where it was and asks nothing twice. An answer without a usable score is kept as it is and counted, never scored as zero.
"""

import hashlib
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data.instruction import ALPACA_PREAMBLE
from ..errors import UserError, one_line

# Lowest and highest score of each rubric.
RUBRICS = {"0-100": (0, 100), "1-5": (1, 5)}
RETRIED_STATUS = {408, 409, 425, 429}  # and every 5xx: the server may recover


class Unreachable(Exception):
    """No answer, but perhaps the next time: the connection, a timeout, or a status that passes."""


@dataclass
class Verdict:
    """What the judge said of one reply; `score` is None where it gave no usable number."""

    key: str
    answer: str
    score: int | None


def judge_prompt(record: Mapping[str, Any], reply: str, rubric: str) -> str:
    """The question put to the judge about one reply to `record`, an Alpaca record (`instruction`, `input`, `output`)."""
    task = f"{ALPACA_PREAMBLE}\n\n### Instruction:\n{record['instruction']}"
    task += f"\n\n### Input:\n{record['input']}" if record.get("input") else ""
    if rubric == "0-100":
        return (
            f"Given the input `{task}` and correct output `{record['output']}`, score the model response `{reply}` on a scale from 0 to "
            "100, where 100 is the best score. Respond with the integer number only."
        )
    return (
        "You are an evaluation model. You are given an original prompt, the correct response to it, and a response that was generated "
        "by another model. Rate the generated response on a scale from 1 to 5:\n"
        "5: perfectly accurate, or nearly identical to the correct response\n"
        "4: mostly accurate, with minor errors or omissions\n"
        "3: partly accurate\n"
        "2: mostly inaccurate\n"
        "1: completely wrong or irrelevant\n\n"
        f"Original prompt:\n{task}\n\nCorrect response:\n{record['output']}\n\nGenerated response:\n{reply}\n\n"
        "Respond with the integer number only."
    )


def parse_score(answer: str, rubric: str) -> int | None:
    """The one whole number in the judge's answer, if it lies on the scale; else None.

    >>> parse_score("Score: 85/100", "0-100"), parse_score("4", "1-5"), parse_score("between 3 and 4", "1-5"), parse_score("450", "0-100")
    (85, 4, None, None)
    """
    lowest, highest = RUBRICS[rubric]
    found = re.fullmatch(rf"[^\d]*?(?<![-\d.,])(\d+)\s*(?:(?:/|out of)\s*{highest}\b)?[^\d]*", answer.strip())
    score = int(found[1]) if found else None
    return score if score is not None and lowest <= score <= highest else None


@dataclass
class Judge:
    """A judge behind a server.

    Args:
        url: an OpenAI-compatible endpoint such as `http://127.0.0.1:8000/v1`, or with `api` "ollama" the root of Ollama's server.
        model: its name on that server.
        api: "openai" or "ollama".
        rubric: "0-100" or "1-5".
        seed: sent with each question.
        timeout: seconds that one answer may take.
        retries: further attempts after a failed one, 1, 2, 4, ... seconds later.
        max_tokens: of an answer.
    """

    url: str
    model: str
    api: str = "openai"
    rubric: str = "0-100"
    seed: int = 123
    timeout: float = 60.0
    retries: int = 4
    max_tokens: int = 32
    first_pause: float = 1.0

    def key(self, prompt: str) -> str:
        """What an answer depends on; the place of the record does not matter."""
        parts = [self.model, self.rubric, str(self.seed), str(self.max_tokens), prompt]
        return hashlib.sha256("\x00".join(parts).encode("utf-8")).hexdigest()[:32]

    def ask(self, prompt: str) -> str:
        """The judge's answer, after retries with doubled pauses.

        Raises:
            UserError: the server refuses the question (wrong model name, ...), or cannot be reached any more.
        """
        pause = self.first_pause
        for attempt in range(self.retries + 1):
            try:
                return self._ask_ollama(prompt) if self.api == "ollama" else self._ask_openai(prompt)
            except Unreachable as error:
                if attempt == self.retries:
                    tries = f"{attempt + 1} attempts" if attempt else "1 attempt"
                    raise UserError(
                        f"no answer from the judge at {self.url} after {tries}: {error}; is the server running?"
                    ) from error
                time.sleep(pause)
                pause *= 2
        raise AssertionError("the loop returns or raises")

    def _ask_openai(self, prompt: str) -> str:
        from huggingface_hub import InferenceClient
        from huggingface_hub.errors import HfHubHTTPError, InferenceTimeoutError, OfflineModeIsEnabled

        client = InferenceClient(
            base_url=self.url, api_key=os.environ.get("JUDGE_API_KEY", "none"), timeout=self.timeout
        )  # fmt: skip
        try:
            completion = client.chat_completion(
                [{"role": "user", "content": prompt}],
                model=self.model,
                temperature=0.0,
                seed=self.seed,
                max_tokens=self.max_tokens,
            )
        except OfflineModeIsEnabled as error:
            raise UserError(
                "HF_HUB_OFFLINE is set, and huggingface_hub then refuses every server, this machine's own too: unset it for judging"
            ) from error
        except InferenceTimeoutError as error:
            raise Unreachable(f"timeout after {self.timeout:g} s") from error
        except HfHubHTTPError as error:
            raise self._refused(error.response.status_code, error.response.text) from error
        except OSError as error:
            raise Unreachable(one_line(error, 200)) from error
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("httpx", "httpx2", "httpcore"):
                raise
            raise Unreachable(one_line(error, 200)) from error
        return completion.choices[0].message.content or ""

    def _ask_ollama(self, prompt: str) -> str:
        question = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "stream": False,
            "options": {"seed": self.seed, "temperature": 0, "num_ctx": 2048, "num_predict": self.max_tokens},
        }
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/api/chat", json.dumps(question).encode("utf-8"), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                return json.load(response)["message"]["content"]
        except urllib.error.HTTPError as error:
            raise self._refused(error.code, error.read().decode("utf-8", "replace")) from error
        except OSError as error:
            raise Unreachable(one_line(error, 200)) from error

    def _refused(self, status: int, text: str) -> Exception:
        message = f"status {status}: {one_line(text, 200)}"
        if status >= 500 or status in RETRIED_STATUS:
            return Unreachable(message)
        return UserError(f"the judge at {self.url} refuses the model {self.model!r} or the question, with {message}")


def judge_replies(
    judge: Judge,
    records: Sequence[Mapping[str, Any]],
    replies: Sequence[str],
    path: str | Path,
    concurrency: int = 1,
    progress: bool = True,
) -> list[Verdict]:
    """A verdict on each reply, in order. Those in `path` (JSON lines) are taken from there, new ones are appended to it at once.

    Equal questions are asked once. The first question is asked alone, so that a wrong name or address ends the run after one request.

    Raises:
        UserError: the judge cannot be asked (any more); what was scored until then is in `path`.
    """
    prompts = [judge_prompt(record, reply, judge.rubric) for record, reply in zip(records, replies)]
    keys = [judge.key(prompt) for prompt in prompts]
    known = read_verdicts(path)
    questions = {key: prompt for key, prompt in zip(keys, prompts) if key not in known}
    done = len(set(keys)) - len(questions)
    if done:
        print(f"{done} of {len(set(keys))} answers are in {path} already")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    bar = tqdm(total=len(set(keys)), initial=done, desc="judged", disable=not progress)
    with open(path, "a", encoding="utf-8") as file, ThreadPoolExecutor(concurrency) as pool:

        def keep(key: str, answer: str) -> None:
            known[key] = Verdict(key, answer, parse_score(answer, judge.rubric))
            file.write(json.dumps(known[key].__dict__, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            bar.update()

        waiting = list(questions.items())
        futures: dict[Any, str] = {}
        try:
            for key, prompt in waiting[:1]:
                keep(key, judge.ask(prompt))
            futures = {pool.submit(judge.ask, prompt): key for key, prompt in waiting[1:]}
            for future in as_completed(futures):
                keep(futures[future], future.result())
        except UserError as error:
            pool.shutdown(wait=True, cancel_futures=True)
            for future, key in futures.items():  # what came in meanwhile is kept, too
                if key not in known and future.done() and not future.cancelled() and future.exception() is None:
                    keep(key, future.result())
            kept = sum(key in known for key in set(keys))
            raise UserError(
                f"{error}; {kept} of {len(set(keys))} answers are kept in {path}: run again to go on from there"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            bar.close()
    return [known[key] for key in keys]


def read_verdicts(path: str | Path) -> dict[str, Verdict]:
    """The verdicts in `path` by key; a last line that a killed run left unfinished is cut off.

    Raises:
        UserError: another line that is broken.
    """
    path = Path(path)
    if not path.is_file():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    verdicts = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            verdict = Verdict(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path} line {number} is no verdict of an earlier run: {one_line(error, 200)}; give another file"
            ) from error
        verdicts[verdict.key] = verdict
    return verdicts


def summarize(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """How many were scored, how many answers held no usable number, and the mean of those that did."""
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    return {
        "judged": len(verdicts),
        "scored": len(scores),
        "unparsable": len(verdicts) - len(scores),
        "mean_score": sum(scores) / len(scores) if scores else None,
    }
