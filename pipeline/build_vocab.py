"""Stage 1: build the vocabulary from the training split and count its characters."""

import logging
from collections import Counter
from pathlib import Path

import pandas as pd

from minigpt.common.config import NO_MODEL, Params, load_params
from minigpt.common.errors import UserError
from minigpt.common.files import atomic_write
from minigpt.corpus import fast_path
from minigpt.corpus.corpus import Corpus
from minigpt.tokenizer import BPETokenizer, CharTokenizer, Tokenizer
from minigpt.tokenizer.pretrained import load_tokenizer_of_model
from pipeline.common import paths
from pipeline.common.progress import reading_progress
from pipeline.common.stage import run_stage

log = logging.getLogger(__name__)
MAX_UNKNOWN = 0.01  # share of the training text; beyond it a warning is logged


def main() -> None:
    params = load_params()
    corpus = Corpus(params.data)
    tokenizer = _tokenizer(params)
    # a pretrained tokenizer is not changed: the characters are counted by another one
    pretrained = params.tokenizer.type == "pretrained"
    counter = _char_tokenizer(tokenizer) if pretrained else tokenizer
    counts = _build(corpus, counter, params.tokenizer.min_freq)
    if not counts:
        raise UserError(
            f"{params.data.path}: every document fell into the validation split; get more "
            "documents by data.documents, or set data.val_fraction to 0"
        )

    tokenizer.save(paths.VOCAB)
    table = pd.DataFrame({"character": list(counts), "count": list(counts.values())})
    table["share"] = (table["count"] / table["count"].sum()).round(6)
    table["in_vocabulary"] = [not tokenizer.unknown(character) for character in counts]
    table["character"] = table["character"].map(repr)  # makes spaces and line breaks visible
    table = table.sort_values(["count", "character"], ascending=[False, True])
    atomic_write(paths.CHARACTERS, table.to_csv(index=False))
    unknown = table.loc[~table["in_vocabulary"], "count"].sum() / counts.total()
    if unknown > MAX_UNKNOWN:
        log.warning(
            "tokenizer.min_freq: %.0f %% of the text becomes <unk>; lower it", 100 * unknown
        )
    log.info(
        "vocabulary: %d tokens from %d characters of text", tokenizer.vocab_size, counts.total()
    )


def _build(corpus: Corpus, tokenizer: Tokenizer, min_freq: int) -> Counter[str]:
    # a character that occurs only in validation must become <unk>
    if isinstance(tokenizer, CharTokenizer) and fast_path.applies(corpus):
        batches = fast_path.count_blocks(corpus, tokenizer)
        with reading_progress("build_vocab", corpus.reader, batches) as tracked:
            return tokenizer.build_from_counts(tracked, min_freq)
    with reading_progress("build_vocab", corpus.reader, corpus) as documents:
        training_texts = (document.text for document in documents if document.split == "train")
        return tokenizer.build_vocab(training_texts, min_freq)


def _tokenizer(params: Params) -> Tokenizer:
    normalization, lowercase = params.data.normalization, params.tokenizer.lowercase
    if params.tokenizer.type == "pretrained":
        if params.train.init_from == NO_MODEL:
            raise UserError(
                f"tokenizer.type: it is pretrained, but train.init_from is {NO_MODEL}; "
                "set this to a model in pretrained/"
            )
        return load_tokenizer_of_model(Path(params.train.init_from))
    if params.tokenizer.type == "bpe":
        return BPETokenizer(params.tokenizer.vocab_size, normalization, lowercase)
    return CharTokenizer(normalization=normalization, lowercase=lowercase)


def _char_tokenizer(other: Tokenizer) -> CharTokenizer:
    """Return a tokenizer with the normalization of another one."""
    return CharTokenizer(normalization=other.normalization, lowercase=other.lowercase)


if __name__ == "__main__":
    run_stage(main)
