"""Measure the page in headless Chromium: loading, the first token, speed, and equality of texts.

    python benchmarks/page.py models/minigpt.onnx models/minigpt.int8.onnx
    python benchmarks/page.py --picture docs/page.png

The first command prints for each model the milliseconds until the page is ready and until the first
token, the tokens per second with the default sampling, and how many of 50 texts of 200 tokens equal
those of `minigpt-cli generate`. The second one saves the picture in the README.
"""

import argparse
import functools
import re
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from minigpt.generation.engine import generate
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.sampling import Sampling
from minigpt.serving.build_page import build_page, training_data

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


def save_picture(page: Page, address: str, file: Path) -> None:
    """Save a picture of a text and of a choice that the noise decided."""
    page.set_viewport_size({"width": 1360, "height": 860})
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    values = {"prompt": "The old fisherman", "temperature": "0.6", "max_new_tokens": "400"}
    for name, value in values.items():
        page.fill(f"#{name}", value)
    page.click("#go")
    page.wait_for_selector("body:not(.writing)")
    for position in range(80, 160):
        page.click(f"#text-{position}")
        if not page.locator("#why tbody tr:first-child.wins").count():
            break
    page.mouse.move(2, 2)
    page.screenshot(path=file, clip={"x": 0, "y": 0, "width": 1360, "height": 610})


@contextmanager
def served(browser: Browser, model: Path) -> Iterator[tuple[Page, str]]:
    """Build the page of `model`; yield a page of the browser and the address."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page"
        training = training_data(Path(), OnnxBackend(model).sha256)
        build_page(path, model, training)
        handler = functools.partial(Handler, directory=path)
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = browser.new_page()
        page.set_default_timeout(300_000)
        yield page, f"http://127.0.0.1:{server.server_port}/"
        page.close()
        server.shutdown()
        server.server_close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", type=Path, nargs="*", default=[Path("models/minigpt.onnx")])
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for model in arguments.models:
            with served(browser, model) as (page, address):
                if arguments.picture:
                    save_picture(page, address, arguments.picture)
                else:
                    measure(page, address, model)
        browser.close()


if __name__ == "__main__":
    main()
