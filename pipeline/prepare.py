"""Stage 2: encode the documents into token files, one per split, and report on the data."""

import logging
import shutil
import tempfile
from pathlib import Path

from minigpt.common.config import load_params
from minigpt.corpus.corpus import Corpus
from minigpt.corpus.encode import encode_corpus
from minigpt.corpus.report import DataReport
from minigpt.tokenizer import load_tokenizer
from pipeline.common import paths
from pipeline.common.progress import reading_progress
from pipeline.common.stage import run_stage

log = logging.getLogger(__name__)


def main() -> None:
    corpus = Corpus(load_params().data)
    tokenizer = load_tokenizer(paths.VOCAB)
    report = DataReport()
    paths.TOKENS.parent.mkdir(parents=True, exist_ok=True)
    # in a temporary folder first, so that a crash or a full disk leaves the old files complete
    with tempfile.TemporaryDirectory(dir=paths.TOKENS.parent, prefix=".prepare.") as workspace:
        tokens, table = Path(workspace) / "tokens", Path(workspace) / "documents.parquet"
        tokens.mkdir()
        with reading_progress("prepare", corpus) as documents:
            documents = report.record_examples(documents)
            splits = encode_corpus(documents, tokenizer, tokens, table, report.add)
        shutil.rmtree(paths.TOKENS, ignore_errors=True)
        tokens.replace(paths.TOKENS)
        table.replace(paths.DOCUMENTS)
    report.write(paths.REPORTS, splits, corpus.documents_dropped, tokenizer.vocab_size)
    if splits["val"].documents == 0 and corpus.val_fraction > 0:
        log.warning(
            "no documents are held out for validation because there are too few; "
            "data.documents sets what separates documents"
        )
    for split, info in splits.items():
        log.info("%s: %d documents, %d tokens", split, info.documents, info.tokens)


if __name__ == "__main__":
    run_stage(main)
