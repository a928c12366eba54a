"""Model card: a run in Markdown, for people; the text is in model_card.md."""

from pathlib import Path
from string import Template

from pipeline.tracking.params import READER_PREFIXES
from pipeline.tracking.record import Record

TEMPLATE = Template(Path(__file__).with_suffix(".md").read_text(encoding="utf-8"))
FIGURES = {
    "evaluation/loss": "loss (nats per token)",
    "evaluation/baseline_loss/bigram": "… of the best bigram model",
    "evaluation/baseline_loss/unigram": "… of the best unigram model",
    "evaluation/baseline_loss/uniform": "… of uniform probabilities",
    "evaluation/perplexity": "perplexity",
    "evaluation/bits_per_char": "bits per character",
    "evaluation/accuracy": "accuracy: share of next tokens predicted correctly",
    "export/max_logit_difference": "largest difference of a logit, ONNX against PyTorch",
    "parameters": "parameters",
    "tokens": "tokens seen in training",
    "flops": "floating-point operations of training (estimate)",
    "wall_seconds": "seconds of training",
}
OWN_TEXTS = ("data/raw/tales.txt", "data/raw/sentences.txt")


def model_card(record: Record) -> str:
    """Return the card of a run: what was measured, the parameters and generated samples."""
    tags, metrics, dataset = record.tags, record.latest_metrics(), record.read("dataset")
    used = {name: text for name, text in tags.items() if name.startswith(READER_PREFIXES)}
    params = {**record.read("params"), **used}
    data, base = params.get("data.path", "?"), params.get("train.init_from", "None")
    origin = "Trained from scratch" if base == "None" else f"Fine-tuned from `{base}`"
    digest = f" (digest {dataset['digest']})" if dataset else ""
    own = data in OWN_TEXTS and base == "None"
    held_out = tags.get("held_out") != "false"
    card = TEMPLATE.substitute(
        origin=f"{origin} on `{data}`{digest}",
        sha256=tags.get("model_sha256", "?"),
        license="CC0" if own else "that of its source, and of the fine-tuned model, if any",
        split="the validation split" if held_out else "the training split (nothing is held out)",
        figures=_table(
            {FIGURES[name]: f"{metrics[name]:.6g}" for name in FIGURES if name in metrics}
        ),
        params=_table({name: params[name].replace("|", r"\|") for name in sorted(params)}),
        command=_reproduce(tags),
    )
    return card + record.read_artifact("reports/samples.md")


def _table(rows: dict[str, str]) -> str:
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


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
