"""The page in Gradio: generation, next-token probabilities, attention, tokenizers, classifier, chat.

The functions here check all input from visitors (see `limits`), since a request can bypass the sliders.
"""

from collections.abc import Callable, Iterator
from functools import wraps
from inspect import isgeneratorfunction
from typing import Any

import gradio as gr
import torch

from ..analysis.attention import attention_figure, attention_maps, token_texts
from ..errors import UserError
from ..inference.classify import classify_texts
from .lessons import lesson_line
from .limits import (
    MAX_ATTENTION_TOKENS,
    MAX_CHARACTERS,
    MAX_MESSAGES,
    MAX_NAME_CHARACTERS,
    MAX_TOKENIZER_CHARACTERS,
    MAX_WAITING,
    SETTINGS,
    check_choice,
    check_new_name,
    check_number,
    check_text,
    plain_markdown,
    plain_message,
)
from .models import LoadedModel, Sampling, TimeIsUp, load_model, stream_reply, stream_text, text_ids

# One visitor at a time uses the models; the others wait in the queue. No function is exposed as an API.
MODEL_WORK: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "models", "api_visibility": "private"}


def shown_attention(loaded: LoadedModel, text: str, layer: float, head: float):
    """One attention map with its tokens.

    Raises:
        UserError: the text is empty or too long, or there is no such layer or head.
    """
    ids = text_ids(loaded, text)
    if not ids:
        raise UserError("write a text whose attention to show")
    maps = attention_maps(loaded.model, torch.tensor([ids[:MAX_ATTENTION_TOKENS]], device=loaded.model.device))
    layer = int(check_number("layer", layer, 0, maps.shape[0] - 1, whole=True))
    head = int(check_number("head", head, 0, maps.shape[1] - 1, whole=True))
    tokens = token_texts(loaded.tokenizer, ids[:MAX_ATTENTION_TOKENS])
    cut = f", first {len(tokens)} of {len(ids):,} tokens" if len(tokens) < len(ids) else ""
    return attention_figure(maps[layer, head], tokens, f"layer {layer}, head {head}{cut}")


def coloured_tokens(loaded: LoadedModel, text: str) -> list[tuple[str, str]]:
    """Each token of a text with its id."""
    ids = text_ids(loaded, text, MAX_TOKENIZER_CHARACTERS)
    return [(piece, str(token)) for piece, token in zip(token_texts(loaded.tokenizer, ids), ids)]


def shown_errors(function: Callable) -> Callable:
    """Wrap a function so that a [`UserError`] is shown on the page; text generated before a timeout stays."""

    def show(error: UserError) -> None:
        if not isinstance(error, TimeIsUp):
            raise gr.Error(plain_message(error), print_exception=False) from error
        gr.Warning(plain_message(error))

    @wraps(function)
    def call(*arguments):
        try:
            return function(*arguments)
        except UserError as error:
            return show(error)

    @wraps(function)
    def stream(*arguments):
        try:
            yield from function(*arguments)
        except UserError as error:
            show(error)

    return stream if isgeneratorfunction(function) else call


class Models:
    """The models of the page. Visitors choose among them; [`build_page`] decides whether they may load others."""

    KINDS: dict[str, Callable[[LoadedModel], bool]] = {
        "language": lambda loaded: not loaded.is_classifier,
        "classifier": lambda loaded: loaded.is_classifier,
        "chat": lambda loaded: loaded.can_chat,
    }

    def __init__(self) -> None:
        self.loaded: dict[str, LoadedModel] = {}

    def add(self, name: str) -> str:
        """Load a model; return its size, or why it cannot be loaded, in Markdown."""
        try:
            name = check_new_name(name, self.loaded)
            self.loaded[name] = load_model(name)
        except UserError as error:
            return plain_markdown(f"⚠ {error}")
        return plain_markdown(f"{name}: {self.loaded[name].model.num_parameters():,} parameters")

    def names(self, kind: str) -> list[str]:
        """Names of the models of one kind."""
        return [name for name, loaded in self.loaded.items() if self.KINDS[kind](loaded)]

    def pick(self, name: Any, kind: str) -> LoadedModel:
        """The model of this name and kind; raises [`UserError`] if there is none."""
        return self.loaded[check_choice(name, self.names(kind))]

    def dropdown(self, kind: str, elem_id: str) -> gr.Dropdown:
        """A menu to choose one of them."""
        names = self.names(kind)
        return gr.Dropdown(names, value=names[0] if names else None, label="model", elem_id=elem_id)

    def generate(self, name: str, prompt: str, *settings: Any) -> Iterator[tuple[str, dict[str, float]]]:
        """Yield the text so far and the probabilities for its last token."""
        for text, bars in stream_text(self.pick(name, "language"), prompt, Sampling(*settings)):
            yield prompt + text, bars

    def reply(self, name: str, history: list[dict[str, str]], message: str, *settings: Any) -> Iterator[tuple[list, list, str]]:
        """Yield the conversation so far, as kept on the server and as shown, and the emptied message field."""
        if not check_text(message).strip():
            raise UserError("write a message")
        messages = [*history[2 - MAX_MESSAGES :], {"role": "user", "content": message}]
        for text in stream_reply(self.pick(name, "chat"), messages, Sampling(*settings)):
            now = [*messages, {"role": "assistant", "content": text}]
            yield now, [said | {"content": plain_markdown(said["content"])} for said in now], ""

    def attention(self, name: str, text: str, layer: float, head: float):
        """See [`shown_attention`]."""
        return shown_attention(self.pick(name, "language"), text, layer, head)

    def classify(self, name: str, text: str) -> dict[str, float]:
        """The score of each label."""
        loaded = self.pick(name, "classifier")
        result = next(classify_texts(loaded.model, loaded.tokenizer, [check_text(text)], window=1))
        if "error" in result:
            raise UserError(result["error"])
        return result["scores"]


def build_page(names: list[str], may_load: bool = False) -> gr.Blocks:
    """Build the page with these models; a model that cannot be loaded is reported on the page.

    Args:
        may_load: visitors may load any directory or Hub name; only for a page that nobody else can reach.
    """
    models = Models()
    notes = [models.add(name) for name in names]
    with gr.Blocks(title="gpt_scratch", analytics_enabled=False) as page:
        gr.Markdown("# gpt_scratch\nText, probabilities, attention and tokens of your models.")
        status = gr.Markdown("  \n".join(notes), elem_id="status", latex_delimiters=[])
        if may_load:
            with gr.Row():
                label = "load a model: directory or Hub name"
                name = gr.Textbox(label=label, scale=4, elem_id="load-name", max_length=MAX_NAME_CHARACTERS)
                load_button = gr.Button("Load", elem_id="load")
        boxes = [("language", _generate_tab(models)), ("language", _attention_tab(models))]
        _tokenizer_tab(models, page, status)
        with gr.Tab("Classify", visible=bool(models.names("classifier"))) as classify_tab:
            gr.Markdown(lesson_line("Classify"))
            boxes.append(("classifier", _classifier(models)))
        with gr.Tab("Chat", visible=bool(models.names("chat"))) as chat_tab:
            gr.Markdown(lesson_line("Chat"))
            boxes.append(("chat", _chat(models)))

        def load_more(name: str) -> list[Any]:
            note, new = models.add(name), name.strip() if isinstance(name, str) else name
            updates = []
            for kind, _ in boxes:
                choices = models.names(kind)
                updates.append(gr.update(choices=choices, value=new) if new in choices else gr.update(choices=choices))
            tabs = [gr.update(visible=bool(models.names(kind))) for kind in ("classifier", "chat")]
            return [note, *updates, *tabs]

        if may_load:
            changed = [status, *(box for _, box in boxes), classify_tab, chat_tab]
            load_button.click(load_more, name, changed, concurrency_limit=1, api_visibility="private")
    return page.queue(max_size=MAX_WAITING, default_concurrency_limit=2, api_open=False)


def _sampling_controls(prefix: str) -> list[gr.Slider | gr.Number]:
    lowest, highest = SETTINGS["seed"]
    with gr.Accordion("sampling", open=prefix == "generate"):
        return [
            _slider("max_new_tokens", 60, 1, "new tokens at most", f"{prefix}-tokens"),
            _slider(
                "temperature",
                0.8,
                0.05,
                "temperature (0: always the likeliest; top-k, top-p and min-p then change nothing)",
                f"{prefix}-temperature",
            ),
            _slider("top_k", 50, 1, "top-k (0: off)", f"{prefix}-top-k"),
            _slider("top_p", 1, 0.01, "top-p (1: off)", f"{prefix}-top-p"),
            _slider("min_p", 0, 0.01, "min-p (0: off)", f"{prefix}-min-p"),
            _slider("repetition_penalty", 1, 0.05, "repetition penalty (1: off)", f"{prefix}-penalty"),
            gr.Number(0, label="seed", precision=0, minimum=lowest, maximum=highest, elem_id=f"{prefix}-seed"),
        ]


def _slider(setting: str, value: float, step: float, label: str, elem_id: str) -> gr.Slider:
    return gr.Slider(*SETTINGS[setting], value, step=step, label=label, elem_id=elem_id)


def _generate_tab(models: Models) -> gr.Dropdown:
    with gr.Tab("Generate"), gr.Row():
        with gr.Column(scale=3):
            gr.Markdown(lesson_line("Generate"))
            language = models.dropdown("language", "model-language")
            prompt = gr.Textbox("One day", label="prompt", lines=2, elem_id="prompt", max_length=MAX_CHARACTERS)
            with gr.Row():
                start = gr.Button("Generate", variant="primary", elem_id="generate")
                stop = gr.Button("Stop", elem_id="stop")
            text = gr.Textbox(label="text", lines=8, elem_id="text")
        with gr.Column(scale=2):
            bars = gr.Label(label="probabilities of the last token", num_top_classes=10, elem_id="bars")
            controls = _sampling_controls("generate")
    running = start.click(shown_errors(models.generate), [language, prompt, *controls], [text, bars], **MODEL_WORK)
    stop.click(None, cancels=[running])
    return language


def _attention_tab(models: Models) -> gr.Dropdown:
    with gr.Tab("Attention"), gr.Row():
        with gr.Column():
            gr.Markdown(lesson_line("Attention"))
            language = models.dropdown("language", "model-attention")
            example = "One day, Anna went to the river."
            text = gr.Textbox(example, label="text", elem_id="attention-text", max_length=MAX_CHARACTERS)
            layer = gr.Slider(0, 47, 0, step=1, label="layer", elem_id="layer")
            head = gr.Slider(0, 31, 0, step=1, label="head", elem_id="head")
            show = gr.Button("Show", elem_id="show-attention")
        picture = gr.Plot(label="attention", elem_id="attention")
    for trigger in (show.click, layer.release, head.release):
        trigger(shown_errors(models.attention), [language, text, layer, head], picture, **MODEL_WORK)
    return language


def _tokenizer_tab(models: Models, page: gr.Blocks, status: gr.Markdown) -> None:
    with gr.Tab("Tokenizer"):
        gr.Markdown(lesson_line("Tokenizer"))
        example = "One day, Anna's 3 friends went home. 🙂"
        sentence = gr.Textbox(example, label="text", elem_id="tokenizer-text", max_length=MAX_TOKENIZER_CHARACTERS)

        @gr.render(inputs=sentence, triggers=[page.load, sentence.change, status.change], concurrency_limit=2)
        @shown_errors
        def tokenizers(sentence: str) -> None:
            with gr.Row():
                for label, loaded in list(models.loaded.items()):
                    pieces: Any = coloured_tokens(loaded, sentence)
                    with gr.Column(min_width=280):
                        gr.HighlightedText(pieces, label=f"{label}: {len(pieces)} tokens", show_legend=False)


def _classifier(models: Models) -> gr.Dropdown:
    classifier = models.dropdown("classifier", "model-classifier")
    text = gr.Textbox(label="text", elem_id="classify-text", max_length=MAX_CHARACTERS)
    button = gr.Button("Classify", elem_id="classify")
    scores = gr.Label(label="scores", elem_id="scores")
    button.click(shown_errors(models.classify), [classifier, text], scores, **MODEL_WORK)
    return classifier


def _chat(models: Models) -> gr.Dropdown:
    talker = models.dropdown("chat", "model-chat")
    # Kept on the server: a history sent by the client could contain files, components and arbitrary roles.
    history = gr.State([], time_to_live=3600)
    conversation = gr.Chatbot(label="conversation", elem_id="conversation", allow_tags=False, latex_delimiters=[], buttons=[])
    message = gr.Textbox(label="message", elem_id="message", max_length=MAX_CHARACTERS)
    with gr.Row():
        send = gr.Button("Send", variant="primary", elem_id="send")
        halt = gr.Button("Stop", elem_id="chat-stop")
        clear = gr.Button("Clear", elem_id="clear")
    inputs = [talker, history, message, *_sampling_controls("chat")]
    outputs = [history, conversation, message]
    talking: Any = [
        trigger(shown_errors(models.reply), inputs, outputs, **MODEL_WORK) for trigger in (send.click, message.submit)
    ]
    halt.click(None, cancels=talking)
    clear.click(lambda: ([], []), None, [history, conversation], api_visibility="private")
    return talker
