"""minigpt-cli score: measure how well a model predicts texts."""

from pathlib import Path
from typing import Annotated

import typer

from minigpt.cli import options
from minigpt.cli.input import read_text
from minigpt.cli.models import load_backend
from minigpt.cli.output import print_table, warn_about_unknown_characters
from minigpt.common.errors import UserError


def score(
    files: Annotated[list[Path], typer.Argument(help="UTF-8 text files; - is standard input.")],
    backend_name: options.Backend = None,
    model: options.Model = None,
    lines: Annotated[
        bool, typer.Option("--lines", help="Also score each line, given the lines before it.")
    ] = False,
    as_json: options.Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Measure how well a model predicts texts.

    Prints the loss (nats per token), perplexity and bits per character of each file. A file is one
    document; the model must predict its end too.

    For example:

        minigpt-cli score chapter-1.txt chapter-2.txt

        minigpt-cli score --lines --csv poem.txt > poem.csv
    """
    from minigpt.evaluation.score import score as score_text

    if as_json and as_csv:
        raise UserError("csv: cannot be combined with --json; give one of the two")
    texts = {str(file): read_text(file).removesuffix("\n") for file in files}
    backend = load_backend(backend_name, model)
    warn_about_unknown_characters(backend, "".join(texts.values()))
    rows = []
    for name, text in texts.items():
        total, scores = score_text(backend, text)
        rows.append({"file": name, "line": None, **total.figures()})
        if lines:
            rows += [
                {"file": name, "line": number, **line.figures()}
                for number, line in enumerate(scores, start=1)
            ]
    print_table(rows, as_json, as_csv)
