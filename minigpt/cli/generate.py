"""minigpt-cli generate: continue one or many prompts."""

import json
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minigpt.cli.input import read_stdin, read_text
from minigpt.cli.models import load_backend
from minigpt.cli.options import (
    BackendOption,
    JsonOption,
    MaxNewTokensOption,
    MinPOption,
    ModelOption,
    RepetitionPenaltyOption,
    SeedOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
)
from minigpt.cli.output import warn_of_unknown
from minigpt.common.errors import UserError
from minigpt.common.text import visible

if TYPE_CHECKING:
    from minigpt.generation.backend import Backend
    from minigpt.generation.engine import Text
    from minigpt.generation.sampling import Sampling


def generate(
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", "-p", help="The text to continue. Default: standard input, if piped."
        ),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(help="Continue each line of this file; prints JSON, a line a text."),
    ] = None,
    backend: BackendOption = None,
    model: ModelOption = None,
    max_new_tokens: MaxNewTokensOption = 200,
    temperature: TemperatureOption = None,
    top_k: TopKOption = 50,
    top_p: TopPOption = 1.0,
    min_p: MinPOption = 0.0,
    repetition_penalty: RepetitionPenaltyOption = 1.0,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Always the likeliest token; same as temperature 0.")
    ] = False,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Write on where the model would end.")
    ] = False,
    stop: Annotated[
        list[str] | None, typer.Option(help="End before this text. Can be given several times.")
    ] = None,
    seed: SeedOption = 0,
    num_samples: Annotated[
        int, typer.Option("--num-samples", "-n", help="How many texts to write.")
    ] = 1,
    logprobs: Annotated[
        bool,
        typer.Option(
            "--logprobs", help="With --json: each token's log-probability in the model, in nats."
        ),
    ] = False,
    stream: Annotated[
        bool, typer.Option(help="Print as the text is written, or when it is finished.")
    ] = True,
    speculate: Annotated[
        bool, typer.Option(help="Guess ahead with the model file's n-grams: the same text, sooner.")
    ] = True,
    raw: Annotated[
        bool, typer.Option("--raw", help="Print control characters as they are, not as \\x1b.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Continue a text.

    What the options do to the candidates for the next token, they do in this order: repetition penalty,
    temperature, top-k, top-p, min-p.

    Examples:

        minigpt-cli generate --prompt "The quick brown"

        echo "Once upon" | minigpt-cli generate --temperature 0.5 --seed 7

        minigpt-cli generate -p "The" -n 3 --json | jq -r .text

        minigpt-cli generate -p "Said the fox" --stop . --stop "!"

        minigpt-cli generate --prompts-file beginnings.txt > texts.jsonl
    """
    from minigpt.generation.engine import Text, write
    from minigpt.generation.sampling import Sampling

    if greedy and temperature:
        raise UserError("greedy: means temperature 0; give --greedy or --temperature, not both")
    if num_samples < 1:
        raise UserError(f"num-samples: must be 1 or more, but it is {num_samples}")
    as_json = as_json or prompts_file is not None
    if logprobs and not as_json:
        raise UserError("logprobs: comes with --json; give that too")
    sampling = Sampling(
        temperature=0.0 if greedy else 0.8 if temperature is None else temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        ignore_eos=ignore_eos,
        seed=seed,
    )
    prompts = _read_prompts(prompt, prompts_file)
    engine = load_backend(backend, model)
    if not speculate:
        engine.draft = None
    warn_of_unknown(engine, "".join(prompts))
    texts = [
        Text(engine.tokenizer, prompt, sample, max_new_tokens, stop or (), logprobs)
        for prompt in prompts
        for sample in range(num_samples)
    ]
    show = str if raw else visible
    try:
        if as_json:
            for text in _finished(engine, texts, sampling):
                print(json.dumps(_result(text, engine, seed), ensure_ascii=False), flush=stream)
        elif stream:
            for text in texts:
                print("---\n" * bool(text.sample) + show(text.prompt), end="", flush=True)
                for _, piece in write(engine, [text], sampling):
                    print(show(piece), end="", flush=True)
                print(flush=True)
        else:
            finished = (
                show(text.prompt + text.text) for text in _finished(engine, texts, sampling)
            )
            print(*finished, sep="\n---\n")
    except KeyboardInterrupt:
        print(end="" if as_json else "\n", flush=True)
        raise typer.Exit(130) from None


def _finished(engine: "Backend", texts: "list[Text]", sampling: "Sampling") -> "Iterator[Text]":
    """All of `texts`, written many at a time, in their order."""
    from minigpt.generation.engine import write

    waiting = deque(texts)
    for _ in write(engine, texts, sampling):
        while waiting and waiting[0].stopped:
            yield waiting.popleft()


def _result(text: "Text", engine: "Backend", seed: int) -> dict[str, Any]:
    result = {
        "prompt": text.prompt,
        "text": text.text,
        "tokens": len(text.written),
        "stopped": text.stopped,
        "seed": seed,
        "sample": text.sample,
    }
    if text.logprobs is not None:
        pieces = (engine.tokenizer.token_strings[token] for token in text.written)
        result["logprobs"] = [
            [piece, round(logprob, 6)] for piece, logprob in zip(pieces, text.logprobs, strict=True)
        ]
    return result


def _read_prompts(prompt: str | None, prompts_file: Path | None) -> list[str]:
    if prompts_file is not None:
        if prompt is not None:
            raise UserError("prompts-file: give --prompt or --prompts-file, not both")
        return read_text(prompts_file).removesuffix("\n").split("\n")
    if prompt is not None:
        return [prompt]
    if sys.stdin is None or sys.stdin.isatty():
        return [""]
    return [read_stdin().removesuffix("\n")]
