"""The server, by requests of the real `openai` client and of raw sockets."""

import asyncio
import json
import re
import socket
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from conftest import engine_ids, wait_for
from local_server import Served, export_small, serving

from minigpt.generation.engine import run
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.sampling import Sampling
from minigpt.generation.sequence import Logprobs, Sequence
from minigpt.serving.build_page import SOURCE

BOLD = {"temperature": 2.0, "seed": 7, "max_tokens": 40}
SAMPLING = Sampling(2.0, seed=7)


@pytest.fixture(scope="module")
def backend(tokenizer, tmp_path_factory) -> OnnxBackend:
    return OnnxBackend(export_small(tmp_path_factory.mktemp("served"), tokenizer))


@pytest.fixture(scope="module")
def served(backend):
    with serving(backend) as server:
        yield server


def generated(backend: OnnxBackend, prompt: str, sample: int = 0, **options: Any) -> Sequence:
    """Return what the engine generates alone for the request `BOLD`."""
    sequence = Sequence(backend.tokenizer, prompt, SAMPLING, sample, 40, **options)
    for _ in run(backend, [sequence]):
        pass
    return sequence


def complete(served: Served, prompt: Any, **options: Any) -> Any:
    return served.client.completions.create(model="minigpt", prompt=prompt, **BOLD | options)


def post(served: Served, body: dict[str, Any]) -> httpx.Response:
    """Send a body that may contain lone surrogates, which only escapes can express."""
    headers = {"Content-Type": "application/json"}
    return served.http.post("/v1/completions", content=json.dumps(body), headers=headers)


def test_texts_are_those_of_generate(served, backend):
    prompts = ["the", "x" * 70]
    answer = complete(served, prompts, n=2)
    expected = [generated(backend, prompt, sample) for prompt in prompts for sample in range(2)]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == [each.text for each in expected]
    reasons = {"eos": "stop", "length": "length"}
    assert [choice.finish_reason for choice in answer.choices] == [
        reasons[each.finish_reason] for each in expected
    ]
    assert answer.usage.prompt_tokens == 73
    assert answer.usage.completion_tokens == sum(len(each.generated) for each in expected)
    assert (answer.model, answer.system_fingerprint, answer.seed) == ("minigpt", "digest", 7)


@pytest.mark.parametrize("special", [[], [2]], ids=["plain", "with <bos>"])
def test_prompts_may_be_token_ids(served, backend, special):
    ids = special + backend.tokenizer.encode("the", add_special_tokens=False)
    (choice,) = complete(served, ids).choices
    assert choice.text == generated(backend, "the").text
    assert [choice.text] * 2 == [choice.text for choice in complete(served, [ids, ids]).choices]


def test_a_stream_has_the_same_texts(served):
    expected = complete(served, ["a", "b"], n=2, echo=True)
    texts, reasons = [""] * 4, [None] * 4
    *events, last = complete(
        served, ["a", "b"], n=2, echo=True, stream=True, stream_options={"include_usage": True}
    )
    for event in events:
        (choice,) = event.choices
        texts[choice.index] += choice.text
        reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in expected.choices]
    assert reasons == [choice.finish_reason for choice in expected.choices]
    assert (last.choices, last.usage) == ([], expected.usage)


def test_a_stream_ends_with_done(served):
    body = {"prompt": "a", "stream": True, "max_tokens": 3}
    lines = served.http.post("/v1/completions", json=body).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(line.removeprefix("data: "))["choices"] for line in lines[:-2])


def test_a_stop_string_ends_the_text_before_it(served, backend):
    text = generated(backend, "the").text
    (choice,) = complete(served, "the", stop=["never", text[5:8]], logprobs=0).choices
    assert (choice.text, choice.finish_reason) == (text[: text.index(text[5:8])], "stop")
    assert "".join(choice.logprobs.tokens) == choice.text


def test_a_drawn_seed_is_returned(served):
    first = complete(served, "the", seed=None)
    again = complete(served, "the", seed=first.seed)
    assert first.choices[0].text == again.choices[0].text
    assert complete(served, "the", seed=None).seed != first.seed


def test_extensions_are_those_of_sampling(served, backend):
    options = {"top_k": 5, "min_p": 0.01, "repetition_penalty": 1.5, "ignore_eos": True}
    (choice,) = complete(served, "the", top_p=0.9, extra_body=options).choices
    expected = engine_ids(backend, "the", 40, Sampling(2.0, top_p=0.9, seed=7, **options))
    assert choice.text == backend.tokenizer.decode(expected)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_those_of_the_model(served, backend, stream):
    answer = complete(served, "the", echo=True, logprobs=2, stream=stream)
    choices = [event.choices[0] for event in answer] if stream else answer.choices
    sequence = generated(backend, "the", logprobs=Logprobs(), prompt_logprobs=Logprobs())
    found = [value for choice in choices for value in choice.logprobs.token_logprobs]
    text = "".join(choice.text for choice in choices)
    expected = [*sequence.prompt_logprobs.tokens, *sequence.logprobs.tokens][: len(text)]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    tokens = [token for choice in choices for token in choice.logprobs.tokens]
    offsets = [offset for choice in choices for offset in choice.logprobs.text_offset]
    assert "".join(tokens) == text
    assert offsets == list(range(len(text)))
    logits = backend.new_cache(1).prefill(0, sequence.ids[: len(text)], 0)
    best = [top for choice in choices for top in choice.logprobs.top_logprobs]
    strings = ["<pad>", "<unk>", "<bos>", "<eos>", *backend.tokenizer.token_strings[4:]]
    for row, top, token in zip(logits, best, tokens, strict=True):
        assert list(top)[:2] == [strings[i] for i in np.argsort(-row)[:2]]
        assert token in top


def test_max_tokens_0_scores_the_prompt(served):
    (scored,) = complete(served, "the", echo=True, logprobs=1, max_tokens=0).choices
    (longer,) = complete(served, "the", echo=True, logprobs=1).choices
    assert (scored.text, scored.finish_reason) == ("the", "length")
    assert scored.logprobs.token_logprobs == longer.logprobs.token_logprobs[:3]


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_characters_of_a_prompt_are_tokens(served, backend, stream):
    prompt = "\U0001f98a\ud800a"
    body = BOLD | {"prompt": prompt, "echo": True, "logprobs": 0, "stream": stream}
    answer = post(served, body).text
    answers = answer.split("\n\n")[:-2] if stream else [answer]
    choices = [json.loads(each.removeprefix("data: "))["choices"][0] for each in answers]
    text = "".join(choice["text"] for choice in choices)
    assert text == prompt + generated(backend, prompt).text
    tokens = [token for choice in choices for token in choice["logprobs"]["tokens"]]
    assert tokens == ["<unk>", "<unk>", *text[2:]]
    offsets = [offset for choice in choices for offset in choice["logprobs"]["text_offset"]]
    assert offsets == list(range(len(text)))


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"temperature": -1}, 400, "temperature"),
        ({"temperature": "hot"}, 400, "temperature"),
        ({"top_k": -1}, 400, "top_k"),
        ({"top_k": True}, 400, "top_k"),
        ({"seed": -1}, 400, "seed"),
        ({"seed": 2**64}, 400, "seed"),
        ({"n": 0}, 400, "n"),
        ({"n": 129}, 400, "n"),
        ({"n": 64, "prompt": ["a", "b", "c"]}, 400, "n"),
        ({"max_tokens": 4097}, 400, "max_tokens"),
        ({"max_tokens": 1.5}, 400, "max_tokens"),
        ({"logprobs": 6}, 400, "logprobs"),
        ({"echo": True, "logprobs": 1, "prompt": "x" * 64}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": ["a", 1]}, 400, "prompt"),
        ({"prompt": [1, -1]}, 400, "prompt"),
        ({"prompt": [10**6]}, 400, "prompt"),
        ({"prompt": "x" * 70_000}, 400, "prompt"),
        ({"prompt": "x" * 700, "n": 100}, 400, "prompt"),
        ({"stop": ""}, 400, "stop"),
        ({"stop": ["a"] * 17}, 400, "stop"),
        ({"stream_options": 1}, 400, "stream_options"),
        ({"stream_options": {"include_usage": "false"}}, 400, "stream_options"),
        ({"stream_options": {"other": True}}, 400, "stream_options"),
        ({"best_of": 2}, 400, "best_of"),
        ({"best_of": True}, 400, "best_of"),
        ({"suffix": "x" * 9999}, 400, "suffix"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty"),
        ({"logit_bias": {"5": 1}}, 400, "logit_bias"),
        ({"temperatures": 1}, 400, "temperatures"),
        ({"model": "gpt-4"}, 404, "model"),
    ],
    ids=str,
)
def test_wrong_parameters_are_named(served, body, status, param):
    response = served.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1} | body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert error["message"].startswith(f"{param}: ")
    assert len(error["message"]) < 200
    assert error["type"] == "invalid_request_error"


def test_an_unknown_parameter_may_be_no_text(served):
    response = post(served, {"\ud800": 1})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "\ud800")


def test_neutral_parameters_are_accepted(served):
    neutral = {"best_of": 1, "presence_penalty": 0, "frequency_penalty": 0.0, "suffix": None}
    assert complete(served, "a", logit_bias={}, user="me", **neutral).choices


@pytest.mark.parametrize(
    ("data", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"\xff", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b'{"prompt": "' + b"x" * 2**20 + b'"}', "application/json", 413),
    ],
    ids=["cut off", "list", "deep", "not UTF-8", "text", "large"],
)
def test_wrong_bodies_are_refused(served, data, kind, status):
    response = served.http.post("/v1/completions", content=data, headers={"Content-Type": kind})
    assert response.status_code == status
    assert response.json()["error"]["message"]


@pytest.mark.parametrize("page", [False, True], ids=["no page", "page"])
def test_other_addresses_give_errors_of_the_api(backend, tmp_path, page):
    with serving(backend, page=tmp_path if page else None) as server:
        for method, address, status in (
            ("GET", "/none", 404),
            ("GET", "/v1/none", 404),
            ("POST", "/v1/embeddings", 404),
            ("GET", "/v1/completions", 405),
        ):
            response = server.http.request(method, address)
            assert response.json()["error"]["code"] == response.status_code == status


def test_chat_and_a_missing_page_are_explained(served):
    with pytest.raises(openai.NotFoundError, match="use /v1/completions"):
        served.client.chat.completions.create(model="minigpt", messages=[])
    assert "minigpt-cli page" in served.http.get("/").text


def test_the_model_is_listed(served):
    (model,) = served.client.models.list().data
    assert model == served.client.models.retrieve("minigpt")
    assert (model.id, model.system_fingerprint, model.max_seq_len) == ("minigpt", "digest", 64)
    with pytest.raises(openai.NotFoundError):
        served.client.models.retrieve("other")


def test_a_bug_is_not_shown(backend, monkeypatch):
    monkeypatch.setattr("minigpt.serving.app.parse_completion", lambda *args: 1 / 0)
    with serving(backend) as server:
        # uvicorn closes the connection
        closing = {"Connection": "close"}
        response = server.http.post("/v1/completions", json={}, headers=closing)
        assert server.metric('minigpt_responses_total{status="500"}') == 1
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "the server failed; its log has the details"


@pytest.mark.parametrize("stream", [False, True])
def test_a_failing_model_is_an_error_of_the_server(backend, monkeypatch, stream):
    monkeypatch.setattr("minigpt.generation.engine.choose_token", lambda *args: 1 / 0)
    with serving(backend) as server, pytest.raises(openai.APIError, match="the model failed"):
        list(complete(server, "a", stream=stream))


def test_metrics_count_tokens(served):
    before = served.metric("minigpt_generated_tokens_total")
    complete(served, "a", max_tokens=5, extra_body={"ignore_eos": True})
    assert served.metric("minigpt_generated_tokens_total") == before + 5


def test_an_api_key_is_required(backend, tmp_path: Path):
    (tmp_path / "index.html").write_text("the page")
    with serving(backend, api_key="secret", page=tmp_path) as server:
        assert complete(server, "a").choices
        assert server.http.get("/").text == "the page"
        stranger = httpx.Client(base_url=server.url)
        assert stranger.get("/health").json() == {"status": "ok"}
        for address in ("/", "/index.html", "/v1/models", "/metrics", "/none"):
            response = stranger.get(address)
            assert response.status_code == 401
            assert response.headers["WWW-Authenticate"].startswith("Basic ")
        for wrong in ("secre", "secret1", ""):
            assert stranger.get("/", auth=("me", wrong)).status_code == 401
        # as a browser asks for it
        assert stranger.get("/", auth=("me", "secret")).text == "the page"
        stranger.close()


def test_files_of_the_page_have_its_policy(backend):
    folder = SOURCE / "static"
    with serving(backend, page=folder) as server:
        for address in ("/", "/worker.js"):
            policy = server.http.get(address).headers["Content-Security-Policy"]
            own, _, last = policy.rpartition("; ")
            assert f'content="{own}"' in (folder / "index.html").read_text()
            assert last == "frame-ancestors 'none'"


def test_only_names_of_the_server_are_answered(backend):
    with serving(backend, hosts=("example.org",)) as server:
        for host, status in {
            "localhost:1": 200,
            "192.0.2.1": 200,
            "[::1]:8000": 200,
            "Example.org:80": 200,
            "evil.example": 421,
            "localhost.evil.example": 421,
            "": 421,
        }.items():
            assert server.http.get("/health", headers={"Host": host}).status_code == status


def test_only_allowed_origins_may_read_answers(backend, served):
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    with serving(backend, api_key="secret", origins=("https://a.example",)) as server:
        with httpx.Client(base_url=server.url) as browser:
            allowed = browser.options("/v1/completions", headers=preflight).headers
        assert allowed["Access-Control-Allow-Origin"] == "https://a.example"
    refused = served.http.options("/v1/completions", headers=preflight).headers
    assert "Access-Control-Allow-Origin" not in refused


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_disconnects_frees_its_row(served, backend, stream):
    canceled = served.metric("minigpt_canceled_texts_total")
    tokens = served.metric("minigpt_generated_tokens_total")
    n = backend.max_batch_size + 2  # two of them wait
    body = {"prompt": "", "n": n, "max_tokens": 4000, "ignore_eos": True, "stream": stream}
    request = raw_request(served, body)
    wait_for(lambda: served.metric("minigpt_active_texts") == n - 2)
    request.close()
    wait_for(lambda: served.metric("minigpt_canceled_texts_total") == canceled + n)
    assert served.metric("minigpt_generated_tokens_total") < tokens + n * 4000


def raw_request(served: Served, body: dict[str, Any]) -> socket.socket:
    """Send a request and return its connection."""
    data = json.dumps(body).encode()
    address = httpx.URL(served.url)
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect((address.host, address.port))
    head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    connection.sendall(f"POST /v1/completions HTTP/1.1\r\n{head}\r\n\r\n".encode() + data)
    return connection


def test_a_slow_reader_does_not_block_others(served, backend):
    body = {"prompt": "", "max_tokens": 2000, "ignore_eos": True, "stream": True, "logprobs": 5}
    texts = served.metric("minigpt_text_seconds_count")
    with raw_request(served, body | {"seed": 1}) as slow:
        # the text is complete, but was not read
        wait_for(lambda: served.metric("minigpt_text_seconds_count") == texts + 1)
        assert complete(served, "the").choices[0].text == generated(backend, "the").text
        slow.settimeout(60)
        data = b""
        while b"[DONE]" not in data[-100:]:
            data += slow.recv(1 << 16)
    texts = re.findall(rb'"text": ("(?:[^"\\]|\\.)*")', data)
    expected = engine_ids(backend, "", 2000, Sampling(ignore_eos=True, seed=1))
    assert "".join(map(json.loads, texts)) == backend.tokenizer.decode(expected)


def test_a_full_queue_asks_to_retry(backend):
    with serving(backend, max_waiting=0) as server:
        rows = backend.max_batch_size
        with pytest.raises(openai.BadRequestError, match=f"n: {rows + 1} texts are more than"):
            complete(server, "a", n=rows + 1)
        body = {"prompt": "", "max_tokens": 4000, "ignore_eos": True}
        with raw_request(server, body):
            wait_for(lambda: server.metric("minigpt_active_texts") == 1)
            with pytest.raises(openai.RateLimitError) as error:
                complete(server, "a", n=rows)
        assert error.value.response.headers["Retry-After"] == "1"
        wait_for(lambda: server.metric("minigpt_canceled_texts_total") == 1)
        assert len(complete(server, "a", n=rows).choices) == rows


@pytest.mark.parametrize("quantize", [None, "int8"], ids=["float32", "int8"])
def test_a_text_is_the_same_alone_as_beside_others(tokenizer, tmp_path, full, quantize):
    backend = OnnxBackend(export_small(tmp_path, tokenizer, quantize))
    rng = np.random.default_rng(0)
    requests = [
        {
            "prompt": rng.integers(4, backend.tokenizer.vocab_size, rng.integers(1, 100)).tolist(),
            "max_tokens": int(rng.integers(1, 100)),
            "temperature": float(rng.choice([0, 0.8, 2])),
            "seed": seed,
        }
        for seed in range(500 if full else 64)
    ]
    texts = []
    for request in requests:
        sampling = Sampling(request["temperature"], seed=request["seed"])
        sequence = Sequence(
            backend.tokenizer, request["prompt"], sampling, 0, request["max_tokens"]
        )
        for _ in run(backend, [sequence]):
            pass
        texts.append(sequence.text)

    async def ask(http: httpx.AsyncClient, body: dict[str, Any]) -> str:
        stream = body["seed"] % 2 == 0
        response = await http.post("/v1/completions", json=body | {"stream": stream})
        response.raise_for_status()
        if not stream:
            return response.json()["choices"][0]["text"]
        events = response.text.split("\n\n")[:-2]
        choices = [json.loads(event.removeprefix("data: "))["choices"] for event in events]
        return "".join(choice["text"] for (choice,) in choices)

    async def ask_all(url: str) -> list[str]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
            return await asyncio.gather(*(ask(http, request) for request in requests))

    with serving(backend) as server:
        assert asyncio.run(ask_all(server.url)) == texts
