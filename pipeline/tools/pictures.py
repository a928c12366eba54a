"""`make docs`: draw the pictures of docs/guide.md from the current model, its reports and its text.

The other figures of a model are in `pipeline/tracking/figures.py`, for the pages of MLflow.
"""

import io
from collections.abc import Mapping, Sequence
from itertools import accumulate, groupby
from pathlib import Path

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from minigpt.common.config import load_params
from minigpt.common.files import atomic_file, read_errors
from minigpt.corpus.corpus import Corpus
from minigpt.model.checkpoint import load_model
from minigpt.model.model import MiniGPT, PositionalEncoding
from minigpt.tokenizer import EOS, SPECIAL_TOKENS, BPETokenizer, Tokenizer, tokenizer_from_dict
from pipeline.common import paths
from pipeline.common.stage import run_stage
from pipeline.tracking import figures

FOLDER = Path("docs/pictures")
WIDTH, DPI = 9, 160  # inches, pixels per inch

SENTENCE = "The children watched a seagull."  # for attention
PROMPT = "Once upon a time there was a b"  # for sampling
TEMPERATURES, TOP_K, NUM_CANDIDATES = (0.5, 1.0, 2.0), 5, 16
LONG_SENTENCE = "The old fisherman was mending his nets when a seagull landed."  # for subwords
VOCAB_SIZES = (300, 512, 1024, 4096)
VOCAB_SIZE, NUM_EXAMPLES = 1024, 8  # the vocabulary shown, and its tokens shown for each length
COLORS = ("#9ecae1", "#fdd0a2", "#a1d99b", "#dadaeb")  # of neighboring tokens


def main() -> None:
    params = load_params()
    model, metadata = load_model(paths.MODEL)
    tokenizer = tokenizer_from_dict(metadata["tokenizer"])
    texts = [document.text for document in Corpus(params.data) if document.split == "train"]
    save("positions", positions(params.model.d_model, params.model.max_seq_len))
    save("attention", attention(model, tokenizer))
    save("loss", loss(paths.REPORTS))
    save("sampling", sampling(model, tokenizer))
    save("subwords", subwords(texts))


def save(name: str, figure: Figure) -> None:
    """Write a PNG file of at most 256 colors, a third of the size of one with all colors."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    image = Image.open(buffer).convert("RGB").quantize(method=Image.Quantize.FASTOCTREE)
    with atomic_file(FOLDER / f"{name}.png") as file:
        image.save(file, format="png", optimize=True)


def positions(d_model: int, max_seq_len: int) -> Figure:
    """Draw some channels of the positional encoding as curves, and all sines as colors."""
    encoding = PositionalEncoding(d_model, max_seq_len).encoding.numpy()  # (S, C)
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    channels = range(0, d_model // 2 + 1, d_model // 8)
    offsets = [-2.5 * number for number in range(len(channels))]  # one curve below the other
    for offset, channel in zip(offsets, channels, strict=True):
        left.plot(encoding[:, channel] + offset)
    left.set(title="Some channels", xlabel="position", ylabel="channel")
    left.set_yticks(offsets, map(str, channels))
    shown = encoding[:64, ::2]
    colors = right.imshow(shown, "RdBu", aspect="auto", extent=(0, d_model, len(shown), 0))
    right.set(title="All sine channels", xlabel="channel", ylabel="position")
    figure.colorbar(colors)
    return figure


def attention(model: MiniGPT, tokenizer: Tokenizer) -> Figure:
    """Draw the head that attends most to the previous token, and that to the start of the word."""
    ids = tokenizer.encode(SENTENCE)[:-1][: model.max_seq_len]
    weights = torch.stack(figures.attention_maps(model, torch.tensor([ids])))  # (L, H, T, T)
    labels = [figures.token_label(tokenizer, token) for token in ids]
    figure = Figure(figsize=(WIDTH, 5), layout="constrained")
    for axes, (role, pairs) in zip(figure.subplots(1, 2), roles(labels).items(), strict=True):
        rows, columns = zip(*pairs, strict=True)
        shares = weights[:, :, rows, columns].mean(-1)  # (L, H)
        layer, head = divmod(int(shares.argmax()), shares.shape[1])
        draw_attention(axes, weights[layer, head], labels)
        axes.set_title(f"layer {layer + 1}, head {head + 1}: the {role}")
    return figure


def roles(labels: Sequence[str]) -> dict[str, list[tuple[int, int]]]:
    """Return pairs of a position and the position that a head with a certain role attends to."""
    positions = range(1, len(labels))
    # the largest number so far: 1, or the position after the last space
    starts = accumulate((t if labels[t - 1] == "␣" else 1 for t in positions), max)
    return {
        "previous token": [(t, t - 1) for t in positions],
        # only where this is not also the previous token
        "start of the word": [(t, s) for t, s in zip(positions, starts, strict=True) if t - s > 1],
    }


def loss(reports: Path) -> Figure:
    """Draw the losses of the last training and those of the baselines."""
    with read_errors(reports, "run `dvc repro`"):
        curves = [pd.read_csv(reports / f"{name}.csv") for name in ("training", "validation")]
        baselines = pd.read_csv(reports / paths.BASELINES.name, index_col="model")["loss"]
    return figures.loss(pd.concat(curves), baselines.to_dict())


@torch.inference_mode()
def sampling(model: MiniGPT, tokenizer: Tokenizer) -> Figure:
    """Draw the probabilities of the next token at several temperatures, and with top-k."""
    logits = model(torch.tensor([tokenizer.encode(PROMPT)[:-1]]))[0, -1]  # (V,)
    logits[:EOS] = -torch.inf  # never sampled
    best = logits.topk(NUM_CANDIDATES).indices
    kept = torch.full_like(logits, -torch.inf)
    kept[best[:TOP_K]] = logits[best[:TOP_K]]
    bars = {f"temperature {t}": (logits / t).softmax(-1)[best].tolist() for t in TEMPERATURES}
    bars[f"temperature 1.0, top-k {TOP_K}"] = kept.softmax(-1)[best].tolist()
    figure = Figure(figsize=(WIDTH, 4.8), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for number, (axes, title) in enumerate(zip(panels.flat, bars, strict=True)):
        axes.bar(range(len(best)), bars[title], color=f"C{number}")
        axes.set_title(title)
    labels = [figures.token_label(tokenizer, token) for token in best.tolist()]
    for axes in panels[1]:
        axes.set_xticks(range(len(best)), labels, family="monospace")
    figure.supylabel("probability")
    figure.suptitle(f"The next token after “{PROMPT}”")
    return figure


def subwords(texts: Sequence[str]) -> Figure:
    """Draw a sentence in the tokens of several vocabularies, and the tokens of one of them."""
    tokenizers = {vocab_size: BPETokenizer(vocab_size) for vocab_size in VOCAB_SIZES}
    rows = {"characters": list(LONG_SENTENCE)}
    for vocab_size, tokenizer in tokenizers.items():
        tokenizer.build_vocab(texts)
        ids = tokenizer.encode(LONG_SENTENCE, add_special_tokens=False)
        rows[f"BPE, {vocab_size:,}"] = [tokenizer.token_strings[token] for token in ids]
    figure = Figure(figsize=(WIDTH, 5.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, height_ratios=(5, 6))
    draw_tokens(top, rows)
    draw_token_lengths(bottom, tokenizers[VOCAB_SIZE])
    return figure


def draw_attention(axes: Axes, weights: Tensor, labels: Sequence[str]) -> None:
    """Draw the weights (T, T) of one head; square roots, so that small weights are visible."""
    axes.imshow(weights.sqrt().numpy(), cmap="Purples", vmin=0, vmax=1)
    ticks = range(len(labels))
    axes.set_yticks(ticks, labels, family="monospace")
    axes.set_xticks(ticks, labels, family="monospace")
    axes.tick_params(length=0, labelsize=8)
    for text in axes.get_xticklabels():
        text.set_rotation(90 if len(text.get_text()) > 1 else 0)
    axes.set(xlabel="attends to", ylabel="position")


def draw_tokens(axes: Axes, rows: Mapping[str, Sequence[str]]) -> None:
    """Draw each token as a colored box, a row for each vocabulary, and the number of tokens."""
    for y, tokens in enumerate(rows.values()):
        starts = list(accumulate(map(len, tokens), initial=0))
        colors = [COLORS[number % len(COLORS)] for number in range(len(tokens))]
        axes.barh([y] * len(tokens), list(map(len, tokens)), left=starts[:-1], color=colors)
        for x, character in enumerate("".join(tokens)):
            axes.text(x + 0.5, y, character, family="monospace", size=9, va="center", ha="center")
        axes.text(starts[-1] + 1, y, f"{len(tokens)} tokens", va="center")
    axes.set_yticks(range(len(rows)), rows)
    axes.set(xlim=(0, len(LONG_SENTENCE) + 10), xticks=[], title="One sentence in tokens")
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def draw_token_lengths(axes: Axes, tokenizer: BPETokenizer) -> None:
    """Draw the number of merged tokens of each length, and the tokens that were merged first."""
    merged = range(len(SPECIAL_TOKENS) + 256, tokenizer.vocab_size)
    labels = sorted((figures.token_label(tokenizer, token) for token in merged), key=len)
    by_length = {length: list(tokens) for length, tokens in groupby(labels, key=len)}
    axes.barh(list(by_length), [len(tokens) for tokens in by_length.values()])
    for length, tokens in by_length.items():
        examples = "  ".join(tokens[:NUM_EXAMPLES])
        axes.text(len(tokens) + 3, length, examples, family="monospace", size=8, va="center")
    axes.set_title(f"Tokens of the vocabulary of {tokenizer.vocab_size:,} by length")
    axes.set(xlabel="number of tokens", ylabel="characters", yticks=list(by_length))
    axes.set_xlim(right=1.6 * max(map(len, by_length.values())))
    axes.invert_yaxis()


if __name__ == "__main__":
    run_stage(main)
