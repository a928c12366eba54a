"""Weights of a trained model, made to fit the vocabulary of another text."""

import torch

from minigpt.common.errors import UserError
from minigpt.common.text import printable
from minigpt.model.checkpoint import Tensors
from minigpt.tokenizer import CharTokenizer, Tokenizer

BY_ID = ("token_embedding.weight", "head.weight", "head.bias")  # a row for each id
BY_PAIR = "bigram_embedding.embedding.weight"  # a row for each pair of ids, by hash


def adapt_vocabulary(tensors: Tensors, old: Tokenizer, new: Tokenizer) -> Tensors:
    """Weights learned with the vocabulary `old`, for ids of `new`: each known token keeps what it knows.

    Raises:
        UserError: `new` has tokens that `old` lacks; the message lists them.
    """
    if old.sha256() == new.sha256():
        return tensors
    if not (isinstance(old, CharTokenizer) and isinstance(new, CharTokenizer)):
        raise UserError(
            "its subword vocabulary is not that of the text; take data/vocab.json from that training"
        )
    if missing := [character for character in new.characters if character not in old.characters]:
        raise UserError(
            f"it does not know these characters of the text: {printable(missing)}; "
            "remove them, or make them rare enough for tokenizer.min_freq"
        )
    specials = old.vocab_size - len(old.characters)
    ids = torch.tensor(
        [*range(specials), *(specials + old.characters.index(c) for c in new.characters)]
    )
    adapted = {name: tensor[ids] if name in BY_ID else tensor for name, tensor in tensors.items()}
    if BY_PAIR in tensors:
        table = tensors[BY_PAIR]
        adapted[BY_PAIR] = torch.zeros_like(table)
        second = torch.arange(len(ids))
        for first in range(len(ids)):
            rows = (ids[first] * old.vocab_size + ids) % len(table)
            adapted[BY_PAIR][(first * new.vocab_size + second) % len(table)] = table[rows]
    return adapted
