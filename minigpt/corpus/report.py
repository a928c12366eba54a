"""A look at the data: how much there is, how long the documents are, what they are made of."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from minigpt.corpus.corpus import Document
from minigpt.corpus.encode import Encoded
from minigpt.data.token_files import SplitInfo

EXAMPLES = 3  # of documents, each cut at so many characters:
EXAMPLE_LENGTH = 300
SHOWN = 20  # characters at either end of the table of frequencies


class DataReport:
    """Collects on the way through the corpus, and writes `reports/data.*` at the end; memory stays small."""

    def __init__(self) -> None:
        self.examples: list[str] = []
        # documents by the power of two that their length is below
        self.lengths = pd.DataFrame(0, index=range(1, 48), columns=["train", "val"])

    def examples_of(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Pass `documents` on, and remember the first few."""
        for document in documents:
            if len(self.examples) < EXAMPLES:
                self.examples.append(document.text[:EXAMPLE_LENGTH])
            yield document

    def add(self, batch: Encoded) -> None:
        powers = np.log2(batch.table["characters"]).astype(int) + 1
        for split, counts in powers.groupby(batch.table["split"]).value_counts().groupby(level=0):
            self.lengths.loc[counts.index.get_level_values(1), split] += counts.to_numpy()

    def write(
        self, folder: Path, splits: dict[str, SplitInfo], dropped: int, vocab_size: int
    ) -> None:
        """Write the numbers (data.json), the lengths (lengths.csv), the text (data.md) and the picture (data.png)."""
        numbers = {name: _numbers(info) for name, info in splits.items()}
        summary = {**numbers, "duplicates_dropped": dropped, "vocab_size": vocab_size}
        folder.mkdir(exist_ok=True)
        (folder / "data.json").write_text(json.dumps(summary, indent=1) + "\n")
        characters = pd.read_csv(folder / "characters.csv")
        lengths = self._lengths()
        lengths.to_csv(folder / "lengths.csv", index=False)
        (folder / "data.md").write_text(
            self._markdown(pd.DataFrame(numbers), dropped, characters), encoding="utf-8"
        )
        _figure(lengths, characters).savefig(folder / "data.png", metadata={"Software": None})

    def _lengths(self) -> pd.DataFrame:
        """Rows "characters" ("64-127"), "split", "documents", from the shortest to the longest that occur."""
        found = np.flatnonzero(self.lengths.sum(axis=1))
        rows = self.lengths.iloc[found[0] : found[-1] + 1]
        rows = rows.rename(index=lambda power: f"{2 ** (power - 1)}-{2**power - 1}")
        return (
            rows.rename_axis("characters")
            .reset_index()
            .melt("characters", var_name="split", value_name="documents")
        )

    def _markdown(self, numbers: pd.DataFrame, dropped: int, characters: pd.DataFrame) -> str:
        rows = "\n".join(
            f"| {name} | {row['train']:,.6g} | {row['val']:,.6g} |"
            for name, row in numbers.iterrows()
        )
        examples = "\n\n".join(f"```text\n{example}\n```" for example in self.examples)
        commonest, rarest = characters["character"][:SHOWN], characters["character"][::-1][:SHOWN]
        return f"""# The data

| | train | val |
|---|---|---|
{rows}

Equal documents dropped: {dropped:,}

Commonest characters: {_inline(commonest)}

Rarest characters: {_inline(rarest)}

![Lengths and characters](data.png)

## How it begins

{examples}
"""


def _numbers(info: SplitInfo) -> dict[str, Any]:
    return {
        "documents": info.documents,
        "characters": info.characters,
        "bytes": info.bytes,
        "tokens": info.tokens,
        "unknown_share": info.unknown / max(1, info.tokens),
    }


def _inline(characters: pd.Series) -> str:
    return " ".join(f"`{character}`" for character in characters)


def _figure(lengths: pd.DataFrame, characters: pd.DataFrame) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    table = lengths.pivot(index="characters", columns="split", values="documents").loc[
        lengths["characters"].unique()
    ]
    table.plot.bar(ax=left, stacked=True, rot=45, title="Documents by length", xlabel="characters")
    common = characters.head(2 * SHOWN)
    right.bar(common["character"], common["count"])
    left.legend(loc="upper left")
    right.set(title="Commonest characters of the training split")
    right.tick_params(axis="x", labelrotation=90, labelsize=7)
    return figure
