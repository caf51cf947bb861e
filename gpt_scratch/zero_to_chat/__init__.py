"""From text to a chat model: sizes, stages as processes, report. Used by `scripts/zero_to_chat.py`."""
