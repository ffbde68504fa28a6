"""Codecs: from a line of text to ids and back.

A codec is one of
- WordCodec: the words between white space (`kind` "word"), as in the PTB and WikiText literature;
- CallableCodec: the tokens that any function from str to list of str gives ("callable");
- SentencePieceCodec: the subword pieces of a sentencepiece model ("sentencepiece").

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
from data.text import Block, is_unicode, strip_line_end
from data.vocabulary import EOS, UNK, Vocabulary

Tokenizer = Callable[[str], Sequence[str]]


class Codec(abc.ABC):
    """What all codecs have.

    kind: the name of the sort of codec, as it stands in `state()`.
    eos_id: the id of `<eos>`, the end of a line.
    unk_id: the id of what is unknown, or None.
    whole_lines: whether `encode_block` needs blocks of whole lines.
    """

    kind: str
    eos_id: int
    unk_id: int | None
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
            f"{block.source}, line {line}: the word {word!r} is not in the vocabulary of "
            f"{len(self)} words, and that has no {self.vocabulary.unk!r} to stand for it. Train "
            "with --min-count 2 (min_count=2): the rare words of the train text become '<unk>', "
            "and a model learns what to expect of unknown ones"
        )


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

    model: the serialised model. It must have `<unk>` and `<eos>` as its unknown and end pieces,
        as `SentencePieceCodec.train` makes it.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._processor = _sentencepiece().SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
            size = len(self)
            pieces = [self._processor.IdToPiece(id) for id in range(size)]
            self._processor.DecodeIds(list(range(size)))
        except (RuntimeError, OSError) as error:
            raise DataError(f"not a sentencepiece model: {error}") from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"the sentencepiece model has a piece that is not UTF-8: {error.object!r:.80}"
            ) from error
        self.eos_id = self._processor.eos_id()
        self.unk_id = self._processor.unk_id()
        for what, id, wanted in (("end", self.eos_id, EOS), ("unknown", self.unk_id, UNK)):
            if not 0 <= id < size or pieces[id] != wanted:
                raise DataError(f"the sentencepiece model has no {what} piece {wanted!r}")

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
        lines: list[list[int]] = [[]]
        for id in ids:
            self._check_id(id)
            if id == self.eos_id:
                lines.append([])
            else:
                lines[-1].append(int(id))
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


def make_codec(tokenizer: Tokenizer | str, vocab: Any) -> WordCodec:
    """A codec from a tokenizer function and a vocabulary of any shape `Vocabulary.of` takes.

    tokenizer: a function from str to list of str, or "word" (also "whitespace", or `str.split`
        itself) for the words between white space, whose codec can be stored whole.
    """
    vocabulary = Vocabulary.of(vocab)
    if is_whitespace(tokenizer) and vocabulary.unk == UNK:
        return WordCodec(vocabulary)
    if is_whitespace(tokenizer):
        return CallableCodec(vocabulary, str.split, "whitespace")
    if isinstance(tokenizer, str):
        raise DataError(f"tokenizer must be a function, 'word' or 'whitespace', got {tokenizer!r}")
    return CallableCodec(vocabulary, tokenizer)


_STATE_TYPES: dict[str, dict[str, type]] = {
    "word": {"tokens": list},
    "callable": {"tokens": list, "unk": str, "tokenizer": str},
    "sentencepiece": {"model": str},
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
    if kind == "word":
        return WordCodec(Vocabulary(state["tokens"]))
    if kind == "sentencepiece":
        try:
            model = base64.b64decode(state["model"], validate=True)
        except ValueError as error:  # binascii's is one, and so is that for what is not ASCII
            raise DataError(f"the sentencepiece model is damaged: {error}") from error
        return SentencePieceCodec(model)
    raise DataError(
        f"the state of a codec must have kind 'word', 'callable' or 'sentencepiece', got "
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
