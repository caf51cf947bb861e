"""Request schemas of the server: the fields of each endpoint with their types and limits. Everything else is refused by name."""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from ..errors import UserError
from .refusal import Refusal
from .strict_json import parse_object

KEY_VARIABLE = "GPT_SCRATCH_API_KEY"
SERVER = f"this server: set an API key in the variable {KEY_VARIABLE} first"
PAGE = "this page without a fixed list of models: give the models with --model"
MAX_MESSAGES = 256
MAX_STOPS = 4  # as in OpenAI's API
MAX_STOP_CHARACTERS = 64
MAX_TOOLS = 64
TOOL_NAME = r"^[A-Za-z0-9_.-]{1,64}$"
CHAT, COMPLETIONS, RESPONSES, LOAD_MODEL = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/load_model"


@dataclass(frozen=True)
class Limits:
    """The limits of a server; each is a flag of scripts/serve.py."""

    max_tokens: int = field(default=1024, metadata={"help": "maximum new tokens per reply, and the default for requests"})
    max_characters: int = field(default=65_536, metadata={"help": "maximum total characters of text in a request"})
    time_limit: float = field(default=60.0, metadata={"help": "seconds for a generation, and for waiting in the queue"})
    max_waiting: int = field(default=16, metadata={"help": "maximum length of the queue; further requests get status 429"})
    max_connections: int = field(default=512, metadata={"help": "maximum open connections; further ones are closed"})
    send_seconds: float = field(default=10.0, metadata={"help": "seconds for a client to send its headers, and its body"})

    @property
    def max_body_bytes(self) -> int:
        """Maximum bytes of a request: a character may be escaped with six bytes (`\\u00e9`), plus overhead."""
        return 6 * self.max_characters + 16_384

    def problem(self) -> str | None:
        """The first invalid limit, as a message of one line; `None` if all are valid."""
        for name, value in vars(self).items():
            if not 1 <= value <= 10**9 and not (name in ("send_seconds", "time_limit") and 0 < value < 1):
                return f"--{name} is {value}: it must be between 1 and 1,000,000,000"
        return None


class RequestReader:
    """Parses and validates the JSON of a request.

    Args:
        limits: the limits.
        model: name of the served model.
    """

    def __init__(self, limits: Limits, model: str):
        self.limits, self.model = limits, model
        self.schemas = _schemas(limits)

    def read(self, path: str, data: bytes) -> tuple[dict[str, Any], bool | None]:
        """The request for the stock app, and whether to sample (`None`: by the model's generation settings).

        Raises:
            Refusal: names the invalid field and the reason.
        """
        try:
            given = parse_object(data)
        except ValueError as error:
            raise Refusal(400, f"the request cannot be read: {error}", code="invalid_json") from None
        body = self._checked(self.schemas[path], given)
        characters = sum(map(len, _texts(body)))
        if characters > self.limits.max_characters:
            raise Refusal(400, f"the texts have {characters:,} characters; the limit is {self.limits.max_characters:,}")
        if body["model"] != self.model:
            raise Refusal(404, "unknown model; GET /v1/models lists the served model", "model", "model_not_found")
        if path == LOAD_MODEL:
            return body, None
        if path == CHAT:
            _check_calls(body["messages"])
        sample = self._translate_generation_config(body)
        tokens = "max_output_tokens" if path == RESPONSES else "max_tokens"
        body[tokens] = body.pop("max_completion_tokens", None) or body.get(tokens) or self.limits.max_tokens
        body.setdefault("stream", False)  # unlike OpenAI, the stock app streams /v1/responses by default
        for name in ("n", "stream_options"):  # the only allowed value has no effect
            body.pop(name, None)
        if isinstance(body.get("stop"), str):
            body["stop"] = [body["stop"]]
        if body.get("temperature") is not None:
            sample = body["temperature"] > 0
        elif body.get("top_p") is not None:
            sample = True
        return body, sample

    def _checked(self, schema: Any, given: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        from pydantic import ValidationError

        try:
            return schema.model_validate(given).model_dump(exclude_none=True)
        except ValidationError as failed:
            errors = failed.errors(include_url=False, include_context=False, include_input=False)
        unknown = [error for error in errors if error["type"] == "extra_forbidden"]
        if unknown:
            names = ", ".join(_place(error["loc"])[:60] for error in unknown[:10])
            raise Refusal(
                400,
                f"unknown field {prefix}{names}; supported fields: {', '.join(schema.model_fields)}",
                prefix + _place(unknown[0]["loc"])[:60],
                "unknown_field",
            )
        place = prefix + _place(errors[0]["loc"])
        raise Refusal(400, f"{place}: {errors[0]['msg']}", place, "invalid_value")

    def _translate_generation_config(self, body: dict[str, Any]) -> bool | None:
        """Convert the generation_config of `transformers chat`, a JSON string, to the supported fields."""
        text = body.pop("generation_config", None)
        if text is None:
            return None
        try:
            given = parse_object(text.encode())
        except ValueError as error:
            raise Refusal(400, f"generation_config: {error}", "generation_config", "invalid_json") from None
        config = self._checked(self.schemas["generation_config"], given, prefix="generation_config.")
        if "max_new_tokens" in config:
            body.setdefault("max_tokens", config["max_new_tokens"])
        for name in ("temperature", "top_p"):
            if name in config:
                body.setdefault(name, config[name])
        return config.get("do_sample")


def _schemas(limits: Limits) -> dict[str, Any]:
    """A pydantic model for each endpoint, and one for the generation_config of `transformers chat`."""
    from pydantic import BaseModel, ConfigDict, Field, create_model

    strict = ConfigDict(extra="forbid", strict=True)

    def schema(title: str, /, **fields: Any) -> type[BaseModel]:
        return create_model(title, __config__=strict, **fields)

    def optional(kind: Any, **bounds: Any) -> tuple[Any, None]:
        return (Annotated[kind, Field(**bounds)] | None, None)

    text = Annotated[str, Field(max_length=limits.max_characters)]
    name = (Annotated[str, Field(max_length=1000)], ...)
    tokens = optional(int, ge=1, le=limits.max_tokens)
    sampling = {"temperature": optional(float, ge=0, le=2), "top_p": optional(float, gt=0, le=1)}
    stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
    common = {
        "model": name,
        **sampling,
        "seed": optional(int, ge=0, lt=2**32),
        "stream": optional(bool),
    }
    legacy = {
        **common,
        "max_tokens": tokens,
        "frequency_penalty": optional(float, ge=0, le=2),
        "stop": (stop | Annotated[list[stop], Field(max_length=MAX_STOPS)] | None, None),
        "n": (Literal[1] | None, None),
        "stream_options": (schema("stream_options", include_usage=(Literal[True], ...)) | None, None),
    }

    def messages(part_type: Any, roles: Any = ("system", "user", "assistant"), further: dict[str, Any] | None = None) -> Any:
        part = schema("part", type=(part_type, ...), text=(text, ...))
        content = text | Annotated[list[part], Field(min_length=1, max_length=MAX_MESSAGES)]  # type: ignore[valid-type]
        said = (content, ...) if further is None else (content | None, None)  # a tool call may have no content
        message = schema("message", role=(Literal[roles], ...), content=said, **(further or {}))
        return Annotated[list[message], Field(min_length=1, max_length=MAX_MESSAGES)]  # type: ignore[valid-type]

    called = schema("called", name=(Annotated[str, Field(pattern=TOOL_NAME)], ...), arguments=(text, ...))
    call = schema(
        "call", id=(Annotated[str, Field(max_length=200)], ...), type=(Literal["function"], ...), function=(called, ...)
    )
    with_calls = {
        "tool_calls": optional(list[call], min_length=1, max_length=MAX_TOOLS),  # type: ignore[valid-type]
        "tool_call_id": optional(str, max_length=200),
    }
    function = schema(
        "function",
        name=(Annotated[str, Field(pattern=TOOL_NAME)], ...),
        description=optional(str, max_length=limits.max_characters),
        parameters=(dict[str, Any] | None, None),
        strict=optional(bool),
    )
    tool = schema("tool", type=(Literal["function"], ...), function=(function, ...))
    return {
        CHAT: schema(
            "chat",
            messages=(messages(Literal["text"], ("system", "user", "assistant", "tool"), with_calls), ...),
            tools=optional(list[tool], min_length=1, max_length=MAX_TOOLS),  # type: ignore[valid-type]
            **legacy,
            max_completion_tokens=tokens,
            generation_config=optional(str, max_length=4096),
        ),
        COMPLETIONS: schema("completions", prompt=(text, ...), **legacy),
        RESPONSES: schema(
            "responses",
            input=(text | messages(Literal["input_text", "output_text"]), ...),
            instructions=optional(str, max_length=limits.max_characters),
            **common,
            max_output_tokens=tokens,
        ),
        LOAD_MODEL: schema("load_model", model=name),
        "generation_config": schema(
            "generation_config",
            **sampling,
            max_new_tokens=tokens,
            do_sample=optional(bool),
            transformers_version=optional(str, max_length=50),
        ),
    }


def _check_calls(messages: list[dict[str, Any]]) -> None:
    """Check the fields that depend on the role of a message, and parse tool call arguments into objects, for chat templates.

    Raises:
        Refusal: names the message.
    """

    def refuse(place: str, reason: str) -> None:
        raise Refusal(400, f"{place}: {reason}", place, "invalid_value")

    for number, message in enumerate(messages):
        place, calls = f"messages.{number}", message.get("tool_calls", [])
        if "content" not in message and not calls:
            refuse(f"{place}.content", "it is missing")
        if calls and message["role"] != "assistant":
            refuse(f"{place}.tool_calls", "only messages with the role assistant may have tool_calls")
        if calls and message.get("content"):
            refuse(f"{place}.content", "content beside tool_calls would be lost: leave it out")
        if ("tool_call_id" in message) != (message["role"] == "tool"):
            refuse(f"{place}.tool_call_id", "required for messages with the role tool, and not allowed for others")
        for index, call in enumerate(calls):
            try:
                call["function"]["arguments"] = parse_object(call["function"]["arguments"].encode())
            except ValueError as error:
                refuse(f"{place}.tool_calls.{index}.function.arguments", str(error))
        message.setdefault("content", "")


def _place(loc: tuple[int | str, ...]) -> str:
    """Format a location: `messages.0.content` for `("messages", 0, "content", "constrained-str")`, without pydantic's union member."""
    return ".".join(str(part) for part in loc if isinstance(part, int) or not ("[" in part or part in ("str", "constrained-str")))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for child in value.values():
            yield from _texts(child)
    elif isinstance(value, list):
        for child in value:
            yield from _texts(child)


def is_loopback(host: str) -> bool:
    """Whether a host is a loopback address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_others(host: str, allowed: object, what: str) -> None:
    """Refuse a host that other machines can reach, without protection.

    Raises:
        UserError: the host is not a loopback address, and `allowed` (an API key, or models) is missing.
    """
    if not allowed and not is_loopback(host):
        raise UserError(f"--host {host} would let other machines use {what}")
