"""Encoding speed of the character tokenizers of MiniGPT and nanoGPT, and of byte-level BPE.

    python benchmarks/tokenization.py --megabytes 20

The encoders take turns on the same text for several rounds; the ratio is that of the medians.
"""

import argparse
import statistics
import time
from pathlib import Path

from minigpt.tokenizer import BPETokenizer, CharTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=Path, default=Path("data/raw/tales.txt"))
    parser.add_argument("--megabytes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    sample = arguments.text.read_text(encoding="utf-8")
    text = sample * (arguments.megabytes * 1_000_000 // len(sample) + 1)

    char, bpe = CharTokenizer(), BPETokenizer(vocab_size=1024)
    char.build_vocab([sample])
    bpe.build_vocab([sample])
    stoi = {character: token for token, character in enumerate(char.token_strings) if character}
    lines = text.splitlines(keepends=True)
    encoders = {
        "nanoGPT: [stoi[c] for c in text]": lambda: [stoi[character] for character in text],
        "MiniGPT: CharTokenizer": lambda: char.encode_batch([text]),
        "MiniGPT: CharTokenizer, one 中 in the text": lambda: char.encode_batch([text, "中"]),
        "MiniGPT: CharTokenizer, line by line": lambda: char.encode_batch(lines),
        "tokenizers: byte-level BPE, 1024 tokens": lambda: bpe.encode_uncached(lines),
        "MiniGPT: the same with a cache of words": lambda: bpe.encode_batch(lines),
    }
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(arguments.rounds):
        for name, encode in encoders.items():
            start = time.perf_counter()
            encode()
            seconds[name].append(time.perf_counter() - start)
    base = statistics.median(next(iter(seconds.values())))
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:42} {len(text) / median / 1e6:8.1f} M characters/s   x{base / median:.2f}")


if __name__ == "__main__":
    main()
