"""The page in a real browser, headless: generate, stop, change settings, look at attention and tokens, classify, chat, a wrong directory."""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch

from gpt_scratch import GPTScratchConfig, GPTScratchForCausalLM, GPTScratchForSequenceClassification
from gpt_scratch.demo.lessons import LESSONS
from gpt_scratch.tokenization.byte_pair import train_byte_level_bpe

sync_api = pytest.importorskip("playwright.sync_api", reason='the browser test needs pip install "gpt_scratch[browser]"')
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]
PORT = 7871
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A language model that can chat, another one, and a classifier: tiny, of random but large weights."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = train_byte_level_bpe(["One day, Anna lost her key. assistant: user: " * 20], vocab_size=330)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(tokenizer), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 600, "initializer_range": 0.3}
    GPTScratchForCausalLM(GPTScratchConfig(**sizes)).save_pretrained(root / "other")
    tokenizer.save_pretrained(root / "other")
    tokenizer.chat_template = CHAT_TEMPLATE
    GPTScratchForCausalLM(GPTScratchConfig(**sizes)).save_pretrained(root / "chatty")
    tokenizer.save_pretrained(root / "chatty")
    labels = {"id2label": {0: "ham", 1: "spam"}, "label2id": {"ham": 0, "spam": 1}, "pad_token_id": tokenizer.pad_token_id}
    GPTScratchForSequenceClassification(GPTScratchConfig(**sizes, **labels)).save_pretrained(root / "spam")
    tokenizer.save_pretrained(root / "spam")
    return {name: root / name for name in ("chatty", "other", "spam")}


@pytest.fixture(scope="module")
def page(folders):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    command = [
        sys.executable,
        "-m",
        "gpt_scratch.demo",
        "--port",
        str(PORT),
        "--model",
        str(folders["chatty"]),
        str(folders["spam"]),
        "nowhere",
    ]
    server = subprocess.Popen(command, env=environment)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{PORT}", timeout=1)
                break
            except OSError:
                assert server.poll() is None, "the server ended"
                time.sleep(0.5)
        with sync_api.sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1280, "height": 1000})
            page.set_default_timeout(60_000)
            page.goto(f"http://127.0.0.1:{PORT}")
            page.wait_for_selector("#generate")
            yield page
            browser.close()
    finally:
        server.terminate()
        server.wait(30)


def fill(page, label: str, value: str) -> None:
    """Set the number beside a slider."""
    box = page.locator(f"#{label} input[type=number]")
    box.fill(value)
    box.press("Tab")


def value(page, name: str) -> str:
    return page.locator(f"#{name} textarea").input_value()


def wait(page, condition, what: str) -> None:
    for _ in range(300):
        if condition():
            return
        page.wait_for_timeout(200)
    raise AssertionError(what)


def test_a_model_that_cannot_be_loaded_is_reported_on_the_page(page):
    assert "nowhere cannot be loaded" in page.locator("#status").inner_text()
    page.locator("#load-name textarea, #load-name input").first.fill("/no/such/directory")
    page.locator("#load").click()
    wait(page, lambda: "/no/such/directory cannot be loaded" in page.locator("#status").inner_text(), "no reason on the page")


def test_generation_streams_shows_bars_and_follows_its_settings(page):
    fill(page, "generate-tokens", "30")
    fill(page, "generate-temperature", "0")
    page.locator("#generate").click()
    wait(page, lambda: len(value(page, "text")) > 20, "no text")
    page.wait_for_timeout(3000)
    first, bars = value(page, "text"), page.locator("#bars").inner_text()
    assert first.startswith("One day") and "%" in bars
    fill(page, "generate-temperature", "2")
    page.locator("#generate").click()
    wait(page, lambda: value(page, "text") != first and len(value(page, "text")) > 20, "the temperature changes nothing")
    assert page.locator("#bars").inner_text() != bars


def test_stop_ends_a_long_text(page):
    fill(page, "generate-tokens", "512")
    fill(page, "generate-temperature", "1")
    page.locator("#generate").click()
    wait(page, lambda: len(value(page, "text")) > 10, "no text")
    page.locator("#stop").click()
    page.wait_for_timeout(2000)
    stopped = value(page, "text")
    page.wait_for_timeout(2500)
    assert value(page, "text") == stopped and len(stopped) > 10


def test_attention_changes_with_the_head(page):
    page.get_by_role("tab", name="Attention").click()
    page.locator("#show-attention").click()
    picture = page.locator("#attention img")
    picture.wait_for()
    first = picture.get_attribute("src")
    fill(page, "head", "2")
    page.locator("#show-attention").click()
    wait(page, lambda: picture.get_attribute("src") != first, "the picture does not change")


def test_tokenizers_side_by_side(page, folders):
    page.locator("#load-name textarea, #load-name input").first.fill(str(folders["other"]))
    page.locator("#load").click()
    wait(page, lambda: "other" in page.locator("#status").inner_text(), "not loaded")
    page.get_by_role("tab", name="Tokenizer").click()
    page.locator("#tokenizer-text textarea").fill("Anna lost")
    wait(
        page, lambda: page.get_by_text("chatty: ").count() > 0 and page.get_by_text("other: ").count() > 0, "not both tokenizers"
    )


@pytest.mark.parametrize("tab", LESSONS)
def test_a_tab_names_its_lesson(page, tab):
    page.get_by_role("tab", name=tab).click()
    wait(page, lambda: page.get_by_text(LESSONS[tab][1]).first.is_visible(), "no lesson")


def test_classify(page):
    page.get_by_role("tab", name="Classify").click()
    page.locator("#classify-text textarea").fill("win a prize")
    page.locator("#classify").click()
    wait(
        page, lambda: "spam" in page.locator("#scores").inner_text() and "%" in page.locator("#scores").inner_text(), "no scores"
    )


def test_chat(page):
    page.get_by_role("tab", name="Chat").click()
    page.locator("#message textarea").fill("Where is the key?")
    page.locator("#send").click()
    wait(page, lambda: page.locator("#conversation .bot, #conversation [data-testid=bot]").count() > 0, "no reply")
    assert "Where is the key?" in page.locator("#conversation").inner_text()
