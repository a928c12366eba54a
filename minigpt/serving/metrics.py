"""Figures about the server, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minigpt.serving.scheduler import Scheduler

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The figures of one server, in a registry of their own."""

    def __init__(self, scheduler: Scheduler):
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # memory, processor time, open files
        self.responses = Counter(
            "minigpt_responses", "Responses by status code", ["status"], registry=registry
        )
        self.prompt_tokens = Counter(
            "minigpt_prompt_tokens", "Tokens of prompts", registry=registry
        )
        self.generated_tokens = Counter(
            "minigpt_generated_tokens", "Generated tokens", registry=registry
        )
        self.canceled = Counter(
            "minigpt_canceled_texts", "Texts whose client disconnected", registry=registry
        )
        self.first_token = self._histogram("first_token", "Time from request to first token")
        self.event_gap = self._histogram("event_gap", "Time between two events of a text")
        self.duration = self._histogram("text", "Time from request to the end of a text")
        waiting = Gauge("minigpt_waiting_texts", "Texts in the queue", registry=registry)
        waiting.set_function(lambda: scheduler.waiting)
        active = Gauge("minigpt_active_texts", "Texts in the batch", registry=registry)
        active.set_function(lambda: scheduler.engine.active)

    def _histogram(self, name: str, description: str) -> Histogram:
        return Histogram(
            f"minigpt_{name}_seconds", description, buckets=SECONDS, registry=self.registry
        )


class CountResponses:
    """ASGI middleware that counts responses."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.responses.labels(message["status"]).inc()
            await send(message)

        await self.app(scope, receive, counted)
