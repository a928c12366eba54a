"""Switches beyond the classic architecture, in the section `model` of params.yaml.

`positional: learned`, `activation: gelu`, `tied_head`, `head_bias: false` and
`single_special_token` turn the classic architecture into that of GPT-2. `positional: rotary`,
`qk_norm`, `bigram_buckets` and `trigram_buckets` are newer methods.

Shape letters as in `model.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.common.config import ModelConfig
from minigpt.tokenizer import EOS

NORM_EPS = 1e-5
NEVER = -1e4  # logit of a token that is never predicted: its probability is 0, and it is finite
CONTEXT = 2  # tokens before the last of an n-gram, at most
TRIGRAM_FACTORS = (104729, 7919)  # prime, so that the hashes of triples are spread evenly


class RotaryEncoding(nn.Module):
    """Rotates each pair of channels of a query or key by an angle proportional to its position.

    The product of a query and a key then depends on their distance, not on their positions
    (Su et al., "RoFormer", arXiv:2104.09864). The frequencies are those of `PositionalEncoding`.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, max_seq_len: int):
        super().__init__()
        position = torch.arange(max_seq_len, dtype=torch.float64).unsqueeze(1)  # (max_seq_len, 1)
        channel = torch.arange(0, head_dim, 2, dtype=torch.float64)  # (D/2,)
        angle = position * 10000.0 ** (-channel / head_dim)  # (max_seq_len, D/2)
        self.register_buffer("cos", torch.cos(angle).float(), persistent=False)
        self.register_buffer("sin", torch.sin(angle).float(), persistent=False)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Rotate x (B, H, T, D) at `positions` (B, T), by default 0 … T-1."""
        index = slice(x.shape[2]) if positions is None else positions.unsqueeze(1)  # (B, 1, T)
        cos, sin = self.cos[index].to(x.dtype), self.sin[index].to(x.dtype)  # (…, T, D/2)
        first, second = x.chunk(2, dim=-1)  # (B, H, T, D/2); channel i is paired with i + D/2
        rotated = first * cos - second * sin, first * sin + second * cos
        return torch.cat(rotated, dim=-1)  # (B, H, T, D)


def small_std(d_model: int) -> float:
    """Return the standard deviation of new weights of a linear layer: 0.02 in the size of GPT-2.

    Learned positions, and embeddings that are also the head, start with it.
    """
    return float((3 * d_model) ** -0.5)


class LearnedEncoding(nn.Module):
    """Adds a learned vector to each position; otherwise like `PositionalEncoding`."""

    def __init__(self, d_model: int, max_seq_len: int):
        super().__init__()
        self.encoding = nn.Parameter(torch.empty(max_seq_len, d_model))  # (S, C)
        nn.init.normal_(self.encoding, std=small_std(d_model))

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Encode x (B, T, C) at `positions` (B, T), by default 0 … T-1."""
        # (T, C), which is added to each row of the batch, or (B, T, C)
        encoding = self.encoding[: x.shape[1]] if positions is None else self.encoding[positions]
        return x + encoding  # (B, T, C)


class TiedEmbedding(nn.Embedding):
    """The token embedding of a model with a tied head.

    Its gradient is sparse until it is added to that of the head: a second dense one would need as
    much memory as the matrix. (`nn.Embedding(sparse=True)` would announce a sparse sum to
    DistributedDataParallel.)
    """

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids (B, T) as (B, T, C)."""
        return F.embedding(ids, self.weight, sparse=True)


class SingleSpecialEmbedding(TiedEmbedding):
    """An embedding with one row for all special tokens, that of <eos>.

    GPT-2 has a single special token, <|endoftext|>, between documents.
    """

    def forward(self, ids: Tensor) -> Tensor:
        """Embed ids (B, T) as (B, T, C)."""
        return super().forward(ids.clamp(min=EOS))


class TiedHead(nn.Module):
    """A head whose matrix is that of the token embedding (Press & Wolf, arXiv:1608.05859).

    With `single_special_token`, the tokens before <eos> are never predicted.
    """

    bias: nn.Parameter | None

    def __init__(self, embedding: nn.Embedding, config: ModelConfig):
        super().__init__()
        # in a tuple, where PyTorch does not look: the matrix is stored and updated once
        self._embedding = (embedding,)
        V = embedding.num_embeddings
        self.bias = nn.Parameter(torch.zeros(V)) if config.head_bias else None
        self.single_special_token = config.single_special_token

    @property
    def weight(self) -> Tensor:
        return self._embedding[0].weight  # (V, C)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, T, V) for x (B, T, C)."""
        logits = F.linear(x, self.weight, self.bias)  # (B, T, V)
        if self.single_special_token:
            logits[..., :EOS] = NEVER
        return logits


def build_embedding(vocab_size: int, config: ModelConfig) -> nn.Embedding:
    """Return the token embedding V → C."""
    if not config.tied_head:
        return nn.Embedding(vocab_size, config.d_model)
    embedding = SingleSpecialEmbedding if config.single_special_token else TiedEmbedding
    return embedding(vocab_size, config.d_model)


def build_head(embedding: nn.Embedding, config: ModelConfig) -> nn.Linear | TiedHead:
    """Return the linear layer C → V, with or without a matrix of its own and a bias."""
    if config.tied_head:
        return TiedHead(embedding, config)
    return nn.Linear(config.d_model, embedding.num_embeddings, bias=config.head_bias)


class NgramEmbedding(nn.Module):
    """An embedding of each pair or triple of adjacent tokens, added to that of the last token.

    It stores knowledge at the cost of a lookup. The table has `buckets` rows, assigned to n-grams
    by a hash and shared on a collision (Svenstrup et al., "Hash Embeddings", arXiv:1709.03933).
    It starts at zero.

    Args:
        factors: One for each token before the last, the nearest first.
        d_model: C.
        buckets: Number of rows.
    """

    def __init__(self, factors: tuple[int, ...], d_model: int, buckets: int):
        super().__init__()
        self.factors, self.buckets = factors, buckets
        self.embedding = nn.Embedding(buckets, d_model)
        nn.init.zeros_(self.embedding.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed the n-grams that end at each of ids (B, 2+T) but the first two, as (B, T, C)."""
        key = ids[:, CONTEXT:]  # (B, T)
        for distance, factor in enumerate(self.factors, start=1):
            key = key + factor * ids[:, CONTEXT - distance : -distance]  # (B, T)
        embedded: Tensor = self.embedding(key % self.buckets)  # (B, T, C)
        return embedded


def gelu(x: Tensor) -> Tensor:
    """Return x · Φ(x), where Φ, the normal distribution, is approximated by tanh.

    Hendrycks & Gimpel, "Gaussian Error Linear Units", arXiv:1606.08415.
    """
    return F.gelu(x, approximate="tanh")


def normalize_heads(x: Tensor) -> Tensor:
    """Scale each query or key of x (B, H, T, D) to length √D, so that scores never exceed √D.

    Henry et al., "Query-Key Normalization for Transformers", arXiv:2010.04245.
    """
    return F.rms_norm(x, x.shape[-1:], eps=NORM_EPS)
