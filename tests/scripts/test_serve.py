"""scripts/serve.py in a process of its own, asked over loopback by OpenAI's client and by the judge."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.data.instruction import set_prompt_style
from gpt_scratch.errors import UserError
from gpt_scratch.inference.chat import Chat
from gpt_scratch.inference.limits import Limits
from gpt_scratch.inference.served_model import ServedModel
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

ROOT = Path(__file__).resolve().parents[2]
WORDS = "one two three four five six seven eight nine ten"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model with learned positions, the kind that a server can run out of."""
    path = tmp_path_factory.mktemp("served")
    tokenizer = train_byte_level_bpe([WORDS], vocab_size=270)
    set_prompt_style(tokenizer, "phi3")
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = GPTScratchConfig(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=96, initializer_range=0.2, drop_rate=0.0
    )
    model = GPTScratchForCausalLM(config).eval()
    model.save_pretrained(path)
    return path, model, tokenizer


def test_replies_end_where_the_positions_do(checkpoint):
    path, _, tokenizer = checkpoint
    served = ServedModel(GPTScratchForCausalLM.from_pretrained(path).eval())
    config = served.model.generation_config
    config.max_new_tokens, config.eos_token_id = 1024, None
    ids = torch.tensor([tokenizer("one two three")["input_ids"]])
    assert served.model.generate(input_ids=ids, generation_config=config).shape == (1, 96)
    with pytest.raises(UserError, match="has 96 tokens"):
        served.model.generate(input_ids=ids.repeat(1, 96)[:, :96], generation_config=config)


class Arrived(Exception):
    """What the server was started with."""


def test_each_flag_reaches_the_server(script, monkeypatch):
    module = script("serve")

    def stop(*arguments):
        raise Arrived(*arguments)

    monkeypatch.setattr(module, "serve", stop)
    monkeypatch.setenv("GPT_SCRATCH_API_KEY", "key")
    limits = {field.name: type(field.default)(number) for number, field in enumerate(fields(Limits), start=3)}
    flags = ["--host", "localhost", "--port", "0", "--device", "cpu", "--dtype", "bfloat16", "--weights", "int8", "--allowed_hosts", "a", "b",
             "--allowed_origins", "https://c", *(word for name, value in limits.items() for word in (f"--{name}", str(value)))]  # fmt: skip
    with pytest.raises(Arrived) as arrived:
        module.main(module.parse(["runs/model", *flags]))
    assert arrived.value.args == (
        "runs/model", "localhost", 0, Limits(**limits), "key", ["a", "b"], ["https://c"], "int8", "cpu", "bfloat16")  # fmt: skip
    assert "GPT_SCRATCH_API_KEY" not in os.environ


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--weights", "float32"]], ids=["", "weights"])
def test_chat_streaming_completions_and_the_judge_over_loopback(checkpoint, tmp_path, flags):
    openai = pytest.importorskip("openai")
    pytest.importorskip("uvicorn")
    path, model, tokenizer = checkpoint
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        str(ROOT / "scripts" / "serve.py"),
        str(path),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
        *flags,
    ]
    with (tmp_path / "log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, tmp_path / "log")
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=300)
        messages = [{"role": "user", "content": "one two"}]
        settings = {"model": str(path), "messages": messages, "temperature": 0, "max_tokens": 12}
        whole = client.chat.completions.create(**settings).choices[0].message.content
        assert whole.strip() == Chat(model, tokenizer, max_new_tokens=12).reply("one two", stream=False)
        parts = [
            chunk.choices[0].delta.content or ""
            for chunk in client.chat.completions.create(**settings, stream=True)
            if chunk.choices
        ]
        assert "".join(parts) == whole and len([part for part in parts if part]) > 1
        text = client.completions.create(model=str(path), prompt="one two", temperature=0, max_tokens=8).choices[0].text
        ids = torch.tensor([tokenizer("one two")["input_ids"]])
        expected = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert text == tokenizer.decode(expected, skip_special_tokens=True)
        # No max_tokens: the server's 1024 are more than this model's 96 positions.
        assert client.chat.completions.create(model=str(path), messages=messages, temperature=0).choices[0].message.content
        replies = tmp_path / "replies.json"
        replies.write_text('[{"instruction": "a", "input": "", "output": "b", "model_response": "c"}]', encoding="utf-8")
        judging = [sys.executable, str(ROOT / "scripts" / "evaluate_instructions.py"), "--replies_file", str(replies), "--judge_model", str(path),
                   "--judge_url", f"http://127.0.0.1:{port}/v1", "--retries", "0"]  # fmt: skip
        done = subprocess.run(judging, env={**environment, "HF_HUB_OFFLINE": "0"}, capture_output=True, text=True)
        # This model's 96 positions are too few for the question: the server says so, and the script passes it on in one line.
        assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith("error: ")
    finally:
        server.terminate()
        server.wait(30)


def wait_for(url: str, server: subprocess.Popen, log: Path, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, log.read_text(encoding="utf-8")
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"no server within {seconds} s: {log.read_text(encoding='utf-8')}")
