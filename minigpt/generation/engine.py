"""One generate loop over any backend: texts alone or many at once, streamed or not, always the same."""

from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from minigpt.common.errors import UserError
from minigpt.generation.backend import Backend, KVCache
from minigpt.generation.sampling import Noise, Sampling, log_probabilities, next_tokens
from minigpt.tokenizer import EOS, PAD, Tokenizer

PAYS = (
    0.2  # what a guess costs, as a share of a run of the model: if fewer are right, none are made
)
PATIENCE = 8  # guesses that may be wrong before that is judged


def window_start(position: int, max_seq_len: int) -> int:
    """Where the context of the token at `position` begins: it is [window_start, position).

    The model sees `max_seq_len` positions. Beyond, the window moves by half its length at a time,
    not at each token: cached keys hold their position in the window, so a move means to read the
    whole window again. A function of the position alone, so that every path gives the same text.
    """
    stride = max(1, max_seq_len // 2)
    excess = max(0, position - max_seq_len)
    return -(-excess // stride) * stride


class Text:
    """A text in the making: what it begins with, what has been written, and when it ends.

    Attributes:
        prompt: what it begins with.
        sample: its number among the texts of one seed.
        ids: <bos>, the prompt, and the tokens that have been written.
        logprobs: of the tokens that have been written, if asked for: in nats, as the model itself has it.
        runs: of the model, that it took. guessed: tokens that were guessed on the way (see `minigpt/data/ngram_table.py`).
        stopped: None as long as it goes on, then "eos", "length" or "stop".
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: str,
        sample: int = 0,
        max_new_tokens: int = 200,
        stop: Sequence[str] = (),
        logprobs: bool = False,
    ):
        """`stop`: the text ends before the first of these.

        Raises:
            UserError: `max_new_tokens` is less than 1, or a stop string is empty.
        """
        if max_new_tokens < 1:
            raise UserError(f"max-new-tokens: must be 1 or more, but it is {max_new_tokens}")
        if not all(stop):
            raise UserError("stop: must not be empty")
        self.prompt, self.sample, self.stop = prompt, sample, stop
        self.ids = tokenizer.encode(prompt)[:-1]  # <eos> would end the text here
        self.logprobs: list[float] | None = [] if logprobs else None
        self.runs, self.guessed = 0, 0
        self.stopped: str | None = None
        self._pieces: list[str] = []
        self._first = len(self.ids)
        self._end = self._first + max_new_tokens
        self._decoder = tokenizer.decoder()
        self._held = ""  # of what is decoded, that which may begin a stop string

    @property
    def written(self) -> list[int]:
        """The tokens that have been written, <eos> included."""
        return self.ids[self._first :]

    @property
    def text(self) -> str:
        """What has been written, as far as it is certain."""
        return "".join(self._pieces)

    @property
    def right(self) -> int:
        """How many of the guesses were right: each saved a run."""
        return len(self.ids) - self._first - self.runs

    @property
    def left(self) -> int:
        """How many more may be written."""
        return self._end - len(self.ids)

    def add(self, token: int, logits: np.ndarray) -> str:
        """Append `token`, chosen by `logits` (V,); returns what is now certain to be in the text."""
        self.ids.append(token)
        if self.logprobs is not None:
            self.logprobs.append(float(log_probabilities(logits[None], np.array([token]))[0]))
        self._held += self._decoder.feed(token)
        if token == EOS or not self.left:
            self.stopped = "eos" if token == EOS else "length"
            self._held += self._decoder.end()
        if not self.stop:
            return self._release(0)
        if found := [at for stop in self.stop if (at := self._held.find(stop)) >= 0]:
            self.stopped, self._held = "stop", self._held[: min(found)]
        return self._release(0 if self.stopped else max(map(self._begun, self.stop), default=0))

    def _begun(self, stop: str) -> int:
        """How many characters of `stop` the held text ends on."""
        most = min(len(stop) - 1, len(self._held))
        return next((count for count in range(most, 0, -1) if self._held.endswith(stop[:count])), 0)

    def _release(self, keep: int) -> str:
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        self._pieces.append(text)
        return text


class _Row:
    """A row of a memory, and the text that is written there."""

    def __init__(self, backend: Backend, memory: KVCache, row: int, text: Text, sampling: Sampling):
        self.memory, self.row, self.text, self.sampling = memory, row, text, sampling
        self.noise = Noise(sampling.seed, text.sample, backend.tokenizer.vocab_size)
        self._backend = backend
        self._start = -1  # of the window: the memory holds all ids from there on but the last

    def unread(self) -> tuple[list[int], int]:
        """The ids to read for the next token, and how many before them the memory holds.

        It is one id, but at the beginning and where the window moves.
        """
        ids = self.text.ids
        start = window_start(len(ids), self._backend.max_seq_len)
        if start != self._start:
            self._start = start
            return ids[start:], 0
        return ids[-1:], len(ids) - 1 - start

    def read(self, unread: list[int], past: int, guesses: list[int]) -> Iterator[str]:
        """Read what `unread` gave, and `guesses` behind it; write a token, and one more for each guess that is right.

        Yields what each adds to the text.
        """
        text = self.text
        logits = self.memory.prefill(self.row, np.array(unread + guesses), past)[len(unread) - 1 :]
        text.runs += 1
        text.guessed += len(guesses)
        noise = self.noise.rows(len(text.ids), len(logits))
        # copies of a long text cost, and only the penalty asks for them
        penalized = self.sampling.repetition_penalty != 1
        texts = [text.ids + guesses[:right] for right in range(len(logits))] if penalized else ()
        for i, token in enumerate(next_tokens(logits, noise, self.sampling, texts)):
            yield text.add(token, logits[i])
            if text.stopped or i == len(guesses) or token != guesses[i]:
                return

    def guess(self, count: int) -> list[int]:
        """Up to `count` tokens that may come next: no more than may still be written, within the window."""
        draft, position = self._backend.draft, len(self.text.ids)
        count = min(count, self.text.left - 1, self._start + self._backend.max_seq_len - position)
        if draft is None or count < 1 or self.text.right < PAYS * self.text.guessed - PATIENCE:
            return []
        return draft.guess(
            self.text.ids, self.noise.rows(position, count), self.sampling.temperature
        )


def write(
    backend: Backend, texts: Sequence[Text], sampling: Sampling | None = None
) -> Iterator[tuple[Text, str]]:
    """Write `texts`, as many together as the backend writes best (`rows`), each as it would be alone.

    Yields a text and what is added to it, token by token ("" where a token adds no character yet); it
    is finished when `stopped` is set. Several texts take turns, and when one is finished the next takes its place.
    """
    sampling = sampling or Sampling()
    waiting = iter(texts)
    rows = min(len(texts), backend.max_batch_size)
    memory = backend.new_cache(rows)
    active: list[_Row] = []
    free = list(range(rows))
    while True:
        active += [
            _Row(backend, memory, free.pop(), text, sampling) for text in islice(waiting, len(free))
        ]
        if not active:
            return
        if rows == 1:
            row = active[0]
            while not row.text.stopped:
                unread, known = row.unread()
                for piece in row.read(unread, known, row.guess(backend.draft_length)):
                    yield row.text, piece
        else:
            yield from _turn(active, memory, rows)
        free += [row.row for row in active if row.text.stopped]
        active = [row for row in active if not row.text.stopped]


def _turn(active: list[_Row], memory: KVCache, rows: int) -> Iterator[tuple[Text, str]]:
    """A token for each text: all that have one id unread together; others first catch up by themselves."""
    ids, past = (
        np.full(rows, PAD),
        np.zeros(rows, dtype=np.int64),
    )  # a row without a text reads <pad>
    for row in active:
        unread, known = row.unread()
        while len(unread) > 1 and not row.text.stopped:
            for piece in row.read(unread, known, []):
                yield row.text, piece
            unread, known = row.unread()
        ids[row.row], past[row.row] = unread[0], known
    active = [row for row in active if not row.text.stopped]
    if not active:
        return
    logits = memory.decode(ids, past)[[row.row for row in active]]
    noise = np.concatenate([row.noise.rows(len(row.text.ids), 1) for row in active])
    tokens = next_tokens(logits, noise, active[0].sampling, [row.text.ids for row in active])
    for row, token, own in zip(active, tokens, logits, strict=True):
        row.text.runs += 1
        yield row.text, row.text.add(token, own)


def generate_ids(
    backend: Backend,
    prompt: str,
    max_new_tokens: int = 200,
    sampling: Sampling | None = None,
    sample: int = 0,
) -> Iterator[int]:
    """The ids that continue `prompt`, one at a time; the last is <eos> where the model ends the text.

    `sample` numbers independent texts of one seed: each is what it would be alone.

    Raises:
        UserError: at the call, where `max_new_tokens` is less than 1.
    """
    text = Text(backend.tokenizer, prompt, sample, max_new_tokens)
    return (text.ids[-1] for _ in write(backend, [text], sampling))


def generate(
    backend: Backend,
    prompt: str,
    max_new_tokens: int = 200,
    sampling: Sampling | None = None,
    sample: int = 0,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """The text that continues `prompt`, piece by piece, each of whole characters; it ends before a `stop` string.

    >>> backend = OnnxBackend(Path("models/minigpt.onnx"))  # doctest: +SKIP
    >>> "".join(generate(backend, "The quick brown", sampling=Sampling(temperature=0)))  # doctest: +SKIP
    """
    text = Text(backend.tokenizer, prompt, sample, max_new_tokens, stop)
    return (piece for _, piece in write(backend, [text], sampling) if piece)
