"""Measure the page in headless Chromium: loading, the first token, speed, and equality of texts.

    python benchmarks/page.py models/minigpt.onnx models/minigpt.int8.onnx

For each model it prints the milliseconds until the page is ready and until the first token, the
tokens per second with the default sampling, and how many of 50 texts of 200 tokens equal those of
`minigpt-cli generate`.
"""

import functools
import re
import shutil
import statistics
import sys
import tempfile
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from minigpt.generation.engine import generate
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.sampling import Sampling
from minigpt.serving.build_page import build_page

RUNS = 5
TEXTS = 50
FIRST = "document.querySelector('#text [role=option]:not(.given)')"
TEXT = "[...document.querySelectorAll('#text [role=option]:not(.given)')]"


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Print nothing."""


def write(page: Page, tokens: int, seed: int) -> tuple[float, float]:
    """Write a text; return the milliseconds until its first token, and tokens per second."""
    values = {"prompt": "Once upon a time", "max_new_tokens": str(tokens), "seed": str(seed)}
    for name, value in values.items():
        page.fill(f"#{name}", value)
    page.set_checked("#ignore_eos", True)
    page.evaluate(
        f"""new Promise((resolve) => {{
            document.getElementById("text").replaceChildren();
            const began = performance.now();
            const look = () =>
                {FIRST} ? resolve(window.first = performance.now() - began) : setTimeout(look);
            document.getElementById("go").click();
            look();
        }})"""
    )
    page.wait_for_selector("body:not(.writing)")
    match = re.search(r"(\d+) tokens/s", page.inner_text("#speed"))
    assert match is not None
    return page.evaluate("window.first"), float(match[1])


def measure(page: Page, address: str, model: Path) -> None:
    ready = []
    for _ in range(RUNS):
        began = time.perf_counter()
        page.goto(address)
        page.wait_for_selector("body[data-ready]")
        ready.append(1000 * (time.perf_counter() - began))
    figures = [write(page, 1000, seed) for seed in range(RUNS)]
    first, speed = map(statistics.median, zip(*figures, strict=True))
    backend, equal = OnnxBackend(model), 0
    for seed in range(TEXTS):
        write(page, 200, seed)
        sampling = Sampling(seed=seed, ignore_eos=True)
        expected = "".join(generate(backend, "Once upon a time", 200, sampling))
        equal += page.evaluate(f"{TEXT}.map((one) => one.textContent).join('')") == expected
    print(
        f"{model}: ready {statistics.median(ready):.0f} ms, first token {first:.0f} ms, "
        f"{speed:.0f} tokens/s, {equal} of {TEXTS} texts equal"
    )


def main() -> None:
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for model in map(Path, sys.argv[1:] or ["models/minigpt.onnx"]):
            with tempfile.TemporaryDirectory() as folder:
                build_page(Path(folder) / "page", model)
                handler = functools.partial(Handler, directory=f"{folder}/page")
                server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
                threading.Thread(target=server.serve_forever, daemon=True).start()
                page = browser.new_page()
                measure(page, f"http://127.0.0.1:{server.server_port}/", model)
                page.close()
                server.shutdown()
        browser.close()


if __name__ == "__main__":
    main()
