"""Prints text while it is generated, without control characters, since model output is untrusted."""

from transformers import PreTrainedTokenizerBase, TextStreamer

from ..errors import printable


class PrintableStreamer(TextStreamer):
    """transformers' `TextStreamer` without prompt, special tokens and control characters (see [`printable`])."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print a piece of the text."""
        super().on_finalized_text(printable(text), stream_end)
