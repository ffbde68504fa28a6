"""Corpora for language models: text → ids → batches.

    from data import open_corpus, TrainBatches

    corpus = open_corpus("builtin")             # or "ptb", "wikitext-2", or a folder
    len(corpus.codec), corpus.train.tokens      # size of the vocabulary, tokens with <eos>
    for inputs, targets in TrainBatches(corpus.train.ids, batch_size=20, steps=35):
        ...                                     # both (T, B) int64

Programs: `python -m data.download`, `python -m data.encode`, `python -m data.grammar`.

This package needs numpy; torch for batches only; sentencepiece and tokenizers for their files only;
symrnn and pooch for downloads only. It runs on torch 2.3 beside torchtext, and takes what torchtext
gives (`encode_corpus`).
"""

from data.batching import RandomBatches, TrainBatches, stream_windows
from data.codec import (
    TOKENIZERS,
    CallableCodec,
    CharCodec,
    Codec,
    SentencePieceCodec,
    TokenizersCodec,
    WordCodec,
    codec_from_state,
    make_codec,
)
from data.corpus import Corpus, encode_corpus, encode_file, list_corpora, open_corpus, open_split
from data.encoded import EncodedText
from data.errors import DataError
from data.vocabulary import Vocabulary

__all__ = [
    "TOKENIZERS",
    "CallableCodec",
    "CharCodec",
    "Codec",
    "Corpus",
    "DataError",
    "EncodedText",
    "RandomBatches",
    "SentencePieceCodec",
    "TokenizersCodec",
    "TrainBatches",
    "Vocabulary",
    "WordCodec",
    "codec_from_state",
    "encode_corpus",
    "encode_file",
    "list_corpora",
    "make_codec",
    "open_corpus",
    "open_split",
    "stream_windows",
]
