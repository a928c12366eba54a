"""Figures of a run, drawn from its metrics, a report and the model."""

from collections.abc import Mapping

import matplotlib
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from minigpt.common.plots import drawable, installed_fonts
from minigpt.model.model import MiniGPT, MultiHeadAttention, PositionalEncoding, attention_weights
from minigpt.model.variants import LearnedEncoding
from minigpt.tokenizer import SPECIAL_TOKENS, Tokenizer

SENTENCE = "Once upon a time there was a fox."  # shown by the attention maps
BASELINE_STYLES = ("solid", "dashed", "dashdot", "dotted")
FONTS = installed_fonts()
matplotlib.rcParams["font.family"] = FONTS  # a character is drawn with the first font that has it


def loss(curves: pd.DataFrame, baselines: Mapping[str, float]) -> Figure:
    """Draw both losses by step, and the baselines."""
    figure, axes = _axes("step", "cross-entropy (nats per token)", "Loss")
    for name in curves.columns.intersection(["train/loss", "val/loss"]):
        # a curve of one validation is a single point, which only a marker shows
        marker = "o" if name == "val/loss" else None
        data = curves[["step", name]].dropna()
        axes.plot("step", name, data=data, label=name, marker=marker, markersize=4)
    for (name, value), style in zip(baselines.items(), BASELINE_STYLES, strict=False):
        axes.axhline(value, color="gray", linestyle=style, label=name)
    axes.legend()
    return figure


def learning_rate(curves: pd.DataFrame) -> Figure:
    figure, axes = _axes("step", "learning rate", "Learning-rate schedule")
    axes.plot("step", "learning_rate", data=curves[["step", "learning_rate"]].dropna())
    return figure


def mistakes(table: pd.DataFrame) -> Figure:
    """Draw the most frequent wrong predictions as bars."""
    figure, axes = _axes("count", "expected → predicted", "Top mistakes")
    table = table.head(20).iloc[::-1]
    axes.barh(table["mistake"].astype(str).map(_label), table["count"])
    return figure


def positional_encoding(encoding: PositionalEncoding | LearnedEncoding) -> Figure:
    figure, axes = _axes("channel", "position", "Positional encoding")
    table = encoding.encoding.detach().cpu().numpy()  # (S, C)
    figure.colorbar(axes.imshow(table, aspect="auto", cmap="RdBu"))
    axes.grid(visible=False)
    return figure


def attention(model: MiniGPT, tokenizer: Tokenizer, text: str = SENTENCE) -> Figure:
    """Draw the attention weights of each head: from each row to the columns, brighter if larger."""
    ids = tokenizer.encode(text)[: model.max_seq_len]
    labels = [token_label(tokenizer, token) for token in ids]
    weights = torch.stack(attention_maps(model, torch.tensor([ids]))).sqrt().cpu()  # (L, H, T, T)
    L, H = weights.shape[:2]
    figure = Figure(figsize=(1 + 3 * H, 1 + 3 * L), dpi=150)
    # a layout engine would measure each of the letters, which takes seconds
    figure.subplots_adjust(0.06, 0.06, 0.98, 1 - 1 / (1 + 3 * L), wspace=0.04, hspace=0.12)
    grid = figure.subplots(L, H, squeeze=False)
    for number, axes in enumerate(grid.flat):
        layer, head = divmod(number, H)
        axes.imshow(weights[layer, head].numpy(), cmap="magma", vmin=0, vmax=1)
        axes.set(xticks=[], yticks=[], title=f"layer {layer + 1}, head {head + 1}")
        axes.tick_params(labelsize=6, length=0, pad=2)
    for axes in grid[-1]:
        axes.set_xticks(range(len(ids)), labels)
        for label in axes.get_xticklabels():
            label.set_rotation("vertical" if len(label.get_text()) > 1 else "horizontal")
    for axes in grid[:, 0]:
        axes.set_yticks(range(len(ids)), labels)
    figure.suptitle(f"Attention on {text!r}\nfrom the token of a row to those of the columns")
    return figure


def token_label(tokenizer: Tokenizer, token: int) -> str:
    """Return the visible text of a token."""
    text = tokenizer.token_strings[token]
    return _label(text.replace(" ", "␣").replace("\n", "⏎")) if text else SPECIAL_TOKENS[token]


def _label(text: str) -> str:
    return drawable(text, FONTS)


@torch.inference_mode()
def attention_maps(model: MiniGPT, input_ids: Tensor) -> list[Tensor]:
    """Return the attention weights of each layer: (1, T) ids → (H, T, T)."""
    weights: list[Tensor] = []

    def keep(attention: MultiHeadAttention, args: tuple[Tensor]) -> None:
        q, k, _ = attention.project(args[0])
        weights.append(attention_weights(q, k)[0])

    attentions = [module for module in model.modules() if isinstance(module, MultiHeadAttention)]
    hooks = [module.register_forward_pre_hook(keep) for module in attentions]
    model(input_ids.to(model.head.weight.device))
    for hook in hooks:
        hook.remove()
    return weights


def _axes(xlabel: str, ylabel: str, title: str) -> tuple[Figure, matplotlib.axes.Axes]:
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.grid(alpha=0.3)
    return figure, axes
