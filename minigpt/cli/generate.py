"""minigpt-cli generate: continue one or many prompts."""

import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minigpt.cli import options
from minigpt.cli.input import BYTE_ORDER_MARK, STDIN, read_text
from minigpt.cli.models import load_backend
from minigpt.cli.output import new_seed, print_json, warn_about_unknown_characters
from minigpt.common.entry_point import raise_on_interrupt
from minigpt.common.errors import UserError
from minigpt.common.text import visible

if TYPE_CHECKING:
    from minigpt.generation.backend import Backend
    from minigpt.generation.sequence import Sequence

MAX_SAMPLES = 100_000  # all are kept in memory


def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt", "-p", help="Text to continue. Default: standard input if piped, else none."
        ),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(help="Continue each line of this file (- is standard input). Implies --json."),
    ] = None,
    backend_name: options.Backend = None,
    model: options.Model = None,
    max_new_tokens: options.MaxNewTokens = 200,
    temperature: options.Temperature = 0.8,
    top_k: options.TopK = 50,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    greedy: Annotated[
        bool,
        typer.Option(
            "--greedy", help="Always choose the most likely token; same as --temperature 0."
        ),
    ] = False,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Keep generating past <eos>, the end of a text.")
    ] = False,
    stop: Annotated[
        list[str] | None,
        typer.Option(help="Stop sequence: end the text before it. Can be repeated."),
    ] = None,
    seed: options.Seed = None,
    num_samples: Annotated[
        int, typer.Option("--num-samples", "-n", help="Number of texts to generate per prompt.")
    ] = 1,
    logprobs: Annotated[
        bool,
        typer.Option(
            "--logprobs", help="With --json: add the log-probability of each token, in nats."
        ),
    ] = False,
    stream: Annotated[
        bool, typer.Option(help="Print text as it is generated, or only when it is complete.")
    ] = True,
    speculate: Annotated[
        bool,
        typer.Option(
            help="Speculative decoding with the draft table of the model file: the same text, "
            "faster. Quantized (int8) models have none."
        ),
    ] = True,
    raw: Annotated[
        bool, typer.Option("--raw", help="Print control characters as they are, not as \\x1b.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Continue a prompt.

    The sampling options apply in this order: repetition penalty, temperature, top-k, top-p, min-p.

    For example:

        minigpt-cli generate --prompt "The quick brown"

        echo "Once upon" | minigpt-cli generate --temperature 0.5 --seed 7

        minigpt-cli generate -p "The" -n 3 --json | jq -r .text

        minigpt-cli generate -p "Said the fox" --stop . --stop "!"

        minigpt-cli generate --prompts-file prompts.txt > texts.jsonl
    """
    from minigpt.generation.engine import run
    from minigpt.generation.sampling import Sampling
    from minigpt.generation.sequence import Logprobs, Sequence

    source = context.get_parameter_source("temperature")
    if greedy and temperature and source and source.name == "COMMANDLINE":
        raise UserError("greedy: means temperature 0; give --greedy or --temperature, not both")
    if prompt is not None and prompts_file is not None:
        raise UserError("prompts-file: cannot be combined with --prompt; give one of the two")
    if not 1 <= num_samples <= MAX_SAMPLES:
        raise UserError(f"num-samples: must be from 1 to {MAX_SAMPLES}, but it is {num_samples}")
    as_json = as_json or prompts_file is not None
    if logprobs and not as_json:
        raise UserError("logprobs: needs JSON output; add --json")
    sampling = Sampling(
        temperature=0.0 if greedy else temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        ignore_eos=ignore_eos,
        seed=new_seed() if seed is None else seed,
    )
    prompts = _read_prompts(prompt, prompts_file)
    backend = load_backend(backend_name, model)
    if not speculate:
        backend.ngram_table = None
    warn_about_unknown_characters(backend, "".join(prompts))
    sequences = [
        Sequence(
            backend.tokenizer,
            prompt,
            sampling,
            sample,
            max_new_tokens,
            stop or (),
            Logprobs() if logprobs else None,
        )
        for prompt in prompts
        for sample in range(num_samples)
    ]
    if seed is None and sampling.temperature and not as_json:  # JSON has the seed
        print(f"seed: {sampling.seed}", file=sys.stderr)
    show = str if raw else visible
    raise_on_interrupt()
    try:
        if stream and not as_json:
            for sequence in sequences:
                print("---\n" * bool(sequence.sample) + show(sequence.prompt), end="", flush=True)
                for _, new_text in run(backend, [sequence]):
                    print(show(new_text), end="", flush=True)
                print(flush=True)
            return
        for sequence in _finished(backend, sequences):
            if as_json:
                print_json(_to_dict(sequence, backend))
                if stream:
                    sys.stdout.flush()
            else:
                print("---\n" * bool(sequence.sample) + show(sequence.prompt + sequence.text))
    except KeyboardInterrupt:
        print(end="" if as_json else "\n", flush=True)
        raise typer.Exit(130) from None


def _read_prompts(prompt: str | None, prompts_file: Path | None) -> list[str]:
    if prompts_file is not None:
        return read_text(prompts_file).removesuffix("\n").split("\n")
    if prompt is None and sys.stdin is not None and not sys.stdin.isatty():
        prompt = read_text(STDIN).removesuffix("\n")
    return [(prompt or "").removeprefix(BYTE_ORDER_MARK)]


def _finished(backend: "Backend", sequences: "list[Sequence]") -> "Iterator[Sequence]":
    """Generate `sequences` together, and yield each when it and those before it are complete."""
    from minigpt.generation.engine import run

    waiting = deque(sequences)
    for _ in run(backend, sequences):
        while waiting and waiting[0].finish_reason:
            yield waiting.popleft()


def _to_dict(sequence: "Sequence", backend: "Backend") -> dict[str, Any]:
    """Return the JSON object of a generated text."""
    values = {
        "prompt": sequence.prompt,
        "text": sequence.text,
        "tokens": len(sequence.generated),
        "finish_reason": sequence.finish_reason,
        "seed": sequence.sampling.seed,
        "sample": sequence.sample,
    }
    if sequence.logprobs is not None:
        values["logprobs"] = [
            [backend.tokenizer.token_strings[token], round(logprob, 6)]
            for token, logprob in zip(sequence.generated, sequence.logprobs.tokens, strict=True)
        ]
    return values
