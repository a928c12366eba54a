"""A model's card: what its tracking run knows of it, in Markdown for people."""

from collections.abc import Mapping

FIGURES = {
    "evaluation/loss": "loss (nats a token)",
    "evaluation/baseline_loss/bigram": "… of the best bigram model",
    "evaluation/baseline_loss/unigram": "… of the best unigram model",
    "evaluation/baseline_loss/uniform": "… of guessing blindly",
    "evaluation/perplexity": "perplexity",
    "evaluation/bits_per_char": "bits per character",
    "evaluation/accuracy": "share of next tokens guessed right",
    "export/max_logit_difference": "largest difference of a logit, ONNX against PyTorch",
}


def model_card(params: Mapping[str, str], metrics: Mapping[str, float], tags: Mapping[str, str]) -> str:
    """The card of a run; a figure that was not measured is not in it."""
    figures = "\n".join(f"| {text} | {metrics[name]:.6g} |" for name, text in FIGURES.items() if name in metrics)
    settings = "\n".join(f"| {name} | {value} |" for name, value in sorted(params.items()))
    split = "the training split, as nothing is held out" if tags.get("held_out") == "false" else "the validation split"
    commit = tags.get("git_commit", "unknown")
    dirty = " with uncommitted changes" if tags.get("git_dirty") == "true" else ""
    return f"""# MiniGPT

A decoder-only transformer that continues a text token by token.
Trained from scratch on `{params.get("data.path", "?")}`.

## Measured on {split}

| figure | value |
|---|---|
{figures}

## Parameters

| parameter | value |
|---|---|
{settings}

## Reproduce

Check out Git commit `{commit}`{dirty}, put the parameters above into `params.yaml`, and run `dvc repro`. The
model file has the SHA-256 `{tags.get("model_sha256", "?")}`.

## Limits

It has seen one small corpus: it writes in that corpus's manner, knows no facts, follows no instructions, and makes up
what it says.
"""
