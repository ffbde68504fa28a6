"""Encoded text on disk: a header and the ids, memory-mapped.

Layout of a file, all numbers little-endian:

| bytes | what |
|---|---|
| 0–7 | the magic `SYMRNNID` |
| 8–9, 10–11 | version of the layout (1); bytes per id (2 or 4, unsigned) |
| 12–15 | size of the vocabulary: every id is below it |
| 16–23, 24–31, 32–39 | counts: tokens (ids), words, lines |
| 40–71, 72–103 | SHA-256 of the codec's state; SHA-256 of the ids' bytes |
| 104–107 | CRC-32 of bytes 0–103 |
| 108–127 | zero |
| 128–… | the ids |

Ids take 2 bytes if the vocabulary has at most 65,536, else 4. A file is written aside and renamed
when it is complete, so that a file under its own name is whole.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from data.cache import umask
from data.codec import Codec, Tokenizer, WordCodec, make_codec
from data.errors import DataError, require_integer
from data.text import Block, open_binary
from data.vocabulary import EOS, UNK

VERSION = 1
_MAGIC = b"SYMRNNID"
_HEADER = struct.Struct("<8sHHIQQQ32s32sI")
_HEADER_BYTES = 128
_CHUNK = 1 << 20  # bytes to verify, ids to read back; whole ids in any case


class EncodedText:
    """A text as ids, opened read-only.

    ids: the ids, 1-D np.memmap of little-endian uint16 or uint32, shape (tokens,).
    tokens, words, lines: how many ids, words (between white space, and one per line end) and
        lines the text has.
    vocabulary_size: every id is below it.
    codec_fingerprint: the fingerprint of the codec that made the ids.
    ids_sha256: of the ids' bytes, in hex.
    """

    def __init__(self, file: BinaryIO, name: str, path: Path | None) -> None:
        self.path = path
        file.seek(0)
        header = file.read(_HEADER_BYTES)
        size = os.fstat(file.fileno()).st_size
        if len(header) < _HEADER_BYTES or header[:8] != _MAGIC:
            raise DataError(f"{name} is not an encoded text of symrnn")
        (_, version, width, vocabulary, tokens, words, lines, codec, ids, crc) = _HEADER.unpack(
            header[: _HEADER.size]
        )
        if version != VERSION:
            raise DataError(
                f"{name} has version {version} of the encoded layout, this symrnn reads {VERSION}: "
                "encode the text again"
            )
        if crc != zlib.crc32(header[: _HEADER.size - 4]) or width not in (2, 4):
            raise DataError(f"{name} is damaged: its header does not match its checksum")
        if size != _HEADER_BYTES + tokens * width:
            raise DataError(
                f"{name} is damaged: it has {size} bytes, its header promises "
                f"{_HEADER_BYTES + tokens * width}"
            )
        if not 0 < lines <= min(tokens, words):
            raise DataError(
                f"{name} is damaged: each line end is a token and a word, but its header has "
                f"{lines} lines, {tokens} tokens and {words} words"
            )
        self.name = name
        self.tokens: int = tokens
        self.words: int = words
        self.lines: int = lines
        self.vocabulary_size: int = vocabulary
        self.codec_fingerprint: str = codec.hex()
        self.ids_sha256: str = ids.hex()
        self.ids: np.memmap[Any, Any] = np.memmap(
            cast(Any, file), dtype=f"<u{width}", mode="r", offset=_HEADER_BYTES, shape=(tokens,)
        )

    def __len__(self) -> int:
        return self.tokens

    def __repr__(self) -> str:
        return f"EncodedText({self.name}, {self.tokens} tokens, {self.lines} lines)"

    def count(self, id: int) -> int:
        """How many of the ids are this one."""
        step = _CHUNK  # not all at once: an array of bools as long as the text
        chunks = (self.ids[start : start + step] for start in range(0, self.tokens, step))
        return sum(int(np.count_nonzero(chunk == id)) for chunk in chunks)

    def counts(self) -> NDArray[np.int64]:
        """How many of the ids are each one, (vocabulary_size,)."""
        size, step = self.vocabulary_size, _CHUNK
        counts: NDArray[np.int64] = np.zeros(size, dtype=np.int64)
        for start in range(0, self.tokens, step):
            counts += np.bincount(self.ids[start : start + step], minlength=size)
        return counts

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], codec: Codec | None = None, *, verify: bool = False
    ) -> EncodedText:
        """The encoded text in a file.

        codec: if given, the codec the file must have been made with.
        verify: read the whole file, and compare its ids with the header and the codec.

        Raises DataError if the file is missing, foreign, cut short or damaged, or of another codec.
        """
        name = repr(os.fspath(path))
        with open_binary(path) as file:
            text = cls(file, name, Path(path))
        if codec is not None and (text.codec_fingerprint, text.vocabulary_size) != (
            codec.fingerprint(),
            len(codec),
        ):
            raise DataError(f"{name} was made with another codec than the one beside it")
        if verify:
            text.verify(None if codec is None else codec.eos_id)
        return text

    def verify(self, eos_id: int | None = None) -> None:
        """DataError if the ids have not the checksum, range and line ends that the header promises.

        eos_id: of the codec, for the line ends.
        """
        assert self.path is not None, "a temporary text was just written"
        digest = hashlib.sha256()
        largest = ends = 0
        with open_binary(self.path) as file:  # reading the map would count as memory in use
            file.seek(_HEADER_BYTES)
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
                ids = np.frombuffer(chunk, self.ids.dtype)
                largest = max(largest, int(ids.max()))
                ends += int(np.count_nonzero(ids == eos_id))
        if digest.hexdigest() != self.ids_sha256:
            raise DataError(f"{self.name} is damaged: its ids do not match their checksum")
        if largest >= self.vocabulary_size:
            raise DataError(
                f"{self.name} is damaged: it has the id {largest}, of a vocabulary of "
                f"{self.vocabulary_size}"
            )
        if eos_id is not None and ends != self.lines:
            raise DataError(
                f"{self.name} is damaged: it has {ends} line ends, its header promises {self.lines}"
            )


class _Writer:
    """Writes one encoded file aside; `finish` gives it its name, leaving without it removes it.

    path: None for a nameless temporary file that is gone when nothing uses it.
    """

    def __init__(self, path: str | os.PathLike[str] | None, width: int) -> None:
        self.path = Path(path) if path is not None else None
        self._where = str(path) if path is not None else tempfile.gettempdir()
        self.tokens = self.words = self.lines = 0
        self._dtype = np.dtype(f"<u{width}")
        self._width = width
        self._digest = hashlib.sha256()
        self._aside: str | None = None
        with _explained(self._where):
            if self.path is None:
                self._file = cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115
            else:
                number, self._aside = tempfile.mkstemp(
                    dir=self.path.parent, prefix=f".{self.path.name}.", suffix=".part"
                )
                self._file = os.fdopen(number, "w+b")

    def __enter__(self) -> _Writer:
        self._write(bytes(_HEADER_BYTES))
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # what could not be written is not wanted any more
            self._file.close()  # a map of it stays
        if self._aside is not None:
            os.unlink(self._aside)

    def append(self, ids: NDArray[Any], words: int, lines: int) -> None:
        data = np.ascontiguousarray(ids, dtype=self._dtype).data
        self._digest.update(data)
        self._write(data)
        self.tokens += len(ids)
        self.words += words
        self.lines += lines

    def finish(self, codec: Codec) -> EncodedText:
        header = _HEADER.pack(
            _MAGIC, VERSION, self._width, len(codec), self.tokens, self.words, self.lines,
            bytes.fromhex(codec.fingerprint()), self._digest.digest(), 0,
        )[:-4]  # fmt: skip
        with _explained(self._where):
            self._file.seek(0)
            self._write(header + struct.pack("<I", zlib.crc32(header)))
            self._file.flush()
            if self.path is None:
                return EncodedText(self._file, "the text", None)
            os.fsync(self._file.fileno())
            self._file.close()
            assert self._aside is not None
            os.chmod(self._aside, 0o666 & ~umask())
            os.replace(self._aside, self.path)
            self._aside = None
        return EncodedText.open(self.path)

    def read_back(self) -> Iterable[NDArray[Any]]:
        """The ids written so far, in chunks."""
        with _explained(self._where):
            self._file.flush()
            self._file.seek(_HEADER_BYTES)
        left = self.tokens
        while left:
            count = min(left, _CHUNK)
            with _explained(self._where):
                data = self._file.read(count * self._width)
            yield np.frombuffer(data, dtype=self._dtype)
            left -= count

    def _write(self, data: Any) -> None:
        with _explained(self._where):
            self._file.write(data)


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turns an OSError while writing into a DataError that names the file."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else error.strerror or str(error)
        raise DataError(f"{where!r} cannot be written: {why}") from error


def encode_blocks(
    blocks: Iterable[Block], codec: Codec, out: str | os.PathLike[str] | None
) -> EncodedText:
    """The text in `blocks`, encoded with `codec` into the file `out`.

    out: None for a temporary file without a name.
    """
    with _Writer(out, id_width(len(codec))) as writer:
        for block in blocks:
            ids, words = codec.encode_block(block)
            writer.append(ids, words, block.text.count("\n"))
        return writer.finish(codec)


def encode_first(
    blocks: Iterable[Block],
    tokenizer: Tokenizer | str,
    vocab_size: int | None,
    out: str | os.PathLike[str],
    *,
    min_count: int | None = None,
) -> tuple[WordCodec, EncodedText]:
    """The vocabulary of a text and the text encoded with it, in one pass over the text.

    tokenizer: "word", "char", or a function from a line to its tokens.
    vocab_size: None for all tokens in order of first appearance. Otherwise the vocabulary has at
        most so many: `<eos>`, `<unk>` (added if the text lacks it) and the most frequent others,
        of equally frequent ones the first to appear; the rest of the text becomes `<unk>`.
    min_count: None for all tokens. Otherwise a token that stands fewer times in the text becomes
        `<unk>`, which is added if the text lacks it.

    Ids are first given in order of appearance in 32 bits; further passes, over the ids, count,
    drop and narrow them.
    """
    if vocab_size is not None:
        vocab_size = require_integer("vocab_size", vocab_size, least=2)
    if min_count is not None:
        min_count = require_integer("min_count", min_count, least=1)
    seen = _FirstAppearance()
    probe = make_codec(tokenizer, [EOS])  # stands in until the tokens are known
    with _Writer(out, 4) as provisional:
        for block in blocks:
            tokens = probe.tokens_of(block)
            ids = np.fromiter(map(seen.__getitem__, tokens), dtype=np.uint32, count=len(tokens))
            provisional.append(ids, probe.words_of(block, tokens), block.text.count("\n"))
        vocabulary = list(seen)
        if vocab_size is not None or min_count is not None:
            counts: NDArray[np.int64] = np.zeros(len(seen), dtype=np.int64)
            for ids in provisional.read_back():
                counts += np.bincount(ids, minlength=len(seen))
            vocabulary = _most_frequent(vocabulary, counts, vocab_size, min_count or 1)
        codec = make_codec(tokenizer, vocabulary)
        width = id_width(len(codec))
        if width == 4 and vocabulary == list(seen):
            return codec, provisional.finish(codec)
        places = codec.vocabulary.ids
        unk = codec.unk_id
        table = np.array([places.get(token, unk) for token in seen], dtype=f"<u{width}")
        with _Writer(out, width) as writer:
            for ids in provisional.read_back():
                writer.append(table[ids], 0, 0)
            writer.words, writer.lines = provisional.words, provisional.lines
            return codec, writer.finish(codec)


def id_width(vocabulary_size: int) -> int:
    """Bytes per id: 2 for a vocabulary of at most 65,536 ids, else 4."""
    return 2 if vocabulary_size <= 1 << 16 else 4


class _FirstAppearance(dict[str, int]):
    """Gives each new token the next id."""

    def __missing__(self, token: str) -> int:
        id = self[token] = len(self)
        return id


def _most_frequent(
    tokens: list[str], counts: NDArray[np.int64], size: int | None, least: int
) -> list[str]:
    """The most frequent tokens, in order of first appearance, `<unk>` last if the text lacks it."""
    chosen: set[str] = set()
    for place in np.argsort(-counts, kind="stable"):
        if counts[place] < least or (size is not None and len(chosen) == size - 2):
            break
        if tokens[place] not in (EOS, UNK):
            chosen.add(tokens[place])
    chosen |= {EOS, UNK}
    return [token for token in tokens if token in chosen] + ([] if UNK in tokens else [UNK])
