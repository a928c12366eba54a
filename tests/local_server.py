"""A small exported model, and a server in this process, for the tests."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import torch
import uvicorn
from conftest import build_model, model_metadata, randomize, wait_for
from openai import OpenAI

from minigpt.export.int8 import BLOCK_SIZE
from minigpt.export.onnx_graph import build_proto, serialize
from minigpt.generation.backend import Backend
from minigpt.serving.app import Settings, build_app
from minigpt.serving.server import bind
from minigpt.tokenizer import Tokenizer


def export_small(folder: Path, tokenizer: Tokenizer, quantize: str | None = None) -> Path:
    """Write a small untrained model with a context of 64."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "num_heads": 2, "num_layers": 2, "d_ff": 64, "max_seq_len": 64}
    model = randomize(build_model(tokenizer.vocab_size, **sizes))
    metadata = model_metadata(model, tokenizer)
    if quantize:
        metadata["quantization"] = {"type": quantize, "block_size": BLOCK_SIZE}
    path = folder / "minigpt.onnx"
    path.write_bytes(serialize(build_proto(model, quantize), metadata))
    return path


class Served(NamedTuple):
    url: str
    client: OpenAI
    http: httpx.Client

    def metric(self, name: str) -> float:
        lines = self.http.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


@contextlib.contextmanager
def serving(backend: Backend, api_key: str | None = None, **settings: Any) -> Iterator[Served]:
    """Serve `backend` from a thread of this process during the block."""
    listener = bind("127.0.0.1", 0, protected=False)
    app = build_app(backend, Settings("minigpt", "digest", api_key=api_key, **settings))
    config = uvicorn.Config(app, http="h11", ws="none", lifespan="on", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    key = api_key or "none"
    headers = {"Authorization": f"Bearer {key}"}
    try:
        with (
            OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client,
            httpx.Client(base_url=url, headers=headers, timeout=60) as http,
        ):
            wait_for(lambda: server.started)
            yield Served(url, client, http)
    finally:
        server.should_exit = True
        thread.join()
        listener.close()
