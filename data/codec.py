"""Codecs: from a line of text to ids and back.

A codec is one of
- WordCodec: the words between white space (`kind` "word"), as in the PTB and WikiText literature;
- CharCodec: the characters ("char"), white space included, as in the text8 literature;
- CallableCodec: the tokens that any function from str to list of str gives ("callable");
- SentencePieceCodec: the subword pieces of a sentencepiece model ("sentencepiece");
- TokenizersCodec: what a file of Hugging Face's tokenizers package says ("tokenizers").

Every line ends in one `<eos>`, an empty line is that `<eos>` alone. The word `<eos>` itself must
not stand in a text, since it could not be told from a line end: DataError. `<unk>` in a text is
the id of unknown tokens. Of all else the words come back from their ids as they were, wherever the
vocabulary has them.
"""

from __future__ import annotations

import abc
import base64
import contextlib
import hashlib
import json
import os
import re
import reprlib
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError, require_integer
from data.text import Block, is_unicode, open_binary, strip_line_end
from data.vocabulary import EOS, UNK, Vocabulary

Tokenizer = Callable[[str], Sequence[str]]

TOKENIZERS = ("word", "char", "sentencepiece")
"""The tokenizers that have a name; others are a function, or a file."""


class Codec(abc.ABC):
    """What all codecs have.

    kind: the name of the sort of codec, as it stands in `state()`.
    eos_id: the id of `<eos>`, the end of a line.
    unk_id: the id of what is unknown, or None.
    unit: what a token is: "word", "character" or "piece", of which a word has any number.
    whole_lines: whether `encode_block` needs blocks of whole lines.
    """

    kind: str
    eos_id: int
    unk_id: int | None
    unit: str = "word"
    whole_lines: bool = True

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of ids: they are 0 … len-1."""

    @abc.abstractmethod
    def encode_block(self, block: Block) -> tuple[NDArray[np.uint32], int]:
        """The ids of a block of text, 1-D, with one `eos_id` per line end; and its words.

        Words are those between white space, and one for each line end, whatever the tokenizer.
        """

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids: words with one space between, a `\\n` for each `<eos>`."""

    @abc.abstractmethod
    def token(self, id: int) -> str:
        """Readable text of one id; DataError if it is not in 0 … len-1."""

    @abc.abstractmethod
    def state(self) -> dict[str, Any]:
        """All that `codec_from_state` needs, as plain JSON values."""

    def encode_line(self, line: str) -> list[int]:
        """The ids of one line, `<eos>` last. The line may carry its line end, none within."""
        line = strip_line_end(line)
        if "\n" in line or "\0" in line:
            raise DataError(f"want one line of text, got {line[:80]!r}")
        if not is_unicode(line):
            raise DataError(f"not UTF-8: {line[:80]!r}")
        return [int(id) for id in self.encode_block(Block(line + "\n", 1, "the text"))[0]]

    def count_words(self, line: str) -> int:
        """The words of a line between white space, and one for its end.

        A perplexity per word over this count compares between models of different tokenizers.
        """
        return len(line.split()) + 1

    def fingerprint(self) -> str:
        """The SHA-256 of the state, in hex: equal for codecs that encode alike."""
        if not hasattr(self, "_fingerprint"):
            text = json.dumps(self.state(), sort_keys=True, separators=(",", ":"))
            self._fingerprint = hashlib.sha256(text.encode("ascii")).hexdigest()
        return self._fingerprint

    def _check_id(self, id: int) -> int:
        if not 0 <= id < len(self):
            raise DataError(f"id must be in 0 … {len(self) - 1}, got {id}")
        return int(id)

    def _lines_of(self, ids: Iterable[int]) -> list[list[int]]:
        """The ids of each line, without their ends."""
        lines: list[list[int]] = [[]]
        for id in ids:
            if self._check_id(id) == self.eos_id:
                lines.append([])
            else:
                lines[-1].append(int(id))
        return lines


class WordCodec(Codec):
    """Words between white space, each an id of a vocabulary.

    A word outside the vocabulary becomes `<unk>`, or a DataError that names word, file and line
    if the vocabulary has no `<unk>`.
    """

    kind = "word"
    whole_lines = False

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.eos_id = vocabulary.eos_id
        self.unk_id = vocabulary.unk_id
        self._lookup = _lookup(vocabulary)

    def __len__(self) -> int:
        return len(self.vocabulary)

    def tokens_of(self, block: Block) -> list[str]:
        """The tokens of a block, `<eos>` for each line end."""
        tokens = block.text.replace("\n", f" {EOS} ").split()
        if EOS in block.text and tokens.count(EOS) != block.text.count("\n"):
            _refuse_eos(block, str.split)
        return tokens

    def words_of(self, block: Block, tokens: list[str]) -> int:
        """The words of a block, line ends included; `tokens` are its tokens."""
        return len(tokens)

    def encode_block(self, block: Block) -> tuple[NDArray[np.uint32], int]:
        tokens = self.tokens_of(block)
        try:
            ids = np.fromiter(map(self._lookup, tokens), dtype=np.uint32, count=len(tokens))
        except KeyError as error:
            self._refuse_unknown(block, error.args[0])
        return ids, self.words_of(block, tokens)

    def decode(self, ids: Iterable[int]) -> str:
        lines: list[list[str]] = [[]]
        for id in ids:
            token = self.token(id)
            if id == self.eos_id:
                lines.append([])
            else:
                lines[-1].append(token)
        return "\n".join(" ".join(line) for line in lines)

    def token(self, id: int) -> str:
        return self.vocabulary.tokens[self._check_id(id)]

    def state(self) -> dict[str, Any]:
        return {"kind": self.kind, "tokens": list(self.vocabulary.tokens)}

    def split_line(self, line: str) -> Sequence[str]:
        """The tokens of a line, without `<eos>`."""
        return line.split()

    def _refuse_unknown(self, block: Block, word: str) -> NoReturn:
        line = block.line
        for number, text in enumerate(block.text.split("\n"), block.line):
            if word in self.split_line(text):
                line = number
                break
        raise DataError(
            f"{block.source}, line {line}: the {self.unit} {word!r} is not in the vocabulary of "
            f"{len(self)} {self.unit}s, and that has no {self.vocabulary.unk!r} to stand for it. "
            f"Train with --min-count 2 (min_count=2): the rare {self.unit}s of the train text "
            "become '<unk>', and a model learns what to expect of unknown ones"
        )


class CharCodec(WordCodec):
    """Characters, each an id of a vocabulary; white space stays as it is.

    `<eos>` stands for a line end alone, and `<unk>` for a character outside the vocabulary alone:
    where these words stand in a text, they are five characters.
    """

    kind = "char"
    unit = "character"

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)
        long = next((t for t in vocabulary.tokens if len(t) != 1 and t not in (EOS, UNK)), None)
        if long is not None:
            raise DataError(f"a vocabulary of characters has the token {long!r}")
        unknown = -1 if self.unk_id is None else self.unk_id
        self._ids: NDArray[np.int32] = np.full(sys.maxunicode + 1, unknown, dtype=np.int32)
        for id, token in enumerate(vocabulary.tokens):
            if len(token) == 1:
                self._ids[ord(token)] = id
        self._ids[ord("\n")] = self.eos_id

    def tokens_of(self, block: Block) -> list[str]:
        return [EOS if character == "\n" else character for character in block.text]

    def words_of(self, block: Block, tokens: list[str]) -> int:
        return len(block.text.split()) + block.text.count("\n")

    def encode_block(self, block: Block) -> tuple[NDArray[np.uint32], int]:
        ids = self._ids[np.frombuffer(block.text.encode("utf-32-le"), dtype="<u4")]
        if self.unk_id is None and (missing := np.flatnonzero(ids < 0)).size:
            self._refuse_unknown(block, block.text[int(missing[0])])
        return ids.astype(np.uint32), self.words_of(block, [])

    def decode(self, ids: Iterable[int]) -> str:
        return "".join("\n" if id == self.eos_id else self.token(id) for id in ids)

    def split_line(self, line: str) -> Sequence[str]:
        return list(line)


class CallableCodec(WordCodec):
    """The tokens a function gives for each line, each an id of a vocabulary.

    vocabulary: as for WordCodec; `Vocabulary.of` makes one of what torchtext gives.
    tokenizer: from a line to its tokens. A function cannot be stored: `state()` keeps its name,
        and a codec made from that state decodes, but encodes only if it gets the tokenizer again.
        `None` makes such a codec.
    name: how messages call the tokenizer; by default the function's own name.
    """

    kind = "callable"
    whole_lines = True

    def __init__(
        self, vocabulary: Vocabulary, tokenizer: Tokenizer | None, name: str | None = None
    ) -> None:
        super().__init__(vocabulary)
        if tokenizer is not None and not callable(tokenizer):
            raise DataError(f"tokenizer must be a function from str to list of str: {tokenizer!r}")
        self.tokenizer = tokenizer
        self.name = name if name is not None else tokenizer_name(tokenizer)

    def split_line(self, line: str) -> Sequence[str]:
        if self.tokenizer is None:
            raise DataError(
                f"this vocabulary belongs to the tokenizer {self.name!r}, a function that is not "
                "stored with it: pass the function again (tokenizer=…), or tokenizer='whitespace' "
                "for text that is already in tokens with white space between"
            )
        return self.tokenizer(line)

    def tokens_of(self, block: Block) -> list[str]:
        if EOS in block.text:
            _refuse_eos(block, str.split)
        lines = [self.split_line(line) for line in block.lines()]
        for number, tokens in enumerate(lines, block.line):
            if isinstance(tokens, str) or not all(isinstance(token, str) for token in tokens):
                raise DataError(
                    f"{block.source}, line {number}: tokenizer must give a list of str, "
                    f"got {tokens!r:.80}"
                )
            if EOS in tokens:
                _refuse_eos(block, self.split_line)
        return list(chain.from_iterable((*tokens, EOS) for tokens in lines))

    def words_of(self, block: Block, tokens: list[str]) -> int:
        return len(block.text.split()) + block.text.count("\n")

    def state(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "tokens": list(self.vocabulary.tokens),
            "unk": self.vocabulary.unk,
            "tokenizer": self.name,
        }


class SentencePieceCodec(Codec):
    """The pieces of a sentencepiece model.

    White space is made plain first (one space between words), so that the text is the same
    sequence of words as for a WordCodec. The literal word `<unk>` is one piece, `unk_id`, which
    also stands for characters the model has not seen.

    sentencepiece has two characters for its own use: U+2581 for a space, U+2585 in training. In a
    text they are exchanged for U+FDD0 and U+FDD1, which Unicode sets aside for no character, and
    back when ids are decoded. A text that has those two is refused.

    model: the serialised model, of `SentencePieceCodec.train` or any other. It must have an end
        piece, whatever that is called.
    """

    kind = "sentencepiece"
    unit = "piece"

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._processor = _sentencepiece().SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            size = len(self)
            for id in range(size):
                self._processor.IdToPiece(id)
            self._processor.DecodeIds(list(range(size)))
        except (RuntimeError, OSError) as error:
            raise DataError(f"not a sentencepiece model: {error}") from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"the sentencepiece model has a piece that is not UTF-8: {error.object!r:.80}"
            ) from error
        self.eos_id = self._processor.eos_id()
        self.unk_id = self._processor.unk_id()
        for what, id in (("end", self.eos_id), ("unknown", self.unk_id)):
            if not 0 <= id < size:
                raise DataError(f"the sentencepiece model has no {what} piece")

    @classmethod
    def train(cls, blocks: Iterable[Block], vocab_size: int) -> SentencePieceCodec:
        """A unigram model of exactly `vocab_size` pieces, `<unk>` and `<eos>` among them.

        It is trained on the text in `blocks`: on all of it up to 500,000 stretches of at most 50
        words, beyond that on a sample of as many, drawn with a fixed seed, so that memory is
        bounded. One thread: the same text gives the same model.

        Raises DataError if the text cannot give that many pieces, saying how many it can.
        """
        size = require_integer("vocab_size", vocab_size, least=3)
        _sentencepiece()
        options = {
            "model_type": "unigram",
            "vocab_size": size,
            "character_coverage": 1.0,
            "normalization_rule_name": "identity",
            "input_sentence_size": 500_000,
            "shuffle_input_sentence": True,
            "max_sentence_length": 1 << 25,
            "num_threads": 1,
            "unk_id": 0,
            "unk_piece": UNK,
            "unk_surface": f" {UNK} ",
            "eos_id": 1,
            "eos_piece": EOS,
            "bos_id": -1,
            "pad_id": -1,
            "minloglevel": 3,
        }
        try:
            return cls(_train_aside(_stretches(blocks), options))
        except RuntimeError as error:
            raise DataError(_why_not_trained(size, str(error))) from error

    def __len__(self) -> int:
        return int(self._processor.GetPieceSize())

    def encode_block(self, block: Block) -> tuple[NDArray[np.uint32], int]:
        runs: list[str] = []
        ends: list[int] = []
        words = 0
        for line in _escaped_lines(block):
            line_words = line.split()
            words += len(line_words) + 1
            if UNK in line:
                for run in _runs_without_unk(line_words):
                    runs.append(" ".join(run))
                    ends.append(0)
                ends[-1] = 1
            else:
                runs.append(" ".join(line_words))
                ends.append(1)
        ids: list[int] = []
        between = (self._processor.unk_id(), self.eos_id)
        for pieces, end in zip(self._processor.EncodeAsIds(runs), ends, strict=True):
            ids += pieces
            ids.append(between[end])
        return np.array(ids, dtype=np.uint32), words

    def decode(self, ids: Iterable[int]) -> str:
        lines = self._lines_of(ids)
        text = "\n".join(" ".join(self._processor.DecodeIds(line).split()) for line in lines)
        return _unescaped(text)

    def token(self, id: int) -> str:
        return _unescaped(str(self._processor.IdToPiece(self._check_id(id))))

    def pieces(self) -> list[str]:
        """What each id adds to a text, in the order of ids: U+2581 is a space.

        `<unk>` stands between two, as `decode` has it, and `<eos>` is empty. Of U+2581 and U+2585
        themselves there are the stand-ins.
        """
        found = [str(self._processor.IdToPiece(id)) for id in range(len(self))]
        assert self.unk_id is not None
        found[self.unk_id] = f"\u2581{UNK}\u2581"
        found[self.eos_id] = ""
        return found

    def state(self) -> dict[str, Any]:
        return {"kind": self.kind, "model": base64.b64encode(self.model).decode("ascii")}


_ENDS = ("<eos>", "</s>", "<|endoftext|>", "<|end_of_text|>", "[EOS]", "[SEP]")
"""What the token is called, in the files of tokenizers, that a text or a sentence ends in."""


class TokenizersCodec(Codec):
    """What a file of Hugging Face's tokenizers package (tokenizer.json) makes of each line.

    Lines go to it as they are, so white space is its matter. No special tokens are added, but for
    the one that ends each line: the first that it has of `<eos>`, `</s>`, `<|endoftext|>`,
    `<|end_of_text|>`, `[EOS]` and `[SEP]`. A text that has it as a word is refused.

    model: the contents of the file.
    """

    kind = "tokenizers"
    unit = "piece"

    def __init__(self, model: str) -> None:
        self.model = model
        tokenizers = _tokenizers()
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(model)
            about = json.loads(model)["model"]
        except Exception as error:  # it has no kind of its own
            raise DataError(f"not a file of Hugging Face tokenizers: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self._size = max(ids.values(), default=-1) + 1
        end = next((token for token in _ENDS if token in ids), None)
        if end is None:
            raise DataError(
                f"the file of Hugging Face tokenizers has none of {', '.join(_ENDS)}, which a "
                "line's end could be marked with"
            )
        self.end: str = end
        self.eos_id = ids[end]
        self.unk_id = ids.get(about.get("unk_token"), about.get("unk_id"))

    def __len__(self) -> int:
        return self._size

    def encode_block(self, block: Block) -> tuple[NDArray[np.uint32], int]:
        if self.end in block.text:
            line = block.line + block.text[: block.text.index(self.end)].count("\n")
            raise DataError(
                f"{block.source}, line {line}: the text has {self.end!r}, which is reserved for "
                "line ends and added at each of them: take it out of the text"
            )
        lines = block.lines()
        encodings = self._tokenizer.encode_batch(lines, add_special_tokens=False)
        ids = [id for encoding in encodings for id in (*encoding.ids, self.eos_id)]
        return np.array(ids, dtype=np.uint32), len(block.text.split()) + len(lines)

    def decode(self, ids: Iterable[int]) -> str:
        decode = self._tokenizer.decode
        return "\n".join(decode(line, skip_special_tokens=False) for line in self._lines_of(ids))

    def token(self, id: int) -> str:
        return self._tokenizer.id_to_token(self._check_id(id)) or f"<{id}>"

    def state(self) -> dict[str, Any]:
        return {"kind": self.kind, "model": self.model}


def read_codec(path: str | os.PathLike[str]) -> Codec:
    """The codec of a tokenizer's file: FILE.json is Hugging Face's, any other sentencepiece's.

    Raises DataError for what is neither, and where the package that reads it is missing.
    """
    name = os.fspath(path)
    try:
        with open_binary(name) as file:
            contents = file.read()
    except DataError as error:
        raise DataError(
            f"tokenizer must be {', '.join(TOKENIZERS)}, or the file of a sentencepiece model or "
            f"of Hugging Face tokenizers: {error}"
        ) from error
    try:
        if name.endswith(".json"):
            return TokenizersCodec(contents.decode())
        return SentencePieceCodec(contents)
    except UnicodeDecodeError as error:
        raise DataError(f"tokenizer {name!r}: not UTF-8 ({error.reason})") from error
    except DataError as error:
        raise DataError(f"tokenizer {name!r}: {error}") from error


def make_codec(tokenizer: Tokenizer | str, vocab: Any) -> WordCodec:
    """A codec from a tokenizer function and a vocabulary of any shape `Vocabulary.of` takes.

    tokenizer: a function from str to list of str, or "word" (also "whitespace", or `str.split`
        itself) for the words between white space, or "char"; the codecs of these can be stored
        whole.
    """
    vocabulary = Vocabulary.of(vocab)
    if tokenizer == "char" and vocabulary.unk == UNK:
        return CharCodec(vocabulary)
    if is_whitespace(tokenizer) and vocabulary.unk == UNK:
        return WordCodec(vocabulary)
    if is_whitespace(tokenizer):
        return CallableCodec(vocabulary, str.split, "whitespace")
    if isinstance(tokenizer, str):
        raise DataError(f"tokenizer must be a function, 'word' or 'char', got {tokenizer!r}")
    return CallableCodec(vocabulary, tokenizer)


_STATE_TYPES: dict[str, dict[str, type]] = {
    "word": {"tokens": list},
    "char": {"tokens": list},
    "callable": {"tokens": list, "unk": str, "tokenizer": str},
    "sentencepiece": {"model": str},
    "tokenizers": {"model": str},
}
"""What the state of each kind of codec holds."""


def codec_from_state(state: Any, tokenizer: Tokenizer | str | None = None) -> Codec:
    """The codec that `Codec.state()` describes.

    tokenizer: for a CallableCodec, its function or "whitespace". Without it the codec decodes,
        and raises DataError when it is to encode. For other codecs it must be None.

    Raises DataError if the state is not one this version knows.
    """
    kind = state.get("kind") if isinstance(state, dict) else None
    types = _STATE_TYPES.get(kind, {}) if isinstance(kind, str) else {}
    for name, wanted in types.items():
        if not isinstance(state.get(name), wanted):
            raise DataError(
                f"the state of the codec of kind {kind!r} is damaged: {name!r} must be a "
                f"{wanted.__name__}, got {type(state.get(name)).__name__}"
            )
    if kind == "callable":
        vocabulary = Vocabulary(state["tokens"], unk=state["unk"])
        if tokenizer is None and state["tokenizer"] == "whitespace":
            tokenizer = "whitespace"
        function = str.split if is_whitespace(tokenizer) else tokenizer
        return CallableCodec(vocabulary, function, state["tokenizer"])  # type: ignore[arg-type]
    if tokenizer is not None:
        raise DataError(f"tokenizer is for a codec of kind 'callable' only, this is {kind!r}")
    if kind in ("word", "char"):
        return (WordCodec if kind == "word" else CharCodec)(Vocabulary(state["tokens"]))
    if kind == "tokenizers":
        return TokenizersCodec(state["model"])
    if kind == "sentencepiece":
        try:
            model = base64.b64decode(state["model"], validate=True)
        except ValueError as error:  # binascii's is one, and so is that for what is not ASCII
            raise DataError(f"the sentencepiece model is damaged: {error}") from error
        return SentencePieceCodec(model)
    raise DataError(
        f"the state of a codec must have kind {', '.join(map(repr, _STATE_TYPES))}, got "
        f"{reprlib.repr(kind)}"
    )


def is_whitespace(tokenizer: object) -> bool:
    """Whether a tokenizer argument means plain white space."""
    return tokenizer is str.split or (
        isinstance(tokenizer, str) and tokenizer in ("word", "whitespace")
    )


def tokenizer_name(tokenizer: object) -> str:
    """The name a tokenizer function goes by."""
    return getattr(tokenizer, "__qualname__", None) or type(tokenizer).__qualname__


class _WithUnknown(dict[str, int]):
    """A dict that gives one fixed id for what it lacks."""

    unk_id: int

    def __missing__(self, _: str) -> int:
        return self.unk_id


def _lookup(vocabulary: Vocabulary) -> Callable[[str], int]:
    if vocabulary.unk_id is None:
        return vocabulary.ids.__getitem__
    ids = _WithUnknown(vocabulary.ids)
    ids.unk_id = vocabulary.unk_id
    return ids.__getitem__


def _refuse_eos(block: Block, split: Callable[[str], Sequence[str]]) -> None:
    for number, line in enumerate(block.text.split("\n"), block.line):
        if EOS in line and EOS in split(line):
            raise DataError(
                f"{block.source}, line {number}: the text has the word '<eos>', which is reserved "
                "for line ends and added at each of them: take it out of the text"
            )


def _runs_without_unk(words: list[str]) -> Iterator[list[str]]:
    """The words between one `<unk>` and the next: as many runs as `<unk>`s and one."""
    start = 0
    for place, word in enumerate(words):
        if word == UNK:
            yield words[start:place]
            start = place + 1
    yield words[start:]


STAND_INS = {"\u2581": "\ufdd0", "\u2585": "\ufdd1"}
"""What goes to sentencepiece in place of the characters that it has for its own use."""


def _escaped_lines(block: Block) -> list[str]:
    """The lines of a block as sentencepiece gets them."""
    if EOS in block.text:
        _refuse_eos(block, str.split)
    text = block.text
    for character, stand_in in STAND_INS.items():
        if stand_in in text:
            line = block.line + text[: text.index(stand_in)].count("\n")
            raise DataError(
                f"{block.source}, line {line}: the text has U+{ord(stand_in):X}, which is no "
                f"character; with sentencepiece it stands for {character!r}: take it out of the "
                "text, or use the tokenizer 'word'"
            )
        text = text.replace(character, stand_in)
    return text.split("\n")[:-1]


def _unescaped(text: str) -> str:
    for character, stand_in in STAND_INS.items():
        text = text.replace(stand_in, character)
    return text


def _stretches(blocks: Iterable[Block]) -> Iterator[str]:
    """Stretches of at most 50 words within lines and between `<unk>`s, to train on."""
    for block in blocks:
        for line in _escaped_lines(block):
            for run in _runs_without_unk(line.split()):
                for start in range(0, len(run), 50):
                    yield " ".join(run[start : start + 50])


_TRAINER = """
import json, os, sys
import sentencepiece

def sentences():
    for line in sys.stdin.buffer:
        if line == b"\\n":
            return
        yield line[:-1].decode()
    os._exit(1)  # whoever writes them has ended before their end

sentencepiece.SentencePieceTrainer.Train(
    sentence_iterator=sentences(), model_writer=sys.stdout.buffer, **json.loads(sys.argv[1])
)
"""


def _train_aside(sentences: Iterable[str], options: Mapping[str, Any]) -> bytes:
    """The model that sentencepiece's trainer makes of sentences, none of them empty.

    The trainer runs for minutes in C++, where it hears no Ctrl-C and takes an error in its
    sentences for their end. So it runs in a process of its own, which ends with this call.

    Raises RuntimeError with the trainer's message.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", _TRAINER, json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,  # Ctrl-C is for this process, which then ends that one
    )
    with process:
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has failed, and says why
                for sentence in sentences:
                    process.stdin.write(sentence.encode() + b"\n")
                process.stdin.write(b"\n")
            model, said = process.communicate()
        finally:
            process.kill()
    if process.returncode != 0:
        lines = said.decode(errors="replace").strip().splitlines()
        raise RuntimeError(lines[-1] if lines else f"exit code {process.returncode}")
    return model


def _why_not_trained(size: int, message: str) -> str:
    most = re.search(r"value <= (\d+)", message)
    if most:
        return (
            f"vocab_size must be at most {most[1]} for sentencepiece on this train text, got {size}"
        )
    least = re.search(r"smaller than required_chars\. (\d+) vs (\d+)", message)
    if least:
        return (
            f"vocab_size must be at least {least[2]} for sentencepiece on this train text (one "
            f"for each character), got {size}"
        )
    return f"sentencepiece cannot train a model of vocab_size {size}: {message}"


def _sentencepiece() -> Any:
    try:
        import sentencepiece
    except ImportError as error:
        raise DataError(
            "tokenizer 'sentencepiece' needs the sentencepiece package: "
            "pip install 'symrnn[sentencepiece]'"
        ) from error
    return sentencepiece


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise DataError(
            "a tokenizer's .json file needs the tokenizers package of Hugging Face: "
            "pip install 'symrnn[tokenizers]'"
        ) from error
    return tokenizers
