"""One sequence that is being generated: its prompt, its tokens, its text, and when it ends."""

from collections.abc import Iterable

import numpy as np

from minigpt.common.errors import UserError
from minigpt.generation.sampling import Sampling, log_probabilities
from minigpt.tokenizer import BOS, EOS, Tokenizer


class Logprobs:
    """Log-probabilities of tokens under the model, in nats.

    Attributes:
        tokens: that of each token.
        top: for each token, the most probable tokens at its position, the best first; empty if not
            requested.
    """

    def __init__(self, top_count: int = 0):
        """Record the `top_count` most probable tokens, too."""
        self.tokens: list[float] = []
        self.top: list[dict[int, float]] = []
        self._top_count = top_count

    def append(self, ids: list[int], logits: np.ndarray) -> None:
        """Record tokens (N,) that have `logits` (N, V)."""
        self.tokens += log_probabilities(logits, np.array(ids)).tolist()
        if self._top_count:
            for row in logits:
                best = np.argsort(-row, kind="stable")[: self._top_count]
                log_probs = log_probabilities(np.tile(row, (len(best), 1)), best)
                self.top.append(dict(zip(best.tolist(), log_probs.tolist(), strict=True)))


class Sequence:
    """A prompt and the tokens generated so far.

    Attributes:
        prompt: the text to continue.
        sampling: options for choosing its tokens.
        sample: its number among the sequences of one seed.
        ids: <bos>, the prompt, and the generated tokens.
        logprobs: those of the generated tokens; None if not requested.
        prompt_logprobs: those of the tokens of the prompt; None if not requested.
        prompt_length: number of tokens of <bos> and the prompt.
        forward_passes: number of forward passes so far that gave tokens.
        drafted: number of draft tokens that were verified (see `minigpt.generation.draft`).
        finish_reason: None until the end, then "eos", "length", "stop" or "canceled".
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: str | list[int],
        sampling: Sampling = Sampling(),
        sample: int = 0,
        max_new_tokens: int = 200,
        stop: Iterable[str] = (),
        logprobs: Logprobs | None = None,
        prompt_logprobs: Logprobs | None = None,
    ):
        """Start from `prompt`, a text or ids; the text ends before the first of the `stop` strings.

        `prompt_logprobs` requires a prompt that fits into the context, since no token is predicted
        from more.

        Raises:
            UserError: `max_new_tokens` is less than 1, or a stop string is empty.
        """
        if max_new_tokens < 1:
            raise UserError(f"max-new-tokens: must be 1 or more, but it is {max_new_tokens}")
        self.stop = tuple(stop)
        if not all(self.stop):
            raise UserError("stop: must not be empty")
        self.sampling, self.sample = sampling, sample
        if isinstance(prompt, str):
            self.prompt, self.ids = prompt, tokenizer.encode(prompt)[:-1]  # <eos> would end it
        else:
            self.prompt, self.ids = tokenizer.decode(prompt), [BOS, *prompt]
        self._released: list[str] = []  # joined on request: appending to a string copies it
        self.logprobs, self.prompt_logprobs = logprobs, prompt_logprobs
        self.forward_passes = self.drafted = 0
        self.finish_reason: str | None = None
        self.prompt_length = len(self.ids)
        self._max_length = self.prompt_length + max_new_tokens
        self._decoder = tokenizer.decoder()
        self._buffer = ""  # the end of the decoded text, which may begin a stop string

    @property
    def text(self) -> str:
        """The generated text, as far as it is final."""
        return "".join(self._released)

    @property
    def generated(self) -> list[int]:
        """The generated tokens, <eos> included."""
        return self.ids[self.prompt_length :]

    @property
    def accepted(self) -> int:
        """Number of accepted draft tokens; each saved a forward pass."""
        return len(self.ids) - self.prompt_length - self.forward_passes

    @property
    def remaining(self) -> int:
        """Number of tokens that may still be generated."""
        return self._max_length - len(self.ids)

    def record_prompt(self, start: int, logits: np.ndarray) -> None:
        """Record how probable the prompt is, given logits (T, V) of its tokens from `start` on."""
        if self.prompt_logprobs is not None and start == len(self.prompt_logprobs.tokens):
            ids = self.ids[start + 1 : self.prompt_length][: len(logits)]  # logits predict the next
            self.prompt_logprobs.append(ids, logits[: len(ids)])

    def append(self, token: int, logits: np.ndarray) -> str:
        """Append a token chosen from `logits` (V,); return the text that is now final."""
        self.ids.append(token)
        if self.logprobs is not None:
            self.logprobs.append([token], logits[None])
        text = self._decoder.feed(token)
        if token == EOS or len(self.ids) == self._max_length:
            self.finish_reason = "eos" if token == EOS else "length"
            text += self._decoder.end()
        if self.stop:
            text = self._before_stop(text)
        self._released.append(text)
        return text

    def _before_stop(self, text: str) -> str:
        """Add `text` to the buffer; remove and return what is surely before a stop string."""
        self._buffer += text
        if found := [at for stop in self.stop if (at := self._buffer.find(stop)) >= 0]:
            self.finish_reason = "stop"
            length = min(found)
        else:
            held = 0 if self.finish_reason else max(map(self._overlap, self.stop))
            length = len(self._buffer) - held
        final, self._buffer = self._buffer[:length], self._buffer[length:]
        return final

    def _overlap(self, stop: str) -> int:
        """Return how many characters at the end of the buffer begin `stop`."""
        longest = min(len(stop) - 1, len(self._buffer))
        return next((n for n in range(longest, 0, -1) if self._buffer.endswith(stop[:n])), 0)
