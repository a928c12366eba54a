"""Model card: a run in Markdown, for people."""

from collections.abc import Mapping, Sequence

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


def model_card(
    params: Mapping[str, str],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    datasets: Sequence[str] = (),
    samples: str = "",
) -> str:
    """Return the card of a run, with the figures that were measured and the report of samples."""
    figures = "\n".join(
        f"| {text} | {metrics[name]:.6g} |" for name, text in FIGURES.items() if name in metrics
    )
    settings = "\n".join(
        "| {} | {} |".format(name, params[name].replace("|", r"\|")) for name in sorted(params)
    )
    split = (
        "the training split, as nothing is held out"
        if tags.get("held_out") == "false"
        else "the validation split"
    )
    data = params.get("data.path", "?")
    base = params.get("train.init_from", "None")
    origin = "Trained from scratch" if base == "None" else f"Fine-tuned from `{base}`"
    own = data in OWN_TEXTS and base == "None"
    license_ = "CC0" if own else "that of its source, and of the model that was fine-tuned, if any"
    return f"""# MiniGPT

A decoder-only transformer that continues a text token by token.
{origin} on `{data}`{"".join(f", {name}" for name in datasets)}.
The model file has the SHA-256 `{tags.get("model_sha256", "?")}`.

License: of the code Apache-2.0, of the text {license_}.

## Measured on {split}

| figure | value |
|---|---|
{figures}

## Parameters

| parameter | value |
|---|---|
{settings}

## Reproduce

{_reproduce(tags)}

## Limits

The model imitates its training text. It has no knowledge of facts, does not follow instructions, and
invents what it writes.

{samples}"""


def _reproduce(tags: Mapping[str, str]) -> str:
    commit = tags.get("git_commit", "unknown")
    dirty = ", which had uncommitted changes" if tags.get("git_dirty") == "true" else ""
    name, baseline = tags.get("dvc_experiment"), tags.get("dvc_baseline", commit)
    if name:
        command = f"git checkout {baseline} && dvc exp apply {name} && dvc repro"
        return f"`{command}` (DVC experiment `{name}`)."
    return (
        f"`git checkout {commit} && dvc repro`{dirty}, with the parameters above in `params.yaml`."
    )
