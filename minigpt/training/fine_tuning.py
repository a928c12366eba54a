"""Fine-tuning: start from the weights of a trained model, adapted to another vocabulary."""

from pathlib import Path

import torch

from minigpt.common.config import ModelConfig
from minigpt.common.errors import UserError
from minigpt.model.checkpoint import Tensors, load_model
from minigpt.model.model import MiniGPT
from minigpt.tokenizer import CharTokenizer, Tokenizer, tokenizer_from_dict

ROW_PER_ID = ("token_embedding.weight", "head.weight", "head.bias")
ROW_PER_PAIR = "bigram_embedding.embedding.weight"  # pairs of ids, by hash
ROW_PER_TRIPLE = "trigram_embedding.embedding.weight"
POSITIONS = "positional_encoding.encoding"  # if they are learned


def load_pretrained(path: Path, model: MiniGPT, tokenizer: Tokenizer) -> None:
    """Copy the weights of the model file `path` into `model`, whose tokenizer is `tokenizer`.

    Raises:
        UserError: The file is not a model, or its architecture or vocabulary does not fit.
    """
    try:
        pretrained, metadata = load_model(path)
        _compare(pretrained.config, model.config)
        tensors = pretrained.state_dict()
        if POSITIONS in tensors:  # a model can be trained on shorter texts than before
            tensors[POSITIONS] = tensors[POSITIONS][: model.max_seq_len]
        old = tokenizer_from_dict(metadata["tokenizer"])
        model.load_state_dict(adapt_vocabulary(tensors, old, tokenizer))
    except UserError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise UserError(f"train.init_from: {path}: {reason}") from None


def _compare(pretrained: ModelConfig, config: ModelConfig) -> None:
    """Check that weights of the architecture `pretrained` fit into a model with `config`.

    Raises:
        UserError: They do not; the message has the parameters to set.
    """
    needed = pretrained.model_dump(exclude={"dropout", "max_seq_len"})
    differing = [
        f"model.{key}={value}" for key, value in needed.items() if getattr(config, key) != value
    ]
    if differing:
        raise UserError(f"its architecture is another one; set {' '.join(differing)}")
    if config.positional == "learned" and config.max_seq_len > pretrained.max_seq_len:
        raise UserError(
            f"it has learned {pretrained.max_seq_len} positions, fewer than model.max_seq_len "
            f"({config.max_seq_len}); lower this to {pretrained.max_seq_len}"
        )


def adapt_vocabulary(tensors: Tensors, old: Tokenizer, new: Tokenizer) -> Tensors:
    """Rearrange weights trained with the vocabulary `old` for the ids of `new`.

    Embeddings of triples start at zero: many triples share a row, and others do in `new`.

    Raises:
        UserError: `new` has tokens that `old` lacks, which the message lists.
    """
    if old.sha256() == new.sha256():
        return tensors
    if not (isinstance(old, CharTokenizer) and isinstance(new, CharTokenizer)):
        raise UserError(
            "its subword vocabulary differs from data/vocab.json; "
            "use the vocabulary of that training"
        )
    if missing := [character for character in new.characters if character not in old.characters]:
        raise UserError(
            f"its vocabulary lacks these characters of the text: {', '.join(map(repr, missing))}; "
            "remove them, or raise tokenizer.min_freq above their count"
        )
    specials = old.vocab_size - len(old.characters)
    ids = torch.tensor(
        [*range(specials), *(specials + old.characters.index(c) for c in new.characters)]
    )
    adapted = {
        name: tensor[ids] if name in ROW_PER_ID else tensor for name, tensor in tensors.items()
    }
    if ROW_PER_TRIPLE in tensors:
        adapted[ROW_PER_TRIPLE] = torch.zeros_like(tensors[ROW_PER_TRIPLE])
    if ROW_PER_PAIR in tensors:
        table = tensors[ROW_PER_PAIR]
        adapted[ROW_PER_PAIR] = torch.zeros_like(table)
        second = torch.arange(len(ids))
        for first in range(len(ids)):
            rows = (ids[first] * old.vocab_size + ids) % len(table)
            adapted[ROW_PER_PAIR][(first * new.vocab_size + second) % len(table)] = table[rows]
    return adapted
