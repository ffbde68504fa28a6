"""The program that encodes a corpus ahead of training: `python -m data.encode`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from data.codec import Codec
from data.corpus import SPLITS, Corpus, encode_source, list_corpora, open_corpus
from data.errors import DataError, run_program


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m data.encode`; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data.encode",
        description="Encode a corpus ahead of training, and show its counts. With --out, the "
        "encoded corpus is a folder that every program takes as a corpus, on any machine; "
        "without, it is cached where programs find it.",
        epilog="example: python -m data.encode my_texts --vocab-size 20000 --out my_corpus",
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help=f"one of {', '.join(list_corpora())}, or a folder with train.txt, valid.txt, test.txt",
    )
    parser.add_argument(
        "--tokenizer",
        default="word",
        help="word (between white space; default), char, sentencepiece (trained on the train "
        "text), or the file of a tokenizer: a sentencepiece model, or FILE.json of Hugging Face's",
    )
    parser.add_argument(
        "--vocab-size",
        type=int,
        metavar="N",
        help="words, characters: keep the most frequent, N ids in all; sentencepiece: N pieces "
        "(required)",
    )
    parser.add_argument(
        "--min-count",
        type=int,
        metavar="N",
        help="words, characters: those that stand fewer times in the train text become <unk>",
    )
    parser.add_argument(
        "--vocab-file", metavar="FILE", help="words: take this vocabulary, one token per line"
    )
    parser.add_argument("--out", metavar="FOLDER", help="a new folder for the encoded corpus")
    parser.add_argument("--cache", metavar="FOLDER", help="in place of $SYMRNN_DATA")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args(arguments)
    try:
        choices = {
            "tokenizer": options.tokenizer,
            "vocab_size": options.vocab_size,
            "min_count": options.min_count,
            "vocab_file": options.vocab_file,
            "cache_dir": options.cache,
            "progress": not options.quiet,
        }
        if options.out is None:
            corpus = open_corpus(options.source, **choices)
        else:
            corpus = encode_source(options.source, options.out, **choices)
    except DataError as error:
        print(f"data.encode: error: {error}", file=sys.stderr)
        return 2
    print(summary(corpus))
    if options.out is not None:
        print(f"encoded into {Path(options.out)}")
    return 0


def summary(corpus: Corpus) -> str:
    """The counts of a corpus as a small table."""
    codec: Codec = corpus.codec
    rows = [f"{corpus.name}: {len(codec):,} ids, tokenizer {codec.kind}"]
    rows.append(f"{'':6} {'tokens':>12} {'words':>12} {'lines':>10}  (line ends counted)")
    for split in SPLITS:
        text = corpus.split(split)
        rows.append(f"{split:6} {text.tokens:12,} {text.words:12,} {text.lines:10,}")
    return "\n".join(rows)


if __name__ == "__main__":
    run_program(main)
