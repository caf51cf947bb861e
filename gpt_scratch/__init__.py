"""gpt_scratch: a GPT written from scratch that is native to the Hugging Face ecosystem.

Importing it registers the model with transformers' Auto classes, so that `AutoModelForCausalLM.from_pretrained` loads its
checkpoints without `trust_remote_code`. Every saved checkpoint contains the model's code.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from .configuration_gpt_scratch import VERSION, GPTScratchConfig
from .modeling_gpt_scratch import (
    GPTScratchForCausalLM,
    GPTScratchForSequenceClassification,
    GPTScratchModel,
    GPTScratchPreTrainedModel,
)

__version__ = VERSION

AutoConfig.register(GPTScratchConfig.model_type, GPTScratchConfig, exist_ok=True)
AutoModel.register(GPTScratchConfig, GPTScratchModel, exist_ok=True)
AutoModelForCausalLM.register(GPTScratchConfig, GPTScratchForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(GPTScratchConfig, GPTScratchForSequenceClassification, exist_ok=True)

__all__ = [
    "GPTScratchConfig",
    "GPTScratchForCausalLM",
    "GPTScratchForSequenceClassification",
    "GPTScratchModel",
    "GPTScratchPreTrainedModel",
]
