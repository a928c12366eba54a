"""Size of a model, computed from its configuration before anything is allocated."""

from minigpt.common.config import ModelConfig


def num_parameters(vocab_size: int, config: ModelConfig) -> int:
    """Return the number of weights of `MiniGPT(vocab_size, config)`."""
    V, C, F = vocab_size, config.d_model, config.d_ff
    norm = 2 * C
    attention = _linear(C, 3 * C) + _linear(C, C)
    feed_forward = _linear(C, F) + _linear(F, C)
    block = norm + attention + norm + feed_forward
    positions = config.max_seq_len if config.positional == "learned" else 0
    embeddings = (V + config.bigram_buckets + config.trigram_buckets + positions) * C
    head = (0 if config.tied_head else V * C) + (V if config.head_bias else 0)
    return embeddings + config.num_layers * block + norm + head


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs
