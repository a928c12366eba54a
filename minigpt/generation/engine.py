"""The text of `generate.py`, faster: cached keys and values, batches, and draft tokens.

A batch shares each forward pass: the weights are read once for all its sequences. A sequence that
is alone is sped up by speculative decoding instead (Leviathan et al., arXiv:2211.17192): one
forward pass verifies several draft tokens and accepts those that the model itself would choose.
"""

from collections import deque
from collections.abc import Iterable, Iterator

import numpy as np

from minigpt.generation.backend import Backend, KVCache
from minigpt.generation.choose import choose_from_many, choose_token
from minigpt.generation.draft import draft_tokens
from minigpt.generation.generate import PREFILL_CHUNK, chunk_end, window_start
from minigpt.generation.sampling import Sampling, gumbel_noise, uniform_noise
from minigpt.generation.sequence import Sequence
from minigpt.tokenizer import PAD

# Verifying a draft token costs a fifth of a forward pass: below this rate drafts do not pay.
MIN_ACCEPTANCE_RATE = 0.2
MIN_DRAFTED = 40  # draft tokens that do not count against the rate
NOISE_BLOCK = 4096  # numbers of noise to draw at once, if one position needs fewer

NewText = list[tuple[Sequence, str]]  # for each new token its sequence and the text it adds


class Engine:
    """Generates sequences together; they join and leave between steps.

    >>> engine = Engine(backend)  # doctest: +SKIP
    >>> engine.add(Sequence(backend.tokenizer, "Once upon"))  # doctest: +SKIP
    >>> while engine.unfinished:  # doctest: +SKIP
    ...     new_text = engine.step()
    """

    def __init__(self, backend: Backend, batch_size: int | None = None):
        """Decode up to `batch_size` sequences together; default: `backend.max_batch_size`."""
        self.backend = backend
        self.batch_size = batch_size or backend.max_batch_size
        self._cache = backend.new_cache(self.batch_size)
        self._waiting: deque[Sequence] = deque()
        self._rows: list[_Row] = []

    @property
    def unfinished(self) -> bool:
        """True while a sequence is active or waiting."""
        return bool(self._rows or self._waiting)

    @property
    def active(self) -> int:
        """Number of sequences in the batch."""
        return len(self._rows)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; it starts at the next step with a free row of the batch."""
        self._waiting.append(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """End a sequence and free its row; one that has finished is unchanged."""
        if sequence.finish_reason is None:
            sequence.finish_reason = "canceled"
            self._waiting = deque(other for other in self._waiting if other is not sequence)
            self._remove_finished()

    def step(self) -> NewText:
        """Generate a token for each active sequence, or read a part; return the new text, if any.

        New sequences and moved windows are read in chunks, at most PREFILL_CHUNK tokens in a step,
        so that they delay the others only a little. A sequence that is alone may gain several
        tokens. The text of a token is "" until a character, or the part before a stop string, is
        complete.
        """
        while self._waiting and len(self._rows) < self.batch_size:
            index = min(set(range(self.batch_size)) - {row.index for row in self._rows})
            self._rows.append(_Row(self.backend, self._cache, index, self._waiting.popleft()))
        if len(self._rows) == 1:
            new_text = self._rows[0].advance(self.backend.draft_length)
        else:
            new_text = self._read_chunks()
            self._remove_finished()
            new_text += self._decode()
        self._remove_finished()
        return new_text

    def _read_chunks(self) -> NewText:
        """Read chunks of the rows with more than one new token."""
        new_text: NewText = []
        budget = PREFILL_CHUNK
        for row in self._rows:
            length = len(row.next_chunk())
            if 1 < length <= budget:
                budget -= length
                new_text += row.advance()
        return new_text

    def _decode(self) -> NewText:
        """Generate a token for each row with a single new token, in one forward pass."""
        ids = np.full(self.batch_size, PAD)  # other rows decode <pad>, where the next chunk begins
        read = np.zeros(self.batch_size, dtype=np.int64)
        decoding = []
        for row in self._rows:
            read[row.index] = row.read
            if row.unread == 1:
                ids[row.index] = row.sequence.ids[-1]
                decoding.append(row)
        if not decoding:
            return []
        logits = self._cache.decode(ids, read)  # (B, V)
        for row in decoding:
            row.sequence.forward_passes += 1
        return [row.append_next(logits[row.index]) for row in decoding]

    def _remove_finished(self) -> None:
        self._rows = [row for row in self._rows if row.sequence.finish_reason is None]


class _Row:
    """A row of the cache and the sequence that is generated there.

    Attributes:
        start: where the window starts.
        read: number of tokens of the window in the cache.
    """

    def __init__(self, backend: Backend, cache: KVCache, index: int, sequence: Sequence):
        self.index, self.sequence = index, sequence
        self._backend, self._cache = backend, cache
        self.start, self.read = window_start(len(sequence.ids), backend.max_seq_len), 0
        self._noise, self._noise_start = np.empty((0, 0)), 0
        self._penalties: np.ndarray | None = None  # of each token (V,); 1 if the text lacks it
        if sequence.sampling.repetition_penalty != 1:
            self._penalties = np.ones(backend.tokenizer.vocab_size)
            self._penalties[sequence.ids] = sequence.sampling.repetition_penalty

    @property
    def unread(self) -> int:
        """Number of tokens of the window that are not in the cache."""
        return len(self.sequence.ids) - self.start - self.read

    def next_chunk(self) -> list[int]:
        """Return the tokens to read next."""
        return self.sequence.ids[self.start + self.read : chunk_end(self.start, self.read)]

    def advance(self, draft_length: int = 0) -> NewText:
        """Read the next chunk in one forward pass. If it is the last one, append a token.

        Draft tokens are verified in the same pass; the accepted ones are appended, too.
        """
        chunk, drafts = self.next_chunk(), []
        last = len(chunk) == self.unread
        if last and draft_length and self._backend.ngram_table:
            free = self._backend.max_seq_len - self.read - len(chunk)
            drafts = self._draft(min(draft_length, free))
        logits = self._cache.prefill(self.index, chunk + drafts, self.read)  # (T, V)
        self.sequence.record_prompt(self.start + self.read, logits)
        if not last:
            self.read += len(chunk)
            return []
        sequence, new_text = self.sequence, []
        sequence.forward_passes += 1
        if not drafts:
            return [self.append_next(logits[-1])]
        sequence.drafted += len(drafts)
        for draft, row_logits in enumerate(logits[-len(drafts) - 1 :]):  # (1 + drafts, V)
            new_text.append(self.append_next(row_logits))
            if draft == len(drafts) or sequence.ids[-1] != drafts[draft] or sequence.finish_reason:
                break
        return new_text

    def append_next(self, logits: np.ndarray) -> tuple[Sequence, str]:
        """Append the token that `logits` (V,) give; return the sequence and the text it adds."""
        sequence, penalties = self.sequence, self._penalties
        token = self._choose(logits)
        if penalties is not None:
            penalties[token] = sequence.sampling.repetition_penalty
        new_text = sequence.append(token, logits)
        self.read = len(sequence.ids) - 1 - self.start
        if (start := window_start(len(sequence.ids), self._backend.max_seq_len)) > self.start:
            self.start, self.read = start, 0
        return sequence, new_text

    def _choose(self, logits: np.ndarray) -> int:
        sequence, V = self.sequence, len(logits)
        sampling = sequence.sampling
        if V <= NOISE_BLOCK or not sampling.top_k:
            return choose_token(logits, self.noise(1)[0], sampling, self._penalties)
        uniform = uniform_noise(sampling.seed, sequence.sample, len(sequence.ids), V)[0]
        return choose_from_many(logits, uniform, sampling, self._penalties)

    def _draft(self, count: int) -> list[int]:
        """Return up to `count` draft tokens; none where they do not pay."""
        table, sequence = self._backend.ngram_table, self.sequence
        count = min(count, sequence.remaining - 1)  # the last token needs no forward pass
        if table is None or count < 1:
            return []
        if sequence.accepted < MIN_ACCEPTANCE_RATE * (sequence.drafted - MIN_DRAFTED):
            return []
        return draft_tokens(table, sequence.ids, self.noise(count), sequence.sampling.temperature)

    def noise(self, count: int) -> np.ndarray:
        """Return the noise (count, V) for the next tokens, drawn for many positions at once."""
        position = len(self.sequence.ids)
        offset = position - self._noise_start
        if offset + count > len(self._noise):
            sampling, V = self.sequence.sampling, self._backend.tokenizer.vocab_size
            block = max(count, NOISE_BLOCK // V)  # positions
            self._noise = gumbel_noise(sampling.seed, self.sequence.sample, position, V, block)
            self._noise_start, offset = position, 0
        return self._noise[offset : offset + count]


def run(backend: Backend, sequences: Iterable[Sequence]) -> Iterator[tuple[Sequence, str]]:
    """Generate sequences; yield for each new token its sequence and the text it adds."""
    sequences = list(sequences)
    engine = Engine(backend, min(len(sequences), backend.max_batch_size))
    for sequence in sequences:
        engine.add(sequence)
    while engine.unfinished:
        yield from engine.step()


def generate(
    backend: Backend,
    prompt: str,
    max_new_tokens: int = 200,
    sampling: Sampling = Sampling(),
    sample: int = 0,
    stop: Iterable[str] = (),
) -> Iterator[str]:
    """Yield the text that continues `prompt` in parts, as it is generated.

    >>> backend = OnnxBackend(Path("models/minigpt.onnx"))  # doctest: +SKIP
    >>> "".join(generate(backend, "The quick brown", max_new_tokens=50))  # doctest: +SKIP

    Raises:
        UserError: at the call, if `max_new_tokens` or `stop` is invalid (see `Sequence`).
    """
    sequence = Sequence(backend.tokenizer, prompt, sampling, sample, max_new_tokens, stop)
    return (text for _, text in run(backend, [sequence]) if text)
