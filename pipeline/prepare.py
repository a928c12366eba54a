"""Stage 2: the documents as token files, one a split, and a table of them."""

import logging
from contextlib import ExitStack
from typing import get_args

import pandas as pd

from minigpt.config import load_params
from minigpt.corpus import Corpus, Split
from minigpt.dataset import TokenWriter, write_meta
from minigpt.tokenizer import UNK, load_tokenizer
from pipeline import project, run_stage

log = logging.getLogger(__name__)


def main() -> None:
    params = load_params()
    tokenizer = load_tokenizer(project.VOCAB)
    project.TOKENS.mkdir(parents=True, exist_ok=True)
    rows = []
    with ExitStack() as stack:
        writers: dict[str, TokenWriter] = {
            split: stack.enter_context(TokenWriter(project.TOKENS / f"{split}.bin", tokenizer))
            for split in get_args(Split)
        }
        for document, split in Corpus(params.data.path, params.data.documents, params.data.val_fraction):
            ids = writers[split].add(document)
            unknown = int((ids == UNK).sum())
            rows.append({"split": split, "characters": len(document), "tokens": len(ids), "unknown": unknown})
    info = {split: writer.info() for split, writer in writers.items()}
    write_meta(project.TOKENS, tokenizer, info)
    pd.DataFrame(rows).rename_axis("document").to_parquet(project.DOCUMENTS)
    for name, counts in info.items():
        log.info("%s: %d documents, %d tokens", name, counts.documents, counts.tokens)


if __name__ == "__main__":
    run_stage(main)
