"""minigpt-cli bench: measure how fast models generate text."""

import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minigpt.cli import options
from minigpt.cli.models import DEFAULT_MODELS, BackendName, load_backend
from minigpt.cli.output import print_table
from minigpt.common.errors import UserError

if TYPE_CHECKING:
    from minigpt.data.ngram_table import NgramTable
    from minigpt.generation.backend import Backend
    from minigpt.generation.sequence import Sequence


def bench(
    models: Annotated[
        list[Path] | None, typer.Argument(help="Model files. Default: those in models/.")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length of each text, in tokens.")] = 200,
    rounds: Annotated[int, typer.Option(help="Number of measurements of each case.")] = 7,
    as_json: options.Json = False,
) -> None:
    """Measure how fast models generate text.

    Each model generates one text alone, once more with speculative decoding if its file has a
    draft table, and 16 texts together. The cases alternate, and the median of all rounds counts.

    The columns tokens_per_pass (tokens per forward pass) and acceptance_rate (share of draft tokens
    that the model accepted) show the benefit of the draft table.
    """
    if rounds < 1:
        raise UserError(f"rounds: must be 1 or more, but it is {rounds}")
    existing = [path for path in DEFAULT_MODELS.values() if path.exists()]
    cases = []
    for path in models or existing or [DEFAULT_MODELS[BackendName.onnx]]:
        backend = load_backend(None, path)
        cases.append(Case(path, backend, 1, None))
        if backend.ngram_table:
            cases.append(Case(path, backend, 1, backend.ngram_table))
        cases.append(Case(path, backend, 16, None))
    for seed in range(rounds + 1):
        for case in cases:
            case.run(max_new_tokens, seed)
    print_table([case.figures() for case in cases], as_json)


@dataclass
class Case:
    """A number of texts to generate with one model, with or without draft tokens."""

    path: Path
    backend: "Backend"
    count: int
    ngram_table: "NgramTable | None"
    speeds: list[float] = field(default_factory=list)  # tokens per second, one of each round
    sequences: "list[Sequence]" = field(default_factory=list)

    def run(self, max_new_tokens: int, seed: int) -> None:
        from minigpt.generation.engine import run
        from minigpt.generation.sampling import Sampling
        from minigpt.generation.sequence import Sequence

        sampling = Sampling(ignore_eos=True, seed=seed)
        sequences = [
            Sequence(self.backend.tokenizer, "", sampling, sample, max_new_tokens)
            for sample in range(self.count)
        ]
        self.backend.ngram_table = self.ngram_table
        start = time.perf_counter()
        for _ in run(self.backend, sequences):
            pass
        self.speeds.append(self.count * max_new_tokens / (time.perf_counter() - start))
        self.sequences += sequences

    def figures(self) -> dict[str, Any]:
        """Return the row of the table; the speed of the first round, a warm-up, is left out."""
        generated = sum(len(sequence.generated) for sequence in self.sequences)
        passes = sum(sequence.forward_passes for sequence in self.sequences)
        drafted = sum(sequence.drafted for sequence in self.sequences)
        accepted = sum(sequence.accepted for sequence in self.sequences)
        return {
            "model": str(self.path),
            "texts": self.count,
            "drafting": self.ngram_table is not None,
            "tokens_per_second": round(statistics.median(self.speeds[1:])),
            "tokens_per_pass": round(generated / passes, 3),
            "acceptance_rate": round(accepted / drafted, 3) if drafted else None,
        }
