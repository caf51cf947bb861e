"""Checkpoints written by other projects' own code, converted as a user does it, and compared with that code's own logits.

    git clone https://github.com/karpathy/nanoGPT clones/karpathy/nanoGPT     # and the other repositories that PROGRAMS names
    python tests/conversion/their_programs.py clones --output scripts/benchmark_results/formats.json

Nothing of them is in this repository: each program is imported from its clone, in a process of its own, with random weights of a tiny size,
and its checkpoint is saved as the program saves it. The tests in this folder check the same formats against models in plain torch.
"""

import argparse
import contextlib
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

V, T, C, H, L = 61, 64, 32, 4, 2  # vocabulary, positions, width, heads, layers
ROTARY = '{"context_length": 64, "rope_parameters": {"rope_theta": 5000.0}'


@dataclass
class Program:
    """`write(folder) -> model, file`: the stranger's model with random weights, and its checkpoint in `folder`.

    flags: of convert_checkpoint.py. refused: what the refusal must say, where the format is unknown or the function cannot be expressed.
    names: what the refusal asks for, where the function can be expressed: parts of the names of tensors, and what replaces them; None leaves
        the tensor out. look_alike: it has the tensors of another model and another function, which the conversion can only point out.
    """

    repository: str
    write: Callable[[Path], tuple[Any, Path]]
    flags: tuple[str, ...] = ()
    refused: str | None = None
    names: dict[str, str | None] | None = None
    look_alike: bool = False
    first: Callable[[Any], Any] = field(default=lambda output: output)  # the logits of what the model returns


PROGRAMS: dict[str, Program] = {}


def program(name: str, repository: str, *flags: str, **more: Any):
    """Register the function that writes a program's checkpoint; it runs with its clone first on `sys.path`."""

    def register(write: Callable[[Path], tuple[Any, Path]]) -> Callable[[Path], tuple[Any, Path]]:
        PROGRAMS[name] = Program(repository, write, flags, **more)
        return write

    return register


def overrides(text: str) -> tuple[str, str]:
    return "--config_overrides", text


@torch.no_grad()
def drawn(model: Any) -> Any:
    """Every weight drawn anew, norms around one."""
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        norm = parameter.ndim == 1 and not name.endswith(("bias", "shift"))
        parameter.copy_(0.25 * torch.randn(parameter.shape) + norm)
    return model.eval()


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def state(model: Any, path: Path) -> tuple[Any, Path]:
    """The usual way: `torch.save(model.state_dict(), path)`."""
    return model, saved(drawn(model).state_dict(), path)


def run_until(file: str, stop: str, **globals_: Any) -> dict[str, Any]:
    """The names that a script without functions defines before the line that starts with `stop`; its settings replaced."""
    text = Path(file).read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "their_script"}
    exec(compile(text[: re.search(rf"^{re.escape(stop)}", text, re.M).start()], file, "exec"), names)  # type: ignore[union-attr]
    names.update(globals_)
    return names


# ------------------------------------------------------------------------------------------------------------ named by this package


def _nanogpt(**settings: Any):
    from model import GPT, GPTConfig  # type: ignore[import-not-found]

    args = {"n_layer": L, "n_head": H, "n_embd": C, "block_size": T, "bias": False, "vocab_size": V, "dropout": 0.0} | settings
    return drawn(GPT(GPTConfig(**args))), args


def every_position(output: Any) -> Any:
    return output[0]


@program("nanoGPT, ckpt.pt", "karpathy/nanoGPT", first=every_position)
def nanogpt(folder: Path):
    model, args = _nanogpt()
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), "cpu")
    rest = {"optimizer": optimizer.state_dict(), "iter_num": 3, "best_val_loss": torch.tensor(1.0), "config": {"device": "cpu"}}
    content = {"model": model.state_dict(), "model_args": args} | rest
    return lambda ids: model(ids, ids), saved(content, folder / "ckpt.pt")  # without targets it computes the last position only


@program("nanoGPT, state dict alone", "karpathy/nanoGPT", *overrides(f"n_head={H}"), first=every_position)
def nanogpt_bare(folder: Path):
    model, _ = _nanogpt(bias=True)
    compiled = {"_orig_mod." + name: tensor for name, tensor in model.state_dict().items()}
    return lambda ids: model(ids, ids), saved(compiled, folder / "model.pt")


@program("minGPT", "karpathy/minGPT", *overrides(f"n_head={H}"), first=every_position)
def mingpt(folder: Path):
    from mingpt.model import GPT  # type: ignore[import-not-found]

    config = GPT.get_default_config()
    config.merge_from_dict({"model_type": None, "n_layer": L, "n_head": H, "n_embd": C, "vocab_size": V, "block_size": T})
    return state(GPT(config), folder / "model.pt")


@program("makemore", "karpathy/makemore", *overrides(f"n_head={H}"), first=every_position)
def makemore(folder: Path):
    import types

    sys.modules["torch.utils.tensorboard"] = types.SimpleNamespace(SummaryWriter=None)  # type: ignore[assignment]
    from makemore import ModelConfig, Transformer  # type: ignore[import-not-found]

    return state(Transformer(ModelConfig(T, V, L, C, C, H)), folder / "model.pt")


@program("Karpathy's lecture, gpt.py", "karpathy/ng-video-lecture", first=every_position)
def lecture(folder: Path):
    names = run_until(
        "gpt.py", "class Head", n_embd=C, n_head=H, n_layer=L, block_size=T, vocab_size=V, dropout=0.0, device="cpu"
    )
    names |= {"device": "cpu"}
    text = Path("gpt.py").read_text(encoding="utf-8")
    exec(text[text.index("class Head") : text.index("model = GPTLanguageModel()")], names)
    model = drawn(names["GPTLanguageModel"]())
    return lambda ids: (model(ids, ids)[0].view(*ids.shape, -1),), saved(model.state_dict(), folder / "model.pt")


def _llama2c():
    from model import ModelArgs, Transformer  # type: ignore[import-not-found]

    args = {
        "dim": C,
        "n_layers": L,
        "n_heads": H,
        "n_kv_heads": 2,
        "vocab_size": V,
        "multiple_of": 8,
        "max_seq_len": T,
        "dropout": 0.0,
    }
    model = drawn(Transformer(ModelArgs(**args)))
    return model, args, lambda ids: model(ids, ids)


@program("llama2.c, ckpt.pt", "karpathy/llama2.c")
def llama2c(folder: Path):
    model, args, forward = _llama2c()
    return forward, saved({"model": model.state_dict(), "model_args": args, "iter_num": 1}, folder / "ckpt.pt")


@program("llama2.c, .bin of version 0", "karpathy/llama2.c")
def llama2c_bin(folder: Path):
    from export import legacy_export  # type: ignore[import-not-found]

    model, _, forward = _llama2c()
    legacy_export(model, str(folder / "model.bin"))
    return forward, folder / "model.bin"


@program("llama2.c, .bin of version 1", "karpathy/llama2.c")
def llama2c_bin_1(folder: Path):
    from export import version1_export  # type: ignore[import-not-found]

    model, _, forward = _llama2c()
    version1_export(model, str(folder / "model.bin"))
    return forward, folder / "model.bin"


def _litgpt(folder: Path, **settings: Any):
    from litgpt.config import Config  # type: ignore[import-not-found]
    from litgpt.model import GPT  # type: ignore[import-not-found]
    from litgpt.utils import save_config  # type: ignore[import-not-found]

    sizes = {"block_size": T, "n_layer": L, "n_embd": C, "n_head": H, "vocab_size": V, "padded_vocab_size": 64}
    config = Config(name="tiny", **sizes | settings)
    model = drawn(GPT(config))
    folder = folder / "checkpoint"
    folder.mkdir()
    saved(model.state_dict(), folder / "lit_model.pth")
    save_config(config, folder)
    return model, folder


LLAMA_LIKE = {
    "rotary_percentage": 1.0,
    "parallel_residual": False,
    "bias": False,
    "norm_class_name": "RMSNorm",
    "mlp_class_name": "LLaMAMLP",
}


@program("litgpt, Llama's shape", "Lightning-AI/litgpt")
def litgpt(folder: Path):
    return _litgpt(folder, n_query_groups=2, intermediate_size=40, **LLAMA_LIKE)


@program("litgpt, Qwen 3's shape with a window", "Lightning-AI/litgpt")
def litgpt_qwen3(folder: Path):
    more = {"norm_qk": True, "head_size": 10, "n_query_groups": 2, "intermediate_size": 40, "sliding_window_size": 5}
    return _litgpt(folder, **more, **LLAMA_LIKE)


@program(
    "litgpt, Pythia's shape", "Lightning-AI/litgpt", refused="parallel_residual=True (it must be False); rotary_percentage=0.25"
)
def litgpt_pythia(folder: Path):
    return _litgpt(folder)


@program("nanochat", "karpathy/nanochat", refused="logits capped by a tanh (softcap)")
def nanochat(folder: Path):
    from nanochat.gpt import GPT, GPTConfig  # type: ignore[import-not-found]

    with torch.device("meta"):
        model = GPT(GPTConfig(T, V, L, H, H, C))
    model.to_empty(device="cpu")
    model.init_weights()
    return model, saved(model.state_dict(), folder / "model_000100.pt")


def _minimind(folder: Path, **settings: Any):
    from model.model_minimind import MiniMindConfig, MiniMindForCausalLM  # type: ignore[import-not-found]

    sizes = {
        "vocab_size": V,
        "num_attention_heads": H,
        "num_key_value_heads": 2,
        "max_position_embeddings": T,
        "intermediate_size": 48,
    }
    model = drawn(MiniMindForCausalLM(MiniMindConfig(hidden_size=C, num_hidden_layers=L, **sizes, **settings)))
    path = saved({name: tensor.half().cpu() for name, tensor in model.state_dict().items()}, folder / "pretrain_32.pth")
    model.load_state_dict(torch.load(path), strict=True)  # it saves halves, and loads them into floats
    return lambda ids: model(ids).logits, path


MINIMIND = overrides('{"max_position_embeddings": 64, "rope_parameters": {"rope_theta": 1000000.0}}')


@program("minimind, .pth", "jingyaogong/minimind", *MINIMIND)
def minimind(folder: Path):
    return _minimind(folder)


@program("minimind with experts", "jingyaogong/minimind", *MINIMIND, refused="has a mixture of experts")
def minimind_experts(folder: Path):
    return _minimind(folder, use_moe=True)


BOOK = "rasbt/LLMs-from-scratch"
BOOK_SIZES = {
    "vocab_size": V,
    "context_length": T,
    "emb_dim": C,
    "n_heads": H,
    "n_layers": L,
    "drop_rate": 0.0,
    "qkv_bias": False,
}


def _book(file: str, **settings: Any):
    return drawn(run_until(file, "def main()")["GPTModel"](BOOK_SIZES | settings))


@program("the book's GPTModel", BOOK, *overrides(f"n_heads={H}"))
def book(folder: Path):
    return state(_book("ch04/01_main-chapter-code/gpt.py"), folder / "model.pth")


@program("the book's fast GPTModel", BOOK, *overrides(f"n_heads={H}"))
def book_fast(folder: Path):
    sys.path.insert(0, "pkg")
    from llms_from_scratch.ch04 import GPTModelFast  # type: ignore[import-not-found]

    return state(GPTModelFast(BOOK_SIZES), folder / "model.pth")


@program("the book's grouped heads", BOOK, *overrides(f"n_heads={H}"))
def book_gqa(folder: Path):
    return state(_book("ch04/04_gqa/gpt_with_kv_gqa.py", n_kv_groups=2), folder / "model.pth")


@program("the book's sliding window", BOOK, *overrides(f"n_heads={H},sliding_window=5"))
def book_swa(folder: Path):
    return state(_book("ch04/06_swa/gpt_with_kv_swa.py", sliding_window_size=5, sliding_window_stride=-1), folder / "model.pth")


@program("the book's gated MLP", BOOK, *overrides(f"n_heads={H}"))
def book_ffn(folder: Path):
    return state(_book("ch04/07_moe/gpt_with_kv_ffn.py", hidden_dim=40), folder / "model.pth")


@program("the book's experts", BOOK, *overrides(f"n_heads={H}"), refused="a mixture of experts")
def book_moe(folder: Path):
    return state(
        _book("ch04/07_moe/gpt_with_kv_moe.py", hidden_dim=40, num_experts=4, num_experts_per_tok=2), folder / "model.pth"
    )


@program("the book's latent attention", BOOK, *overrides(f"n_heads={H}"), refused="multi-head latent attention")
def book_mla(folder: Path):
    return state(_book("ch04/05_mla/gpt_with_kv_mla.py", latent_dim=16), folder / "model.pth")


BOOK_ROTARY = BOOK_SIZES | {"hidden_dim": 40, "n_kv_groups": 2, "rope_base": 5000.0, "rope_freq": None, "dtype": torch.float32}


@program("the book's Llama 3", BOOK, *overrides(ROTARY + f', "n_heads": {H}}}'))
def book_llama3(folder: Path):
    sys.path.insert(0, "pkg")
    from llms_from_scratch.llama3 import Llama3Model  # type: ignore[import-not-found]

    return state(Llama3Model(BOOK_ROTARY), folder / "model.pth")


@program("the book's Qwen 3", BOOK, *overrides(ROTARY + "}"))
def book_qwen3(folder: Path):
    sys.path.insert(0, "pkg")
    from llms_from_scratch.qwen3 import Qwen3Model  # type: ignore[import-not-found]

    return state(Qwen3Model(BOOK_ROTARY | {"head_dim": 10, "qk_norm": True}), folder / "model.pth")


# ------------------------------------------------------------------------------------------------------- met by chance, named nowhere else

UNKNOWN = "rename its tensors to the names of that format"


TO_THE_BOOK: dict[str, str | None] = {
    "token_embedding": "tok_emb", "position_embedding": "pos_emb", "transformer_blocks": "trf_blocks", ".attention.": ".att.",
    ".linear.": ".out_proj.", "final_layer_norm": "final_norm", "layer_norm1": "norm1", "layer_norm2": "norm2",
}  # fmt: skip


@program(
    "JorgeVanco's GPTModel",
    "JorgeVanco/GPT-from-scratch",
    *overrides(f"n_heads={H},hidden_act=gelu"),
    refused=UNKNOWN,
    names=TO_THE_BOOK,
)
def jorge_vanco(folder: Path):
    from src.model.GPTModel import GPTModel  # type: ignore[import-not-found]

    return state(GPTModel(BOOK_SIZES), folder / "gpt_model_verdict.pth")


@program(
    "pguso's GPTModel",
    "pguso/gpt-from-scratch",
    *overrides(f"n_heads={H}"),
    refused=UNKNOWN,
    names=TO_THE_BOOK | {"feed_forward.net": "ff.layers", "lm_head": "out_head"},
)
def pguso(folder: Path):
    from src.config import ModelConfig  # type: ignore[import-not-found]
    from src.model.gpt import GPTModel  # type: ignore[import-not-found]
    from src.training.utils import save_checkpoint  # type: ignore[import-not-found]

    model = drawn(GPTModel(ModelConfig(V, T, C, H, L)))
    save_checkpoint(model, torch.optim.AdamW(model.parameters()), 1, folder / "checkpoint.pt")
    return model, folder / "checkpoint.pt"


TO_THE_LECTURE: dict[str, str | None] = {
    "token_embed": "token_embedding_table", "position_embed": "position_embedding_table", "attn_blocks": "blocks", ".attn.": ".sa.",
    ".mlp.hidden.": ".ffwd.net.0.", ".mlp.proj.": ".ffwd.net.2.", "layer_norm.": "ln_f.", "pos_idxs": None,
}  # fmt: skip


@program(
    "FareedKhan-dev's Transformer",
    "FareedKhan-dev/train-llm-from-scratch",
    refused=UNKNOWN,
    names=TO_THE_LECTURE,
    first=every_position,
)
def fareed_khan(folder: Path):
    from src.models.transformer import Transformer  # type: ignore[import-not-found]

    model = drawn(Transformer(H, C, T, V, L))
    return model, saved({"model_state_dict": model.state_dict(), "step": 3, "config": {"n_head": H}}, folder / "transformer.pt")


@program(
    "learn00000's TinyGPT",
    "learn00000/ZH-mini-gpt2",
    *overrides(f"n_head={H}"),
    refused=UNKNOWN,
    names={"wte.": "transformer.wte.", "wpe.": "transformer.wpe.", "blocks.": "transformer.h.", "ln_f.": "transformer.ln_f."},
    first=every_position,
)
def zh_mini_gpt2(folder: Path):
    from dataclasses import asdict

    from model.config import GPTConfig  # type: ignore[import-not-found]
    from model.gpt import TinyGPT  # type: ignore[import-not-found]

    model = drawn(TinyGPT(GPTConfig(V, T, C, L, H)))
    return model, saved({"step": 3, "model": model.state_dict(), "gpt_config": asdict(model.config)}, folder / "best.pt")


TO_NANOGPT: dict[str, str | None] = {
    "token_embedding_table": "transformer.wte", "position_embedding_table": "transformer.wpe", "blocks.": "transformer.h.",
    "in_proj_weight": "c_attn.weight", "in_proj_bias": "c_attn.bias", ".out_proj.": ".c_proj.", "ffwd.0": "mlp.c_fc", "ffwd.2": "mlp.c_proj",
    "ln1": "ln_1", "ln2": "ln_2", "ln_f": "transformer.ln_f",
}  # fmt: skip


@program(
    "NotShrirang's tinygpt",
    "NotShrirang/tinygpt",
    *overrides(f"n_head={H},hidden_act=relu"),
    refused=UNKNOWN,
    names=TO_NANOGPT,
    first=every_position,
)
def tinygpt(folder: Path):
    from tinygpt.config import GPTConfig  # type: ignore[import-not-found]
    from tinygpt.model import GPTLanguageModel  # type: ignore[import-not-found]

    return state(GPTLanguageModel(GPTConfig(V, T, C, H, L)), folder / "final_model.pt")


TO_LLAMA: dict[str, str | None] = {
    "token_emb": "model.embed_tokens", "blocks.": "model.layers.", ".attn.out.": ".self_attn.o_proj.", ".attn.": ".self_attn.",
    "ln1": "input_layernorm", "ln2": "post_attention_layernorm", ".ff.w.": ".mlp.gate_proj.", ".ff.v.": ".mlp.up_proj.",
    ".ff.w2.": ".mlp.down_proj.", "ln_f": "model.norm", "head.weight": "lm_head.weight",
}  # fmt: skip


@program(
    "eric-houzelle's MiniGPT",
    "eric-houzelle/mini-gpt",
    *overrides('{"context_length": 64, "rope_parameters": {"rope_theta": 10000.0}, "n_heads": 4, "norm_eps": 1e-6}'),
    refused=UNKNOWN,
    names=TO_LLAMA,
)
def mini_gpt(folder: Path):
    from model.model import MiniGPT  # type: ignore[import-not-found]

    model = drawn(MiniGPT(vocab_size=V, block_size=T, embed_dim=C, depth=L, heads=H, hidden_dim=40))
    return model, saved({"model_state_dict": model.state_dict(), "epoch": 0, "val_loss": 1.0}, folder / "best_miniGPT.pt")


@program("Andras7's GPT2Model", "Andras7/gpt2-pytorch", refused=UNKNOWN)
def andras7(folder: Path):
    from model import GPT2Model  # type: ignore[import-not-found]

    return state(GPT2Model(), folder / "model_partial")


@program("vossenwout's Transformer", "vossenwout/llm-from-scratch", refused=UNKNOWN)
def vossenwout(folder: Path):
    sys.path.insert(0, "src")
    from llm_from_scratch.transformer import Transformer  # type: ignore[import-not-found]

    model = drawn(Transformer(V, C, T, H, 40, L, 0.0))
    return model, saved(
        {"model_config": {"n_decoders": L}, "model_state_dict": model.state_dict(), "epoch": 1}, folder / "best.pt"
    )


def _free_code_camp():
    cells = json.loads(Path("v1.ipynb").read_text(encoding="utf-8"))["cells"]
    text = next("".join(cell["source"]) for cell in cells if "class Head" in "".join(cell["source"]))
    names: dict[str, Any] = {
        "__name__": "their_notebook",
        "torch": torch,
        "nn": torch.nn,
        "F": torch.nn.functional,
        "device": "cpu",
    }
    names |= {"n_embd": C, "n_head": H, "n_layer": L, "block_size": T, "dropout": 0.0}
    exec(text[: text.index("model = GPTLanguageModel")], names)
    return drawn(names["GPTLanguageModel"](V)), names


@program(
    "freeCodeCamp's course, the pickled model", "Infatoshi/fcc-intro-to-llms", refused="was written by pickle, not by torch.save"
)
def free_code_camp(folder: Path):
    import pickle
    import types

    model, names = _free_code_camp()
    sys.modules["their_notebook"] = types.ModuleType("their_notebook")  # so that its classes can be pickled
    vars(sys.modules["their_notebook"]).update(names)
    (folder / "model-01.pkl").write_bytes(pickle.dumps(model))
    return model, folder / "model-01.pkl"


@program("freeCodeCamp's course, its state dict", "Infatoshi/fcc-intro-to-llms", first=every_position, look_alike=True)
def free_code_camp_state(folder: Path):
    return state(_free_code_camp()[0], folder / "model.pt")


# ------------------------------------------------------------------------------------------------------------------------- running


def write_one(name: str, clone: Path, folder: Path) -> None:
    """In a process of its own: the checkpoint and what the program's own code computes."""
    os.chdir(clone)
    sys.path.insert(0, str(clone))
    described = PROGRAMS[name]
    with contextlib.redirect_stdout(sys.stderr):
        model, path = described.write(folder)
        ids = torch.randint(0, V, (3, T), generator=torch.Generator().manual_seed(0))
        logits = None
        if described.refused is None or described.names is not None:
            with torch.no_grad():
                logits = described.first(model(ids))
    torch.save({"path": str(path), "ids": ids, "logits": logits}, folder / "theirs.pt")


def check_one(name: str, clones: Path, folder: Path) -> dict[str, Any]:
    """A row of the table: what was converted with which command, and the largest difference, or the refusal."""
    described = PROGRAMS[name]
    clone = clones / described.repository
    row: dict[str, Any] = {"format": name, "repository": described.repository, "commit": _commit(clone)}
    folder.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, __file__, str(clones), "--write", name, "--folder", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        return row | {"failed": "their code: " + (done.stderr.strip().splitlines() or ["?"])[-1]}
    theirs = torch.load(folder / "theirs.pt")
    path, flags = theirs["path"], " ".join(f"'{flag}'" if " " in flag else flag for flag in described.flags)
    row["command"] = f"convert_checkpoint.py {Path(path).name} DIR {flags}".strip()
    said = convert([path, str(folder / "converted"), *described.flags]).replace(str(folder) + "/", "")
    if described.refused is not None or said:
        row["refused"] = said
        if described.refused is None or described.refused not in said:
            return row | {"failed": f"expected {described.refused or 'a conversion'}"}
        if described.names is None:
            return row
        said = convert([str(renamed(path, described.names)), str(folder / "converted"), *described.flags])
        row["renamed"] = True
        if said:
            return row | {"failed": "renamed: " + said}
    from transformers import AutoModelForCausalLM

    import gpt_scratch  # noqa: F401  registers the model

    model = AutoModelForCausalLM.from_pretrained(folder / "converted", dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(theirs["ids"]).logits
    expected = theirs["logits"].float()[..., : logits.shape[-1]]
    row |= {"difference": (logits - expected).abs().max().item(), "largest_logit": expected.abs().max().item()}
    same = row["largest_logit"] > 1 and row["difference"] < 1e-5 * max(1.0, row["largest_logit"])
    row |= {"look_alike": True} if described.look_alike else {}
    return (
        row
        if same != described.look_alike
        else row | {"failed": "another function" if described.look_alike is False else "the same function"}
    )


def convert(arguments: list[str]) -> str:
    """Run the script as a user does, but in this process; its error, or nothing."""
    from gpt_scratch.errors import run_script

    path = Path(__file__).parents[2] / "scripts" / "convert_checkpoint.py"
    sys.path.insert(0, str(path.parent))
    import convert_checkpoint  # type: ignore[import-not-found]

    error = io.StringIO()
    try:
        with contextlib.redirect_stderr(error), contextlib.redirect_stdout(io.StringIO()):
            run_script(lambda: convert_checkpoint.main(convert_checkpoint.parse(arguments)))
    except SystemExit:
        return error.getvalue().strip().splitlines()[-1]
    return ""


def renamed(path: str, names: dict[str, str | None]) -> Path:
    """The checkpoint with the names of another format, as scripts/README.md shows it."""
    content = torch.load(path, weights_only=True)
    content = next((content[key] for key in ("model_state_dict", "model") if key in content), content)
    tensors = {}
    for name, tensor in content.items():
        for theirs, known in names.items():
            if theirs in name and known is None:
                break
            name = name.replace(theirs, known or "")
        else:
            tensors[name] = tensor
    return saved(tensors, Path(path).with_name("renamed.pth"))


def _commit(clone: Path) -> str | None:
    noted = clone / "COMMIT"
    if noted.is_file():
        return noted.read_text().strip()
    done = subprocess.run(["git", "-C", str(clone), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or None


def main(arguments: list[str]) -> int:
    """Run the programs whose clones are there; the status is 1 where one did not do as it should."""
    import tempfile

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("clones", type=Path, help="directory of the clones, each as OWNER/NAME")
    parser.add_argument("--only", nargs="+", default=[], help="names, or parts of names, of programs")
    parser.add_argument("--output", help="file for the table as JSON")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    clones = args.clones.resolve()
    if args.write:
        write_one(args.write, clones / PROGRAMS[args.write].repository, args.folder)
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for i, name in enumerate(PROGRAMS):
            if args.only and not any(part in name for part in args.only):
                continue
            if not (clones / PROGRAMS[name].repository).is_dir():
                print(f"{name}: not run, {PROGRAMS[name].repository} is not in {args.clones}")
                continue
            row = check_one(name, clones, Path(scratch) / str(i))
            rows.append(row)
            figure = f"{row['difference']:.1e} of {row['largest_logit']:.1f}" if "difference" in row else row.get("refused", "")
            figure += " (renamed)" if "renamed" in row else " (another function: look-alike)" if "look_alike" in row else ""
            print(f"{'FAILED ' if 'failed' in row else ''}{name}: {figure} {row.get('failed', '')}".rstrip(), flush=True)
    if args.output:
        from gpt_scratch.files import write_json
        from gpt_scratch.provenance import describe_environment

        write_json(Path(args.output), {"rows": rows, "environment": describe_environment()})
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
