"""Print tables and warnings."""

import csv
import json
import secrets
import sys
from typing import TYPE_CHECKING, Any

from minigpt.common.text import visible

if TYPE_CHECKING:
    from minigpt.generation.backend import Backend


def print_json(value: Any) -> None:
    """Print `value` as one line of JSON, in ASCII if stdout cannot encode its characters."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value)
    print(text)


def print_table(rows: list[dict[str, Any]], as_json: bool = False, as_csv: bool = False) -> None:
    """Print one JSON object per row, or CSV, or aligned columns."""
    if as_json:
        for row in rows:
            print_json(row)
        return
    if as_csv:
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for first, *others in cells:
        numbers = map(str.rjust, others, widths[1:])
        print(first.ljust(widths[0]), *numbers, sep="  ")


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}"
    return "" if value is None else visible(str(value))


def new_seed() -> int:
    """Draw a random seed that is short enough to be typed."""
    return secrets.randbelow(10**9)


def warn_about_unknown_characters(backend: "Backend", text: str) -> None:
    if unknown := backend.tokenizer.unknown(text):
        names = ", ".join(map(repr, unknown))
        warn(f"not in the vocabulary, read as <unk>: {names}")


def warn(message: str) -> None:
    print(f"minigpt-cli: warning: {visible(message)}", file=sys.stderr)
