"""A tiny checkpoint at both ends of the architecture."""

from tiny_checkpoints import checkpoint, style, tokenizer  # noqa: F401
