"""Limits on user input. The sliders have the same limits, but a request can bypass them, so each value is checked here."""

import html
import re
from collections.abc import Collection
from typing import Any

from ..errors import UserError, check_unicode, one_line
from ..ranges import SEEDS

MAX_CHARACTERS = 20_000  # length of any text given to the page
MAX_TOKENIZER_CHARACTERS = 2_000  # length of a text shown token by token, once per model
MAX_NAME_CHARACTERS = 500
MAX_ATTENTION_TOKENS = 64
MAX_NEW_TOKENS = 512
MAX_SECONDS = 60.0  # duration of one generation
MAX_MESSAGES = 64  # messages in a conversation; the oldest are dropped first
MAX_MODELS = 8  # held in memory
MAX_WAITING = 16  # requests in the queue
MAX_SESSIONS = 200  # sessions whose conversations are kept

# Lowest and highest values. A temperature near 0 would make the logits overflow, so it is 0 or at least 0.01.
SETTINGS: dict[str, tuple[float, float]] = {
    "max_new_tokens": (1, MAX_NEW_TOKENS),
    "temperature": (0, 2),
    "top_k": (0, 200),
    "top_p": (0.01, 1),
    "min_p": (0, 1),
    "repetition_penalty": (1, 2),
    "seed": SEEDS,
}
LOWEST_TEMPERATURE = 0.01
WHOLE = ("max_new_tokens", "top_k", "seed")


def check_text(text: Any, max_characters: int = MAX_CHARACTERS) -> str:
    """Return `text` if it is valid.

    Raises:
        UserError: not a string, too long, or not valid Unicode.
    """
    if not isinstance(text, str):
        raise UserError(f"a text is expected, not {type(text).__name__}")
    if len(text) > max_characters:
        raise UserError(f"the text has {len(text):,} characters; this page takes {max_characters:,}")
    check_unicode(text)
    return text


def check_number(name: str, value: Any, lowest: float, highest: float, whole: bool = False) -> float:
    """Return `value` if it is valid.

    Raises:
        UserError: not a number, not finite, not whole where it must be, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(f"{name} must be a number, not {type(value).__name__}")
    if not lowest <= value <= highest or (whole and value != int(value)):  # also refuses NaN and infinities
        shown = "too large" if isinstance(value, int) and abs(value) > 10**300 else f"{value:g}"
        raise UserError(f"{name} is {shown}: it must be {'a whole number ' if whole else ''}between {lowest:,} and {highest:,}")
    return value


def check_settings(settings: dict[str, Any]) -> None:
    """Check the settings of one generation.

    Raises:
        UserError: a setting is out of range; names the first one.
    """
    for name, value in settings.items():
        check_number(name, value, *SETTINGS[name], whole=name in WHOLE)
    if 0 < settings["temperature"] < LOWEST_TEMPERATURE:
        raise UserError(f"temperature is {settings['temperature']:g}: it must be 0 or at least {LOWEST_TEMPERATURE}")


def check_choice(name: Any, choices: Collection[str]) -> str:
    """Return `name` if it is one of `choices`. Nothing else is ever loaded or looked up.

    Raises:
        UserError: it is not one of them.
    """
    if not isinstance(name, str) or name not in choices:
        raise UserError("choose one of the models of this page first")
    return name


def check_new_name(name: Any, loaded: Collection[str]) -> str:
    """Return the directory or Hub name of a model to load, if it is valid.

    Raises:
        UserError: the name is empty, too long or has control characters, or too many models are loaded.
    """
    name = check_text(name, MAX_NAME_CHARACTERS).strip()
    if not name:
        raise UserError("give the directory or the Hub name of a model")
    if not name.isprintable():
        raise UserError("the name of a model holds characters that cannot be printed")
    if name not in loaded and len(loaded) >= MAX_MODELS:
        raise UserError(f"{MAX_MODELS} models are loaded, the most that this page holds: start it again with others")
    return name


def plain_markdown(text: str) -> str:
    r"""Escape text for Markdown and HTML: ASCII punctuation becomes character references, which both display literally.

    Leading spaces of a line become no-break spaces, since Markdown would turn the line into code, where references are not interpreted.

    >>> plain_markdown("<b> *x*")
    '&#60;b&#62; &#42;x&#42;'
    """
    text = re.sub(r"[!-/:-@\[-`{-~]", lambda found: f"&#{ord(found[0])};", text)
    return re.sub(r"^[ \t]+", lambda found: "\u00a0" * len(found[0].expandtabs(4)), text, flags=re.MULTILINE)


def plain_message(error: object) -> str:
    """The text of an error, escaped for the page: Gradio interprets it as HTML."""
    return html.escape(one_line(error), quote=False)
