"""ollama's Modelfile: its template, evaluated here as Go's template language evaluates it, writes what ours does."""

import copy
import json
import re

import pytest
from tiny_models import tiny_model

from gpt_scratch.data.instruction import CHAT_TEMPLATES
from gpt_scratch.errors import UserError, run_script
from gpt_scratch.export.modelfile import FIRST_LINE, go_template, modelfile_text, pieces_of

CONVERSATIONS = [
    [("user", "Hi {{ .System }}")],
    [("system", 'You are "brief".'), ("user", "Sum 2, 3?")],
    [("user", " a "), ("assistant", "b\n"), ("user", "ü🙂"), ("assistant", ""), ("user", "d")],
    [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")],
]


def go(template: str, messages: list[dict[str, str]]) -> str:
    """Go's text/template for the actions that ollama's templates use: range, if, else if, else, end, strings and fields."""
    tokens = re.split(r"\{\{ ((?:\"(?:[^\"\\]|\\.)*\"|[^}\"])*) \}\}", template)
    system = "\n\n".join(message["content"] for message in messages if message["role"] == "system")

    def true(condition: str, message) -> bool:
        if condition == "not .System":
            return not system
        return message["role"] == re.fullmatch(r'eq \.Role "(\w+)"', condition)[1]

    def block(i: int, message, active: bool) -> tuple[str, int]:
        """Text up to the `end` or `else` that closes this block, and its place."""
        text = ""
        while i < len(tokens):
            if i % 2 == 0:
                text, i = text + (tokens[i] if active else ""), i + 1
                continue
            action = tokens[i]
            if action == "end" or action.startswith("else"):
                return text, i
            if action == "range .Messages":
                parts, end = [], i
                for each in messages:
                    part, end = block(i + 1, each, active)
                    parts.append(part)
                text, i = text + "".join(parts), end + 1
            elif action.startswith("if "):
                done, condition = False, action.removeprefix("if ")
                while True:
                    chosen = active and not done and (condition is None or true(condition, message))
                    part, i = block(i + 1, message, chosen)
                    text, done = text + part, done or chosen
                    if tokens[i] == "end":
                        i += 1
                        break
                    condition = tokens[i].removeprefix("else if ") if tokens[i] != "else" else None
            else:
                value = message["content"] if action == ".Content" else json.loads(action)
                text, i = text + (value if active else ""), i + 1
        return text, i

    return block(0, None, True)[0]


@pytest.fixture
def chat(tokenizer):
    """A tokenizer of its own, whose template can be set."""
    return copy.deepcopy(tokenizer)


@pytest.mark.parametrize("style", CHAT_TEMPLATES)
def test_the_go_template_writes_what_ours_does(chat, style):
    chat.chat_template = CHAT_TEMPLATES[style]
    template = go_template(pieces_of(chat))
    assert "{{" in template and "\n" not in template
    for pairs in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in pairs]
        ours = chat.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert go(template, messages) == ours


@pytest.mark.parametrize("style", CHAT_TEMPLATES)
def test_llama_cpp_reads_the_same_conversation(chat, style, tmp_path):
    """llama.cpp applies the template in the file, tokenizes what ollama's writes, and answers as ours does."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python, which is compiled when it is installed")
    import torch
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    from gpt_scratch.export.gguf import export_gguf
    from gpt_scratch.inference.chat_template import apply_chat_template

    chat.chat_template = CHAT_TEMPLATES[style]
    eos = chat.eos_token_id
    ids = {"eos_token_id": eos, "bos_token_id": eos, "pad_token_id": eos}
    model = tiny_model("llama", vocab_size=len(chat), max_position_embeddings=512, **ids)
    model.save_pretrained(tmp_path / "chat")
    chat.save_pretrained(tmp_path / "chat")
    export_gguf(str(tmp_path / "chat"), str(tmp_path / "chat.gguf"), modelfile=True)
    template = re.search(r'TEMPLATE """(.*)"""', (tmp_path / "chat.Modelfile").read_text(encoding="utf-8"))[1]
    float32 = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    runtime = llama_cpp.Llama(str(tmp_path / "chat.gguf"), n_ctx=512, n_threads=1, verbose=False, **float32)
    formatter = Jinja2ChatFormatter(
        runtime.metadata["tokenizer.chat_template"], eos_token=chat.eos_token, bos_token=chat.bos_token
    )
    for pairs in CONVERSATIONS:
        messages = [{"role": role, "content": content} for role, content in pairs]
        ours = apply_chat_template(chat, messages, tokenize=False, add_generation_prompt=True)
        assert formatter(messages=messages).prompt == ours == go(template, messages)
        tokens = chat(ours, add_special_tokens=False)["input_ids"]
        assert runtime.tokenize(ours.encode(), add_bos=False, special=True) == tokens
        start = torch.tensor([tokens])
        asked = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones_like(start)}
        reply = model.generate(start, **asked)[0, len(tokens) :]
        grown = runtime.generate(tokens, temp=0.0, repeat_penalty=1.0)
        assert [next(grown) for _ in reply] == reply.tolist()


def test_an_unsupported_template_is_refused(chat):
    for template, words in (
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "leaves out or changes a message"),
        (
            "{% for m in messages %}[{{ loop.index }}]{{ m['content'] }}{% endfor %}",
            "does more than put text around messages",
        ),
        (None, "has none: finetune it"),
    ):
        chat.chat_template = template
        with pytest.raises(UserError, match=words):
            pieces_of(chat)


def test_a_bos_that_ollama_adds_itself_is_not_written_twice(chat):
    chat.chat_template = "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"
    text = modelfile_text("m.gguf", chat, [chat.eos_token_id], adds_bos=True, positions=64)
    assert text.count(json.dumps(chat.bos_token)) == 0 or chat.bos_token == chat.eos_token
    assert "if not .System" not in text
    assert json.dumps(chat.bos_token)[1:-1] in go_template(pieces_of(chat))


@pytest.mark.thorough
def test_the_script_writes_it_beside_the_file(script, chat, tmp_path, capsys):
    gguf = pytest.importorskip("gguf")
    chat.chat_template = CHAT_TEMPLATES["chatml"]
    eos = chat.eos_token_id
    tiny_model("gpt2", vocab_size=len(chat), max_position_embeddings=64, eos_token_id=eos).save_pretrained(tmp_path / "chat")
    chat.save_pretrained(tmp_path / "chat")
    module = script("export")

    def run(*flags):
        return run_script(
            lambda: module.main(module.parse(["gguf", str(tmp_path / "chat"), str(tmp_path / "chat.gguf"), *flags]))
        )

    run("--modelfile")
    lines = (tmp_path / "chat.Modelfile").read_text(encoding="utf-8").splitlines()
    assert lines[0] == FIRST_LINE and lines[1] == "FROM ./chat.gguf" and lines[3] == "PARAMETER num_ctx 64"
    assert lines[2].startswith('TEMPLATE """{{ range') and lines[4] == "PARAMETER repeat_penalty 1"
    assert lines[5:] == [f"PARAMETER stop {json.dumps(chat.eos_token)}"]
    written = gguf.GGUFReader(tmp_path / "chat.gguf").fields["tokenizer.chat_template"].contents()
    assert "generation" not in written.replace("add_generation_prompt", "") and "im_start" in written
    run("--modelfile")  # ours is replaced
    (tmp_path / "chat.Modelfile").write_text("FROM mine\n")
    (tmp_path / "chat.gguf").unlink()
    with pytest.raises(SystemExit):
        run("--modelfile")
    assert "is not a file that this package wrote" in capsys.readouterr().err
    assert (tmp_path / "chat.Modelfile").read_text() == "FROM mine\n" and not (tmp_path / "chat.gguf").exists()
