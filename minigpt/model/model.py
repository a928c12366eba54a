"""The language model: a decoder-only transformer, from ids to logits.

Shapes are given with these letters throughout the project:
    B batch, T time (positions), C = d_model (channels), H heads, D = C / H, V vocabulary.

Sources: Vaswani et al., "Attention Is All You Need" (arXiv:1706.03762); normalisation before each
sublayer as in Radford et al., "Language Models are Unsupervised Multitask Learners" (GPT-2).
What goes beyond them is switched on by `positional`, `qk_norm` and `bigram_buckets`; each
names its paper where it stands.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORM_EPS = 1e-5


class PositionalEncoding(nn.Module):
    """Adds to each position a pattern of its own, so that the model knows the order.

    encoding[t, 2i] = sin(t / 10000^(2i/C)),  encoding[t, 2i+1] = cos(t / 10000^(2i/C))
    (Vaswani et al., section 3.5).
    """

    encoding: Tensor

    def __init__(self, d_model: int, max_seq_len: int):
        super().__init__()
        position = torch.arange(max_seq_len, dtype=torch.float64).unsqueeze(1)  # (max_seq_len, 1)
        frequency = 10000.0 ** (
            -torch.arange(0, d_model, 2, dtype=torch.float64) / d_model
        )  # (C/2,)
        encoding = torch.zeros(max_seq_len, d_model)
        encoding[:, 0::2] = torch.sin(position * frequency)
        encoding[:, 1::2] = torch.cos(position * frequency)[
            :, : d_model // 2
        ]  # an odd C ends on a sine
        # computed, not learned: no parameter, and not stored in checkpoints
        self.register_buffer("encoding", encoding, persistent=False)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """x (B, T, C) at `positions` (B, T), or from 0 on → (B, T, C)."""
        return x + (self.encoding[: x.shape[1]] if positions is None else self.encoding[positions])


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
        frequency = 10000.0 ** (
            -torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
        )  # (D/2,)
        self.register_buffer("cos", torch.cos(position * frequency).float(), persistent=False)
        self.register_buffer("sin", torch.sin(position * frequency).float(), persistent=False)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """x (B, H, T, D) at `positions` (B, T), or from 0 on → (B, H, T, D)."""
        at = slice(x.shape[2]) if positions is None else positions.unsqueeze(1)
        cos, sin = self.cos[at].to(x.dtype), self.sin[at].to(x.dtype)  # (T, D/2) or (B, 1, T, D/2)
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

    def forward(self, input_ids: Tensor, previous_ids: Tensor) -> Tensor:
        """Ids and the one before each, both (B, T) → (B, T, C)."""
        return self.embedding((previous_ids * self.vocab_size + input_ids) % self.buckets)


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """How much each position looks at each: softmax(Q Kᵀ / √D), the future masked out.

    q and k (B, H, T, D) → (B, H, T, T), each row sums to 1.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    past = torch.ones_like(scores, dtype=torch.bool).tril()
    return scores.masked_fill(~past, float("-inf")).softmax(dim=-1)


def fused_attention(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    """`attention_weights(q, k) @ v` by PyTorch's kernel."""
    if (
        v.dtype == torch.bfloat16 and v.device.type == "cpu"
    ):  # whose backward pass takes four times as long as float32
        with torch.autocast("cpu", enabled=False):
            return fused_attention(q.float(), k.float(), v.float(), dropout)
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)


class MultiHeadAttention(nn.Module):
    """H attentions side by side, each on D of the C channels.

    `fast` chooses PyTorch's fused kernel, which computes the same as `attention_weights(q, k) @ v`
    without ever storing the (T, T) weights.
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
        self.query_key_value = nn.Linear(
            d_model, 3 * d_model
        )  # the three projections as one product
        self.output = nn.Linear(d_model, d_model)
        self.dropout = dropout
        self.fast = True

    def forward(self, x: Tensor) -> Tensor:
        """x (B, T, C) → attended (B, T, C)."""
        q, k, v = self.project(x)
        dropout = self.dropout if self.training else 0.0
        attended = (
            fused_attention(q, k, v, dropout)
            if self.fast
            else F.dropout(attention_weights(q, k), dropout) @ v
        )
        return self.merge(attended)

    def project(self, x: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, T, C) at `positions` (B, T), or from 0 on → queries, keys and values, each (B, H, T, D)."""
        heads = self.query_key_value(x).unflatten(2, (3, self.num_heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        if self.qk_norm:  # scores cannot outgrow √D (Henry et al., arXiv:2010.04245)
            q, k = (F.rms_norm(x, x.shape[-1:], eps=NORM_EPS) for x in (q, k))
        if self.rotary is not None:
            q, k = self.rotary(q, positions), self.rotary(k, positions)
        return q, k, v

    def merge(self, attended: Tensor) -> Tensor:
        """(B, H, T, D) → (B, T, C)."""
        return self.output(attended.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Thinks about each position alone: expand C → d_ff, ReLU, compress d_ff → C."""

    def __init__(self, d_model: int, d_ff: int):
        super().__init__()
        self.linear1 = nn.Linear(d_model, d_ff)
        self.linear2 = nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        return self.linear2(F.relu(self.linear1(x)))


class TransformerBlock(nn.Module):
    """Attention, then feed-forward, each on a normalised copy and added back to x."""

    def __init__(
        self,
        d_model: int,
        num_heads: int,
        d_ff: int,
        dropout: float,
        qk_norm: bool = False,
        rotary: RotaryEncoding | None = None,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attention = MultiHeadAttention(d_model, num_heads, dropout, qk_norm, rotary)
        self.norm2 = nn.LayerNorm(d_model)
        self.feed_forward = FeedForward(d_model, d_ff)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class MiniGPT(nn.Module):
    """Token ids → logits of the next token, at every position.

    Args:
        vocab_size: V, special tokens included.
        d_model, num_heads, num_layers, d_ff: the sizes; `num_heads` divides `d_model`.
        max_seq_len: the most positions that the model sees at once.
        dropout: share of activations dropped in training, in [0, 1).
        positional: "sinusoidal" (added to the embedding) or "rotary" (turns queries and keys; needs an even D).
        qk_norm: normalise queries and keys, so that scores stay small.
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
        qk_norm: bool = False,
        bigram_buckets: int = 0,
    ):
        super().__init__()
        self.num_heads, self.max_seq_len = num_heads, max_seq_len
        self.token_embedding = nn.Embedding(vocab_size, d_model)
        self.bigram_embedding = (
            BigramEmbedding(vocab_size, d_model, bigram_buckets) if bigram_buckets else None
        )
        self.positional_encoding = (
            PositionalEncoding(d_model, max_seq_len) if positional == "sinusoidal" else None
        )
        rotary = (
            RotaryEncoding(d_model // num_heads, max_seq_len) if positional == "rotary" else None
        )
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(d_model, num_heads, d_ff, dropout, qk_norm, rotary)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size)
        # PyTorch's own N(0, 1) would drown the positional pattern (mean square 1/2) and what blocks add
        nn.init.normal_(self.token_embedding.weight, std=0.5)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, T) ids → (B, T, V) logits; T is at most max_seq_len."""
        x = self.dropout(
            self.embed(input_ids, F.pad(input_ids, (1, -1)))
        )  # before the first is <pad>, id 0
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def embed(
        self, input_ids: Tensor, previous_ids: Tensor, positions: Tensor | None = None
    ) -> Tensor:
        """Ids and the id before each, both (B, T), at `positions` (B, T), or from 0 on → (B, T, C)."""
        x = self.token_embedding(input_ids)
        if self.bigram_embedding is not None:
            x = x + self.bigram_embedding(input_ids, previous_ids)
        if self.positional_encoding is not None:
            x = self.positional_encoding(x, positions)
        return x
