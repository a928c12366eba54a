"""The HTTP side of the server: the routes of the OpenAI completions API.

POST /v1/completions    continue prompts
GET  /v1/models         the model that is served
GET  /health            whether the server can answer; needs no API key
GET  /metrics           figures for Prometheus
GET  /                  the page, if it was built
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from minigpt.generation.backend import Backend
from minigpt.serving.answers import Answer
from minigpt.serving.errors import (
    ApiError,
    AsciiJSONResponse,
    handle_api_error,
    handle_bug,
    handle_http_error,
)
from minigpt.serving.gate import Gate
from minigpt.serving.jobs import Job, Jobs
from minigpt.serving.metrics import CountResponses, Metrics
from minigpt.serving.parameters import MAX_BODY, parse_completion
from minigpt.serving.scheduler import Scheduler

BODY_SECONDS = 30  # that a client may take to send a body
# what the page may load and run, as in its index.html
PAGE_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; "
    "connect-src 'self'; style-src 'self'; font-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'"
)


@dataclass(frozen=True)
class Settings:
    """Settings of a server.

    Attributes:
        model: name of the model in requests and answers.
        fingerprint: digest of the model file.
        max_tokens: largest `max_tokens` of a request.
        max_waiting: number of texts that may wait for a row of the batch.
        api_key: key that requests must have; None for no key.
        hosts: names of the server in Host headers, besides addresses and localhost.
        origins: origins of web pages that may send requests from a browser.
        page: folder of the page, if there is one.
    """

    model: str
    fingerprint: str
    max_tokens: int = 4096
    max_waiting: int = 256
    api_key: str | None = None
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    page: Path | None = None


def build_app(backend: Backend, settings: Settings) -> ASGIApp:
    """Return the application; it runs its scheduler from its start to its end."""
    scheduler = Scheduler(backend, settings.max_waiting)
    metrics = Metrics(scheduler)
    jobs = Jobs(scheduler, metrics)
    cors = Middleware(
        CORSMiddleware,
        allow_origins=settings.origins,
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type"],
    )
    app = Starlette(
        routes=Routes(backend, settings, jobs, metrics).routes(),
        # from the outermost on: a browser asks for permission without a key
        middleware=[
            *([cors] if settings.origins else []),
            Middleware(Gate, hosts=settings.hosts, api_key=settings.api_key),
        ],
        exception_handlers={
            ApiError: handle_api_error,
            HTTPException: handle_http_error,
            Exception: handle_bug,
        },
        lifespan=lambda app: jobs.running(),
    )
    # around all of Starlette, whose answer to a bug comes from outside of its middleware
    return CountResponses(app, metrics)


class Routes:
    """The answers to requests."""

    def __init__(self, backend: Backend, settings: Settings, jobs: Jobs, metrics: Metrics):
        self.backend, self.settings, self.jobs, self.metrics = backend, settings, jobs, metrics
        self._created = int(time.time())
        self._watchers: set[asyncio.Task[None]] = set()  # asyncio keeps no references to tasks

    def routes(self) -> list[BaseRoute]:
        page = self.settings.page
        api = [
            Route("/completions", self.complete, methods=["POST"]),
            Route("/chat/completions", self.chat, methods=["POST"]),
            Route("/models", self.models),
            Route("/models/{name:path}", self.model),
        ]
        return [
            Mount("/v1", routes=api),  # so that the page answers nothing below it
            Route("/health", self.health),
            Route("/metrics", self.show_metrics),
            Mount("/", PageFiles(directory=page, html=True)) if page else Route("/", self.no_page),
        ]

    async def complete(self, request: Request) -> Response:
        settings, tokenizer = self.settings, self.backend.tokenizer
        completion = parse_completion(
            await read_json(request), self.backend, settings.model, settings.max_tokens
        )
        job = self.jobs.submit(completion.sequences, completion.stream)
        watcher = asyncio.create_task(self.cancel_on_disconnect(request, job))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)
        answer = Answer(completion, tokenizer, settings.model, settings.fingerprint)
        if not completion.stream:
            return await whole(answer, job)
        headers = {"Cache-Control": "no-cache"}
        return StreamingResponse(
            stream(answer, job), headers=headers, media_type="text/event-stream"
        )

    async def cancel_on_disconnect(self, request: Request, job: Job) -> None:
        """Free the rows of a job when its client disconnects, which is also the end of a job."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.jobs.cancel(job)

    async def chat(self, request: Request) -> Response:
        message = "this model continues plain text and has no chat template; use /v1/completions"
        raise ApiError(message, 404)

    async def models(self, request: Request) -> Response:
        return AsciiJSONResponse({"object": "list", "data": [self._describe_model()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self.settings.model:
            raise ApiError(f"model: {name!r} is not served here", 404, "model")
        return AsciiJSONResponse(self._describe_model())

    def _describe_model(self) -> dict[str, Any]:
        values = {"id": self.settings.model, "object": "model", "created": self._created}
        extensions = {
            "system_fingerprint": self.settings.fingerprint,
            "max_seq_len": self.backend.max_seq_len,
        }
        return {**values, "owned_by": "minigpt", **extensions}

    async def health(self, request: Request) -> Response:
        if not self.jobs.alive:
            raise ApiError("the scheduler has ended; restart the server", 503)
        return AsciiJSONResponse({"status": "ok"})

    async def show_metrics(self, request: Request) -> Response:
        data = generate_latest(self.metrics.registry)
        return Response(data, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def no_page(self, request: Request) -> Response:
        return PlainTextResponse(
            "The API is at /v1. The page is not built: run `minigpt-cli page page`, "
            "then start the server again.\n"
        )


class PageFiles(StaticFiles):
    """The files of the page, with its policy: a worker has only the one in its own response."""

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        # a policy in HTML cannot forbid frames
        response.headers["Content-Security-Policy"] = f"{PAGE_POLICY}; frame-ancestors 'none'"
        return response


async def read_json(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        ApiError: it is not declared as JSON, which would let any web page send it; or it is too
            large or too slow.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError("Content-Type: must be application/json", 415)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for data in request.stream():
                body += data
                if len(body) > MAX_BODY:
                    raise ApiError(f"the body is larger than {MAX_BODY} bytes; shorten it", 413)
    except TimeoutError:
        raise ApiError("the body did not arrive in time", 408) from None
    except ClientDisconnect:
        raise ApiError("the client disconnected") from None
    return bytes(body)


async def whole(answer: Answer, job: Job) -> Response:
    """Answer with all texts at once."""
    choices = [
        answer.choices[part.sequence].part(part.text, part.length, part.finish_reason)
        async for part in job.progress()
    ]
    choices.sort(key=lambda choice: choice["index"])
    return AsciiJSONResponse({**answer.to_dict(choices), **answer.usage()})


async def stream(answer: Answer, job: Job) -> AsyncIterator[str]:
    """Answer with server-sent events; each has the new text of one choice."""
    try:
        async for part in job.progress():
            if part.text or part.finish_reason:
                text, length, finish_reason = part[1:]
                choice = answer.choices[part.sequence].part(text, length, finish_reason)
                yield event(answer.to_dict([choice]))
    except ApiError as error:
        yield event(error.to_dict())
        return
    if answer.completion.include_usage:
        yield event({**answer.to_dict([]), **answer.usage()})
    yield "data: [DONE]\n\n"


def event(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values)}\n\n"
