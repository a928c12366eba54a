"""Model card: a run in Markdown, for people; model_card.md is the template."""

from pathlib import Path
from string import Template

from pipeline.tracking.params import READER_PREFIXES
from pipeline.tracking.record import Record

OWN_TEXTS = ("data/raw/tales.txt", "data/raw/sentences.txt")


class _CardTemplate(Template):
    idpattern = r"[\w/-]+"  # names of metrics, too


def model_card(record: Record) -> str:
    """Return the card of a run: what was measured, the parameters and generated samples."""
    tags, dataset = record.tags, record.read("dataset")
    used = {name: text for name, text in tags.items() if name.startswith(READER_PREFIXES)}
    params = {**record.read("params"), **used}
    data, base = params.get("data.path", "?"), params.get("train.init_from", "None")
    origin = "Trained from scratch" if base == "None" else f"Fine-tuned from `{base}`"
    digest = f" (digest {dataset['digest']})" if dataset else ""
    own = data in OWN_TEXTS and base == "None"
    held_out = tags.get("held_out") != "false"
    rows = ("| {} | {} |".format(name, params[name].replace("|", r"\|")) for name in sorted(params))
    values = {
        "origin": f"{origin} on `{data}`{digest}",
        "model_sha256": tags.get("model_sha256", "?"),
        "license": "CC0" if own else "that of its source, and of the fine-tuned model, if any",
        "split": "the validation split" if held_out else "the training split (none is held out)",
        "reproduce": _reproduce(tags),
    }
    values |= {name: f"{value:.6g}" for name, value in record.latest_metrics().items()}
    text = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
    lines = _CardTemplate(text).safe_substitute(values).splitlines(keepends=True)
    # without the figures that were not measured
    card = "".join(line for line in lines if "| $" not in line)
    return card.replace("$params", "\n".join(rows)) + record.read_artifact("reports/samples.md")


def _reproduce(tags: dict[str, str]) -> str:
    commit, name = tags.get("git_commit", "unknown"), tags.get("dvc_experiment")
    if name:
        baseline = tags.get("dvc_baseline", commit)
        command = f"git checkout {baseline} && dvc exp apply {name} && dvc repro"
        return f"`{command}` (DVC experiment `{name}`)."
    dirty = ", which had uncommitted changes" if tags.get("git_dirty") == "true" else ""
    return (
        f"`git checkout {commit} && dvc repro`{dirty}, with the parameters above in `params.yaml`."
    )
