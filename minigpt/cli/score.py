"""minigpt-cli score: measure how well a model predicts texts."""

from pathlib import Path
from typing import Annotated

import typer

from minigpt.cli.input import read_text
from minigpt.cli.models import load_backend
from minigpt.cli.options import BackendOption, JsonOption, ModelOption
from minigpt.cli.output import print_table, warn_of_unknown
from minigpt.common.errors import UserError


def score(
    files: Annotated[list[Path], typer.Argument(help="Texts in UTF-8; - is standard input.")],
    backend: BackendOption = None,
    model: ModelOption = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="Score each line too, after those before it.")
    ] = False,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV instead of a table.")] = False,
) -> None:
    """Measure how well the model predicts texts: loss (nats a token), perplexity, bits per character.

    A file is one document, and its end is predicted too.

    Examples:

        minigpt-cli score chapter-1.txt chapter-2.txt

        minigpt-cli score --lines --csv poem.txt > poem.csv
    """
    from minigpt.evaluation.score import score as score_text

    if as_json and as_csv:
        raise UserError("csv: give --json or --csv, not both")
    texts = {str(file): read_text(file).removesuffix("\n") for file in files}
    engine = load_backend(backend, model)
    warn_of_unknown(engine, "".join(texts.values()))
    rows = []
    for name, text in texts.items():
        whole, each = score_text(engine, text)
        rows.append({"file": name, "line": None, **whole.figures()})
        if lines:
            rows += [
                {"file": name, "line": number, **line.figures()}
                for number, line in enumerate(each, start=1)
            ]
    print_table(rows, as_json, as_csv)
