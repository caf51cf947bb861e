"""Writes ollama's Modelfile for an exported GGUF file: path of the weights, chat template in Go's template language, stop tokens.

ollama does not read the Jinja template in a GGUF file. The Go template is derived from what our template renders for a few conversations:
the text around each role's content. It is used only if it renders other conversations exactly as ours does.

Source: ollama docs/modelfile.md and docs/template.md.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..errors import UserError
from ..files import atomic_path
from ..inference.chat_template import apply_chat_template

FIRST_LINE = "# Written by gpt_scratch: ollama create NAME -f THIS_FILE"


@dataclass(frozen=True)
class Pieces:
    """Text that a chat template puts around the content of each role; `unless_system`: at the start, without a system message."""

    unless_system: str
    system: tuple[str, str]
    user: tuple[str, str]
    assistant: tuple[str, str]
    reply: str

    def render(self, messages: list[dict[str, str]]) -> str:
        """The conversation up to the start of the reply."""
        around = {"system": self.system, "user": self.user, "assistant": self.assistant}
        texts = [around[message["role"]][0] + message["content"] + around[message["role"]][1] for message in messages]
        return ("" if messages[0]["role"] == "system" else self.unless_system) + "".join(texts) + self.reply


def conversation(roles: str) -> list[dict[str, str]]:
    """Messages with the given roles (s, u or a each), in order; no template contains their contents.

    >>> conversation("ua")
    [{'role': 'user', 'content': '<0u0>'}, {'role': 'assistant', 'content': '<1a1>'}]
    """
    names = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": names[role], "content": f"<{i}{role}{i}>"} for i, role in enumerate(roles)]


def pieces_of(tokenizer: PreTrainedTokenizerBase) -> Pieces:
    """The text that the tokenizer's chat template puts around each content.

    Raises:
        UserError: the tokenizer has no chat template, or one that does more than put text around contents.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "--modelfile needs a chat template, and this model has none: finetune it with scripts/finetune_instructions.py"
        )

    def render(roles: str, reply: bool = True) -> str:
        return apply_chat_template(tokenizer, conversation(roles), tokenize=False, add_generation_prompt=reply)

    def between(roles: str, reply: bool = True) -> list[str]:
        texts, rest = [], render(roles, reply)
        for message in conversation(roles):
            text, found, rest = rest.partition(message["content"])
            if not found:
                raise UserError("the chat template leaves out or changes a message: ollama's template cannot be made from it")
            texts.append(text)
        return [*texts, rest]

    try:
        before, end = between("u", reply=False)
        user = between("uu")[1].removeprefix(end)  # the text before a user's content
        _, to_assistant, to_user, _ = between("uau")
        system = between("su")
        pieces = Pieces(
            unless_system=before.removesuffix(user),
            system=(system[0], system[1].removesuffix(user)),
            user=(user, end),
            assistant=(to_assistant.removeprefix(end), to_user.removesuffix(user)),
            reply=between("u")[1].removeprefix(end),
        )
        asked = ("u", "su", "uau", "suauau", "uauauau")
        wrong = [roles for roles in asked if pieces.render(conversation(roles)) != render(roles)]
    except UserError as error:
        raise UserError(f"--modelfile: {error}") from error
    if wrong:
        raise UserError("--modelfile: the chat template does more than put text around messages: write ollama's TEMPLATE by hand")
    return pieces


def go_template(pieces: Pieces) -> str:
    """The pieces in Go's template language; every text is a string literal, since white space around actions can be trimmed.

    >>> go_template(Pieces("", ("", ""), ("Q: ", "\\n"), ("A: ", "\\n"), "A:"))  # doctest: +ELLIPSIS
    '{{ range .Messages }}{{ if eq .Role "system" }}{{ .Content }}{{ else if eq .Role "user" }}{{ "Q: " }}{{ .Content }}{{ "\\\\n" }}...'
    """

    def text(value: str) -> str:
        return "{{ " + json.dumps(value, ensure_ascii=False) + " }}" if value else ""

    start = "{{ if not .System }}" + text(pieces.unless_system) + "{{ end }}" if pieces.unless_system else ""
    branches = ""
    for role, (before, after) in {"system": pieces.system, "user": pieces.user, "assistant": pieces.assistant}.items():
        condition = ("else if" if branches else "if") + f' eq .Role "{role}"'
        branches += "{{ " + condition + " }}" + text(before) + "{{ .Content }}" + text(after)
    return start + "{{ range .Messages }}" + branches + "{{ end }}{{ end }}" + text(pieces.reply)


def modelfile_text(file_name: str, tokenizer: PreTrainedTokenizerBase, end_ids: list[int], adds_bos: bool, positions: int) -> str:
    """The whole Modelfile.

    Args:
        file_name: name of the GGUF file in the same directory.
        end_ids: tokens that end a reply.
        adds_bos: ollama prepends the bos token to every text, so the template must not.
        positions: context length of the model.

    Raises:
        UserError: the chat template cannot be written in Go's language.
    """
    pieces = pieces_of(tokenizer)
    if adds_bos and tokenizer.bos_token:
        bos = str(tokenizer.bos_token)
        system = (pieces.system[0].removeprefix(bos), pieces.system[1])
        pieces = Pieces(pieces.unless_system.removeprefix(bos), system, pieces.user, pieces.assistant, pieces.reply)
    stops = [json.dumps(tokenizer.convert_ids_to_tokens(id), ensure_ascii=False) for id in end_ids]
    lines = [FIRST_LINE, f"FROM ./{file_name}", f'TEMPLATE """{go_template(pieces)}"""', f"PARAMETER num_ctx {positions}"]
    lines.append("PARAMETER repeat_penalty 1")  # ollama's default of 1.1 changes even greedy replies
    return "\n".join([*lines, *(f"PARAMETER stop {stop}" for stop in stops)]) + "\n"


def modelfile_path(gguf: str) -> Path:
    """NAME.Modelfile, next to the GGUF file.

    Raises:
        UserError: a file that this package did not write exists there.
    """
    path = Path(gguf).with_suffix(".Modelfile")
    if path.is_dir() or (path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(FIRST_LINE)):
        raise UserError(f"{path} is not a file that this package wrote: move it away first")
    return path


def write_modelfile(path: Path, text: str) -> None:
    """Write the Modelfile atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def ends_of(*settings: Any) -> list[int]:
    """The ids that end a text, from the first of `settings` (generation configuration, model configuration) that has any.

    >>> from types import SimpleNamespace as Namespace
    >>> ends_of(Namespace(eos_token_id=None), Namespace(eos_token_id=7)), ends_of(Namespace(eos_token_id=[3, 7]))
    ([7], [3, 7])
    """
    found: Any = next(
        (setting.eos_token_id for setting in settings if setting is not None and setting.eos_token_id is not None), []
    )
    return found if isinstance(found, list) else [found]
