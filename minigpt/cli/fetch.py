"""minigpt-cli fetch: download a corpus."""

from pathlib import Path
from typing import Annotated

import typer

from minigpt.common.entry_point import raise_on_interrupt


def fetch(
    name: Annotated[
        str | None, typer.Argument(help="Name of the corpus. Default: list all.")
    ] = None,
) -> None:
    """Download a corpus into data/raw/.

    A download is kept only if its SHA-256 is the expected one. The corpus python-docs is not
    downloaded, but written from the documentation that Python contains.
    """
    from minigpt.corpus.fetch import fetch as fetch_corpus
    from minigpt.corpus.fetch import listing

    if name is None:
        print(listing())
        return
    raise_on_interrupt()
    target = fetch_corpus(name, Path("data/raw"))
    print(f"{target}\ntrain on it: dvc exp run -S data.path={target}")
