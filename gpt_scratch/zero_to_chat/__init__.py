"""From text to a model that answers: the sizes, the stages as processes, the report. `scripts/zero_to_chat.py` joins them."""
