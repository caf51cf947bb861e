"""`--config_overrides`: parsing, and names and settings that it may contain. Imports neither torch nor transformers."""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

import yaml

from .errors import UserError, unknown_name

DROPOUTS = {"drop_rate", "embedding_dropout", "attention_dropout", "residual_dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop"}


class NumberLoader(yaml.SafeLoader):
    """A YAML loader that reads 1e-3 as a number; YAML 1.1 reads it as a string."""


NumberLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def read_overrides(text: str | None) -> dict[str, Any]:
    """Parse `n_embd=384,n_layer=6` or a JSON object into keyword arguments; the names are not checked.

    Raises:
        UserError: not in this form.
    """
    if not text:
        return {}
    try:
        if text.lstrip().startswith("{"):
            return json.loads(text)
        pairs = (pair.split("=", 1) for pair in text.split(","))
        return {name.strip(): yaml.load(value, NumberLoader) for name, value in pairs}
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"config_overrides {text!r}: write name=value pairs separated by commas, or a JSON object") from error


def refuse_unknown_names(overrides: Mapping[str, Any], known: Collection[str]) -> None:
    """Check the names in `--config_overrides`.

    Raises:
        UserError: a name that the configuration does not have and would silently accept.
    """
    for name in overrides:
        if name not in known:
            raise UserError("config_overrides: " + unknown_name(name, sorted(known), "name"))


def refuse_sizes(overrides: Mapping[str, Any]) -> None:
    """Check `--config_overrides` of a checkpoint.

    Raises:
        UserError: settings other than dropout.
    """
    if overrides.keys() - DROPOUTS:
        raise UserError(
            f"--config_overrides {sorted(overrides.keys() - DROPOUTS)[0]}: only the dropout of a checkpoint can be changed"
        )
