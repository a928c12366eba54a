"""Generated sequences → answers in the format of the OpenAI completions API."""

import time
import uuid
from typing import Any

from minigpt.generation.sequence import Logprobs, Sequence
from minigpt.serving.parameters import Completion
from minigpt.tokenizer import SPECIAL_TOKENS, UNK, Tokenizer

FINISH_REASONS = {"eos": "stop"}  # those that OpenAI calls otherwise


class Answer:
    """The values that all objects of one answer share, and its choices."""

    def __init__(self, completion: Completion, tokenizer: Tokenizer, model: str, fingerprint: str):
        self.completion = completion
        self.choices = {
            sequence: Choice(completion, tokenizer, sequence, index)
            for index, sequence in enumerate(completion.sequences)
        }
        self._shared = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
            "seed": completion.seed,  # an extension, for clients that sent none
        }

    def to_dict(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """Return an answer, or one event of a stream, with `choices`."""
        return {**self._shared, "choices": choices}

    def usage(self) -> dict[str, dict[str, int]]:
        """Return the number of tokens so far."""
        sequences = self.completion.sequences[:: self.completion.n]  # one for each prompt
        prompt = sum(sequence.prompt_length - 1 for sequence in sequences)  # without <bos>
        generated = sum(choice.length for choice in self.choices.values())
        counts = {"prompt_tokens": prompt, "completion_tokens": generated}
        return {"usage": {**counts, "total_tokens": prompt + generated}}


class Choice:
    """One text of an answer, in parts.

    Attributes:
        length: number of generated tokens so far.
    """

    def __init__(
        self, completion: Completion, tokenizer: Tokenizer, sequence: Sequence, index: int
    ):
        self.length = 0
        self._sequence, self._index = sequence, index
        self._scores_only = completion.max_tokens == 0
        self._echo = completion.echo  # until the prompt is sent
        self._text_length = 0
        self._tokens = _Tokens(tokenizer)

    def part(self, text: str, length: int, finish_reason: str | None) -> dict[str, Any]:
        """Return a choice with new `text`, after `length` generated tokens in total."""
        if self._scores_only:
            text, length, finish_reason = "", 0, finish_reason and "length"
        sequence = self._sequence
        logprobs = _empty_logprobs() if sequence.logprobs else None
        if self._echo:
            self._echo, text = False, sequence.prompt + text
            if logprobs and sequence.prompt_logprobs:
                ids = sequence.ids[1 : sequence.prompt_length]
                self._tokens.describe_prompt(
                    ids, sequence.prompt_logprobs, logprobs, sequence.prompt
                )
        self.length = length
        self._text_length += len(text)
        if logprobs and sequence.logprobs:
            ids = sequence.generated[:length]
            self._tokens.describe(ids, sequence.logprobs, logprobs, self._text_length)
        return {
            "index": self._index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": FINISH_REASONS.get(finish_reason or "", finish_reason),
        }


def _empty_logprobs() -> dict[str, list[Any]]:
    return {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}


class _Tokens:
    """Describes the tokens of one text with their log-probabilities."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer, self._decoder = tokenizer, tokenizer.decoder()
        self._count = 0  # generated tokens that were described
        self._offset = 0  # of the next token in the text

    def describe_prompt(
        self, ids: list[int], record: Logprobs, logprobs: dict[str, list[Any]], prompt: str
    ) -> None:
        """Add all `ids` of the `prompt`, with which the text begins."""
        # <unk> stands for one character of a text, but a prompt of ids shows nothing for it
        unknown = int(len(prompt) > len(self._tokenizer.decode(ids)))
        decoder = self._tokenizer.decoder()
        for index, token in enumerate(ids):
            self._add(index, token, record, logprobs)
            length = unknown if token == UNK else len(decoder.feed(token))
            self._offset = min(self._offset + length, len(prompt))
        self._offset = len(prompt)

    def describe(
        self, ids: list[int], record: Logprobs, logprobs: dict[str, list[Any]], end: int
    ) -> None:
        """Add generated `ids` that begin before `end` in the text, and were not added before."""
        while self._count < len(ids) and self._offset < end:
            token = ids[self._count]
            self._add(self._count, token, record, logprobs)
            self._offset += len(self._decoder.feed(token))
            self._count += 1

    def _add(
        self, index: int, token: int, record: Logprobs, logprobs: dict[str, list[Any]]
    ) -> None:
        """Add a token, the one at `index` of the record."""
        logprob = record.tokens[index]
        top = {**(record.top[index] if record.top else {}), token: logprob}
        logprobs["tokens"].append(self._string(token))
        logprobs["token_logprobs"].append(logprob)
        logprobs["top_logprobs"].append({self._string(id): top[id] for id in top})
        logprobs["text_offset"].append(self._offset)

    def _string(self, token: int) -> str:
        r"""Return the text of a token; bytes of an incomplete character appear as \xe2."""
        if token < len(SPECIAL_TOKENS):
            return SPECIAL_TOKENS[token]
        data = self._tokenizer.token_strings[token].encode("utf-8", "surrogateescape")
        return data.decode("utf-8", "backslashreplace")
