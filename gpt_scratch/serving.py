"""transformers' own OpenAI-compatible server, with this package's model registered.

The stock command `transformers serve` looks a checkpoint's class up as an attribute of the module `transformers`, where it cannot find
a class from elsewhere, whatever is registered or trusted.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from .errors import UserError
from .inference.decoding import compiled_generation, prepare_for_decoding
from .modeling_gpt_scratch import GPTScratchForCausalLM
from .releases_gpt_scratch import CACHE


class ServedGPTScratchForCausalLM(GPTScratchForCausalLM):
    """The language model as a server calls it: replies end where the model's learned positions do.

    The server asks for 1024 new tokens where the client names no number, whatever the model's context is, and a reply that ran into
    the end of the positions would be lost.
    """

    decoding_weights: str | None = None  # set on the class before the server loads its model: see `decoding.prepare_for_decoding`

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        model = super().from_pretrained(*args, **kwargs)
        return model if cls.decoding_weights is None else prepare_for_decoding(model, cls.decoding_weights)

    def generate(self, inputs=None, generation_config=None, **kwargs):
        ids = inputs if inputs is not None else kwargs.get("input_ids")
        if ids is not None and generation_config is not None and generation_config.max_new_tokens is not None:
            room = self.config.max_position_embeddings - ids.shape[1]
            if room < 1:
                raise ValueError(f"the conversation has {ids.shape[1]} tokens, and the model {ids.shape[1] + room} positions")
            generation_config.max_new_tokens = min(generation_config.max_new_tokens, room)
            if self.decoding_weights is not None and kwargs.get(CACHE) is None:
                kwargs |= compiled_generation(self, ids.shape[1] + generation_config.max_new_tokens)
        return super().generate(inputs, generation_config=generation_config, **kwargs)


# Where a served model is saved, or asked for its class, it is the model itself.
ServedGPTScratchForCausalLM.__name__ = GPTScratchForCausalLM.__name__


def serve(arguments: Sequence[str], weights: str | None = None) -> None:
    """Run `transformers serve` with `arguments`: a model's directory or Hub name, `--host`, `--port`, ...; returns when it is stopped.

    With `weights` the decoding step is compiled, with weights kept so: see `decoding.prepare_for_decoding`.

    Raises:
        UserError: fastapi or uvicorn is missing, or a directory without a model.
    """
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise UserError('serving needs fastapi and uvicorn: pip install "gpt_scratch[serving]"')
    for word in arguments[:1]:
        for name, what in {"config.json": "model", "tokenizer_config.json": "tokenizer"}.items():
            if Path(word).is_dir() and not (Path(word) / name).is_file():
                raise UserError(f"{word} holds no {name}, so it has no {what} to serve")
    from huggingface_hub.constants import HF_HUB_CACHE
    from transformers.cli import transformers as cli
    from transformers.cli.serving import model_manager

    ServedGPTScratchForCausalLM.decoding_weights = weights
    # This module object and no other is where the server looks: `import transformers` may give another one.
    model_manager.transformers.GPTScratchForCausalLM = ServedGPTScratchForCausalLM
    Path(HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)  # GET /v1/models fails where the cache folder does not exist
    sys.argv = ["transformers", "serve", *arguments]
    cli.app()
