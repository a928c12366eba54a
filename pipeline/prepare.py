"""Stage 2: the documents as token files, one a split, a table of them, and a report on the data."""

import functools
import logging
from contextlib import ExitStack
from typing import get_args

import pyarrow as pa
import pyarrow.parquet

from minigpt.config import load_params
from minigpt.corpus import Corpus, Split
from minigpt.encoding import TABLE, TokenWriter, encode_documents, write_meta
from minigpt.parallel import batched_by_size, parallel_map
from minigpt.tokenizer import CharTokenizer
from pipeline import project, run_stage
from pipeline.data_report import DataReport
from pipeline.reading_progress import ReadingProgress

log = logging.getLogger(__name__)
BATCH = 1 << 20  # characters that one process encodes at a time


def main() -> None:
    params = load_params()
    tokenizer = CharTokenizer.load(project.VOCAB)
    corpus = Corpus(params.data)
    report = DataReport()
    project.TOKENS.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(TokenWriter(project.TOKENS, split, tokenizer.vocab_size))
            for split in get_args(Split)
        }
        table = stack.enter_context(pyarrow.parquet.ParquetWriter(project.DOCUMENTS, TABLE))
        progress = stack.enter_context(ReadingProgress("prepare", corpus))
        encode = functools.partial(encode_documents, tokenizer=tokenizer)
        batches = batched_by_size(report.examples_of(corpus), lambda document: len(document.text), BATCH)
        for batch in parallel_map(encode, batches):
            for writer in writers.values():
                writer.add(batch)
            table.write_table(pa.Table.from_pandas(batch.table, TABLE, preserve_index=False))
            report.add(batch)
            progress.update_read()
        splits = {split: writer.finish() for split, writer in writers.items()}
    write_meta(project.TOKENS, tokenizer, splits)
    report.write(splits, corpus.documents_dropped, tokenizer.vocab_size)
    for name, info in splits.items():
        log.info("%s: %d documents, %d tokens", name, info.documents, info.tokens)


if __name__ == "__main__":
    run_stage(main)
