"""The body of a completion request → sequences to generate."""

import math
import secrets
from dataclasses import dataclass
from typing import Any

from minigpt.common.errors import UserError
from minigpt.common.files import parse_json
from minigpt.generation.backend import Backend
from minigpt.generation.sampling import Sampling
from minigpt.generation.sequence import Logprobs, Sequence
from minigpt.serving.errors import ApiError
from minigpt.tokenizer import BOS

MAX_BODY = 1 << 20  # bytes
MAX_PROMPT = 1 << 16  # characters or ids of the prompts of all texts together
MAX_TEXTS = 128  # prompts times n
MAX_LOGPROBS = 5
MAX_STOP, MAX_STOP_LENGTH = 16, 1000
# parameters of OpenAI that the server does not implement, with the values that change nothing
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "suffix": ("",),
}
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


@dataclass(frozen=True)
class Completion:
    """A completion request.

    Attributes:
        sequences: the texts to generate, `n` for each prompt.
        seed: seed of all texts; drawn if the request has none.
        n: number of texts for each prompt.
        max_tokens: maximum number of tokens of a text; 0 only scores the prompt.
        echo: whether the prompt belongs to the answer.
        stream: whether text is sent as it is generated.
        include_usage: whether a stream ends with the number of tokens.
    """

    sequences: list[Sequence]
    seed: int
    n: int
    max_tokens: int
    echo: bool
    stream: bool
    include_usage: bool


def parse_completion(data: bytes, backend: Backend, model: str, max_tokens: int) -> Completion:
    """Return the request in the JSON text `data`, for the model named `model`.

    Raises:
        ApiError: a parameter is invalid, unknown, or above its limit, such as `max_tokens`.
    """
    try:
        body = parse_json(data)
    except ValueError as error:
        raise ApiError(f"the body is not valid JSON: {error}") from None
    if not isinstance(body, dict):
        raise ApiError("the body must be a JSON object")
    return _Parser(body, backend).parse(model, max_tokens)


class _Parser:
    """Takes the parameters out of a body; those that are left at the end are unknown."""

    def __init__(self, body: dict[str, Any], backend: Backend):
        # null means the default
        self.left = {name: value for name, value in body.items() if value is not None}
        self.backend = backend

    def parse(self, model: str, max_tokens: int) -> Completion:
        if (name := self.take("model", str, model)) != model:
            raise ApiError(f"model: {name!r:.50} is not served here; use {model!r}", 404, "model")
        self.take("user", str, "")  # without effect, as documented by OpenAI
        for name, values in NEUTRAL.items():
            value = self.left.pop(name, values[0])
            if value not in values or isinstance(value, bool):  # True == 1
                problem = f"not supported; leave it out, not {value!r:.50}"
                raise ApiError(f"{name}: {problem}", param=name)
        seed = self.take("seed", int, secrets.randbits(63))
        n = self.take("n", int, 1, 1, MAX_TEXTS)
        limit = self.take("max_tokens", int, min(200, max_tokens), 0, max_tokens)
        echo = self.take("echo", bool, False)
        logprobs = self.take("logprobs", int, None, 0, MAX_LOGPROBS)
        stop, prompts, sampling = self.stop(), self.prompts(n), self.sampling(seed)
        if len(prompts) * n > MAX_TEXTS:
            problem = f"{len(prompts)} prompts times n = {n} are more than {MAX_TEXTS} texts"
            raise ApiError(f"n: {problem}; send fewer", param="n")
        stream, usage = self.take("stream", bool, False), self.include_usage()
        if self.left:
            name = min(self.left)[:50]
            raise ApiError(f"{name}: unknown parameter; leave it out", param=name)
        sequences = [
            Sequence(
                self.backend.tokenizer,
                prompt,
                sampling,
                sample,
                max(1, limit),
                stop,
                None if logprobs is None else Logprobs(logprobs),
                Logprobs(logprobs) if echo and logprobs is not None else None,
            )
            for prompt in prompts
            for sample in range(n)
        ]
        longest = max(sequence.prompt_length for sequence in sequences)
        if echo and logprobs is not None and longest > self.backend.max_seq_len:
            problem = f"{longest} tokens with <bos>, more than the context of the model"
            raise ApiError(
                f"prompt: has {problem} ({self.backend.max_seq_len}), so echo cannot give logprobs",
                param="prompt",
            )
        return Completion(sequences, seed, n, limit, echo, stream, usage)

    def take(
        self, name: str, kind: type, default: Any, least: float = -math.inf, most: float = math.inf
    ) -> Any:
        """Remove and return a parameter.

        Raises:
            ApiError: it is of another kind, or out of range.
        """
        value = self.left.pop(name, default)
        if value is default:
            return default
        if kind is float and type(value) is int and abs(value) < 2**53:
            value = float(value)
        if type(value) is not kind:
            raise ApiError(f"{name}: must be {KINDS[kind]}, not {value!r:.50}", param=name)
        if isinstance(value, int | float) and not least <= value <= most:
            raise ApiError(f"{name}: must be from {least} to {most}, not {value!r:.50}", param=name)
        return value

    def sampling(self, seed: int) -> Sampling:
        defaults = Sampling()
        names = ("temperature", "top_p", "min_p", "repetition_penalty")
        values = {name: self.take(name, float, getattr(defaults, name)) for name in names}
        top_k = self.take("top_k", int, defaults.top_k)
        ignore_eos = self.take("ignore_eos", bool, False)
        try:
            return Sampling(top_k=top_k, ignore_eos=ignore_eos, seed=seed, **values)
        except UserError as error:
            name, problem = str(error).split(": ", 1)
            name = name.replace("-", "_")
            raise ApiError(f"{name}: {problem}", param=name) from None

    def include_usage(self) -> bool:
        options = self.left.pop("stream_options", {})
        if not (isinstance(options, dict) and options.keys() <= {"include_usage"}):
            raise ApiError(
                "stream_options: must be an object with include_usage only", param="stream_options"
            )
        usage = options.get("include_usage")
        if not (usage is None or isinstance(usage, bool)):
            problem = "include_usage must be true or false"
            raise ApiError(f"stream_options: {problem}, not {usage!r:.50}", param="stream_options")
        return bool(usage)

    def stop(self) -> list[str]:
        stop = self.left.pop("stop", [])
        stop = [stop] if isinstance(stop, str) else stop
        if (
            not isinstance(stop, list)
            or len(stop) > MAX_STOP
            or not all(isinstance(text, str) and 1 <= len(text) <= MAX_STOP_LENGTH for text in stop)
        ):
            expected = f"a string of 1 to {MAX_STOP_LENGTH} characters, or up to {MAX_STOP} of them"
            raise ApiError(f"stop: must be {expected}", param="stop")
        return stop

    def prompts(self, n: int) -> list[str] | list[list[int]]:
        """Return the prompts, of `n` texts each: texts, or ids without <bos>."""
        prompt = self.left.pop("prompt", "")
        if isinstance(prompt, str) or (prompt and _all_are(prompt, int)):
            prompt = [prompt]
        if not (prompt and (_all_are(prompt, str) or _all_are(prompt, list))):
            raise ApiError("prompt: must be a text, a list of texts, or token ids", param="prompt")
        # each text encodes its prompt, while no other request is served
        if sum(map(len, prompt)) * n > MAX_PROMPT:
            problem = f"its length times n is more than {MAX_PROMPT}; shorten it"
            raise ApiError(f"prompt: {problem}", param="prompt")
        return prompt if isinstance(prompt[0], str) else list(map(self._ids, prompt))

    def _ids(self, ids: list[Any]) -> list[int]:
        V = self.backend.tokenizer.vocab_size
        if not (_all_are(ids, int) and all(0 <= token < V for token in ids)):
            raise ApiError(f"prompt: token ids must be from 0 to {V - 1}", param="prompt")
        return ids[1:] if ids[:1] == [BOS] else ids


def _all_are(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(type(value) is kind for value in values)
