"""minigpt-cli fetch: download a corpus."""

from pathlib import Path
from typing import Annotated

import typer


def fetch(
    name: Annotated[str | None, typer.Argument(help="Which corpus. Without it, list them.")] = None,
) -> None:
    """Put a corpus into data/raw/.

    A download is kept only if its SHA-256 is the expected one.
    """
    from minigpt.corpus.fetch import fetch as fetch_corpus
    from minigpt.corpus.fetch import listing

    if name is None:
        print(listing())
        return
    target = fetch_corpus(name, Path("data/raw"))
    print(f"{target}\ntrain on it: dvc exp run -S data.path={target}")
