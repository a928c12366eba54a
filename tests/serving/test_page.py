"""The page in a real browser: its texts and numbers are those of Python, and anyone can use it."""

import functools
import os
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import NEEDS_NPM, engine_ids
from page_models import (
    GENERATIONS,
    attention_of,
    build_page_models,
    stop_within_token,
    tiny_model,
)
from playwright.sync_api import Page, sync_playwright

from minigpt.evaluation.score import score
from minigpt.generation.engine import generate
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.sampling import Sampling, gumbel_noise, next_token
from minigpt.serving.build_page import build_page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    NEEDS_NPM,
    pytest.mark.skipif(
        CHROMIUM is None and "CI" not in os.environ, reason="needs a browser: apt install chromium"
    ),
]
TRAINING = {
    "training": {"step": [20, 40, 60], "train/loss": [4.0, 3.0, 2.0]},
    "validation": {"step": [30, 60], "val/loss": [3.5, 2.5]},
    "evaluation": {"baseline_loss": {"uniform": 4.2, "bigram": 2.3}},
    "samples": [[30, "Th e"], [60, "The fox."]],
}
NEW_TOKENS = 60


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer, sentences) -> dict[str, Path]:
    return build_page_models(tmp_path_factory.mktemp("models"), tokenizer, sentences)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, npm_packages, models) -> Path:
    out = tmp_path_factory.mktemp("site") / "page"
    build_page(out, models["char"], TRAINING)
    return out


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(folder, browser):
    """Return the open page; at the end there must be no error and no request elsewhere."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    page = browser.new_page()
    page.set_default_timeout(60_000)
    address, errors = f"http://127.0.0.1:{server.server_port}/", []
    page.on("console", lambda sent: sent.type == "error" and errors.append(sent.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda sent: sent.url.startswith(address) or errors.append(sent.url))
    page.goto(address)
    page.wait_for_selector("body[data-ready]")
    yield page
    page.close()
    server.shutdown()
    server.server_close()
    assert not errors


@pytest.fixture
def site(opened, models) -> Page:
    """Return the page with the model of characters, whatever an earlier test opened."""
    open_model(opened, models["char"])
    return opened


def write(site: Page, prompt: str, sampling: Sampling, stop: str = "") -> None:
    site.click("#tab-write")
    values = {"prompt": prompt, "max_new_tokens": str(NEW_TOKENS), "stop": stop}
    values |= {name: str(value) for name, value in vars(sampling).items() if name != "ignore_eos"}
    for name, value in values.items():
        site.fill(f"#{name}", value)
    site.set_checked("#ignore_eos", sampling.ignore_eos)
    site.click("#go")
    site.wait_for_selector("body:not(.writing)")


def written(site: Page) -> str:
    options = "[...document.querySelectorAll('#text [role=option]:not(.given)')]"
    return site.evaluate(f"{options}.map((option) => option.textContent).join('')")


def open_model(site: Page, path: Path) -> None:
    site.evaluate("delete document.body.dataset.ready")
    site.set_input_files("#open", path)
    site.wait_for_selector("body[data-ready]")


@pytest.mark.parametrize("name", ["gpt2", "char"])
def test_page_writes_the_text_of_the_command(site, models, name, full):
    open_model(site, models[name])
    backend = OnnxBackend(models[name])
    for prompt, settings in GENERATIONS if full else GENERATIONS[::4]:
        sampling = Sampling(**settings)
        write(site, prompt, sampling)
        ids = engine_ids(backend, prompt, NEW_TOKENS, sampling)
        assert written(site) == backend.tokenizer.decode(ids), (prompt, settings)


def test_text_ends_within_a_token(site, models):
    open_model(site, models["gpt2"])
    backend = OnnxBackend(models["gpt2"])
    stop = stop_within_token(backend, engine_ids(backend, "The", NEW_TOKENS, Sampling()))
    write(site, "The", Sampling(), stop)
    text = generate(backend, "The", NEW_TOKENS, stop=[stop])
    assert written(site) == "".join(text)


def test_opening_a_model_ends_the_text(site, models):
    write(site, PROMPT, SAMPLING)
    text = written(site)
    site.fill("#max_new_tokens", "1500")
    site.click("#go")
    open_model(site, models["char"])
    assert site.inner_text("#go") == "Write"
    assert written(site) == ""
    write(site, PROMPT, SAMPLING)
    assert written(site) == text


PROMPT, SAMPLING = "The quick", Sampling(1.2, top_k=9, top_p=0.8, ignore_eos=True, seed=5)
AT = 20  # position of the selected token


@pytest.fixture
def selected(site, models) -> list[int]:
    """Select a token of a text; return the ids of the text."""
    write(site, PROMPT, SAMPLING)
    site.click(f"#text-{AT}")
    backend = OnnxBackend(models["char"])
    prompt = backend.tokenizer.encode(PROMPT)[:-1]
    return prompt + engine_ids(backend, PROMPT, NEW_TOKENS, SAMPLING)


def number(text: str) -> float:
    return float(text.replace("−", "-").removesuffix(" %"))


def test_decision_shows_the_numbers_of_python(site, models, selected):
    backend = OnnxBackend(models["char"])
    logits = backend.new_cache(1).prefill(0, selected[:AT], 0)[-1]
    noise = gumbel_noise(SAMPLING.seed, 0, AT, len(logits))[0]
    site.click("#tab-why")
    rows = site.locator("#why tbody tr").all()
    assert len(rows) >= 9
    order = [i for i in np.argsort(-logits, kind="stable") if i > 2]
    kept = []
    for row, expected in zip(rows[:12], order, strict=False):
        assert row.get_attribute("data-id") == str(expected)
        cells = row.locator("td").all_inner_texts()
        scaled = logits[expected] / SAMPLING.temperature
        assert number(cells[0]) == pytest.approx(logits[expected], abs=0.006)
        assert number(cells[1]) == pytest.approx(scaled, abs=0.006)
        if cells[2] not in ("top-k", "top-p"):
            kept.append(expected)
            assert number(cells[3]) == pytest.approx(noise[expected], abs=0.006)
            assert number(cells[4]) == pytest.approx(scaled + noise[expected], abs=0.006)
    weights = np.exp(logits[order[:9]] / SAMPLING.temperature)
    assert len(kept) == np.searchsorted(np.cumsum(weights / weights.sum()), SAMPLING.top_p) + 1
    assert site.get_attribute("#why tr.wins", "data-id") == str(selected[AT])


def test_another_candidate_continues_the_text(site, models, selected):
    backend = OnnxBackend(models["char"])
    site.click("#tab-why")
    other = site.locator("#why tbody tr:not(.wins)").first
    ids = [*selected[:AT], int(other.get_attribute("data-id"))]
    other.locator("button").click()
    site.wait_for_selector("body:not(.writing)")
    while len(ids) < len(backend.tokenizer.encode(PROMPT)) - 1 + NEW_TOKENS and ids[-1] != 3:
        start = -(-max(0, len(ids) - 32) // 16) * 16
        logits = backend.new_cache(1).prefill(0, ids[start:], 0)[-1]
        noise = gumbel_noise(SAMPLING.seed, 0, len(ids), len(logits))[0]
        ids.append(next_token(logits, noise, SAMPLING, ids))
    assert PROMPT + written(site) == backend.tokenizer.decode(ids)


def test_attention_shows_the_weights_of_the_model(site, tokenizer, selected):
    site.click("#tab-attention")
    site.wait_for_selector("#attention .top")
    weights = attention_of(tiny_model("char", tokenizer), selected[:AT])[:, :, -1]  # (L, H, T)
    for label, row in [
        ("Average of all heads", weights.mean((0, 1))),
        ("Layer 2, head 3", weights[1, 2]),
    ]:
        site.click(f"#attention [aria-label='{label}']")
        shown = site.locator("#attention .top li").all_inner_texts()
        found = [number(text.split(" ", 1)[1]) / 100 for text in shown]
        np.testing.assert_allclose(found, np.sort(row)[::-1][:5], atol=0.006)
        style = site.get_attribute(f"#text-{row.argmax()}", "style")
        assert style == "--shade: 1.000;"
    site.click("#tab-why")


def test_score_shows_the_figures_of_the_command(site, models):
    text = "The quick brown fox.\nA naïve dog."
    total, lines = score(OnnxBackend(models["char"]), text)
    site.click("#tab-score")
    site.fill("#score-text", text)
    site.click("#score-form button")
    site.wait_for_selector("#score-lines td")
    assert number(site.inner_text("#score-total b")) == pytest.approx(
        total.nats / total.tokens, abs=1e-3
    )
    for row, line in zip(site.locator("#score-lines tbody tr").all(), lines, strict=True):
        shown = [number(cell) for cell in row.locator("td").all_inner_texts()]
        figures = line.figures()
        expected = [figures[name] for name in ("loss", "perplexity", "bits_per_char")]
        assert shown == pytest.approx(expected, rel=1e-3)


def test_tokens_shows_the_ids_of_the_tokenizer(site, tokenizer):
    site.click("#tab-tokens")
    site.fill("#tokens-text", "The fox 🦊")
    shown = site.locator("#tokens-list span").all_inner_texts()
    assert list(map(int, shown)) == tokenizer.encode("The fox 🦊")
    assert site.locator("#tokens-list .unknown").all_inner_texts() == ["🦊\n1"]


def test_training_shows_what_was_recorded(site):
    site.reload()
    site.wait_for_selector("body[data-ready]")
    site.click("#tab-training")
    assert "bigram 2.30" in site.text_content(".chart")
    for index, (step, text) in enumerate(TRAINING["samples"]):
        site.fill("#sample", str(index))
        assert site.inner_text("output") == text
        assert f"step {step}: training" in site.inner_text("#training")
    assert "validation 2.500" in site.inner_text("#training")


def test_page_works_without_a_mouse(site):
    site.focus("#tab-training")
    site.keyboard.press("ArrowRight")
    assert site.is_visible("#write")
    site.focus("#prompt")
    site.keyboard.press("Control+Enter")
    site.wait_for_selector("body:not(.writing)")
    assert written(site) in site.inner_text("#status")  # read out
    site.focus("#text")
    site.keyboard.press("End")
    site.keyboard.press("ArrowLeft")
    last = site.locator("#text [role=option]").count() - 2
    assert site.get_attribute("#text", "aria-activedescendant") == f"text-{last}"
    assert site.locator("#why tr.wins").count() == 1


def test_page_has_no_accessibility_violations(site, npm_packages):
    site.evaluate((npm_packages / "axe-core/axe.min.js").read_text())
    for theme in ("dark", "light"):
        site.click("#theme")
        for view in ("write", "score", "tokens", "training"):
            site.click(f"#tab-{view}")
            found = site.evaluate("axe.run({ runOnly: ['wcag2a', 'wcag2aa', 'wcag21aa'] })")
            violations = [(rule["id"], rule["nodes"][0]["html"]) for rule in found["violations"]]
            assert not violations, (theme, view)


def test_page_fits_a_phone(site):
    site.set_viewport_size({"width": 390, "height": 844})
    for view in ("write", "score", "tokens", "training"):
        site.click(f"#tab-{view}")
        assert site.evaluate("document.documentElement.scrollWidth") <= 390, view
    site.set_viewport_size({"width": 1280, "height": 720})


def test_damaged_model_does_not_replace_the_model(site, models, tmp_path):
    write(site, PROMPT, SAMPLING)
    text = written(site)
    data = bytearray(models["char"].read_bytes())
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(4000)  # weights, so the graph loads
    (tmp_path / "damaged.onnx").write_bytes(data)
    site.set_input_files("#open", tmp_path / "damaged.onnx")
    site.wait_for_selector("#model:has-text('Cannot')")
    assert site.inner_text("#model").startswith("Cannot load the model: damaged")
    write(site, PROMPT, SAMPLING)
    assert written(site) == text


def test_link_restores_valid_settings_only(site):
    def follow(link: str, *names: str) -> list[str]:
        site.goto(f"{site.url.partition('#')[0]}#{link}")
        site.reload()
        site.wait_for_selector("body[data-ready]")
        return [site.input_value(f"#{name}") for name in names]

    names = ("seed", "top_k", "max_new_tokens", "temperature", "prompt")
    link = "seed=abc&top_k=-1&max_new_tokens=&temperature=0.5&prompt=Hi"
    assert follow(link, *names) == ["1", "50", "300", "0.5", "Hi"]
    assert follow(f"seed={2**63}", "seed") == ["1"]
    assert follow(f"seed={2**63 - 1}", "seed") == [str(2**63 - 1)]


@pytest.mark.parametrize(("name", "value"), [("top_k", ""), ("seed", ""), ("seed", str(2**63))])
def test_invalid_settings_are_refused(site, name, value):
    write(site, PROMPT, SAMPLING)
    site.fill("#prompt", "")
    site.fill(f"#{name}", value)
    site.click("#go")
    assert site.locator("#settings input:invalid").first.get_attribute("id") == name
    assert "The quick" in site.text_content("#text")  # still
    site.fill(f"#{name}", "1")


def test_page_opened_from_a_file_shows_a_command(browser, folder):
    page = browser.new_page()
    page.goto((folder / "index.html").as_uri())
    page.wait_for_selector("#notice", state="visible")
    assert "python -m http.server --directory page" in page.inner_text("#notice")
    page.close()
