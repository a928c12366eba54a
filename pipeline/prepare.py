"""Stage 2: the documents as token files, one a split, a table of them, and a report on the data."""

import functools
import logging
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet

from minigpt.common.config import load_params
from minigpt.common.parallel import BATCH_CHARACTERS, batched_by_size, parallel_map
from minigpt.corpus.corpus import Corpus, Split
from minigpt.corpus.encode import TABLE, encode_documents
from minigpt.corpus.report import DataReport
from minigpt.data.token_files import SplitInfo, TokenWriter, write_meta
from minigpt.tokenizer import Tokenizer, load_tokenizer
from pipeline.common import paths
from pipeline.common.progress import reading_progress
from pipeline.common.stage import run_stage

log = logging.getLogger(__name__)


def main() -> None:
    params = load_params()
    tokenizer = load_tokenizer(paths.VOCAB)
    corpus = Corpus(params.data)
    report = DataReport()
    paths.TOKENS.parent.mkdir(parents=True, exist_ok=True)
    # made in a folder beside, so that a full disk or a crash leaves the old files whole
    with tempfile.TemporaryDirectory(dir=paths.TOKENS.parent, prefix=".prepare.") as name:
        folder = Path(name)
        tokens = folder / "tokens"
        tokens.mkdir()
        splits = _encode(corpus, tokenizer, report, tokens, folder / "documents.parquet")
        write_meta(tokens, tokenizer, splits)
        shutil.rmtree(paths.TOKENS, ignore_errors=True)
        tokens.replace(paths.TOKENS)
        (folder / "documents.parquet").replace(paths.DOCUMENTS)
    report.write(paths.REPORTS, splits, corpus.documents_dropped, tokenizer.vocab_size)
    if splits["val"].documents == 0 and corpus.val_fraction > 0:
        log.warning(
            "nothing is held out, the documents are too few; data.documents says what separates two"
        )
    for split, info in splits.items():
        log.info("%s: %d documents, %d tokens", split, info.documents, info.tokens)


def _encode(
    corpus: Corpus, tokenizer: Tokenizer, report: DataReport, folder: Path, table_file: Path
) -> dict[str, SplitInfo]:
    """Write the token files into `folder`, and the table of documents; returns what each split holds."""
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(TokenWriter(folder, split, tokenizer.vocab_size))
            for split in get_args(Split)
        }
        table = stack.enter_context(pyarrow.parquet.ParquetWriter(table_file, TABLE))
        documents = stack.enter_context(reading_progress("prepare", corpus))
        batches = batched_by_size(
            report.record_examples(documents), lambda document: len(document.text), BATCH_CHARACTERS
        )
        for batch in parallel_map(
            functools.partial(encode_documents, tokenizer=tokenizer), batches
        ):
            for writer in writers.values():
                writer.add(batch.data[writer.split], batch.counts(writer.split))
            table.write_table(pa.Table.from_pandas(batch.table, TABLE, preserve_index=False))
            report.add(batch)
        return {split: writer.finish() for split, writer in writers.items()}


if __name__ == "__main__":
    run_stage(main)
