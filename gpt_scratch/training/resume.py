"""Validates the files of a training checkpoint before a run resumes from them: structure, shapes and values.

They may be damaged or untrusted. Pickles are read with `torch.load(weights_only=True)`, which runs no code; but a state with wrong shapes
would crash fused AdamW with a segmentation fault, and a setting of a wrong type could crash a run hours later.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer_callback import ExportableState, TrainerState

from ..errors import UserError, one_line
from ..files import read_json_object
from ..inference.loading import refuse_non_finite, weight_files
from .optimizers import MuonAndAdamW

TRAINER_STATE = "trainer_state.json"
MAX_STEPS = 10**12
ADAM = {"step", "exp_avg", "exp_avg_sq"}  # state of torch's Adam and AdamW
MUON = {"momentum_buffer"}
OF_A_SHAPE = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")  # of the parameter


def read_trainer_state(checkpoint: str | Path) -> TrainerState:
    """Read and check `trainer_state.json` of a checkpoint.

    Raises:
        ValueError: not written by Trainer, or of another step than the directory; OSError: it cannot be read.
    """
    path = Path(checkpoint) / TRAINER_STATE
    content = read_json_object(path)
    for key, limit in {
        "global_step": MAX_STEPS,
        "max_steps": MAX_STEPS,
        "epoch": MAX_STEPS,
        "num_input_tokens_seen": 10**18,
    }.items():
        value: Any = content.get(key, 0 if key == "num_input_tokens_seen" else None)
        number = type(value) is int or (key == "epoch" and type(value) is float)
        if not number or not 0 <= value <= limit:
            raise ValueError(f"{TRAINER_STATE}: {key} has the invalid value {str(value)[:40]!r}")
    if not isinstance(content.get("log_history"), list):
        raise ValueError(f"{TRAINER_STATE}: log_history must be a list")
    folder = path.resolve().parent.name
    step = folder.removeprefix("checkpoint-")
    if step != folder and step.isdecimal() and int(step) != content["global_step"]:
        raise ValueError(f"{TRAINER_STATE} is of step {content['global_step']:,}, but the directory is {folder}")
    if not all(isinstance(entry, dict) and type(entry.get("step")) is int for entry in content["log_history"]):
        raise ValueError(f"{TRAINER_STATE}: log_history must be a list of objects with a step each")
    if not isinstance(content.get("stateful_callbacks", {}) or {}, dict):
        raise ValueError(f"{TRAINER_STATE}: stateful_callbacks must be an object")
    if not isinstance(content.get("best_model_checkpoint"), (str, type(None))):
        raise ValueError(f"{TRAINER_STATE}: best_model_checkpoint must be a name")
    try:
        return TrainerState(**content)
    except TypeError as error:
        raise ValueError(f"{TRAINER_STATE}: {error}") from None


def check_callbacks(state: TrainerState, callbacks: Sequence[Any], checkpoint: str) -> None:
    """Refuse invalid states of callbacks, since they are set as attributes without checks.

    Raises:
        UserError: names the callback.
    """
    for callback in callbacks:
        saved = (state.stateful_callbacks or {}).get(type(callback).__name__) if isinstance(callback, ExportableState) else None
        for one in saved if isinstance(saved, list) else [saved]:
            if one is not None and (reason := _other_form(one, callback.state(), type(callback).__name__)):
                raise UserError(f"{checkpoint} cannot be resumed: {TRAINER_STATE}: {reason}")


def check_weights(checkpoint: str, model: Any) -> None:
    """Check the names and shapes of the weights of the model or adapter.

    Raises:
        UserError: names the tensor.
    """
    folder = Path(checkpoint)
    adapter = folder / "adapter_model.safetensors"
    if adapter.is_file() and not hasattr(model, "peft_config"):
        raise UserError(f"{checkpoint} cannot be resumed: it contains an adapter, but this run trains a full model (--trainable)")
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        if not adapter.is_file():
            raise UserError(f"{checkpoint} cannot be resumed: it contains no adapter_model.safetensors")
        try:
            read_json_object(folder / "adapter_config.json")
        except (OSError, ValueError) as error:
            raise UserError(f"{checkpoint} cannot be resumed: {error}") from error
        expected = [{name} for name in get_peft_model_state_dict(model)]
        shapes, files = {name: tuple(value.shape) for name, value in get_peft_model_state_dict(model).items()}, [adapter]
    else:
        state = model.state_dict()
        shapes = {name: tuple(value.shape) for name, value in state.items()}
        tied: dict[int, set[str]] = {}
        for name, value in state.items():
            tied.setdefault(value.data_ptr() if value.numel() else id(value), set()).add(name)
        expected, files = list(tied.values()), weight_files(checkpoint)
    try:
        found = _shapes(files)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{checkpoint} cannot be resumed: its weights cannot be read: {error}") from error
    for names in expected:
        if not names & found.keys():
            raise UserError(f"{checkpoint} cannot be resumed: its weights lack {min(names)}")
    for name, shape in found.items():
        if name not in shapes:
            raise UserError(f"{checkpoint} cannot be resumed: its weights contain {name}, which this model does not have")
        if shapes[name] != shape:
            raise UserError(f"{checkpoint} cannot be resumed: {name} has the shape {shape}, but {shapes[name]} in this run")


def _shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        else:
            shapes |= {name: tuple(value.shape) for name, value in read_pickle(file).items()}
    return shapes


def read_pickle(path: Path) -> Any:
    """Load tensors, containers and numbers from a file of `torch.save`.

    Raises:
        UserError: other contents, without running any code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the pickle's, the zip reader's and the mapping's
        said = one_line(str(error).split(". ")[0], 200)
        raise UserError(f"{path} cannot be read: {said}: the checkpoint is damaged or not from Trainer") from error


def check_optimizer(checkpoint: str, optimizer: Any, scheduler: Any) -> None:
    """Check `optimizer.pt` and `scheduler.pt` of a checkpoint.

    Raises:
        UserError: `optimizer.pt` or `scheduler.pt` is missing, unreadable, invalid, or has other shapes than in this run.
    """
    for name in ("optimizer.pt", "scheduler.pt"):
        if not (Path(checkpoint) / name).is_file():
            raise UserError(
                f"{checkpoint} cannot be resumed: it contains no {name}; start a new run from its weights with --model_name_or_path"
            )
    reason = _wrong_optimizer(read_pickle(Path(checkpoint) / "optimizer.pt"), optimizer)
    if reason is not None:
        raise UserError(f"{checkpoint} cannot be resumed: optimizer.pt: {reason}")
    saved = read_pickle(Path(checkpoint) / "scheduler.pt")
    if reason := _other_form(saved, scheduler.state_dict(), "scheduler.pt"):
        raise UserError(f"{checkpoint} cannot be resumed: {reason}")


def _wrong_optimizer(saved: Any, optimizer: Any) -> str | None:
    if not isinstance(saved, dict) or not isinstance(saved.get("state"), dict) or not isinstance(saved.get("param_groups"), list):
        return "it contains no state and param_groups"
    groups = saved["param_groups"]
    if len(groups) != len(optimizer.param_groups):
        return f"it has {len(groups)} parameter groups, but this run's optimizer has {len(optimizer.param_groups)}"
    parameters: dict[Any, torch.Tensor] = {}
    for number, (group, own) in enumerate(zip(groups, optimizer.param_groups)):
        ids = group.get("params") if isinstance(group, dict) else None
        if not isinstance(ids, list) or not all(type(i) is int for i in ids):
            return f"group {number} has no list of parameters"
        if len(ids) != len(own["params"]):
            return f"group {number} has {len(ids)} parameters, but {len(own['params'])} in this run"
        settings = {name: value for name, value in group.items() if name != "params"}
        if reason := _other_form(settings, {n: v for n, v in own.items() if n != "params"}, f"group {number}"):
            return reason
        parameters |= dict(zip(ids, own["params"]))
    if _is_adam(optimizer) and not saved["state"]:
        return "it contains no state of any parameter"
    for number, state in saved["state"].items():
        if number not in parameters or not isinstance(state, dict):
            return f"it has a state of parameter {str(number)[:20]}, which is not trained"
        kinds = (ADAM, MUON) if _is_adam(optimizer) else ()
        if reason := _wrong_state(state, parameters[number], kinds):
            return f"for parameter {number} (of shape {tuple(parameters[number].shape)}), {reason}"
    return None


def _is_adam(optimizer: Any) -> bool:
    kind = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper
    return isinstance(kind, (torch.optim.Adam, MuonAndAdamW))


def _wrong_state(state: dict[Any, Any], parameter: torch.Tensor, kinds: Sequence[set[str]]) -> str | None:
    if kinds and not any(kind <= state.keys() for kind in kinds):
        return f"{', '.join(sorted(kinds[0] - state.keys()))} is missing"
    for name in OF_A_SHAPE:
        value = state.get(name)
        if name in state and (not isinstance(value, torch.Tensor) or value.shape != parameter.shape):
            return f"{name} has the shape {tuple(getattr(value, 'shape', ()))}"
        if isinstance(value, torch.Tensor) and not value.is_floating_point():
            return f"{name} is of type {value.dtype}"
    step = state.get("step", 0)
    if (isinstance(step, torch.Tensor) and step.numel() != 1) or not isinstance(step, (int, float, torch.Tensor)):
        return "step is not a number"
    if not 0 <= float(step) <= MAX_STEPS:
        return f"step is {float(step):g}"
    try:
        refuse_non_finite("it", ((str(name), value) for name, value in state.items() if isinstance(value, torch.Tensor)))
    except UserError as error:
        return str(error).split(": ")[1]
    return None


def _other_form(saved: Any, own: Any, name: str) -> str | None:
    """Describe the first type difference between `saved` and `own`, which it replaces; numbers that are not finite are refused."""
    if isinstance(own, Mapping):
        if not isinstance(saved, Mapping):
            return f"{name} is not a mapping"
        for key in saved:
            if key not in own:
                return f"{name} has {str(key)[:40]!r}, which this run's does not have"
            if reason := _other_form(saved[key], own[key], f"{name}: {key}"):
                return reason
        return None
    if isinstance(own, (list, tuple)):
        if not isinstance(saved, (list, tuple)) or len(saved) != len(own):
            return f"{name} is not a list of length {len(own)}"
        return next((reason for a, b in zip(saved, own) if (reason := _other_form(a, b, name))), None)
    if isinstance(saved, torch.Tensor) and saved.numel() == 1:
        saved = saved.item()
    if isinstance(own, torch.Tensor) and own.numel() == 1:
        own = own.item()
    number = isinstance(saved, (int, float)) and not isinstance(saved, bool)
    if number and not (math.isfinite(saved) and abs(saved) <= MAX_STEPS):
        return f"{name} is {saved}"
    fits = {
        bool: isinstance(saved, bool),
        int: number,
        float: number,
        str: isinstance(saved, str),
        type(None): saved is None or number or isinstance(saved, str),
    }.get(type(own), type(saved) is type(own))
    if saved is None and not isinstance(own, bool):
        fits = True
    return None if fits else f"{name} is {str(saved)[:40]!r}, a {type(saved).__name__} and not a {type(own).__name__}"
