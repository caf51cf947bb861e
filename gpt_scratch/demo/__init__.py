"""A page to try models in the browser: `python -m gpt_scratch.demo --model DIR`. Needs the extra `demo`."""
