"""Print tables and warnings."""

import csv
import json
import sys
from typing import TYPE_CHECKING, Any

from minigpt.common.text import printable, visible

if TYPE_CHECKING:
    from minigpt.generation.backend import Backend


def print_table(rows: list[dict[str, Any]], as_json: bool = False, as_csv: bool = False) -> None:
    """JSON a row a line, or CSV, or columns for the eye."""
    if as_json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return
    if as_csv:
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        padded = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        print(line[0].ljust(widths[0]), *padded, sep="  ")


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (
        "" if value is None else f"{value:.4f}" if isinstance(value, float) else visible(str(value))
    )


def warn_of_unknown(engine: "Backend", text: str) -> None:
    if unknown := engine.tokenizer.unknown(text):
        warn(
            f"the model does not know these characters and reads them as <unk>: {printable(unknown)}"
        )


def warn(message: str) -> None:
    print(f"minigpt-cli: warning: {message}", file=sys.stderr)
