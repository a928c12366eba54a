"""minigpt-cli info: show the metadata of a model file."""

import json
import re
import shutil
import textwrap
from typing import Any

from minigpt.cli import options
from minigpt.cli.models import load_backend
from minigpt.cli.output import print_json
from minigpt.common.text import visible

NO_BREAK_SPACE = "\u00a0"  # keeps an entry on one line; printed as a plain space
HASH = re.compile("[0-9a-f]{32,}")


def info(
    backend_name: options.Backend = None, model: options.Model = None, as_json: options.Json = False
) -> None:
    """Show the contents of a model file.

    Prints the architecture, the parameters and results of training, and the vocabulary.
    """
    backend = load_backend(backend_name, model)
    metadata = {"vocabulary": backend.tokenizer.describe()}
    metadata |= {
        name: value
        for name, value in backend.metadata.items()
        if name not in ("tokenizer", "ngram_table", "draft")  # long; "draft" is of older files
    }
    if as_json:
        print_json(metadata)
        return
    indent = max(len(visible(name)) for name in metadata) + 2
    columns = max(shutil.get_terminal_size().columns - indent, 40)
    for section, value in metadata.items():
        lines = textwrap.wrap(_describe(value), columns, break_on_hyphens=False)
        first, *others = [line.replace(NO_BREAK_SPACE, " ") for line in lines] or [""]
        print(f"{visible(section):{indent}}{first}")
        for line in others:
            print(f"{'':{indent}}{line}")


def _describe(value: Any) -> str:
    """Return a section of the metadata as text for people; lines are broken at its spaces."""
    match value:
        case dict():
            entries = (f"{visible(name)} {_describe(entry)}" for name, entry in value.items())
            return ", ".join(entry.replace(" ", NO_BREAK_SPACE) for entry in entries)
        case str() if HASH.fullmatch(value):
            return f"{value[:12]}…"
        case str():
            return value if value.isprintable() and " " not in value else repr(value)
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.5g}"
        case None:
            return "none"
    return json.dumps(value)
