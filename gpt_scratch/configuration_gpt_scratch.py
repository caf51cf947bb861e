"""Configuration of the GPT: sizes, the architecture choices, dropout, initialization and special tokens.

The defaults are GPT-2 small (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", table 2;
OpenAI's `hparams.json` of the 124M release) without query/key/value biases. Independent settings turn it into a model
of the Llama family (Touvron et al. 2023): `position_embedding_type`, `norm_type`, `mlp_type`,
`num_key_value_heads`, and the three biases.

The names of *Build a Large Language Model (From Scratch)* (`emb_dim`, `n_layers`, ...) and of OpenAI's GPT-2 (`n_embd`,
`n_layer`, ...) are accepted as keyword arguments and as attributes; only the standard names are written to `config.json`.

This file is copied into every saved checkpoint, so it imports only torch and transformers.
"""

# mypy: no-strict-optional
# (optional fields are filled in by __init__; their types still include None)

import inspect
import re
import sys
from typing import Any, NoReturn, get_args

from transformers import __version__ as TRANSFORMERS
from transformers.activations import ACT2FN
from transformers.configuration_utils import PretrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

VERSION = "0.2.0"  # of this package, and of the code copied into checkpoints

# Lets every checkpoint be loaded with every head with `trust_remote_code=True`. save_pretrained alone would list
# only the class that is saved, and a language model could not be loaded as a classifier.
AUTO_MAP = {
    "AutoConfig": "configuration_gpt_scratch.GPTScratchConfig",
    "AutoModel": "modeling_gpt_scratch.GPTScratchModel",
    "AutoModelForCausalLM": "modeling_gpt_scratch.GPTScratchForCausalLM",
    "AutoModelForSequenceClassification": "modeling_gpt_scratch.GPTScratchForSequenceClassification",
}

# Field to its allowed values.
CHOICES = {
    "position_embedding_type": ("learned", "rope"),
    "norm_type": ("layernorm", "rmsnorm"),
    "mlp_type": ("plain", "gated"),
    "initialization": ("gpt2", "gpt2_zero", "pytorch"),
    "loss_implementation": ("full", "chunked"),
    "problem_type": (None, "regression", "single_label_classification", "multi_label_classification"),
}

# rope_type to its required settings in `rope_parameters`, besides rope_theta.
ROPE_FACTORS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
ROPE_OPTIONS = {"yarn": ("attention_factor", "beta_fast", "beta_slow")}  # optional settings

# Larger than any existing model: building such a model would hang or run out of memory.
LARGEST = {
    "num_hidden_layers": 10_000,
    "num_attention_heads": 100_000,
    "hidden_size": 1_000_000,
    "intermediate_size": 10_000_000,
    "vocab_size": 100_000_000,
    "num_labels": 10_000_000,
}


class GPTScratchConfigError(ValueError):
    """A wrong type, an invalid value or a contradiction in a configuration; the message names the field, the value and the reason."""


def refuse(reason: str) -> NoReturn:
    raise GPTScratchConfigError(reason)


def is_newer(version: str, than: str) -> bool:
    """Whether `version` is later than another: `is_newer("0.10.0", "0.9.1")`."""
    first, second = ([int(number) for number in re.findall(r"\d+", text)[:3]] for text in (version, than))
    return first > second


def register_with_peft() -> None:
    """Register this model in peft's tables of default target modules, if peft is imported, with the entries of Llama.

    The module names are those of Llama. `LoraConfig()` then needs no `target_modules` (query and value projections), nor do peft's other
    methods with such a table. peft is not imported here, and it works with the code of a checkpoint, too.
    """
    for name, table in vars(sys.modules.get("peft.utils.constants", object)).items():
        if name.startswith("TRANSFORMERS_MODELS_TO_") and isinstance(table, dict) and "llama" in table:
            table.setdefault(GPTScratchConfig.model_type, table["llama"])


class GPTScratchConfig(PretrainedConfig):
    r"""
    Configuration of [`GPTScratchModel`] and its heads. Keyword arguments only.

    Sizes:
        vocab_size (`int`): rows of the token embedding.
        hidden_size (`int`): width C of the hidden states (book `emb_dim`, GPT-2 `n_embd`).
        num_hidden_layers (`int`): number of blocks (`n_layers`, `n_layer`).
        num_attention_heads (`int`): query heads H (`n_heads`, `n_head`).
        num_key_value_heads (`int`, *optional*): key/value heads; fewer than H is grouped-query attention (Ainslie et al.
            2023). `None` means H.
        head_dim (`int`, *optional*): width D of a head. `None` means hidden_size / num_attention_heads.
        intermediate_size (`int`, *optional*): inner width of the MLP (GPT-2 `n_inner`). `None` means 4 C for a plain MLP, and
            8/3 C rounded up to a multiple of 64 for a gated one, which has the same number of parameters.
        max_position_embeddings (`int`): longest sequence (`context_length`, `n_positions`, `n_ctx`), in tokens.

    Architecture:
        position_embedding_type (`str`): `"learned"` absolute positions added to the token embedding (GPT-2), or `"rope"`,
            rotary positions in every attention (Su et al. 2021).
        rope_parameters (`dict`, *optional*): only with `"rope"`: `rope_theta` (default 10000), `rope_type` (`"default"`, or, for longer
            contexts, `"linear"`, `"dynamic"`, `"yarn"` or `"llama3"`) and the factors of that type, named as in transformers.
        norm_type (`str`): `"layernorm"` (Ba et al. 2016) or `"rmsnorm"` (Zhang & Sennrich 2019).
        norm_eps (`float`): added to the variance inside the square root.
        mlp_type (`str`): `"plain"` (up, activation, down) or `"gated"` (Shazeer 2020).
        hidden_act (`str`): activation of the MLP, any name in `transformers.activations.ACT2FN`. `"gelu_new"` is GPT-2's tanh
            approximation, `"gelu"` is exact (nanoGPT), `"silu"` is Llama's.
        qk_norm (`bool`): RMS norm of each head's queries and keys, before rotary positions (Henry et al. 2020; Qwen 3),
            which keeps attention logits bounded at high learning rates.
        qkv_bias (`bool`): biases of the query, key and value projections (GPT-2 `True`; the book and Llama `False`).
        o_bias (`bool`): bias of the attention's output projection.
        mlp_bias (`bool`): biases of the MLP.
        lm_head_bias (`bool`): a bias of the output head (Karpathy's lecture GPT; GPT-2 and Llama have none).
        sliding_window (`int`, *optional*): number of tokens that each token attends to, including itself, in every layer
            (Mistral 7B v0.1, Jiang et al. 2023, section 2). `None` means all previous tokens.
        tie_word_embeddings (`bool`): the output head shares the weights of the token embedding (GPT-2 `True`, the book `False`).

    Training:
        embedding_dropout, attention_dropout, residual_dropout (`float`): probabilities. The book's `drop_rate` sets all three.
        initialization (`str`): `"gpt2"`: every weight normal(0, `initializer_range`), projections into the residual
            stream scaled by 1/sqrt(2 layers), biases zero. `"pytorch"`: the default of `nn.Linear` and
            `nn.Embedding`, used for the book's published curves. `"gpt2_zero"`: as `"gpt2"`, but the projections
            into the residual stream are zero, so every block starts as the identity (Zhang et al. 2019, Fixup).
        initializer_range (`float`): standard deviation for `"gpt2"`.

        loss_implementation (`str`): `"full"` computes all logits and their cross-entropy. `"chunked"` computes them in chunks: a
            training step is faster and needs far less memory, but returns `logits=None` in training mode.

    Generation and special tokens:
        use_cache (`bool`): return key/value caches outside of training.
        pad_token_id, bos_token_id, eos_token_id (`int`, *optional*): 50256 is GPT-2's `<|endoftext|>`; `None` if the
            vocabulary is too small to contain it.

        gpt_scratch_version (`str`, *optional*): release that wrote this configuration. If it is newer than this code, a warning is
            logged; if it has an unknown setting, an error is raised.

    Raises:
        GPTScratchConfigError: a `ValueError` whose message names the field, the value and the reason. Unknown keyword arguments are
            stored as attributes, as in every transformers configuration.

    >>> from gpt_scratch import GPTScratchConfig
    >>> config = GPTScratchConfig(context_length=256, emb_dim=768, n_heads=12, n_layers=12, drop_rate=0.1, qkv_bias=False)
    >>> config.max_position_embeddings, config.residual_dropout
    (256, 0.1)
    """

    model_type = "gpt_scratch"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]
    attribute_map = {
        # *Build a Large Language Model (From Scratch)*
        "context_length": "max_position_embeddings",
        "emb_dim": "hidden_size",
        "n_heads": "num_attention_heads",
        "n_layers": "num_hidden_layers",
        # OpenAI's and transformers' GPT-2
        "n_vocab": "vocab_size",
        "n_positions": "max_position_embeddings",
        "n_ctx": "max_position_embeddings",
        "n_embd": "hidden_size",
        "n_head": "num_attention_heads",
        "n_layer": "num_hidden_layers",
        "n_inner": "intermediate_size",
        "activation_function": "hidden_act",
        "layer_norm_epsilon": "norm_eps",
        "embd_pdrop": "embedding_dropout",
        "attn_pdrop": "attention_dropout",
        "resid_pdrop": "residual_dropout",
    }
    # Megatron-style sharding: column-parallel into the heads and the MLP, row-parallel back into the residual stream.
    base_model_tp_plan = {
        "layers.*.self_attn.q_proj": "colwise",
        "layers.*.self_attn.k_proj": "colwise",
        "layers.*.self_attn.v_proj": "colwise",
        "layers.*.self_attn.o_proj": "rowwise",
        "layers.*.mlp.up_proj": "colwise",
        "layers.*.mlp.down_proj": "rowwise",
    }
    base_model_pp_plan = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    def __init__(
        self,
        *,
        vocab_size: int = 50257,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        num_key_value_heads: int | None = None,
        head_dim: int | None = None,
        intermediate_size: int | None = None,
        max_position_embeddings: int = 1024,
        position_embedding_type: str = "learned",
        rope_parameters: dict | None = None,
        norm_type: str = "layernorm",
        norm_eps: float | int = 1e-5,
        mlp_type: str = "plain",
        hidden_act: str = "gelu_new",
        qk_norm: bool = False,
        qkv_bias: bool = False,
        o_bias: bool = True,
        mlp_bias: bool = True,
        lm_head_bias: bool = False,
        sliding_window: int | None = None,
        tie_word_embeddings: bool = True,
        embedding_dropout: float | int = 0.1,
        attention_dropout: float | int = 0.1,
        residual_dropout: float | int = 0.1,
        initialization: str = "gpt2",
        initializer_range: float | int = 0.02,
        loss_implementation: str = "full",
        use_cache: bool = True,
        pad_token_id: int | None = None,
        bos_token_id: int | None = 50256,
        eos_token_id: int | list[int] | None = 50256,
        gpt_scratch_version: str | None = None,
        **kwargs: Any,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_key_value_heads
        self.head_dim = head_dim
        self.intermediate_size = intermediate_size
        self.max_position_embeddings = max_position_embeddings
        self.position_embedding_type = position_embedding_type
        self.rope_parameters = rope_parameters
        self.norm_type = norm_type
        self.norm_eps = norm_eps
        self.mlp_type = mlp_type
        self.hidden_act = hidden_act
        self.qk_norm = qk_norm
        self.qkv_bias = qkv_bias
        self.o_bias = o_bias
        self.mlp_bias = mlp_bias
        self.lm_head_bias = lm_head_bias
        self.sliding_window = sliding_window
        self.tie_word_embeddings = tie_word_embeddings
        self.embedding_dropout = embedding_dropout
        self.attention_dropout = attention_dropout
        self.residual_dropout = residual_dropout
        self.initialization = initialization
        self.initializer_range = initializer_range
        self.loss_implementation = loss_implementation
        self.use_cache = use_cache
        self.pad_token_id = pad_token_id
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self._apply_aliases(kwargs)
        self._refuse_wrong_types()
        self._refuse_impossible_sizes(kwargs.get("num_labels"))
        self._derive_what_was_left_open()
        if self.mlp_type == "gated":
            self.base_model_tp_plan = {**self.base_model_tp_plan, "layers.*.mlp.gate_proj": "colwise"}
        self.auto_map = {**(kwargs.pop("auto_map", None) or {}), **AUTO_MAP}
        rope_parameters = self._join_rotary_settings(kwargs)
        # transformers 4 sets these from its own arguments and would overwrite them
        shared = {name: getattr(self, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings")}
        if is_newer("4.48.0", TRANSFORMERS):  # whose pipelines load a tokenizer only if the configuration names its class
            kwargs.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
        super().__init__(**shared, **kwargs)
        self.rope_parameters = rope_parameters
        self._compare_versions(gpt_scratch_version, kwargs)
        self.gpt_scratch_version = VERSION
        self.validate_architecture()

    def _derive_what_was_left_open(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            if self.hidden_size % self.num_attention_heads:
                refuse(
                    f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}: "
                    "the heads would not be of equal width"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.intermediate_size is None:
            gated = self.mlp_type == "gated"
            self.intermediate_size = -(-8 * self.hidden_size // (3 * 64)) * 64 if gated else 4 * self.hidden_size
        # 50256 is the default for GPT-2's vocabulary; it would be out of range in a smaller one.
        if self.vocab_size <= 50256:
            self.bos_token_id = None if self.bos_token_id == 50256 else self.bos_token_id
            self.eos_token_id = None if self.eos_token_id == 50256 else self.eos_token_id

    def to_dict(self) -> dict[str, Any]:
        """Also registers the model with peft, which calls this before it looks up its target modules."""
        register_with_peft()
        return super().to_dict()

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        self.validate_architecture()
        super().save_pretrained(save_directory, *args, **kwargs)

    def _compare_versions(self, written_by: str | None, kwargs: dict) -> None:
        if not isinstance(written_by, str | None):
            refuse(f"gpt_scratch_version is {written_by!r}: a release such as {VERSION!r} is needed")
        if written_by is None or not is_newer(written_by, VERSION):
            return
        advice = "upgrade the package, or run the code in the checkpoint with trust_remote_code=True"
        known = PretrainedConfig().to_dict().keys() | {
            "dtype",
            "torch_dtype",
            "attn_implementation",
            "name_or_path",
            "num_labels",
        }
        unknown = sorted(name for name in kwargs.keys() - known if not name.startswith("_"))
        if unknown:
            refuse(
                f"this checkpoint was written by gpt_scratch {written_by}, and {VERSION} does not know its {', '.join(unknown)}: {advice}"
            )
        logger.warning(f"this checkpoint was written by gpt_scratch {written_by}, newer than the installed {VERSION}: {advice}")

    def _join_rotary_settings(self, kwargs: dict) -> dict | None:
        """Merge `rope_theta` and `rope_scaling`, the names of transformers 4, from `kwargs` into `rope_parameters`."""
        theta, scaling = kwargs.pop("rope_theta", None), kwargs.pop("rope_scaling", None)
        partial = kwargs.pop("partial_rotary_factor", None)
        given = {"rope_theta": theta, "rope_scaling": scaling, "partial_rotary_factor": partial}
        # Not an attribute while the base class is initialized: from 5.0 on it would fill in defaults and validate them.
        rope = self.__dict__.pop("rope_parameters")
        given |= {"rope_parameters": rope}
        if self.position_embedding_type != "rope":
            for name, value in given.items():
                if value:
                    refuse(
                        f"{name} is given but position_embedding_type is {self.position_embedding_type!r}: "
                        'rotary settings need position_embedding_type="rope"'
                    )
            return None
        if partial not in (None, 1, 1.0):
            refuse(f"partial_rotary_factor is {partial!r}: only whole heads are rotated")
        rope = {**(scaling or {}), **(rope or {})}
        if theta is not None and rope.get("rope_theta", theta) != theta:
            refuse(f"rope_theta is {theta}, and rope_parameters say {rope['rope_theta']}: give one of them")
        rope.setdefault("rope_theta", 10000.0 if theta is None else theta)
        older_name = rope.pop("type", None)
        rope["rope_type"] = rope.get("rope_type") or older_name or "default"
        return rope

    @classmethod
    def _fields(cls) -> dict[str, inspect.Parameter]:
        """The parameters of `__init__` with their types and defaults."""
        parameters = inspect.signature(GPTScratchConfig.__init__).parameters
        return {name: parameters[name] for name in parameters if name not in ("self", "gpt_scratch_version", "kwargs")}

    def _refuse_wrong_types(self) -> None:
        for name, field in self._fields().items():
            value, allowed = getattr(self, name), get_args(field.annotation) or (field.annotation,)
            fits = type(value) in allowed or (list[int] in allowed and type(value) is list and {type(x) for x in value} <= {int})
            if not fits:
                types = " or ".join("None" if kind is type(None) else getattr(kind, "__name__", str(kind)) for kind in allowed)
                refuse(f"{name} is {value!r}, of type {type(value).__name__}: it must be of type {types}")

    def _apply_aliases(self, kwargs: dict) -> None:
        """Move the book's and GPT-2's names from `kwargs` to the fields, before other fields are derived from them."""
        aliases: dict[str, tuple[str, ...]] = {alias: (field,) for alias, field in self.attribute_map.items()}
        aliases["drop_rate"] = ("embedding_dropout", "attention_dropout", "residual_dropout")
        defaults = {name: field.default for name, field in self._fields().items()}
        # Field to the argument that set it. A field passed with its default value looks the same as one not passed.
        given = {name: name for name, default in defaults.items() if getattr(self, name) != default}
        for alias in [alias for alias in aliases if alias in kwargs]:
            value = kwargs.pop(alias)
            for field in aliases[alias]:
                if field in given and getattr(self, field) != value:
                    refuse(f"{alias}={value!r} and {given[field]}={getattr(self, field)!r} both set {field}: give one of them")
                given[field] = alias
                setattr(self, field, value)

    def _refuse_impossible_sizes(self, num_labels: int | None) -> None:
        sizes = {"num_labels": num_labels}
        for name in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "intermediate_size",
            "max_position_embeddings",
            "sliding_window",
        ):
            sizes[name] = getattr(self, name)
        for name, value in sizes.items():
            if value is not None and value < 1:
                refuse(f"{name} is {value}: it must be at least 1")
            if value is not None and value > LARGEST.get(name, value):
                refuse(f"{name} is {value:,}: more than {LARGEST[name]:,} is surely a mistake")

    def validate_architecture(self):
        """Validate all fields together: when a configuration is built, when a model is built from it, and when it is saved."""
        self._refuse_wrong_types()
        self._refuse_impossible_sizes(self.num_labels)
        if self.num_attention_heads % self.num_key_value_heads:
            refuse(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}: each key/value head serves an equal group of query heads"
            )
        for name in ("embedding_dropout", "attention_dropout", "residual_dropout"):
            if not 0 <= getattr(self, name) < 1:
                refuse(f"{name} is {getattr(self, name)}: a dropout probability must be in [0, 1)")
        if not 0 <= self.norm_eps < float("inf"):
            refuse(f"norm_eps is {self.norm_eps}: it must be finite and not negative")
        if not 0 < self.initializer_range < 10:
            refuse(f"initializer_range is {self.initializer_range}: a standard deviation in (0, 10) is needed")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                refuse(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(map(str, choices))}")
        if self.hidden_act not in ACT2FN:
            refuse(f"hidden_act is {self.hidden_act!r}: unknown activation; choose one of {', '.join(sorted(ACT2FN))}")
        if self.position_embedding_type == "rope":
            self._refuse_impossible_rope()
        elif self.rope_parameters is not None:
            refuse(f'rope_parameters is {self.rope_parameters}: rotary settings need position_embedding_type="rope"')

    def _refuse_impossible_rope(self) -> None:
        if self.head_dim % 2:
            refuse(f"head_dim is {self.head_dim}: rotary positions rotate pairs, so it must be even")
        rope = self.rope_parameters
        rope_type = rope["rope_type"]
        if rope_type not in ROPE_FACTORS:
            refuse(f"rope_type is {rope_type!r}: choose one of {', '.join(ROPE_FACTORS)}")
        needed, optional = ("rope_theta", *ROPE_FACTORS[rope_type]), ROPE_OPTIONS.get(rope_type, ())
        for name in (*needed, *optional):
            if name not in rope and name in needed:
                refuse(f"rope_parameters has no {name}: rope_type {rope_type!r} needs {', '.join(needed)}")
            if name in rope and not (type(rope[name]) in (int, float) and 0 < rope[name] < float("inf")):
                refuse(f"rope_parameters {name} is {rope[name]!r}: it must be a number above 0")
        # Several types may have the original length; llama3 uses it.
        for name in rope.keys() - {"rope_type", "original_max_position_embeddings", *needed, *optional}:
            known = ", ".join((*needed, *optional))
            refuse(f"rope_parameters {name} is {rope[name]!r}: rope_type {rope_type!r} knows only {known}")
        if rope.get("factor", 1) < 1:
            refuse(f"rope_parameters factor is {rope['factor']}: it stretches the positions, so it must be at least 1")
        if rope_type == "llama3" and rope["high_freq_factor"] <= rope["low_freq_factor"]:
            refuse(
                f"rope_parameters high_freq_factor {rope['high_freq_factor']} is not above low_freq_factor "
                f"{rope['low_freq_factor']}: the frequencies are blended between the two"
            )

    @property
    def drop_rate(self) -> float | int | None:
        """The book's single dropout rate; `None` if the three rates differ."""
        rates = {self.embedding_dropout, self.attention_dropout, self.residual_dropout}
        return rates.pop() if len(rates) == 1 else None

    @drop_rate.setter
    def drop_rate(self, value: float | int) -> None:
        self.embedding_dropout = self.attention_dropout = self.residual_dropout = value


GPTScratchConfig.register_for_auto_class()  # saving copies this file, too

__all__ = ["GPTScratchConfig", "GPTScratchConfigError"]
