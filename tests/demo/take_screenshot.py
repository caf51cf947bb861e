"""Writes gpt_scratch/demo/screenshot.png: the probabilities of a next token with several candidates, and attention beside it.

    python tests/demo/take_screenshot.py runs/quickstart

It needs Chromium, and pip install "gpt_scratch[browser]".
"""

import io
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).resolve().parents[2] / "gpt_scratch" / "demo" / "screenshot.png"
PORT = 7872
PROMPT = "One day, Anna could not find her"
TEXT = "One day, Anna could not find her red hat. She looked under the bed."


def take(model: str) -> None:
    """Start the page, and photograph two of its tabs side by side."""
    command = [sys.executable, "-m", "gpt_scratch.demo", "--port", str(PORT), "--model", model]
    server = subprocess.Popen(command, env=os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"})
    try:
        wait_for(f"http://127.0.0.1:{PORT}", server)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1000, "height": 860})
            page.set_default_timeout(120_000)
            page.goto(f"http://127.0.0.1:{PORT}")
            page.locator("#generate").wait_for()
            page.locator("#prompt textarea").fill(PROMPT)
            for name, value in (("tokens", "1"), ("temperature", "1")):
                box = page.locator(f"#generate-{name} input[type=number]")
                box.fill(value)
                box.press("Tab")
            page.locator("#generate").click()
            page.wait_for_function("document.querySelector('#bars').innerText.includes('%')")
            page.wait_for_timeout(3000)
            left = page.screenshot()
            page.get_by_role("tab", name="Attention").click()
            page.locator("#attention-text textarea").fill(TEXT)
            page.locator("#show-attention").click()
            page.locator("#attention img").wait_for()
            page.wait_for_timeout(3000)
            right = page.screenshot()
            browser.close()
    finally:
        server.terminate()
        server.wait(30)
    parts = [Image.open(io.BytesIO(part)).convert("RGB") for part in (left, right)]
    joined = Image.new("RGB", (sum(part.width for part in parts), parts[0].height), "white")
    joined.paste(parts[0], (0, 0))
    joined.paste(parts[1], (parts[0].width, 0))
    joined.save(PICTURE, optimize=True)


def wait_for(address: str, server: subprocess.Popen) -> None:
    """Until the server answers."""
    while True:
        try:
            urllib.request.urlopen(address, timeout=1)
            return
        except OSError:
            assert server.poll() is None, "the server ended"
            time.sleep(0.5)


if __name__ == "__main__":
    take(sys.argv[1])
