"""Model card: a run in Markdown, for people; model_card.md is the template."""

from collections.abc import Mapping
from pathlib import Path
from string import Template

from minigpt.common.config import NO_MODEL
from pipeline.tracking.onnx_model import model_name
from pipeline.tracking.params import READER_PREFIXES
from pipeline.tracking.record import Record

FROM_SCRATCH = (NO_MODEL, "None")  # as train.init_from; "None" in models of earlier versions
OWN_TEXTS = ("data/raw/tales.txt", "data/raw/sentences.txt")
FOLDED = "<details"  # begins the part that is folded


class _CardTemplate(Template):
    idpattern = r"[\w/-]+"  # names of metrics, too


def model_card(record: Record) -> str:
    """Return the card of a run: how to use the model, what differs, and all the rest, folded."""
    tags, changes = record.tags, record.folder / "changes.json"
    used = {name: text for name, text in tags.items() if name.startswith(READER_PREFIXES)}
    params = {**record.read("params"), **used}
    data, base = params.get("data.path", "?"), params.get("train.init_from", NO_MODEL)
    own = data in OWN_TEXTS and base in FROM_SCRATCH
    held_out = tags.get("held_out") != "false"
    values = {name: f"{value:.6g}" for name, value in record.latest_metrics().items()}
    values |= {
        "name": record.info["name"],
        "model_name": model_name(record),
        "origin": _origin(record, data, base),
        "changes": _table(record.read("changes")) if changes.exists() else "unknown",
        "params": _rows(params),
        "model_sha256": tags.get("model_sha256", "?"),
        "license": "CC0" if own else "that of its source, and of the fine-tuned model, if any",
        "split": "the validation split" if held_out else "the training split (none is held out)",
        "reproduce": _reproduce(tags),
        "samples": record.read_artifact("reports/samples.md"),
    }
    lines = Path(__file__).with_suffix(".md").read_text("utf-8").splitlines(keepends=True)
    # without the figures that were not measured
    known = [line for line in lines if set(_CardTemplate(line).get_identifiers()) <= values.keys()]
    return _CardTemplate("".join(known)).substitute(values)


def _origin(record: Record, data: str, base: str) -> str:
    datasets = record.read("datasets").values()
    digests = " and ".join(f"`{dataset['name']}` {dataset['digest']}" for dataset in datasets)
    made = "Trained from scratch" if base in FROM_SCRATCH else f"Fine-tuned from `{base}`"
    return f"{made} on `{data}`" + (f" (datasets {digests})" if digests else "")


def _table(params: Mapping[str, str]) -> str:
    return f"| parameter | value |\n|---|---|\n{_rows(params)}" if params else "None."


def _rows(params: Mapping[str, str]) -> str:
    return "\n".join(
        "| {} | {} |".format(name, params[name].replace("|", r"\|")) for name in sorted(params)
    )


def _reproduce(tags: Mapping[str, str]) -> str:
    commit, name = tags.get("git_commit", "unknown"), tags.get("dvc_experiment")
    if name:
        baseline = tags.get("dvc_baseline", commit)
        command = f"git checkout {baseline} && dvc exp apply {name} && dvc repro"
        return f"`{command}` (DVC experiment `{name}`)."
    dirty = ", which had uncommitted changes" if tags.get("git_dirty") == "true" else ""
    return (
        f"`git checkout {commit} && dvc repro`{dirty}, with the parameters above in `params.yaml`."
    )
