"""Report on the data: sizes, document lengths, characters and examples."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from minigpt.common.files import atomic_file, atomic_write
from minigpt.common.plots import drawable
from minigpt.common.text import fenced, inline_code
from minigpt.corpus.corpus import Document
from minigpt.corpus.encode import Columns
from minigpt.data.token_files import SplitInfo

NUM_EXAMPLES = 3  # documents, each cut to EXAMPLE_LENGTH characters
EXAMPLE_LENGTH = 300
NUM_CHARACTERS = 20  # most common and rarest ones in the report
MAX_POWER = 48  # documents are shorter than 2**MAX_POWER characters
# lower ends of the bins of document lengths: 16 bins for each factor of two
EDGES = np.unique(np.ceil(2 ** (np.arange(16 * MAX_POWER + 1) / 16)).astype(np.int64))
MAX_BINS = 16  # of the report; if more occur, neighbors are merged


class DataReport:
    """Collects statistics while the corpus streams by; memory stays small."""

    def __init__(self) -> None:
        self.examples: list[str] = []
        # number of documents in each bin
        self.lengths = pd.DataFrame(0, index=EDGES[:-1], columns=["train", "val"])

    def record_examples(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield `documents` unchanged and keep the first few as examples."""
        for document in documents:
            if len(self.examples) < NUM_EXAMPLES:
                self.examples.append(document.text[:EXAMPLE_LENGTH])
            yield document

    def add(self, columns: Columns) -> None:
        """Count the lengths of some documents, given as rows of the table of documents."""
        bins = np.searchsorted(EDGES, columns["characters"], side="right") - 1
        for split in self.lengths:
            counts = np.bincount(bins[columns["split"] == split], minlength=len(self.lengths))
            self.lengths[split] += counts

    def write(
        self, folder: Path, splits: dict[str, SplitInfo], dropped: int, vocab_size: int
    ) -> None:
        """Write data.json (figures), lengths.csv, data.md (text) and data.png into `folder`."""
        figures = {name: _figures(info) for name, info in splits.items()}
        summary = {**figures, "duplicates_dropped": dropped, "vocab_size": vocab_size}
        atomic_write(folder / "data.json", json.dumps(summary, indent=1) + "\n")
        characters = pd.read_csv(folder / "characters.csv")
        lengths = self._lengths()
        atomic_write(folder / "lengths.csv", lengths.to_csv(index=False))
        markdown = self._markdown(pd.DataFrame(figures), dropped, characters)
        atomic_write(folder / "data.md", markdown)
        with atomic_file(folder / "data.png") as file:
            _plot(lengths, characters).savefig(file, format="png", metadata={"Software": None})

    def _lengths(self) -> pd.DataFrame:
        """Return the columns "characters" (such as "64-76"), "split" and "documents"."""
        first, last = np.flatnonzero(self.lengths.sum(axis=1))[[0, -1]]
        merged = -(-(last + 1 - first) // MAX_BINS)
        starts = np.arange(first, last + 1, merged)
        counts = np.add.reduceat(self.lengths.to_numpy()[: last + 1], starts)
        ends = np.minimum(starts + merged, len(EDGES) - 1)
        labels = [
            f"{low}-{high}" if low < high else f"{low}"
            for low, high in zip(EDGES[starts], EDGES[ends] - 1, strict=True)
        ]
        return (
            pd.DataFrame(counts, index=labels, columns=self.lengths.columns)
            .rename_axis("characters")
            .reset_index()
            .melt("characters", var_name="split", value_name="documents")
        )

    def _markdown(self, figures: pd.DataFrame, dropped: int, characters: pd.DataFrame) -> str:
        rows = "\n".join(
            f"| {name} | {row['train']:,.6g} | {row['val']:,.6g} |"
            for name, row in figures.iterrows()
        )
        examples = "\n\n".join(map(fenced, self.examples))
        common = characters["character"][:NUM_CHARACTERS]
        rare = characters["character"][::-1][:NUM_CHARACTERS]
        return f"""# The data

| | train | val |
|---|---|---|
{rows}

Equal documents dropped: {dropped:,}

Commonest characters: {" ".join(map(inline_code, common))}

Rarest characters: {" ".join(map(inline_code, rare))}

![Lengths and characters](data.png)

## How it begins

{examples}
"""


def _figures(info: SplitInfo) -> dict[str, Any]:
    return {
        "documents": info.documents,
        "characters": info.characters,
        "bytes": info.bytes,
        "tokens": info.tokens,
        "unknown_share": info.unknown / max(1, info.tokens),
    }


def _plot(lengths: pd.DataFrame, characters: pd.DataFrame) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    table = lengths.pivot(index="characters", columns="split", values="documents").loc[
        lengths["characters"].unique()
    ]
    table.plot.bar(ax=left, stacked=True, rot=45, title="Documents by length", xlabel="characters")
    common = characters.head(2 * NUM_CHARACTERS)
    right.bar(common["character"].map(drawable), common["count"])
    left.legend(loc="upper left")
    right.set(title="Commonest characters of the training split")
    right.tick_params(axis="x", labelrotation=90, labelsize=7)
    return figure
