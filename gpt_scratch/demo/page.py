"""The page itself, in Gradio: generation, next-token probabilities, attention, tokenizers, classifier, chat."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from ..analysis.attention import attention_maps, token_texts
from ..errors import UserError
from ..inference.classify import classify_texts
from ..plots import new_figure
from .models import MAX_NEW_TOKENS, LoadedModel, Sampling, check_text, load_model, stream_reply, stream_text

MAX_ATTENTION_TOKENS = 64


def attention_figure(loaded: LoadedModel, text: str, layer: int, head: int):
    """One attention map with its tokens.

    Raises:
        UserError: too long a text, no such layer or head.
    """
    ids = loaded.tokenizer(check_text(text), return_tensors="pt")["input_ids"][:, :MAX_ATTENTION_TOKENS].to(loaded.model.device)
    if ids.shape[1] == 0:
        raise UserError("write a text whose attention to show")
    maps = attention_maps(loaded.model, ids.long())
    layer, head = min(int(layer), maps.shape[0] - 1), min(int(head), maps.shape[1] - 1)
    tokens = token_texts(loaded.tokenizer, ids[0].tolist())
    side = 2 + 0.25 * len(tokens)
    figure, axes = new_figure(size=(side, side))
    axes.imshow(maps[layer, head].float().cpu(), cmap="viridis", vmin=0)
    axes.set_xticks(range(len(tokens)), tokens, rotation=90, parse_math=False)
    axes.set_yticks(range(len(tokens)), tokens, parse_math=False)
    axes.set_title(f"layer {layer}, head {head}")
    return figure


def coloured_tokens(loaded: LoadedModel, text: str) -> list[tuple[str, str]]:
    """Each token of a text with its id."""
    ids = loaded.tokenizer(check_text(text), verbose=False)["input_ids"]
    return [(piece, str(token)) for piece, token in zip(token_texts(loaded.tokenizer, ids), ids)]


def build_page(names: list[str]) -> gr.Blocks:
    """The page with these models; one that cannot be loaded is told on the page, not raised."""
    models: dict[str, LoadedModel] = {}

    def add(name: str) -> str:
        try:
            models[name] = load_model(name)
        except UserError as error:
            return f"⚠ {error}"
        return f"{name}: {models[name].model.num_parameters():,} parameters"

    notes = [add(name) for name in names]

    def choices(kind: str) -> list[str]:
        wanted = {
            "language": lambda loaded: not loaded.is_classifier,
            "classifier": lambda loaded: loaded.is_classifier,
            "chat": lambda loaded: loaded.can_chat,
            "any": lambda loaded: True,
        }[kind]
        return [name for name, loaded in models.items() if wanted(loaded)]

    def pick(name: str | None) -> LoadedModel:
        if name not in models:
            raise gr.Error("choose a model first, or load one above", print_exception=False)
        return models[name]

    def dropdown(kind: str) -> gr.Dropdown:
        names = choices(kind)
        return gr.Dropdown(names, value=names[0] if names else None, label="model", elem_id=f"model-{kind}")

    def generate(name: str, prompt: str, *settings: Any) -> Iterator[tuple[str, dict[str, float]]]:
        try:
            for text, bars in stream_text(pick(name), prompt, Sampling(*settings)):
                yield prompt + text, bars
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def reply(name: str, history: list[dict[str, Any]], message: str, *settings: Any) -> Iterator[tuple[list, str]]:
        loaded = pick(name)
        messages = [{"role": m["role"], "content": _plain(m["content"])} for m in history] + [
            {"role": "user", "content": message}
        ]
        try:
            for text in stream_reply(loaded, messages, Sampling(*settings)):
                yield [*messages, {"role": "assistant", "content": text}], ""
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def guarded(function):
        def call(*arguments):
            try:
                return function(*arguments)
            except UserError as error:
                raise gr.Error(str(error), print_exception=False) from error

        return call

    def classify(name: str, text: str) -> dict[str, float]:
        loaded = pick(name)
        result = next(classify_texts(loaded.model, loaded.tokenizer, [check_text(text)], window=1))
        if "error" in result:
            raise UserError(result["error"])
        return result["scores"]

    def sampling_controls(prefix: str) -> list[gr.Slider | gr.Number]:
        with gr.Accordion("sampling", open=prefix == "generate"):
            return [
                gr.Slider(1, MAX_NEW_TOKENS, 60, step=1, label="new tokens at most", elem_id=f"{prefix}-tokens"),
                gr.Slider(0, 2, 0.8, step=0.05, label="temperature (0: most likely)", elem_id=f"{prefix}-temperature"),
                gr.Slider(0, 200, 50, step=1, label="top-k (0: off)", elem_id=f"{prefix}-top-k"),
                gr.Slider(0.05, 1, 1, step=0.05, label="top-p (1: off)", elem_id=f"{prefix}-top-p"),
                gr.Slider(0, 1, 0, step=0.01, label="min-p (0: off)", elem_id=f"{prefix}-min-p"),
                gr.Slider(1, 2, 1, step=0.05, label="repetition penalty (1: off)", elem_id=f"{prefix}-penalty"),
                gr.Number(0, label="seed", precision=0, elem_id=f"{prefix}-seed"),
            ]

    with gr.Blocks(title="gpt_scratch") as page:
        gr.Markdown("# gpt_scratch\nText, probabilities, attention and tokens of your models.")
        status = gr.Markdown("  \n".join(notes), elem_id="status")
        with gr.Row():
            name = gr.Textbox(label="load a model: directory or Hub name", scale=4, elem_id="load-name")
            load_button = gr.Button("Load", elem_id="load")
        dropdowns: list[tuple[str, gr.Dropdown]] = []
        with gr.Tab("Generate"):
            with gr.Row():
                with gr.Column(scale=3):
                    language = dropdown("language")
                    prompt = gr.Textbox("One day", label="prompt", lines=2, elem_id="prompt")
                    with gr.Row():
                        start = gr.Button("Generate", variant="primary", elem_id="generate")
                        stop = gr.Button("Stop", elem_id="stop")
                    text = gr.Textbox(label="text", lines=8, elem_id="text")
                with gr.Column(scale=2):
                    bars = gr.Label(label="probabilities of the last token", num_top_classes=10, elem_id="bars")
                    controls = sampling_controls("generate")
            running = start.click(generate, [language, prompt, *controls], [text, bars], concurrency_limit=1)
            stop.click(None, cancels=[running])
        with gr.Tab("Attention"):
            with gr.Row():
                with gr.Column():
                    looked_at = gr.Dropdown(choices("language"), value=language.value, label="model", elem_id="model-attention")
                    seen = gr.Textbox("One day, Anna went to the river.", label="text", elem_id="attention-text")
                    layer = gr.Slider(0, 47, 0, step=1, label="layer", elem_id="layer")
                    head = gr.Slider(0, 31, 0, step=1, label="head", elem_id="head")
                    show = gr.Button("Show", elem_id="show-attention")
                picture = gr.Plot(label="attention", elem_id="attention")
            show.click(guarded(lambda n, *rest: attention_figure(pick(n), *rest)), [looked_at, seen, layer, head], picture)
            for slider in (layer, head):
                slider.release(
                    guarded(lambda n, *rest: attention_figure(pick(n), *rest)), [looked_at, seen, layer, head], picture
                )
        with gr.Tab("Tokenizer"):
            sentence = gr.Textbox("One day, Anna's 3 friends went home. 🙂", label="text", elem_id="tokenizer-text")

            @gr.render(inputs=sentence, triggers=[page.load, sentence.change, status.change])
            def tokenizers(sentence: str) -> None:
                with gr.Row():
                    for label, loaded in models.items():
                        pieces: Any = coloured_tokens(loaded, sentence[:2000])
                        with gr.Column(min_width=280):
                            gr.HighlightedText(pieces, label=f"{label}: {len(pieces)} tokens", show_legend=False)

        with gr.Tab("Classify", visible=bool(choices("classifier"))) as classify_tab:
            classifier = dropdown("classifier")
            judged = gr.Textbox(label="text", elem_id="classify-text")
            judge = gr.Button("Classify", elem_id="classify")
            scores = gr.Label(label="scores", elem_id="scores")
            judge.click(guarded(classify), [classifier, judged], scores)
        with gr.Tab("Chat", visible=bool(choices("chat"))) as chat_tab:
            talker = dropdown("chat")
            conversation = gr.Chatbot(label="conversation", elem_id="conversation")
            message = gr.Textbox(label="message", elem_id="message")
            with gr.Row():
                send = gr.Button("Send", variant="primary", elem_id="send")
                halt = gr.Button("Stop", elem_id="chat-stop")
                clear = gr.Button("Clear", elem_id="clear")
            chat_controls = sampling_controls("chat")
            inputs = [talker, conversation, message, *chat_controls]
            talking: Any = [
                trigger(reply, inputs, [conversation, message], concurrency_limit=1) for trigger in (send.click, message.submit)
            ]
            halt.click(None, cancels=talking)
            clear.click(lambda: [], None, conversation)
        dropdowns = [("language", language), ("language", looked_at), ("classifier", classifier), ("chat", talker)]

        def load_more(name: str) -> list[Any]:
            note = add(name)
            updates = [gr.update(choices=choices(kind), value=name if name in choices(kind) else None) for kind, _ in dropdowns]
            for (kind, _), update in zip(dropdowns, updates):
                if name not in choices(kind):
                    update.pop("value", None)
            tabs = [gr.update(visible=bool(choices(kind))) for kind in ("classifier", "chat")]
            return [note, *updates, *tabs]

        load_button.click(load_more, name, [status, *(box for _, box in dropdowns), classify_tab, chat_tab])
    return page.queue(max_size=16, default_concurrency_limit=2)


def _plain(content: Any) -> str:
    """The words of a message, which Gradio keeps as parts."""
    if isinstance(content, str):
        return content
    return "".join(part if isinstance(part, str) else part.get("text", "") for part in content)
