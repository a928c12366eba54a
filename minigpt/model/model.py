"""The language model: a decoder-only transformer, from token ids to logits.

Shape letters, the same throughout the project:
    B batch, T time (positions), C = d_model (channels), H heads, D = C / H (channels of a head),
    V vocabulary size, S = max_seq_len (the most positions).

Sources: Vaswani et al., "Attention Is All You Need" (arXiv:1706.03762); normalization before each
sublayer as in Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2).
Switches of `ModelConfig` go beyond them, such as `positional` and `activation`: see `variants.py`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.common.config import ModelConfig
from minigpt.model.kernels import fused_attention
from minigpt.model.variants import (
    CONTEXT,
    TRIGRAM_FACTORS,
    LearnedEncoding,
    NgramEmbedding,
    RotaryEncoding,
    build_embedding,
    build_head,
    gelu,
    normalize_heads,
    small_std,
)


class PositionalEncoding(nn.Module):
    """Adds a distinct pattern to each position, from which the model learns the order of tokens.

    encoding[t, 2i] = sin(t / 10000^(2i/C)),  encoding[t, 2i+1] = cos(t / 10000^(2i/C))
    (Vaswani et al., section 3.5).
    """

    encoding: Tensor

    def __init__(self, d_model: int, max_seq_len: int):
        super().__init__()
        position = torch.arange(max_seq_len, dtype=torch.float64).unsqueeze(1)  # (S, 1)
        channel = torch.arange(0, d_model, 2, dtype=torch.float64)  # (C/2,)
        angle = position * 10000.0 ** (-channel / d_model)  # (S, C/2)
        encoding = torch.zeros(max_seq_len, d_model)  # (S, C)
        encoding[:, 0::2] = torch.sin(angle)
        encoding[:, 1::2] = torch.cos(angle)[:, : d_model // 2]  # an odd C ends on a sine
        # a buffer, not a parameter: computed, not learned, and not stored in model files
        self.register_buffer("encoding", encoding, persistent=False)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Encode x (B, T, C) at `positions` (B, T), by default 0 … T-1."""
        # (T, C), which is added to each row of the batch, or (B, T, C)
        encoding = self.encoding[: x.shape[1]] if positions is None else self.encoding[positions]
        return x + encoding  # (B, T, C)


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """Return how much each position attends to each other: softmax(Q Kᵀ / √D), the future masked.

    q and k are (B, H, T, D); the weights are (B, H, T, T), and each row sums to 1.
    """
    # 1. Compare each query with each key. Without 1/√D, scores would grow with D.
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, T)
    # 2. Hide the future: row t keeps columns 0 … t; softmax turns -inf into a weight of 0.
    visible = torch.ones_like(scores, dtype=torch.bool).tril()  # (B, H, T, T)
    scores = scores.masked_fill(~visible, float("-inf"))
    # 3. Turn the scores of each row into weights that sum to 1.
    return scores.softmax(dim=-1)


class MultiHeadAttention(nn.Module):
    """H causal attentions in parallel, each on D of the C channels.

    `fast` selects PyTorch's fused kernel, which computes the same as the formula.
    """

    def __init__(self, config: ModelConfig, rotary: RotaryEncoding | None = None):
        super().__init__()
        self.num_heads, self.qk_norm, self.rotary = config.num_heads, config.qk_norm, rotary
        # queries, keys and values come from one product: one large one is faster than three
        self.query_key_value = nn.Linear(config.d_model, 3 * config.d_model)
        self.output = nn.Linear(config.d_model, config.d_model)
        self.dropout = config.dropout
        self.fast = True

    def forward(self, x: Tensor) -> Tensor:
        """Let each position of x (B, T, C) gather values from itself and the positions before."""
        q, k, v = self.project(x)  # each (B, H, T, D)
        dropout = self.dropout if self.training else 0.0
        if self.fast:
            attended = fused_attention(q, k, v, dropout)  # (B, H, T, D)
        else:
            weights = F.dropout(attention_weights(q, k), dropout)  # (B, H, T, T)
            attended = weights @ v  # (B, H, T, D)
        return self.merge(attended)  # (B, T, C)

    def project(self, x: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, each (B, H, T, D).

        x is (B, T, C) at `positions` (B, T), by default 0 … T-1.
        """
        heads = self.query_key_value(x).unflatten(2, (3, self.num_heads, -1))  # (B, T, 3, H, D)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, D)
        if self.qk_norm:
            q, k = normalize_heads(q), normalize_heads(k)
        if self.rotary is not None:
            q, k = self.rotary(q, positions), self.rotary(k, positions)
        return q, k, v

    def merge(self, attended: Tensor) -> Tensor:
        """Put the heads of `attended` (B, H, T, D) side by side and mix them."""
        heads = attended.transpose(1, 2)  # (B, T, H, D)
        mixed: Tensor = self.output(heads.flatten(2))  # (B, T, C)
        return mixed


class FeedForward(nn.Module):
    """Position-wise feed-forward network: expand C → d_ff, ReLU, compress d_ff → C."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.linear1 = nn.Linear(config.d_model, config.d_ff)
        self.linear2 = nn.Linear(config.d_ff, config.d_model)
        self.activation = gelu if config.activation == "gelu" else F.relu

    def forward(self, x: Tensor) -> Tensor:
        """Transform each position of x (B, T, C) independently."""
        x = self.activation(self.linear1(x))  # (B, T, d_ff)
        x = self.linear2(x)  # (B, T, C)
        return x


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each applied to a normalized copy and added back to x."""

    def __init__(self, config: ModelConfig, rotary: RotaryEncoding | None = None):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.d_model)
        self.attention = MultiHeadAttention(config, rotary)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Refine x (B, T, C)."""
        x = x + self.dropout(self.attention(self.norm1(x)))  # (B, T, C)
        x = x + self.dropout(self.feed_forward(self.norm2(x)))  # (B, T, C)
        return x


class MiniGPT(nn.Module):
    """Maps token ids to the logits of the next token, at every position.

    Args:
        vocab_size: V, special tokens included.
        config: The section `model` of params.yaml, which explains each value.
    """

    def __init__(self, vocab_size: int, config: ModelConfig):
        super().__init__()
        C, S = config.d_model, config.max_seq_len
        self.config, self.num_heads, self.max_seq_len = config, config.num_heads, S
        self.token_embedding = build_embedding(vocab_size, config)
        self.bigram_embedding = self.trigram_embedding = None
        if config.bigram_buckets:
            self.bigram_embedding = NgramEmbedding((vocab_size,), C, config.bigram_buckets)
        if config.trigram_buckets:
            self.trigram_embedding = NgramEmbedding(TRIGRAM_FACTORS, C, config.trigram_buckets)
        # positions are either added to the embedding or rotate the queries and keys of each block
        self.positional_encoding: PositionalEncoding | LearnedEncoding | None = None
        rotary = None
        if config.positional == "sinusoidal":
            self.positional_encoding = PositionalEncoding(C, S)
        elif config.positional == "learned":
            self.positional_encoding = LearnedEncoding(C, S)
        else:
            rotary = RotaryEncoding(C // config.num_heads, S)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(config, rotary) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(C)
        self.head = build_head(self.token_embedding, config)
        # PyTorch's N(0, 1) would drown the positional pattern (mean square 1/2) and the blocks
        nn.init.normal_(self.token_embedding.weight, std=small_std(C) if config.tied_head else 0.5)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return logits (B, T, V) for ids (B, T), where T is at most max_seq_len."""
        # 1. Look up a vector for each id. The ids before the first are <pad>, id 0.
        x = self.dropout(self.embed(F.pad(input_ids, (CONTEXT, 0))))  # (B, T, C)
        # 2. Refine the vectors, block by block; only here do positions exchange information.
        for block in self.blocks:
            x = block(x)  # (B, T, C)
        # 3. Score each token of the vocabulary as the next one.
        logits: Tensor = self.head(self.norm(x))  # (B, T, V)
        return logits

    def embed(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """Embed the last T of ids (B, 2+T) at `positions` (B, T), by default 0 … T-1."""
        x: Tensor = self.token_embedding(ids[:, CONTEXT:])  # (B, T, C)
        for ngram_embedding in (self.bigram_embedding, self.trigram_embedding):
            if ngram_embedding is not None:
                x = x + ngram_embedding(ids)  # (B, T, C)
        if self.positional_encoding is not None:
            x = self.positional_encoding(x, positions)
        return x  # (B, T, C)
