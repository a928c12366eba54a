"""Score of a text: loss, perplexity and bits per character, of the whole text and of each line."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from minigpt.generation.backend import Backend
from minigpt.generation.generate import window_start
from minigpt.generation.sampling import log_probabilities


@dataclass(frozen=True)
class Score:
    """Number of tokens and characters of a text, and its -log p in nats."""

    tokens: int
    characters: int
    nats: float

    def figures(self) -> dict[str, Any]:
        """Return loss (nats per token), perplexity and bits per character; None if undefined."""
        loss = self.nats / self.tokens if self.tokens else None
        return {
            "tokens": self.tokens,
            "characters": self.characters,
            "loss": loss,
            "perplexity": None if loss is None else math.exp(loss),
            "bits_per_char": self.nats / self.characters / math.log(2) if self.characters else None,
        }


def score(backend: Backend, text: str) -> tuple[Score, list[Score]]:
    """Return the score of a text, and of each line in the context of the lines before.

    The text is one document; the <eos> at its end counts as a token of the last line.
    """
    tokenizer = backend.tokenizer
    text = tokenizer.normalize(text)
    nats = token_losses(backend, tokenizer.encode_array(text))  # (N-1,)
    # the text of each token; characters themselves, since <unk> has no text
    token_texts = (
        text
        if tokenizer.kind == "char"
        else map(tokenizer.token_strings.__getitem__, tokenizer.encode(text)[1:-1])
    )
    # a token belongs to the line in which it starts; a line break ends its line
    line = np.cumsum([0, *(string.count("\n") for string in token_texts)])  # (N-1,)
    *complete, last = text.split("\n")
    characters = [*(len(content) + 1 for content in complete), len(last)]
    tokens = np.bincount(line, minlength=len(characters)).tolist()
    line_nats = np.bincount(line, weights=nats, minlength=len(characters)).tolist()
    lines = list(map(Score, tokens, characters, line_nats))
    return Score(len(nats), len(text), float(nats.sum())), lines


def token_losses(backend: Backend, ids: np.ndarray) -> np.ndarray:
    """Return -log p in nats of each id but the first: (N,) → (N-1,).

    Each id is predicted from the window of context that generation would use.
    """
    positions = np.arange(1, len(ids))
    starts = np.array([window_start(i, backend.max_seq_len) for i in range(1, len(ids))])
    cache, losses = backend.new_cache(1), []
    # one forward pass for all positions whose windows start at the same place
    for start in np.unique(starts):
        predicted = positions[starts == start]
        logits = cache.prefill(0, ids[start : predicted[-1]], 0)  # (T, V)
        logits = logits[predicted[0] - 1 - start :]  # (number of predicted, V)
        losses.append(-log_probabilities(logits, ids[predicted]))
    return np.concatenate(losses)
