"""Figures of a run, drawn from the reports and the model."""

from collections.abc import Mapping

import matplotlib
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from minigpt.model.model import MiniGPT, MultiHeadAttention, PositionalEncoding, attention_weights
from minigpt.tokenizer import Tokenizer

SENTENCE = "Once upon a time there was a fox."  # shown by the attention maps


def loss(curves: Mapping[str, pd.DataFrame], baselines: Mapping[str, float]) -> Figure:
    """Both losses by step, and the baselines."""
    figure, axes = _axes("step", "cross-entropy (nats per token)", "Loss")
    for name, table in curves.items():
        axes.plot(table["step"], table[name], label=name)
    for number, (name, value) in enumerate(baselines.items()):
        axes.axhline(
            value, color="gray", linestyle=["solid", "dashed", "dotted"][number % 3], label=name
        )
    axes.legend()
    return figure


def learning_rate(training: pd.DataFrame) -> Figure:
    figure, axes = _axes("step", "learning rate", "Learning-rate schedule")
    axes.plot(training["step"], training["learning_rate"])
    return figure


def mistakes(table: pd.DataFrame) -> Figure:
    """The most frequent wrong predictions, a bar each; a $ does not start a formula."""
    figure, axes = _axes("count", "expected → predicted", "Top mistakes")
    table = table.head(20).iloc[::-1]
    axes.barh(table["mistake"].astype(str).str.replace("$", r"\$"), table["count"])
    return figure


def positional_encoding(encoding: PositionalEncoding) -> Figure:
    figure, axes = _axes("channel", "position", "Positional encoding")
    figure.colorbar(axes.imshow(encoding.encoding.cpu().numpy(), aspect="auto", cmap="RdBu"))
    axes.grid(visible=False)
    return figure


def attention(model: MiniGPT, tokenizer: Tokenizer, text: str = SENTENCE) -> Figure:
    """Attention weights of each head: a row for each position, brighter for a larger weight."""
    ids = tokenizer.encode(text)[: model.max_seq_len]
    weights = attention_maps(model, torch.tensor([ids]))
    L, H = len(weights), weights[0].shape[0]
    figure = Figure(figsize=(1 + 2.2 * H, 1 + 2.2 * L), layout="constrained")
    grid = figure.subplots(L, H, squeeze=False)
    for layer, heads in enumerate(weights):
        for head, weight in enumerate(heads):
            axes = grid[layer][head]
            axes.imshow(weight.sqrt().cpu().numpy(), cmap="magma", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[], title=f"layer {layer + 1}, head {head + 1}")
    figure.suptitle(f"Attention on {text!r}")
    return figure


@torch.inference_mode()
def attention_maps(model: MiniGPT, input_ids: Tensor) -> list[Tensor]:
    """Return the attention weights of each layer: (1, T) ids → (H, T, T)."""
    attentions = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    inputs: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        for module in attentions
    ]
    model(input_ids.to(model.head.weight.device))
    for hook in hooks:
        hook.remove()
    projected = [module.project(x) for module, x in zip(attentions, inputs, strict=True)]
    return [attention_weights(q, k)[0] for q, k, _ in projected]


def _axes(xlabel: str, ylabel: str, title: str) -> tuple[Figure, matplotlib.axes.Axes]:
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.grid(alpha=0.3)
    return figure, axes
