"""Streamed text is printed without control characters."""

import torch

from gpt_scratch.inference.generation import generate_texts
from gpt_scratch.inference.streaming import PrintableStreamer


def test_control_characters_are_escaped_in_streamed_text(pair, capsys):
    text = generate_texts(*pair, ["\x1b[2JTom"], max_new_tokens=10, stream=True)[0]
    assert capsys.readouterr().out.startswith("\\x1b[2JTom")
    streamer = PrintableStreamer(pair[1])
    streamer.put(torch.tensor([0]))
    streamer.put(torch.tensor(pair[1]("a\x1b]0;b\x07")["input_ids"]))
    streamer.end()
    assert capsys.readouterr().out == "a\\x1b]0;b\\x07\n" and isinstance(text, str)
