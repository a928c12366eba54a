"""How fast a model writes on this machine."""

import statistics
import time
from dataclasses import dataclass, field
from typing import Any

from minigpt.generation.backend import Backend
from minigpt.generation.engine import Text, write
from minigpt.generation.sampling import Sampling


@dataclass
class Way:
    """One way of writing: `count` texts, one alone with guesses or without; and how it went, by round."""

    backend: Backend
    count: int = 1
    guess: bool = True
    speeds: list[float] = field(default_factory=list)  # tokens a second
    texts: list[Text] = field(default_factory=list)

    def run(self, max_new_tokens: int, seed: int) -> None:
        texts = [
            Text(self.backend.tokenizer, "", sample, max_new_tokens) for sample in range(self.count)
        ]
        draft = self.backend.draft
        if not self.guess:
            self.backend.draft = None
        start = time.perf_counter()
        for _ in write(self.backend, texts, Sampling(ignore_eos=True, seed=seed)):
            pass
        self.speeds.append(self.count * max_new_tokens / (time.perf_counter() - start))
        self.texts += texts
        self.backend.draft = draft

    def figures(self) -> dict[str, Any]:
        """`tokens_per_run` of the model, and `guesses_right`, the share of them; None where none were made."""
        guessed = sum(text.guessed for text in self.texts)
        written, runs = (
            sum(len(text.written) for text in self.texts),
            sum(text.runs for text in self.texts),
        )
        return {
            "texts": self.count,
            "guesses": self.count == 1 and self.guess and self.backend.draft is not None,
            "tokens_per_second": round(statistics.median(self.speeds)),
            "tokens_per_run": round(written / runs, 3),
            "guesses_right": round(sum(text.right for text in self.texts) / guessed, 3)
            if guessed
            else None,
        }


def measure(
    backends: dict[str, Backend], max_new_tokens: int = 200, rounds: int = 7
) -> list[dict[str, Any]]:
    """A text alone, without guesses and with them where the model has a table, and 16 texts.

    All ways write in turn, once to warm up and then in each of `rounds`, which have a seed each; the speed
    is the median of the rounds.
    """
    ways = [
        (name, way)
        for name, backend in backends.items()
        for way in (
            Way(backend, guess=False),
            *([Way(backend)] if backend.draft else []),
            Way(backend, count=16),
        )
    ]
    for _, way in ways:
        way.run(max_new_tokens, seed=0)
        way.speeds, way.texts = [], []
    for seed in range(rounds):
        for _, way in ways:
            way.run(max_new_tokens, seed)
    return [{"model": name, **way.figures()} for name, way in ways]
