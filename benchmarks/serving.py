"""Speed, latencies and memory of `minigpt-cli serve`, against the engine and `mlflow models serve`.

    python benchmarks/serving.py --model models/minigpt.onnx
    python benchmarks/serving.py --model models/minigpt.onnx --minutes 10
    python benchmarks/serving.py --model models/minigpt.onnx --mlflow models:/minigpt@champion

The requests come from raw sockets in this process, which is bound to the last core meanwhile, over
the loopback interface only. Parts:

    throughput   16 texts at once, streamed and not, relative to the engine writing the same texts
    latency      time to the first token and gap between events, with 1 and with 16 clients
    soak         (--minutes) 64 clients, of which some disconnect: memory, and wrong or lost answers
    mlflow       (--mlflow) the same 16 texts from `mlflow models serve`

In the parts throughput and mlflow the ratio is the median over the rounds.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from minigpt.generation.engine import Engine, run
from minigpt.generation.onnx_backend import OnnxBackend
from minigpt.generation.sampling import Sampling
from minigpt.generation.sequence import Sequence

TEXTS, CLIENTS, SOAK_CLIENTS = 16, 16, 64
DISTINCT = 100  # requests of the soak test
DISCONNECTING = 0.1  # share of the requests in the soak test
PROMPT = "Once upon a time"


class Answer(NamedTuple):
    text: str
    times: list[float]  # of the events, in seconds since the request


class Server:
    """The server under test; it ends with the benchmark."""

    def __init__(self, address: str):
        parts = urlsplit(address)
        self.host, self.port = str(parts.hostname), int(parts.port or 80)

    async def complete(self, body: dict[str, Any], give_up_after: int = 10**9) -> Answer:
        """Send a request and read its answer, or only some of its events."""
        reader, writer = await asyncio.open_connection(self.host, self.port, limit=1 << 24)
        try:
            data = json.dumps(body).encode()
            head = (
                "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
            )
            start = time.perf_counter()
            writer.write(head.encode() + data)
            status = await reader.readline()
            if b" 200 " not in status:
                raise ConnectionError(status.decode())
            while await reader.readline() != b"\r\n":
                pass
            if not body.get("stream"):
                choices = json.loads(await reader.read())["choices"]
                return Answer(choices[0]["text"], [time.perf_counter() - start])
            text, times = "", []
            while len(times) < give_up_after:
                line = await reader.readline()
                if line.startswith(b"data: {"):
                    times.append(time.perf_counter() - start)
                    text += json.loads(line[6:])["choices"][0]["text"]
                elif line.startswith(b"data: [DONE]"):
                    break
                elif not line:
                    raise ConnectionError("the stream was cut")
            return Answer(text, times)
        finally:
            writer.close()

    def memory(self) -> float:
        """Return the resident memory in MB."""
        with urllib.request.urlopen(f"http://{self.host}:{self.port}/metrics") as response:
            for line in response.read().decode().splitlines():
                if line.startswith("process_resident_memory_bytes "):
                    return float(line.split()[1]) / 1e6
        raise LookupError("no memory in /metrics")


@contextlib.contextmanager
def served(model: Path) -> Iterator[Server]:
    command = [sys.executable, "-m", "minigpt.cli", "serve", "--port", "0", "--model", str(model)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield Server(process.stdout.readline().split()[-1])
    finally:
        process.terminate()
        process.wait(timeout=60)


def run_client(requests: Coroutine[Any, Any, None]) -> None:
    """Send requests from the last core."""
    if not hasattr(os, "sched_setaffinity"):  # on macOS
        asyncio.run(requests)
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    asyncio.run(requests)
    os.sched_setaffinity(0, cores)


def request(tokens: int, seed: int, **options: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "max_tokens": tokens, "seed": seed, "ignore_eos": True, **options}


def sequence(backend: OnnxBackend, body: dict[str, Any]) -> Sequence:
    sampling = Sampling(ignore_eos=True, seed=body["seed"])
    tokens = body["max_tokens"]
    return Sequence(backend.tokenizer, body["prompt"], sampling, max_new_tokens=tokens)


def seconds_of_engine(backend: OnnxBackend, bodies: list[dict[str, Any]]) -> float:
    sequences = [sequence(backend, body) for body in bodies]
    start = time.perf_counter()
    for _ in run(backend, sequences):
        pass
    return time.perf_counter() - start


def seconds_of(ask: Callable[[dict[str, Any]], Awaitable[Any]], bodies: list[Any]) -> float:
    """Return how long it takes to answer requests that are sent at once."""

    async def ask_all() -> None:
        await asyncio.gather(*map(ask, bodies))

    start = time.perf_counter()
    run_client(ask_all())
    return time.perf_counter() - start


def measure_throughput(backend: OnnxBackend, server: Server, rounds: int, tokens: int) -> None:
    speeds: dict[str, list[float]] = {"streamed": [], "unstreamed": []}
    absolute = []
    for round in range(rounds + 1):  # the first one is a warm-up
        bodies = [request(tokens, round * TEXTS + text) for text in range(TEXTS)]
        engine = seconds_of_engine(backend, bodies)
        absolute.append(TEXTS * tokens / engine)
        for name, ratios in speeds.items():
            chosen = [{**body, "stream": name == "streamed"} for body in bodies]
            ratios.append(engine / seconds_of(server.complete, chosen))
    print(f"engine, {TEXTS} texts: {statistics.median(absolute[1:]):.0f} tokens per second")
    for name, ratios in speeds.items():
        print(f"server, {name}: x{statistics.median(ratios[1:]):.3f} of the engine")


def measure_latency(backend: OnnxBackend, server: Server, count: int, tokens: int) -> None:
    first_of_engine = []
    for seed in range(count):
        start = time.perf_counter()
        engine = Engine(backend, 1)
        engine.add(sequence(backend, request(1, seed)))
        engine.step()
        first_of_engine.append(time.perf_counter() - start)
    print(f"engine: time to first token {milliseconds(first_of_engine)}")
    for clients in (1, CLIENTS):
        answers: list[Answer] = []
        seeds = iter(range(count * clients))

        async def client(seeds: Iterator[int] = seeds, answers: list[Answer] = answers) -> None:
            for seed in seeds:
                answers.append(await server.complete(request(tokens, seed, stream=True)))

        async def run_clients(number: int = clients, client: Any = client) -> None:
            await asyncio.gather(*(client() for _ in range(number)))

        run_client(run_clients())
        gaps = [gap for answer in answers for gap in np.diff(answer.times).tolist()]
        first = milliseconds([answer.times[0] for answer in answers])
        print(f"{clients} clients: time to first token {first}; gap {milliseconds(gaps)}")


def milliseconds(seconds: list[float]) -> str:
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return f"p50 {p50:.2f} ms, p99 {p99:.2f} ms (x{p99 / p50:.2f})"


def soak(backend: OnnxBackend, server: Server, minutes: float, tokens: int) -> None:
    """Send requests from many clients, and compare each answer with that of the engine."""
    rng = random.Random(0)
    bodies = [
        request(rng.randint(1, tokens), seed, stream=seed % 2 == 0, n=1) for seed in range(DISTINCT)
    ]
    expected = []
    for body in bodies:
        alone = sequence(backend, body)
        for _ in run(backend, [alone]):
            pass
        expected.append(alone.text)
    end = time.monotonic() + 60 * minutes
    counts = {"right": 0, "wrong": 0, "lost": 0, "disconnected": 0}
    memory: list[float] = []

    async def client(number: int) -> None:
        rng = random.Random(number)
        while time.monotonic() < end:
            index = rng.randrange(DISTINCT)
            body = bodies[index]
            leaves = bool(body["stream"]) and rng.random() < 2 * DISCONNECTING
            try:
                answer = await server.complete(body, give_up_after=1 if leaves else 10**9)
                outcome = "right" if answer.text == expected[index] else "wrong"
            except (OSError, ValueError, KeyError):
                outcome = "lost"
            counts["disconnected" if leaves else outcome] += 1

    async def sample_memory() -> None:
        while time.monotonic() < end:
            memory.append(await asyncio.to_thread(server.memory))
            await asyncio.sleep(min(5, 6 * minutes))

    async def run_all() -> None:
        await asyncio.gather(sample_memory(), *map(client, range(SOAK_CLIENTS)))

    run_client(run_all())
    warm = memory[len(memory) // 10 :]
    print(f"{minutes:g} minutes, {SOAK_CLIENTS} clients: {counts}")
    print(
        f"memory after the first tenth: {warm[0]:.1f} MB, from {min(warm):.1f} to {max(warm):.1f}"
    )


def measure_mlflow(server: Server, uri: str, rounds: int, tokens: int) -> None:
    """Compare the server with `mlflow models serve`, which gets one request for each text, too."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["mlflow", "models", "serve", "--model-uri", uri, "--port", str(port)]
    command += ["--host", "127.0.0.1", "--env-manager", "local"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"

    def invoke(body: dict[str, Any]) -> None:
        params = {"max_new_tokens": tokens, "seed": body["seed"], "ignore_eos": True}
        data = {"dataframe_records": [{"text": body["prompt"]}], "params": params}
        headers = {"Content-Type": "application/json"}
        call = urllib.request.Request(f"{address}/invocations", json.dumps(data).encode(), headers)
        with urllib.request.urlopen(call, timeout=600) as response:
            response.read()

    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/ping")
                break
            time.sleep(0.5)
        ratios = []
        for round in range(rounds + 1):
            bodies = [request(tokens, round * TEXTS + text) for text in range(TEXTS)]
            theirs = seconds_of(lambda body: asyncio.to_thread(invoke, body), bodies)
            ratios.append(theirs / seconds_of(server.complete, bodies))
        speed = TEXTS * tokens / theirs
        print(f"mlflow models serve: {speed:.0f} tokens per second in the last round")
        print(f"server: x{statistics.median(ratios[1:]):.2f} of mlflow models serve")
    finally:
        process.terminate()
        process.wait(timeout=60)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=Path("models/minigpt.onnx"))
    parser.add_argument("--rounds", type=int, default=9, help="rounds of a ratio")
    parser.add_argument("--tokens", type=int, default=200, help="of each text")
    parser.add_argument("--requests", type=int, default=50, help="of each client, for latencies")
    parser.add_argument("--minutes", type=float, default=0.0, help="of the soak test")
    parser.add_argument("--mlflow", metavar="URI", help="model for `mlflow models serve`")
    arguments = parser.parse_args()
    backend, tokens = OnnxBackend(arguments.model), arguments.tokens
    with served(arguments.model) as server:
        measure_throughput(backend, server, arguments.rounds, tokens)
        measure_latency(backend, server, arguments.requests, tokens)
        if arguments.mlflow:
            measure_mlflow(server, arguments.mlflow, arguments.rounds, tokens)
        if arguments.minutes:
            soak(backend, server, arguments.minutes, tokens)


if __name__ == "__main__":
    main()
