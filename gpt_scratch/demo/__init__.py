"""A web page to try models: `python -m gpt_scratch.demo --model DIR`. Needs the extra `demo`."""
