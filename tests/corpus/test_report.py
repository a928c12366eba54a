import numpy as np
import pytest

from minigpt.corpus.report import MAX_BINS, DataReport
from minigpt.data.token_files import SplitInfo


def lengths_csv(folder, lengths: list[int]) -> list[tuple[int, int, str, int]]:
    """Return (lowest, highest length, split, documents) of each row of lengths.csv."""
    report = DataReport()
    splits = np.array(["train", "val"])[np.arange(len(lengths)) % 2]
    report.add({"characters": np.array(lengths), "split": splits})
    (folder / "characters.csv").write_text("character,count\n'a',1\n")
    info = SplitInfo(documents=1, tokens=1, characters=1, bytes=1, unknown=0, sha256="")
    report.write(folder, {"train": info, "val": info}, 0, 5)
    rows = [line.split(",") for line in (folder / "lengths.csv").read_text().splitlines()[1:]]
    ranges = [[int(end) for end in label.split("-")] for label, _, _ in rows]
    return [
        (ends[0], ends[-1], split, int(count))
        for ends, (_, split, count) in zip(ranges, rows, strict=True)
    ]


@pytest.mark.parametrize(
    "lengths", [[7], [1, 2, 3, 4, 5, 6], list(range(700, 2048)), [1, 10**6, 300, 3, 2**47]]
)
def test_each_document_is_counted_in_its_bin(tmp_path, lengths):
    rows = lengths_csv(tmp_path, lengths)
    for low, high, split, documents in rows:
        of_split = lengths[::2] if split == "train" else lengths[1::2]
        assert documents == sum(low <= length <= high for length in of_split)
    assert sum(row[3] for row in rows) == len(lengths)


def test_lengths_have_several_bins_but_not_many(tmp_path):
    assert 8 <= len(lengths_csv(tmp_path, list(range(725, 1200)))) / 2 <= MAX_BINS
    assert 5 <= len(lengths_csv(tmp_path, [1, 10**9])) / 2 <= MAX_BINS
