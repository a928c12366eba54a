"""Stage 2: encode the documents into token files, one per split, and report on the data."""

import logging
from collections import deque
from collections.abc import Iterator
from itertools import islice

from minigpt.common.config import load_params
from minigpt.common.files import atomic_file, atomic_folder
from minigpt.corpus import fast_encode, fast_path
from minigpt.corpus.corpus import Corpus
from minigpt.corpus.encode import Encoded, encode_batches, write_corpus
from minigpt.corpus.report import NUM_EXAMPLES, DataReport
from minigpt.tokenizer import Tokenizer, load_tokenizer
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
        reading_progress("prepare", corpus.reader, _encode(corpus, tokenizer, report)) as batches,
    ):
        splits = write_corpus(batches, tokenizer, folder, table, report.add)
    report.write(paths.REPORTS, splits, corpus.documents_dropped, tokenizer.vocab_size)
    if splits["val"].documents == 0 and corpus.val_fraction > 0:
        log.warning(
            "no documents are held out for validation because there are too few; "
            "data.documents sets what separates documents"
        )
    for split, info in splits.items():
        log.info("%s: %d documents, %d tokens", split, info.documents, info.tokens)


def _encode(corpus: Corpus, tokenizer: Tokenizer, report: DataReport) -> Iterator[Encoded]:
    if not fast_path.applies(corpus):
        return encode_batches(report.record_examples(corpus), tokenizer)
    deque(report.record_examples(islice(corpus, NUM_EXAMPLES)), maxlen=0)
    return fast_encode.encode_blocks(corpus, tokenizer)


if __name__ == "__main__":
    run_stage(main)
