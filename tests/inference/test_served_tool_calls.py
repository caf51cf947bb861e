"""The running server answers a call of a tool, which a model writes, in OpenAI's form: whole, streamed, and to OpenAI's own client."""

import json

import pytest
import torch
from served import serving

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM
from gpt_scratch.data.instruction import encode_record, set_prompt_style
from gpt_scratch.inference.limits import CHAT
from gpt_scratch.tokenization.byte_pair import END_OF_TEXT, PADDING, train_byte_level_bpe

pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")
pytestmark = pytest.mark.thorough

TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "now", "parameters": {"type": "object", "properties": {}}},
}
ASKED = {"role": "user", "content": "Rome?"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
RECORDS = [
    {"tools": [TOOL], "messages": [ASKED, {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}]},
    {"tools": [TOOL], "messages": [ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "sunny"},
                                   {"role": "assistant", "content": "Sunny."}]},
    {"messages": [ASKED, {"role": "assistant", "content": "I cannot look."}]},
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A model that was overfitted on these three conversations."""
    path = tmp_path_factory.mktemp("caller")
    tokenizer = train_byte_level_bpe([json.dumps(RECORDS)] * 2, 300, special_tokens=(END_OF_TEXT, PADDING, "<|im_start|>"))
    set_prompt_style(tokenizer, "chatml")
    text = tokenizer.apply_chat_template(RECORDS[1]["messages"], tools=[TOOL], tokenize=False)
    tokenizer = train_byte_level_bpe([text] * 2, 500, special_tokens=(END_OF_TEXT, PADDING, "<|im_start|>"))
    set_prompt_style(tokenizer, "chatml")
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 48, "n_layer": 2, "n_head": 2, "n_positions": 512, "drop_rate": 0.0}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = GPTScratchForCausalLM(GPTScratchConfig(**sizes, **ends))
    rows = [encode_record(record, tokenizer, "chatml", True, "last") for record in RECORDS]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(300):
        loss = sum(model(torch.tensor([ids]), labels=torch.tensor([labels]), use_cache=False).loss for ids, labels in rows)
        if float(loss.detach()) < 0.02:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.1
    model.save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    with serving(path / "model", path / "log") as running:
        yield running


def ask(server, **fields):
    status, _, text = server.ask(
        CHAT, {"model": server.model, "messages": [ASKED], "max_tokens": 100, "temperature": 0, **fields}
    )
    assert status == 200, text
    return json.loads(text)["choices"][0]


def test_a_call_is_answered_as_a_call_and_text_as_text(server):
    choice = ask(server, tools=[TOOL])
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "I look."
    [call] = choice["message"]["tool_calls"]
    assert call["type"] == "function" and call["id"]
    assert call["function"]["name"] == "weather" and json.loads(call["function"]["arguments"]) == {"city": "Rome"}
    plain = ask(server)
    assert plain["message"]["content"] == "I cannot look." and not plain["message"].get("tool_calls")


def test_openais_client_calls_a_tool_and_gives_its_result(server):
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none")
    settings = {"model": server.model, "tools": [TOOL], "temperature": 0, "max_tokens": 100}
    said = client.chat.completions.create(messages=[ASKED], **settings).choices[0].message
    [call] = said.tool_calls
    called = {"role": "assistant", "tool_calls": [call.model_dump()]}
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    answer = client.chat.completions.create(messages=[ASKED, called, result], **settings).choices[0]
    assert answer.message.content == "Sunny." and answer.finish_reason == "stop"

    content, calls, reason = "", [], None
    for chunk in client.chat.completions.create(messages=[ASKED], stream=True, **settings):
        for choice in chunk.choices:
            content += choice.delta.content or ""
            calls += choice.delta.tool_calls or []
            reason = choice.finish_reason or reason
    assert content == "I look." and reason == "tool_calls"
    assert [(one.function.name, json.loads(one.function.arguments)) for one in calls] == [("weather", {"city": "Rome"})]


def test_a_template_without_tools_refuses_them(server, tmp_path):
    from served import make_model

    make_model(tmp_path / "model")
    with serving(tmp_path / "model", tmp_path / "log") as running:
        status, error = running.error(CHAT, {"model": running.model, "messages": [ASKED], "tools": [TOOL]})
    assert status == 400 and "chat template does not support tools" in error["message"]
