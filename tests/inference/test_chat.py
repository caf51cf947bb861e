"""The conversation in the terminal: the model's input, and what is dropped when the context is full."""

import shutil

import pytest
from tiny_models import tiny_model

from gpt_scratch.data.instruction import set_prompt_style
from gpt_scratch.errors import UserError
from gpt_scratch.inference.chat import Chat, Prefix
from gpt_scratch.inference.chat_template import encode_chat
from gpt_scratch.inference.decoding import prepare_for_decoding
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="decoding.c needs a C compiler")


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_byte_level_bpe(["a"], vocab_size=258)
    set_prompt_style(tokenizer, "phi3")
    return tokenizer


def make(tokenizer, **settings) -> Chat:
    return Chat(tiny_model(vocab_size=258, max_position_embeddings=128), tokenizer, **{"max_new_tokens": 8, **settings})


def test_history_is_given_whole_and_the_reply_is_streamed(tokenizer, capsys):
    chat = make(tokenizer)
    first = chat.reply("Hi")
    assert capsys.readouterr().out.strip() == first
    chat.messages.append({"role": "user", "content": "b"})
    assert tokenizer.decode(chat.prompt_ids()) == (
        f"<|user|>\nHi\n<|assistant|>:\n{first}<|endoftext|>\n<|user|>\nb\n<|assistant|>:\n"
    )
    again = make(tokenizer)
    assert again.reply("Hi", stream=False) == first and len(again.messages) == 2
    again.reset()
    assert again.messages == [] and again.reply("Hi", stream=False) == first


@needs_compiler
def test_a_conversation_of_a_prepared_model_is_the_same(tokenizer):
    plain, fast = make(tokenizer), make(tokenizer, prepared=True)
    prepare_for_decoding(fast.model)
    for text in ("Hi", "And b?", "c"):
        assert fast.reply(text, stream=False) == plain.reply(text, stream=False)


@pytest.mark.parametrize("overrides", [{}, {"sliding_window": 5}])
@pytest.mark.parametrize("prepared", [False, pytest.param(True, marks=needs_compiler)])
def test_a_turn_computes_only_its_new_tokens(tokenizer, prepared, overrides):
    model = tiny_model(vocab_size=258, max_position_embeddings=128, **overrides)
    chat, rebuilt = (Chat(model, tokenizer, max_new_tokens=8, prepared=prepared) for _ in range(2))
    if prepared:
        prepare_for_decoding(model)
    computed, embed = [], model.model.embed_tokens
    embed.register_forward_hook(lambda module, given, output: computed.append(given[0].shape[1]))
    lengths = []
    for text in ("Hi", "And b?", "c", "x" * 60):  # of the last one, the oldest exchange is dropped
        rebuilt.prefix = Prefix(model)
        expected = rebuilt.reply(text, stream=False)
        computed.clear()
        assert chat.reply(text, stream=False) == expected
        lengths.append((computed[0], len(encode_chat(tokenizer, chat.messages[:-1], add_generation_prompt=True).ids)))
    new, whole = zip(*lengths)
    assert new[0] == whole[0]
    if overrides:
        assert new == whole
    else:  # at least the previous prompt is not computed again; the reply is only if its text has other tokens
        assert all(new[turn] <= whole[turn] - whole[turn - 1] for turn in (1, 2)) and whole[3] - 10 < new[3] <= whole[3]
    chat.reset()
    rebuilt.reset()
    assert chat.reply("Hi", stream=False) == rebuilt.reply("Hi", stream=False)


def test_an_interrupted_turn_leaves_nothing_to_the_next(tokenizer):
    chat, other = make(tokenizer), make(tokenizer)
    for each in (chat, other):
        each.reply("Hi", stream=False)

    def interrupt(module, given, output):
        raise KeyboardInterrupt

    hook = chat.model.lm_head.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        chat.reply("b" * 40, stream=False)
    hook.remove()
    chat.messages.pop()
    assert chat.reply("And c?", stream=False) == other.reply("And c?", stream=False)


def test_the_oldest_exchange_is_forgotten_and_the_system_message_stays(tokenizer):
    chat = make(tokenizer, system="S")
    chat.messages = [
        {"role": role, "content": text} for role, text in [("user", "1" * 60), ("assistant", "2"), ("user", "3" * 9)]
    ]
    assert tokenizer.decode(chat.prompt_ids()) == f"<|system|>\nS\n<|user|>\n{'3' * 9}\n<|assistant|>:\n"
    assert chat.messages == [{"role": "user", "content": "3" * 9}]


def test_a_long_message_gets_a_reply_of_what_is_left(tokenizer):
    """Small models have 128 positions, of which the style alpaca takes 80: chat.py's 64 tokens of a reply do not fit."""
    chat = make(tokenizer, max_new_tokens=60)
    chat.messages = [{"role": "user", "content": "x" * 90}]
    room = 128 - len(chat.prompt_ids())
    chat.reset()
    assert 0 < room < 60
    chat.reply("x" * 90, stream=False)  # a token more would have no position
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]


def test_what_cannot_fit_is_refused(tokenizer):
    chat = make(tokenizer)
    with pytest.raises(UserError, match="has 135 tokens, and the model's 128 positions leave no room for a reply: shorten it"):
        chat.reply("x" * 110)
    assert chat.messages == []  # taken back
    with pytest.raises(UserError, match="between 1 and 127"):
        make(tokenizer, max_new_tokens=128)
    tokenizer_without = train_byte_level_bpe(["a"], vocab_size=258)
    with pytest.raises(UserError, match="no chat template"):
        make(tokenizer_without)


class Arrived(Exception):
    """What the conversation of the script was made with."""


def test_each_flag_of_the_script_reaches_the_conversation(script, tokenizer, monkeypatch):
    module, seen = script("chat"), []
    model = tiny_model(vocab_size=258, max_position_embeddings=128)
    monkeypatch.setattr(module, "load_language_model", lambda *given: seen.append(given) or (model, tokenizer))
    monkeypatch.setattr(module, "prepare_as_asked", lambda model, weights: seen.append(weights) or weights != "none")

    def stop(*arguments):
        raise Arrived(*arguments)

    monkeypatch.setattr(module, "Chat", stop)
    flags = ["--system", "Be brief.", "--max_new_tokens", "9", "--temperature", "0.7", "--seed", "5", "--dtype", "bfloat16"]
    for more, weights in (([], "auto"), (["--weights", "int8"], "int8"), (["--weights", "none"], "none")):
        seen.clear()
        with pytest.raises(Arrived) as arrived:
            module.main(module.parse(["runs/chat", *flags, *more]))
        assert arrived.value.args == (model, tokenizer, "Be brief.", 9, 0.7, 5, weights != "none")
        assert seen == [("runs/chat", "bfloat16"), weights]
    with pytest.raises(Arrived) as arrived:
        module.main(module.parse(["runs/chat"]))
    assert arrived.value.args[2:] == (None, 64, 0.0, None, True)  # half of the positions at most


def test_the_commands_of_the_script_and_errors_within_the_conversation(script, tokenizer, monkeypatch, capsys):
    module = script("chat")
    model = tiny_model(vocab_size=258, max_position_embeddings=128)
    monkeypatch.setattr(module, "load_language_model", lambda *_: (model, tokenizer))
    lines = iter(["Hi", "", "caf\udce9", "x" * 200, "/reset", "Hi", "/quit", "never read"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    module.main(module.parse(["runs/chat", "--max_new_tokens", "8"]))
    printed = capsys.readouterr().out.splitlines()
    assert "(the text is not valid Unicode at character 3: '\\udce9')" in printed and "(forgotten)" in printed
    assert any(line.startswith("(the prompt with this message has") for line in printed)
    first, last = printed[1], printed[-1]
    assert first == last and list(lines) == ["never read"]
