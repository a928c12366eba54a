"""Quality of a model on a split: loss, perplexity, bits per character and accuracy.

The lesson of this package. A model is judged by the probability that it gives to each token of
texts that it has not seen:

1. Run the model over every batch and keep the loss of each target (`predict`).
2. Average (`summarize`).

The loss of a token is -log p, in nats. Perplexity is exp(loss): a model with perplexity 3 is as
uncertain as a choice among 3 equally likely tokens. Models with different tokenizers cannot be
compared by loss per token, since their tokens differ in length, but by bits per character.
"""

import math
from collections.abc import Callable, Iterable

import pandas as pd
import torch
from torch import Tensor

from minigpt.data.batches import Batch
from minigpt.data.tensors import to_tensors
from minigpt.data.token_files import SplitInfo
from minigpt.model.loss import bits_per, cross_entropy
from minigpt.tokenizer import PAD


@torch.inference_mode()
def predict(model: Callable[[Tensor], Tensor], batches: Iterable[Batch]) -> pd.DataFrame:
    """Return one row per target with the columns `previous`, `target`, `predicted` and `loss`.

    Args:
        model: Function from ids (B, T) to logits (B, T, V), on the CPU.
        batches: Inputs and targets.
    """
    tables = []
    for batch in batches:
        input_ids, targets = to_tensors(batch, torch.device("cpu"))  # (B, T), (B, T)
        logits = model(input_ids)  # (B, T, V)
        losses = cross_entropy(logits, targets, reduction="none")  # (B·T,)
        columns = {
            "previous": input_ids,  # (B, T)
            "target": targets,  # (B, T)
            "predicted": logits.argmax(-1),  # (B, T)
            "loss": losses.double(),  # (B·T,)
        }
        # Padding is not a prediction.
        real = targets.flatten() != PAD  # (B·T,)
        tables.append(
            pd.DataFrame({name: values.flatten()[real].numpy() for name, values in columns.items()})
        )
    return pd.concat(tables, ignore_index=True)


def summarize(predictions: pd.DataFrame, split: SplitInfo) -> dict[str, float]:
    """Return loss (nats per token), perplexity, bits per character and per byte, and accuracy."""
    # NumPy, since pandas skips NaN, which would hide a diverged model
    loss = float(predictions["loss"].to_numpy().mean())
    return {
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits_per_char": bits_per(split.characters, loss, len(predictions)),
        "bits_per_byte": bits_per(split.bytes, loss, len(predictions)),
        "accuracy": float((predictions["target"] == predictions["predicted"]).mean()),
    }
