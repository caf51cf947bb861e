"""A language model as judge of replies, with Ollama's API or an OpenAI-compatible endpoint.

Two rubrics: the published prompt from 0 to 100 (Raschka, "Build a Large Language Model (From Scratch)", chapter 7), and a graded one
from 1 to 5. Temperature 0 and a fixed seed. Every answer is appended to a file as it arrives, so that a killed run resumes where it
stopped and asks nothing twice. An answer without a usable score is kept and counted, never scored as zero.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ..data.instruction import ALPACA_PREAMBLE, prompt_messages, reply_text
from ..errors import UserError, one_line
from .bounded_post import Refused, Unreachable, Unusable, post_json

# Lowest and highest score of each rubric.
RUBRICS = {"0-100": (0, 100), "1-5": (1, 5)}
LONGEST_ANSWER = 4_096  # characters; longer answers are not searched for a score
RETRIED_STATUS = {408, 409, 425, 429}  # and every 5xx: the server may recover


@dataclass
class Verdict:
    """The judge's verdict on one reply. `score` is None if the answer holds no usable number; `unanswered` says why there is no answer."""

    key: str
    answer: str
    score: int | None
    unanswered: str | None = None


def judge_prompt(record: Mapping[str, Any], reply: str, rubric: str) -> str:
    """The prompt for the judge about one reply to `record`: the whole conversation in Alpaca's layout, with the last reply as reference."""
    task, output = _task(record), reply_text(record, "alpaca")
    if rubric == "0-100":
        return (
            f"Given the input `{task}` and correct output `{output}`, score the model response `{reply}` on a scale from 0 to "
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
        f"Original prompt:\n{task}\n\nCorrect response:\n{output}\n\nGenerated response:\n{reply}\n\n"
        "Respond with the integer number only."
    )


def _task(record: Mapping[str, Any]) -> str:
    messages = prompt_messages(record, "alpaca")
    task = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else ALPACA_PREAMBLE
    titles = {"user": "Instruction", "assistant": "Response", "system": "System", "tool": "Tool"}
    for message in messages:
        task += f"\n\n### {titles[message['role']]}:\n{message['content']}"
        task += f"\n{json.dumps(message['tool_calls'], ensure_ascii=False)}" if message.get("tool_calls") else ""
    return task


def parse_score(answer: str, rubric: str) -> int | None:
    """The only integer in the judge's answer, if it lies on the scale; otherwise None.

    >>> parse_score("Score: 85/100", "0-100"), parse_score("4", "1-5"), parse_score("between 3 and 4", "1-5"), parse_score("450", "0-100")
    (85, 4, None, None)
    """
    lowest, highest = RUBRICS[rubric]
    if len(answer) > LONGEST_ANSWER:  # the regular expression takes quadratic time
        return None
    found = re.fullmatch(rf"[^\d]*?(?<![-\d.,])(\d+)\s*(?:(?:/|out of)\s*{highest}\b)?[^\d]*", answer.strip())
    score = int(found[1]) if found and len(found[1]) <= 9 else None  # int() refuses more than 4,300 digits
    return score if score is not None and lowest <= score <= highest else None


@dataclass
class Judge:
    """A judge model on a server.

    Args:
        url: an OpenAI-compatible endpoint such as `http://127.0.0.1:8000/v1`, or the root URL of Ollama's server if `api` is "ollama".
        model: the model's name on that server.
        api: "openai" or "ollama".
        rubric: "0-100" or "1-5".
        seed: sent with each request.
        timeout: seconds that one answer may take.
        retries: further attempts after a failed one, after pauses of 1, 2, 4, ... seconds.
        max_tokens: maximum number of tokens in an answer.
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
        """Hash of everything that an answer depends on; the position of the record does not matter."""
        parts = [self.model, self.rubric, str(self.seed), str(self.max_tokens), prompt]
        return hashlib.sha256("\x00".join(parts).encode("utf-8")).hexdigest()[:32]

    def ask(self, prompt: str) -> str:
        """Ask the judge, with retries after doubling pauses, and return its answer.

        Raises:
            UserError: the server refuses the request (wrong model name, ...), or can no longer be reached.
            Unusable: its answer is malformed, endless or too large.
        """
        pause = self.first_pause
        for attempt in range(self.retries + 1):
            try:
                return self._ask_once(prompt)
            except Unreachable as error:
                if attempt == self.retries:
                    tries = f"{attempt + 1} attempts" if attempt else "1 attempt"
                    raise UserError(
                        f"no answer from the judge at {self.url} after {tries}: {error}; is the server running?"
                    ) from error
                time.sleep(pause)
                pause *= 2
        raise AssertionError("the loop returns or raises")

    def _ask_once(self, prompt: str) -> str:
        """The answer to one request, without retries.

        Raises:
            Unreachable: no answer.
            Unusable: an answer that cannot be used.
            UserError: the server refuses the request.
        """
        messages = [{"role": "user", "content": prompt}]
        root, headers = self.url.rstrip("/"), {}
        question: dict[str, Any] = {"model": self.model, "messages": messages, "stream": False}
        if self.api == "ollama":
            url = f"{root}/api/chat"
            question["options"] = {"seed": self.seed, "temperature": 0, "num_ctx": 2048, "num_predict": self.max_tokens}
        else:
            url = f"{root}/chat/completions" if root.endswith("/v1") else f"{root}/v1/chat/completions"
            question |= {"temperature": 0.0, "seed": self.seed, "max_tokens": self.max_tokens}
            headers["Authorization"] = f"Bearer {os.environ.get('JUDGE_API_KEY', 'none')}"
        try:
            answer = post_json(url, question, headers, self.timeout)
        except ValueError as error:  # not a valid URL
            raise UserError(f"the judge's address {self.url!r} cannot be used: {one_line(error, 200)}") from error
        except Refused as refused:
            if refused.status >= 500 or refused.status in RETRIED_STATUS:
                raise Unreachable(str(refused)) from refused
            message = f"the judge at {self.url} refuses the model {self.model!r} or the question, with {refused}"
            raise UserError(message) from refused
        path = ("message", "content") if self.api == "ollama" else ("choices", 0, "message", "content")
        return _text_at(answer, path)


def _text_at(answer: Any, path: Sequence[str | int]) -> str:
    """The text at `path` in an answer; lone surrogates, which cannot be written to a file, become question marks.

    >>> _text_at({"choices": ["a", "b"]}, ("choices", 1))
    'b'
    """
    for step in path:
        try:
            answer = answer[step]
        except (KeyError, IndexError, TypeError) as error:
            raise Unusable(f"its answer has no {'.'.join(map(str, path))}") from error
    if not isinstance(answer, str):
        raise Unusable(f"its answer's {'.'.join(map(str, path))} is {type(answer).__name__}, not text")
    return answer.encode("utf-8", "replace").decode("utf-8")


def judge_replies(
    judge: Judge,
    records: Sequence[Mapping[str, Any]],
    replies: Sequence[str],
    path: str | Path,
    concurrency: int = 1,
    progress: bool = True,
) -> list[Verdict]:
    """A verdict on each reply, in order. Verdicts in `path` (JSON lines) are reused, and new ones are appended to it at once.

    Equal questions are asked once. The first question is asked alone, so that a wrong name or address ends the run after one request.

    An unusable answer (malformed, endless, too large) counts as unanswered, and the run continues; it is not written to `path`, so that
    the next run asks again.

    Raises:
        UserError: the judge cannot be reached, or gave no usable answer; the scores so far are in `path`.
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
    with open(path, "a", encoding="utf-8") as file, bar:

        def keep(key: str, answer: str | Unusable) -> None:
            if isinstance(answer, Unusable):
                known[key] = Verdict(key, "", None, unanswered=str(answer))
            else:
                known[key] = Verdict(key, answer, parse_score(answer, judge.rubric))
                file.write(json.dumps({"key": key, "answer": answer, "score": known[key].score}, ensure_ascii=False) + "\n")
                file.flush()
                os.fsync(file.fileno())
            bar.update()

        try:
            _ask_all(judge, questions, keep, concurrency)
        except UserError as error:
            kept = sum(key in known and known[key].unanswered is None for key in set(keys))
            raise UserError(f"{error}; {kept} of {len(set(keys))} answers are kept in {path}: run again to resume") from error
    verdicts = [known[key] for key in keys]
    reasons = [verdict.unanswered for verdict in verdicts if verdict.unanswered is not None]
    if reasons and len(reasons) == len(verdicts):
        raise UserError(
            f"the judge at {judge.url} gave no answer that can be used to any of {len(questions)} questions: {reasons[0]}"
        )
    return verdicts


def _ask_all(judge: Judge, questions: Mapping[str, str], keep: Callable[[str, str | Unusable], None], concurrency: int) -> None:
    """Ask each of `questions` (key to prompt); `keep` gets each answer, or why it cannot be used, as soon as it arrives.

    Raises:
        UserError: the judge cannot be reached; the answers received so far are kept.
    """

    def ask(prompt: str) -> str | Unusable:
        try:
            return judge.ask(prompt)
        except Unusable as error:
            return error

    waiting = list(questions.items())
    futures: dict[Any, str] = {}
    with ThreadPoolExecutor(concurrency) as pool:
        try:
            for key, prompt in waiting[:1]:
                keep(key, ask(prompt))
            futures = {pool.submit(ask, prompt): key for key, prompt in waiting[1:]}
            for future in as_completed(list(futures)):
                keep(futures.pop(future), future.result())
        except UserError:
            pool.shutdown(wait=True, cancel_futures=True)
            for future, key in futures.items():  # answers that arrived in the meantime
                if future.done() and not future.cancelled() and future.exception() is None:
                    keep(key, future.result())
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def read_verdicts(path: str | Path) -> dict[str, Verdict]:
    """The verdicts in `path` by key; an incomplete last line, left by a killed run, is cut off.

    Raises:
        UserError: any other line is malformed.
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
            if (
                not isinstance(verdict.key, str)
                or not isinstance(verdict.answer, str)
                or not isinstance(verdict.score, int | None)
            ):
                raise TypeError("key and answer must be text, score a whole number or null")
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path} line {number} is not a verdict of an earlier run: {one_line(error, 200)}; give another file"
            ) from error
        verdicts[verdict.key] = verdict
    return verdicts


def summarize(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Number of replies scored, answers without a usable number, and missing answers; mean of the scores."""
    unanswered = sum(verdict.unanswered is not None for verdict in verdicts)
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    return {
        "judged": len(verdicts),
        "scored": len(scores),
        "unparsable": len(verdicts) - len(scores) - unanswered,
        "unanswered": unanswered,
        "mean_score": sum(scores) / len(scores) if scores else None,
    }
