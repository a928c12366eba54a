"""The language model: a decoder-only transformer, from ids to logits.

Shapes are given with these letters throughout the project:
    B batch, T time (positions), C = d_model (channels), H heads, D = C / H, V vocabulary.
P is the number of positions that a key/value cache already holds (0 without one).

Sources: Vaswani et al., "Attention Is All You Need" (arXiv:1706.03762); normalisation before each
sublayer as in Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2).
What goes beyond them is switched on by `positional`, `activation`, `qk_norm` and `bigram_buckets`; each
names its paper where it stands.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Keys and values of one layer's earlier positions, each (B, H, P, D)
LayerCache = tuple[Tensor, Tensor]
NORM_EPS = 1e-5


class Cache(NamedTuple):
    """What the positions so far leave behind, so that they need not be computed again."""

    layers: list[LayerCache]
    last_id: Tensor  # (B, 1)

    @property
    def length(self) -> int:
        """P."""
        return self.layers[0][0].shape[2]


class PositionalEncoding(nn.Module):
    """Adds to each position a pattern of its own, so that the model knows the order.

    encoding[t, 2i] = sin(t / 10000^(2i/C)),  encoding[t, 2i+1] = cos(t / 10000^(2i/C))
    (Vaswani et al., section 3.5).
    """

    encoding: Tensor

    def __init__(self, d_model: int, max_seq_len: int):
        super().__init__()
        position = torch.arange(max_seq_len, dtype=torch.float64).unsqueeze(1)  # (max_seq_len, 1)
        frequency = 10000.0 ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)  # (C/2,)
        encoding = torch.zeros(max_seq_len, d_model)
        encoding[:, 0::2] = torch.sin(position * frequency)
        encoding[:, 1::2] = torch.cos(position * frequency)[:, : d_model // 2]  # an odd C ends on a sine
        # computed, not learned: no parameter, and not stored in checkpoints
        self.register_buffer("encoding", encoding, persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """x (B, T, C), whose first position is `start` → (B, T, C)."""
        return x + self.encoding[start : start + x.shape[1]]


class RotaryEncoding(nn.Module):
    """Turns each pair of channels of a query or key by an angle that grows with its position.

    The product of a query and a key then depends on how far apart they are, not on where they stand
    (Su et al., "RoFormer", arXiv:2104.09864). The frequencies are those of `PositionalEncoding`.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, max_seq_len: int):
        super().__init__()
        position = torch.arange(max_seq_len, dtype=torch.float64).unsqueeze(1)  # (max_seq_len, 1)
        frequency = 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)  # (D/2,)
        self.register_buffer("cos", torch.cos(position * frequency).float(), persistent=False)
        self.register_buffer("sin", torch.sin(position * frequency).float(), persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """x (B, H, T, D), whose first position is `start` → (B, H, T, D)."""
        end = start + x.shape[2]
        cos, sin = self.cos[start:end].to(x.dtype), self.sin[start:end].to(x.dtype)  # (T, D/2)
        first, second = x.chunk(2, dim=-1)  # channel i is paired with i + D/2
        return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)


class BigramEmbedding(nn.Module):
    """A vector for each pair of tokens in a row, added to the token's own: knowledge without computation.

    The table has `buckets` rows; pairs that fall on the same one share it, as in Svenstrup et al., "Hash
    Embeddings" (arXiv:1709.03933). It starts at zero.
    """

    def __init__(self, vocab_size: int, d_model: int, buckets: int):
        super().__init__()
        self.vocab_size, self.buckets = vocab_size, buckets
        self.embedding = nn.Embedding(buckets, d_model)
        nn.init.zeros_(self.embedding.weight)

    def forward(self, input_ids: Tensor, last_id: Tensor) -> Tensor:
        """(B, T) ids and the one before them (B, 1) → (B, T, C)."""
        previous = torch.cat((last_id, input_ids), dim=1)[:, :-1]
        return self.embedding((previous * self.vocab_size + input_ids) % self.buckets)


def causal_mask(new: int, past: int, device: torch.device | None = None) -> Tensor:
    """(T, P+T), true where a new position may look: at every cached one, at itself and before."""
    return torch.ones(new, past + new, dtype=torch.bool, device=device).tril(past)


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """How much each position looks at each: softmax(Q Kᵀ / √D), the future masked out.

    q (B, H, T, D), k (B, H, P+T, D) → (B, H, T, P+T), each row sums to 1.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    mask = causal_mask(q.shape[2], k.shape[2] - q.shape[2], q.device)
    return scores.masked_fill(~mask, float("-inf")).softmax(dim=-1)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """`attention_weights(q, k) @ v` by PyTorch's kernel; `mask` is None where nothing is cached."""
    if q.device.type == "cpu":  # whose backward pass takes four times as long in bfloat16 as in float32
        q, k, v = q.float(), k.float(), v.float()
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None)


class MultiHeadAttention(nn.Module):
    """H attentions side by side, each on D of the C channels.

    `fast` chooses PyTorch's fused kernel, which computes the same as `attention_weights(q, k) @ v`
    without ever storing the (T, P+T) weights.
    """

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        dropout: float,
        qk_norm: bool = False,
        rotary: RotaryEncoding | None = None,
    ):
        super().__init__()
        self.num_heads, self.qk_norm, self.rotary = num_heads, qk_norm, rotary
        self.query_key_value = nn.Linear(d_model, 3 * d_model)  # the three projections as one product
        self.output = nn.Linear(d_model, d_model)
        self.dropout = dropout
        self.fast = True

    def forward(self, x: Tensor, past: LayerCache | None = None) -> tuple[Tensor, LayerCache]:
        """x (B, T, C) → attended (B, T, C), and keys and values so far, each (B, H, P+T, D)."""
        B, T, C = x.shape
        q, k, v = self.project(x, 0 if past is None else past[0].shape[2])
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)  # (B, H, P+T, D)
        dropout = self.dropout if self.training else 0.0
        if not self.fast:
            attended = F.dropout(attention_weights(q, k), dropout) @ v
        else:
            mask = None if past is None else causal_mask(T, k.shape[2] - T, x.device)
            attended = fused_attention(q, k, v, mask, dropout)
        return self.output(attended.transpose(1, 2).reshape(B, T, C)), (k, v)

    def project(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, C), whose first position is `start` → queries, keys and values, each (B, H, T, D)."""
        B, T, C = x.shape
        heads = self.query_key_value(x).view(B, T, 3, self.num_heads, C // self.num_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        if self.qk_norm:  # scores cannot outgrow √D (Henry et al., arXiv:2010.04245)
            q, k = (F.rms_norm(x, x.shape[-1:], eps=NORM_EPS) for x in (q, k))
        if self.rotary is not None:
            q, k = self.rotary(q, start), self.rotary(k, start)
        return q, k, v


class FeedForward(nn.Module):
    """Thinks about each position alone: expand C → d_ff, ReLU, compress d_ff → C.

    `activation` "relu_squared" is ReLU(x)² (So et al., "Primer", arXiv:2109.08668).
    """

    def __init__(self, d_model: int, d_ff: int, activation: str = "relu"):
        super().__init__()
        self.squared = activation == "relu_squared"
        self.linear1 = nn.Linear(d_model, d_ff)
        self.linear2 = nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        hidden = F.relu(self.linear1(x))
        return self.linear2(hidden.square() if self.squared else hidden)


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each on a normalised copy and added back to x."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        dropout: float,
        activation: str = "relu",
        qk_norm: bool = False,
        rotary: RotaryEncoding | None = None,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = MultiHeadAttention(d_model, num_heads, dropout, qk_norm, rotary)
        self.norm2 = nn.LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, d_ff, activation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, past: LayerCache | None = None) -> tuple[Tensor, LayerCache]:
        """x (B, T, C) → (B, T, C), and this layer's keys and values."""
        attended, present = self.attention(self.norm1(x), past)
        x = x + self.dropout(attended)
        x = x + self.dropout(self.feed_forward(self.norm2(x)))
        return x, present


class MiniGPT(nn.Module):
    """Token ids → logits of the next token, at every position.

    Args:
        vocab_size: V, special tokens included.
        d_model, num_heads, num_layers, d_ff: the sizes; `num_heads` divides `d_model`.
        max_seq_len: the most positions that the model sees at once.
        dropout: share of activations dropped in training, in [0, 1).
        positional: "sinusoidal" (added to the embedding) or "rotary" (turns queries and keys; needs an even D).
        activation: "relu" or "relu_squared". qk_norm: normalise queries and keys, so that scores stay small.
        bigram_buckets: rows of the table of pair embeddings; 0 for none.
    """

    def __init__(
        self,
        vocab_size: int,
        d_model: int = 128,
        num_heads: int = 4,
        num_layers: int = 4,
        d_ff: int = 512,
        max_seq_len: int = 256,
        dropout: float = 0.0,
        positional: str = "sinusoidal",
        activation: str = "relu",
        qk_norm: bool = False,
        bigram_buckets: int = 0,
    ):
        super().__init__()
        self.max_seq_len = max_seq_len
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.bigram_embedding = BigramEmbedding(vocab_size, d_model, bigram_buckets) if bigram_buckets else None
        self.positional_encoding = PositionalEncoding(d_model, max_seq_len) if positional == "sinusoidal" else None
        rotary = RotaryEncoding(d_model // num_heads, max_seq_len) if positional == "rotary" else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(d_model, num_heads, d_ff, dropout, activation, qk_norm, rotary) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size)
        # PyTorch's own N(0, 1) would drown the positional pattern (mean square 1/2) and what blocks add
        nn.init.normal_(self.token_embedding.weight, std=0.5)

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, T) ids → (B, T, V) logits; T is at most max_seq_len."""
        return self.step(input_ids)[0]

    def step(self, input_ids: Tensor, past: Cache | None = None) -> tuple[Tensor, Cache]:
        """As `forward`, for positions that follow those in `past`.

        (B, T) ids and a cache of P positions → (B, T, V) logits and the cache of P+T positions,
        which with the next ids gives the logits of the whole sequence without computing it anew.
        P+T is at most max_seq_len.
        """
        x = self.token_embedding(input_ids)  # (B, T, C)
        if self.bigram_embedding is not None:  # id 0, <pad>, is before the first: no text has it
            last_id = torch.zeros_like(input_ids[:, :1]) if past is None else past.last_id
            x = x + self.bigram_embedding(input_ids, last_id)
        if self.positional_encoding is not None:
            x = self.positional_encoding(x, 0 if past is None else past.length)
        x = self.dropout(x)
        present = []
        for layer, block in enumerate(self.blocks):
            x, cache = block(x, None if past is None else past.layers[layer])
            present.append(cache)
        return self.head(self.norm(x)), Cache(present, input_ids[:, -1:])
