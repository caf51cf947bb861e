"""Broken and hostile models and prompts are refused in one clear line, quickly, in little memory, and nothing is executed.

All cases run in one process of their own whose memory is limited, each with its time taken.
"""

import json
import shutil
import sys

import pytest
import torch
import warm

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

SECONDS, MEBIBYTES = 20, 600  # of one case; above what Python and its libraries take

DRIVER = """
import json, resource, sys, time
from gpt_scratch.inference import chat_template
from gpt_scratch.inference.chat import Chat
from gpt_scratch.data.instruction import encode_conversations, read_conversations
from gpt_scratch.errors import UserError
from gpt_scratch.inference.generation import generate_texts
from gpt_scratch.inference.loading import load_language_model as load

chat_template.SECONDS = 1

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

for line in sys.stdin:
    case = json.loads(line)
    resource.setrlimit(resource.RLIMIT_DATA, (int(peak() + 8192) * 2**20, resource.RLIM_INFINITY))
    before, start = peak(), time.perf_counter()
    try:
        model, tokenizer = load(case["model"])
        if "records" in case["prompt"]:
            encode_conversations(read_conversations(case["model"] + "/records.jsonl"), tokenizer, "alpaca", False, 32)
        elif tokenizer.chat_template:
            Chat(model, tokenizer, max_new_tokens=3).reply(eval(case["prompt"]), stream=False)
        else:
            generate_texts(model, tokenizer, [eval(case["prompt"])], max_new_tokens=3)
        message = "nothing was refused"
    except UserError as error:
        message = str(error)
    print(json.dumps({"message": message, "seconds": time.perf_counter() - start, "mebibytes": peak() - before}), flush=True)
"""


def edit_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def damage(name: str, folder) -> None:
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    if name == "truncated weights":
        weights.write_bytes(data[: len(data) // 2])
    elif name == "a header of all the memory":
        weights.write_bytes(b"\xff" * 7 + b"\x00" + data[8:])
    elif name == "a flipped bit in the header":
        data[20] ^= 0x40
        weights.write_bytes(data)
    elif name == "a flipped bit in the weights":  # cannot be distinguished from other weights
        data[-100] ^= 0x40
        weights.write_bytes(data)
    elif name in TEMPLATES:
        (folder / "chat_template.jinja").write_text(TEMPLATES[name], encoding="utf-8")
    elif name == "ids out of range":
        (folder / "records.jsonl").write_text(
            '{"input_ids": [1, 2], "labels": [1, 2]}\n{"input_ids": [1, 5000000000], "labels": [1, 2]}\n'
        )
    elif name == "labels out of range":
        (folder / "records.jsonl").write_text('{"input_ids": [1, 2], "labels": [1, -7]}\n')
    elif name == "billions of layers":
        edit_config(folder, num_hidden_layers=10**9)
    elif name == "a width beyond all memory":
        edit_config(folder, hidden_size=10**9, head_dim=None, intermediate_size=None)
    elif name == "a vocabulary beyond all memory":
        edit_config(folder, vocab_size=10**12)
    elif name == "a tokenizer that is too large":
        edit_config(folder, vocab_size=100)
    elif name == "a broken tokenizer":
        (folder / "tokenizer.json").write_text("{", encoding="utf-8")
    elif name == "code without trust":
        edit_config(folder, model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
        (folder / "evil.py").write_text(f"open({str(folder / 'executed')!r}, 'w')", encoding="utf-8")
    elif name == "a pickle with code":
        weights.unlink()
        code = b"cposix\nsystem\n(S'touch " + str(folder / "executed").encode() + b"'\ntR."
        (folder / "pytorch_model.bin").write_bytes(code)


RANGE = "{% for i in range(90000) %}"
TEMPLATES = {
    "a chat template that loops": 6 * RANGE + "{{ messages[0].content }}" + 6 * "{% endfor %}",
    "a chat template with code": "{{ messages.__class__.__mro__[-1].__subclasses__() }}",
}

CASES = {
    "truncated weights": ("'One'", "cannot be loaded"),
    "a header of all the memory": ("'One'", "cannot be loaded"),
    "a flipped bit in the header": ("'One'", "cannot be loaded"),
    "a flipped bit in the weights": ("'One'", "nothing was refused"),
    "billions of layers": ("'One'", "num_hidden_layers is 1,000,000,000"),
    "a width beyond all memory": ("'One'", "hidden_size is 1,000,000,000"),
    "a vocabulary beyond all memory": ("'One'", "vocab_size is 1,000,000,000,000"),
    "a tokenizer that is too large": ("'One'", ": the tokenizer has"),
    "a broken tokenizer": ("'One'", "cannot be loaded"),
    "code without trust": ("'One'", "contains custom code"),
    "a pickle with code": ("'One'", "cannot be loaded"),
    "a prompt of a million characters": ("'One day ' * 125000", "leave no room"),
    "a chat template that loops": ("'One'", "chat template cannot be rendered: it did not finish within 1 seconds"),
    "a chat template with code": ("'One'", "chat template cannot be rendered: access to attribute '__class__'"),
    "ids out of range": ("records", "records.jsonl row 1: input_ids contains 5000000000, but the tokenizer's ids are 0 to"),
    "labels out of range": ("records", "records.jsonl row 0: labels contains -7"),
    "a prompt of half a surrogate pair": ("'One ' + chr(0xd83d)", "not valid Unicode at character 4"),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    whole = root / "whole"
    tokenizer = train_byte_level_bpe(["One day, Anna lost her key. " * 20], vocab_size=300)
    GPTScratchForCausalLM(
        GPTScratchConfig(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ).save_pretrained(whole)
    tokenizer.save_pretrained(whole)
    torch.manual_seed(0)
    lines = []
    for number, (name, (prompt, _)) in enumerate(CASES.items()):
        folder = root / str(number)
        shutil.copytree(whole, folder)
        damage(name, folder)
        lines.append(json.dumps({"model": str(folder), "prompt": prompt}))
    done = warm.run([sys.executable, "-c", DRIVER], input="\n".join(lines), timeout=400)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(results) == len(CASES), done.stderr[-2000:]
    assert not list(root.glob("*/executed")), "code was executed"
    return dict(zip(CASES, results))


@pytest.mark.skipif(sys.platform == "win32", reason="memory limits are POSIX's")
@pytest.mark.fault("a model or prompt with {}", seconds=SECONDS, mebibytes=MEBIBYTES)
@pytest.mark.parametrize("name", CASES)
def test_it_is_refused_clearly_quickly_and_in_little_memory(results, name):
    result = results[name]
    assert CASES[name][1] in result["message"] and "\n" not in result["message"]
    assert result["seconds"] < SECONDS and result["mebibytes"] < MEBIBYTES
