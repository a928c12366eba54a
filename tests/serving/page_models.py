"""Models for the tests of the page: tiny, with random weights; and what they should compute."""

from pathlib import Path

import numpy as np
import torch
from conftest import FAST, GPT2, build_model, model_metadata, randomize

from minigpt.export.onnx_graph import to_onnx
from minigpt.generation.backend import Backend
from minigpt.model.model import MiniGPT, attention_weights
from minigpt.tokenizer import BPETokenizer, Tokenizer
from minigpt.training.ngram import build_ngram_table

SIZES = {"d_model": 48, "num_heads": 4, "num_layers": 2, "d_ff": 64, "max_seq_len": 32}
VARIANTS = {"fast": FAST, "gpt2": GPT2}
SETTINGS = [
    {},
    {"temperature": 0.0},
    {"temperature": 1.5, "top_k": 1000, "top_p": 0.9, "seed": 3},
    {"min_p": 0.05, "top_k": 20, "repetition_penalty": 1.3, "seed": 2**63 - 1},
    {"temperature": 0.5, "top_k": 0, "ignore_eos": True, "seed": 12345678901234567},
]
LONG = "the lazy dog and the quick brown fox jump over the sea and the hill, and on, and on"
PROMPTS = ["", "The quick", "A naïve 🦊", "שלום עולם", LONG]
GENERATIONS = [(prompt, settings) for prompt in PROMPTS for settings in SETTINGS]


def tiny_model(name: str, tokenizer: Tokenizer) -> MiniGPT:
    torch.manual_seed(0)
    switches = VARIANTS.get(name, {})
    return randomize(build_model(tokenizer.vocab_size, **SIZES, **switches))


def build_page_models(folder: Path, char: Tokenizer, sentences: list[str]) -> dict[str, Path]:
    """Write the ONNX files of models to `folder`; return their paths by name."""
    bpe = BPETokenizer(300, "NFC", lowercase=True)
    bpe.build_vocab([*sentences, "The naïve 🦊 went to the café."])
    tokenizers = {"char": char, "fast": char, "gpt2": bpe, "int8": char}
    for name, tokenizer in tokenizers.items():
        model = tiny_model(name, tokenizer)
        ids = np.concatenate([tokenizer.encode(text) for text in sentences])
        others = {"ngram_table": build_ngram_table(ids, tokenizer.vocab_size).to_text()}
        if name == "int8":
            others = {"quantization": {"type": "int8", "block_size": 64}}
        metadata = model_metadata(model, tokenizer, **others)
        data = to_onnx(model, metadata, "int8" if name == "int8" else None)
        (folder / f"{name}.onnx").write_bytes(data)
    return {name: folder / f"{name}.onnx" for name in tokenizers}


def stop_within_token(backend: Backend, ids: list[int]) -> str:
    """Return a string whose first occurrence in the text of `ids` starts within a token."""
    decoder, before = backend.tokenizer.decoder(), ""
    text = backend.tokenizer.decode(ids)
    for piece in map(decoder.feed, ids):
        stop = piece[1:]
        if stop.isprintable() and stop and text.index(stop) == len(before) + 1:
            return stop
        before += piece
    raise AssertionError("no token of several characters")


@torch.no_grad()
def attention_of(model: MiniGPT, ids: list[int]) -> np.ndarray:
    """Return the weights of attention (L, H, T, T) of a model for `ids` (T,)."""
    x = model.embed(torch.tensor([[0, 0, *ids]]))  # (1, T, C)
    layers = []
    for block in model.blocks:
        q, k, _ = block.attention.project(block.norm1(x))  # (1, H, T, D) each
        layers.append(attention_weights(q, k)[0].numpy())
        x = block(x)
    return np.stack(layers)
