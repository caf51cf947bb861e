"""Serves a model with the OpenAI API: transformers' server behind [`Guard`].

The app of `transformers serve` is used unchanged, with a model from our loader. (The stock command looks up the class of a checkpoint in
the module `transformers` and cannot find other classes.)

Debt to transformers: `cli.serving` has no public entry that gives the app without running it. Used here, with the names and arguments
of 5.21 to 5.24: `ModelManager` with its `_load_model` and `_load_processor`, `GenerationState`, the three handlers and `build_server`;
that replies are made by `model.generate(...)` and `processor.apply_chat_template(...)` of `ModelManager.loaded_models`; the form of
errors in a stream; and `chat_completion.build_response_parser` and `parse_assistant_message`, which are replaced for calls of tools.
"""

import inspect
import logging
import socket
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from ..errors import UserError, one_line
from .limits import KEY_VARIABLE, SERVER, Limits, RequestReader, refuse_others
from .loading import load_language_model

if TYPE_CHECKING:
    from fastapi import FastAPI

    from .guard import Guard
    from .served_model import ServedModel

MIN_KEY_CHARACTERS = 16
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


def serve(
    model: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    key: str | None = None,
    hosts: Collection[str] = (),
    origins: Collection[str] = (),
    weights: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> None:
    """Serve a model until interrupted.

    Args:
        model: directory or Hub name.
        host, port: address to listen on; port 0 selects a free one.
        limits: limits of requests.
        key: required API key; may be `None` on a loopback address.
        hosts, origins: further allowed Host headers and origins.
        weights: format of the weights, for faster generation: see `decoding.prepare_as_asked`.
        device, dtype: of the model, as for `transformers serve`.

    Raises:
        UserError: a flag out of range, a missing API key, an address in use, no model, or a missing package.
    """
    limits = limits or Limits()
    _check(host, port, limits, key)
    _check_installed()
    import uvicorn

    from .connections import MAX_HEADER_BYTES, bounded_protocol

    with _bind(host, port) as listening:
        address, number = listening.getsockname()[:2]
        where = f"[{address}]" if ":" in address else address
        guard = build_guard(model, limits, key, _host_names(host, hosts), origins, weights, device, dtype)
        config = uvicorn.Config(
            guard,  # type: ignore[arg-type]
            http=bounded_protocol(limits),
            ws="none",
            lifespan="off",
            access_log=False,  # do not log prompts, and do not fill the disk
            log_level="error",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=5,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        )
        server = uvicorn.Server(config)
        print(f"{model} at http://{where}:{number}/v1 {'with' if key else 'without'} an API key; Ctrl-C stops it", flush=True)
        server.run(sockets=[listening])
    guard.served.current.ended = "the server is shutting down"


def _check(host: str, port: int, limits: Limits, key: str | None) -> None:
    if not 0 <= port <= 65535:
        raise UserError(f"--port is {port}: it must be between 0 and 65535")
    if problem := limits.problem():
        raise UserError(problem)
    if key is not None and (len(key) < MIN_KEY_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key):
        raise UserError(f"{KEY_VARIABLE} must be at least {MIN_KEY_CHARACTERS} printable ASCII characters without spaces")
    refuse_others(host, key, SERVER)


def _check_installed() -> None:
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        raise UserError('serving needs fastapi and uvicorn: pip install "gpt_scratch[serving]"')


def _bind(host: str, port: int) -> socket.socket:
    """Bind a socket before the model is loaded, to detect a used port early; it listens when the server starts."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except (OSError, UnicodeError) as error:
        raise UserError(f"cannot listen on --host {host} --port {port}: {error}") from error
    return listening


def _host_names(host: str, others: Collection[str]) -> set[str] | None:
    """The allowed Host headers; any name when listening on all addresses without a list, since the API key protects the server."""
    if host in ("0.0.0.0", "::", "") and not others:
        return None
    return {name.lower() for name in LOOPBACK_NAMES | {host} | set(others)}


def build_guard(
    model: str,
    limits: Limits,
    key: str | None = None,
    hosts: Collection[str] | None = LOOPBACK_NAMES,
    origins: Collection[str] = (),
    weights: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> "Guard":
    """Load the model and build the guard in front of the stock app; for the arguments see [`serve`].

    Raises:
        UserError: the model cannot be loaded.
    """
    from .guard import Guard
    from .worker import Worker

    app, served = _stock_app(model, weights, device, dtype)
    return Guard(Worker(app), served, RequestReader(limits, model), key, hosts, origins)


def _answer_tool_calls(tokenizer: Any) -> None:
    """Make the chat handler parse tool calls in this package's chatml format, if a request has tools.

    The stock parser fails on a call with invalid JSON; here it remains text.
    """
    from transformers.cli.serving import chat_completion, utils

    from .tool_calls import OPEN, ReplyParser, as_openai, parse_reply

    if OPEN not in str(tokenizer.chat_template):
        return

    def build_response_parser(processor: Any, model: Any, input_ids: Any, tools: Any = None) -> ReplyParser | None:
        return ReplyParser(str(tokenizer.eos_token or "")) if tools else None

    def parse_assistant_message(
        processor: Any, model: Any, generated_ids: Any, input_ids: Any, cleaned_content: str = "", tools: Any = None
    ) -> tuple[str, str | None, list[Any] | None]:
        if not tools:
            return cleaned_content, None, None
        message = as_openai(parse_reply(cleaned_content))
        calls = [utils.ToolCall(**call["function"]) for call in message.get("tool_calls", [])]
        return message["content"] or "", message.get("reasoning_content"), calls or None

    chat_completion.build_response_parser = build_response_parser
    chat_completion.parse_assistant_message = parse_assistant_message


def _stock_app(name: str, weights: str | None, device: str, dtype: str) -> "tuple[FastAPI, ServedModel]":
    """The app of `transformers serve` with a single model."""
    from transformers.cli.serving.chat_completion import ChatCompletionHandler
    from transformers.cli.serving.completion import CompletionHandler
    from transformers.cli.serving.model_manager import ModelManager
    from transformers.cli.serving.response import ResponseHandler
    from transformers.cli.serving.server import build_server
    from transformers.cli.serving.utils import GenerationState

    from .served_model import BoundedTemplate, ServedModel

    logging.getLogger("transformers").setLevel(logging.ERROR)  # it warns for every request
    model, tokenizer = load_language_model(name, dtype)
    if device != "auto":
        try:
            model = model.to(device)
        except Exception as error:  # an unknown or missing device, or out of memory
            raise UserError(f"--device {device}: {one_line(error)}") from error

    class Loaded(ModelManager):
        """Returns the single model of our loader; the stock class loads any model, with random weights for missing tensors."""

        def _load_model(self, *args: Any, **kwargs: Any) -> Any:
            return model

        def _load_processor(self, *args: Any, **kwargs: Any) -> Any:
            return tokenizer

    manager = Loaded(device=str(model.device), dtype="auto", trust_remote_code=False, force_model=name)
    (loaded,) = manager.loaded_models.values()
    served = ServedModel(loaded.model, weights)
    if served.ignored:
        print(f"ignored settings of {name}'s generation_config.json: {', '.join(served.ignored)}", file=sys.stderr)
    BoundedTemplate(loaded.processor).try_out()
    _answer_tool_calls(tokenizer)
    state = GenerationState()
    parts: dict[str, Any] = {
        "model_manager": manager,
        "generation_state": state,
        "chat_handler": ChatCompletionHandler(manager, state),
        "completion_handler": CompletionHandler(manager, state),
        "response_handler": ResponseHandler(manager, state),
    }
    # Handlers without a route on this server (speech, and those of later releases) are None.
    needed = [name for name, value in inspect.signature(build_server).parameters.items() if value.default is value.empty]
    return build_server(**(dict.fromkeys(needed) | parts)), served
