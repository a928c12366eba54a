"""Stage 2: encode the documents into token files, one per split, and report on the data."""

import logging

from minigpt.common.config import load_params
from minigpt.common.files import atomic_file, atomic_folder
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
    with (
        atomic_file(paths.DOCUMENTS) as table,
        atomic_folder(paths.TOKENS) as folder,
        reading_progress("prepare", corpus) as documents,
    ):
        documents = report.record_examples(documents)
        splits = encode_corpus(documents, tokenizer, folder, table, report.add)
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
