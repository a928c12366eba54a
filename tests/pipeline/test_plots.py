"""The charts of `dvc plots`, drawn by a real browser without a network."""

import html
import itertools
import json
import os
import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Project

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None and "CI" not in os.environ, reason="needs a browser: apt install chromium"
    ),
]
# collects the data of each drawn mark (bar, line, point, rule, text) and the labels of the axes
COLLECT = """<script>
const embed = vegaEmbed, charts = [];
let group = 0;
vegaEmbed = (id, spec) => { charts.push(embed(id, spec).then(
    ({view}) => ({title: spec.title.text, marks: marks(view.scenegraph().root)}))) };
function marks(item) {
  if (item.items) return item.items.flatMap(child => child.marktype && child.marktype != "group"
      ? drawn(child) : marks(child));
  return [];
}
function drawn(mark) {
  const kept = mark.role == "mark" || mark.role == "axis-label";
  group += 1;
  return kept ? mark.items.filter(item => item.opacity !== 0).map(item => ({
    group, kind: mark.role == "mark" ? mark.marktype : "label", text: item.text,
    row: mark.role == "mark" ? item.datum : null,
    bounds: [item.bounds.x1, item.bounds.y1, item.bounds.x2, item.bounds.y2]})) : [];
}
onload = () => Promise.all(charts).then(found => {
  const pre = document.createElement("pre");
  pre.id = "drawn"; pre.textContent = JSON.stringify(found); document.body.append(pre);
});
</script>"""


def draw(project: Project, folder: Path, *command: str) -> dict[str, list[dict[str, Any]]]:
    """Return the drawn marks of each chart by title, in the order of the page."""
    project.run("dvc", "plots", *command, "--out", str(folder))
    page = (folder / "index.html").read_text()
    assert not re.search(r"<(script|link|img)[^>]*(src|href)=.?http", page)
    head, body, charts = page.rpartition("<body>")  # Vega's own code has others
    (folder / "test.html").write_text(head + body + COLLECT + charts)
    browser = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    browser += [f"--user-data-dir={folder / 'browser'}", "--virtual-time-budget=20000"]
    dom = subprocess.run(
        [*browser, (folder / "test.html").as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    ).stdout
    (drawn,) = re.findall(r'<pre id="drawn">(.*?)</pre>', dom, re.DOTALL)
    return {chart["title"]: chart["marks"] for chart in json.loads(html.unescape(drawn))}


def rows(marks: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [mark["row"] for mark in marks if mark["kind"] == kind]


def report(project: Project, name: str) -> pd.DataFrame:
    return pd.read_csv(project.root / "reports" / name)


@pytest.fixture(scope="module")
def shown(reproduced, tmp_path_factory):
    return draw(reproduced, tmp_path_factory.mktemp("show"), "show")


def test_the_losses_are_drawn_first_with_the_baselines(shown, reproduced):
    assert next(iter(shown)) == "Loss"
    drawn = defaultdict(list)
    for row in rows(shown["Loss"], "line"):
        drawn[row["curve"]].append((row["x"], row["y"]))
    for file, curve in (("training.csv", "train/loss"), ("validation.csv", "val/loss")):
        expected = report(reproduced, file)[["step", curve]].to_numpy()
        assert drawn[curve] == [tuple(point) for point in expected]
    baselines = report(reproduced, "baselines.csv").set_index("model")["loss"].to_dict()
    rules = rows(shown["Loss"], "rule")
    assert {row["model"]: row["y"] for row in rules} == pytest.approx(baselines)
    assert {mark["text"] for mark in shown["Loss"] if mark["kind"] == "text"} == set(baselines)


@pytest.mark.parametrize(
    ("title", "file", "key", "value"),
    [
        ("Accuracy by kind of character", "accuracy.csv", "class", "accuracy"),
        ("Most common mistakes", "mistakes.csv", "mistake", "count"),
        ("Most common characters of the training split", "characters.csv", "character", "count"),
    ],
)
def test_bars_are_the_largest_rows_in_order(shown, reproduced, title, file, key, value):
    bars = [mark for mark in shown[title] if mark["kind"] == "rect"]
    table = report(reproduced, file).sort_values(value, ascending=False, kind="stable").head(20)
    assert {mark["row"]["key"]: mark["row"]["value"] for mark in bars} == dict(
        zip(table[key], table[value], strict=True)
    )
    from_top = sorted(bars, key=lambda mark: mark["bounds"][1])
    assert [mark["row"]["value"] for mark in from_top] == list(table[value])


def test_all_documents_are_in_the_chart_of_lengths(shown, reproduced):
    drawn = rows(shown["Documents by length"], "rect")
    expected = report(reproduced, "lengths.csv")
    assert {(row["bin"], row["split"]): row["value"] for row in drawn} == {
        (label, split): documents for label, split, documents in expected.to_numpy()
    }
    assert len({row["bin"] for row in drawn}) > 4


def test_labels_do_not_overlap(shown):
    for marks in shown.values():
        axes = defaultdict(list)
        for mark in marks:
            if mark["kind"] == "label":
                axes[mark["group"]].append(mark["bounds"])
        assert axes
        for labels in axes.values():
            for (left, top, right, bottom), (x1, y1, x2, y2) in itertools.pairwise(labels):
                turned = x2 - x1 > 20 and y2 - y1 > 20  # its bounds are larger than the text
                assert turned or x2 <= left or right <= x1 or y2 <= top or bottom <= y1


def test_a_comparison_draws_equal_charts_once(with_experiments, tmp_path):
    experiments = ("main", "faster", "apart")
    drawn = draw(with_experiments, tmp_path, "diff", *experiments)
    assert next(iter(drawn)) == "Loss"
    assert {row["rev"] for row in rows(drawn["Loss"], "line")} == set(experiments)
    assert len(rows(drawn["Loss"], "rule")) == 4
    assert {row["experiment"] for row in rows(drawn["Most common mistakes"], "rect")} == set(
        experiments
    )
    characters = rows(drawn["Most common characters of the training split"], "rect")
    assert {row["experiment"] for row in characters} == {"all"}
    assert len(characters) == 20
    lengths = rows(drawn["Documents by length"], "rect")
    assert {row["experiment"] for row in lengths} == {"all"}
