"""How well a model predicts a text: loss, perplexity and bits per character, of all of it and of each line."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigpt.generation.backend import Backend
from minigpt.generation.engine import window_start
from minigpt.generation.sampling import log_probabilities


@dataclass(frozen=True)
class Score:
    """What the model paid for a stretch of text: `nats` for `tokens`, which write `characters`."""

    tokens: int
    characters: int
    nats: float

    def figures(self) -> dict[str, Any]:
        """Loss in nats a token, perplexity, and bits a character; None where there is nothing to divide by."""
        loss = self.nats / self.tokens if self.tokens else None
        return {
            "tokens": self.tokens,
            "characters": self.characters,
            "loss": loss,
            "perplexity": None if loss is None else math.exp(loss),
            "bits_per_char": self.nats / self.characters / math.log(2) if self.characters else None,
        }


def score(backend: Backend, text: str) -> tuple[Score, list[Score]]:
    """Of a whole text, and of each of its lines in the context of those before.

    The text is one document: the <eos> at its end is paid for too, by the last line.
    """
    tokenizer = backend.tokenizer
    text = tokenizer.normalize(text)
    nats = token_losses(backend, tokenizer.encode_array(text))
    # of the tokens; an unknown character has no piece, but is a token
    pieces = (
        text
        if tokenizer.kind == "char"
        else map(tokenizer.token_strings.__getitem__, tokenizer.encode(text)[1:-1])
    )
    line = np.cumsum([0, *(piece.count("\n") for piece in pieces)])
    *broken, last = text.split("\n")
    characters = [*(len(content) + 1 for content in broken), len(last)]
    tokens = np.bincount(line, minlength=len(characters)).tolist()
    paid = np.bincount(line, weights=nats, minlength=len(characters)).tolist()
    return Score(len(nats), len(text), float(nats.sum())), list(
        map(Score, tokens, characters, paid)
    )


def token_losses(backend: Backend, ids: np.ndarray) -> np.ndarray:
    """-log p in nats of each of `ids` (N,) but the first, each from the window that generation would use: (N-1,)."""
    positions = np.arange(1, len(ids))
    starts = np.array(
        [window_start(position, backend.max_seq_len) for position in range(1, len(ids))]
    )
    memory, losses = backend.new_cache(1), []
    for start in np.unique(starts):
        predicted = positions[starts == start]
        logits = memory.prefill(0, ids[start : predicted[-1]], 0)[predicted[0] - 1 - start :]
        losses.append(-log_probabilities(logits, ids[predicted]))
    return np.concatenate(losses)
