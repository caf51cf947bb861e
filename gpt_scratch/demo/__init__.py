"""A page to play with models: `python -m gpt_scratch.demo --model DIR`. Needs the extra `demo`."""
