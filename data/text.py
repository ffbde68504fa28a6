"""Text files read in bounded memory.

What counts as a line, everywhere in this package:

- a line ends at `\\n` and nowhere else: U+2028, U+0085, form feeds and a lone `\\r` are white space
  within a line; one `\\r` just before the `\\n` belongs to the line end (CRLF files);
- a last line without `\\n` is a line like any other; an empty line is a line;
- the words of a line are what `str.split()` gives: tabs, no-break spaces and every other Unicode
  white space separate words;
- a UTF-8 byte order mark at the start of a file is not part of the text.

Refused with a DataError that names the file and the place: bytes that are not UTF-8 (in a str:
surrogates, as which Python has such bytes of a command line), NUL bytes (a sign of UTF-16 or of a
binary file), a missing file, a file without any text.
"""

from __future__ import annotations

import codecs
import gzip
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from data.errors import DataError

BLOCK_BYTES = 1 << 16
LONGEST_BYTES = 16 << 20
"""The longest word, and for tokenizers that need whole lines the longest line, in bytes."""


@dataclass(frozen=True)
class Block:
    """A stretch of text that fits into memory.

    text: whole words; every `\\n` in it is the end of a line.
    line: the number, from 1, of the line the first character belongs to.
    source: what the text comes from, for messages.
    """

    text: str
    line: int
    source: str

    def lines(self) -> list[str]:
        """The lines of a block that consists of whole lines."""
        return self.text.split("\n")[:-1]


def open_binary(path: str | os.PathLike[str]) -> BinaryIO:
    """The file or pipe opened for reading bytes, or a DataError that says why not."""
    try:
        if os.path.isdir(path):
            raise DataError(f"{os.fspath(path)!r} is a folder, want a text file")
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"{os.fspath(path)!r} cannot be read: {error.strerror}") from error


def standard_input() -> BinaryIO:
    """Standard input as bytes, or a DataError if it is closed."""
    if sys.stdin is None:
        raise DataError("standard input is closed: there is no text to read")
    return sys.stdin.buffer


def read_blocks(
    path: str | os.PathLike[str] | BinaryIO, *, whole_lines: bool = True, progress: bool = False
) -> Iterator[Block]:
    """The text of a file, block by block.

    path: of a file or a pipe, compressed if its name ends in .gz; or a binary stream, which is read
        to its end and closed.
    whole_lines: every block ends at a line end. Otherwise a block may end after any word, so
        that a single line of any length can be read.
    progress: show a bar on a terminal.
    """
    compressed = False
    if isinstance(path, (str, os.PathLike)):
        name, stream = repr(os.fspath(path)), open_binary(path)
        compressed = os.fspath(path).endswith(".gz")
    else:
        name, stream = str(getattr(path, "name", "the text")), path
    with (
        stream as raw,
        cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if compressed else raw as file,
        progress_bar(_size(raw), f"reading {name}", progress) as bar,
    ):
        done = 0

        def read(count: int) -> bytes:
            nonlocal done
            try:
                data = file.read(count)
            except (OSError, EOFError, zlib.error) as error:  # the latter two of a damaged .gz
                why = getattr(error, "strerror", None) or str(error)
                raise DataError(f"{name} cannot be read: {why}") from error
            before, done = done, raw.tell() if compressed else done + len(data)
            bar.update(done - before)
            return data

        rest = read(len(codecs.BOM_UTF8))
        start = len(rest) if rest == codecs.BOM_UTF8 else 0
        offset, line, rest = start, 1, rest[start:]
        ended = True
        while True:
            chunk = read(BLOCK_BYTES)
            data = rest + chunk
            cut = len(data) if not chunk else _last_end(data, whole_lines)
            if cut == 0 and len(data) > LONGEST_BYTES:
                raise DataError(
                    f"{name}, line {line}, byte {offset}: a "
                    f"{'line' if whole_lines else 'word'} of more than {LONGEST_BYTES} bytes"
                    + (": break it up, or use the tokenizer 'word'" if whole_lines else "")
                )
            if cut:
                text = _decode(data[:cut], name, offset)
                ended = text.endswith("\n")
                if not chunk and not ended:
                    text, ended = text + "\n", True
                yield Block(_unix_line_ends(text), line, name)
                line += text.count("\n")
                offset += cut
            rest = data[cut:]
            if not chunk:
                break
        if not ended:
            yield Block("\n", line, name)
        if line == 1 and ended and offset == start:
            raise DataError(f"{name} is empty: it has no line of text")


def blocks_of_lines(lines: Iterable[str], name: str) -> Iterator[Block]:
    """The same from lines in memory (or from any iterable of str), each with or without its `\\n`.

    DataError, naming `name` and the line's number, for an item that is no str, has a `\\n` within,
    a NUL or a surrogate; and if there is no line at all.
    """
    gathered: list[str] = []
    size, first, number = 0, 1, 0
    try:
        iterator = iter(lines)
    except TypeError:
        raise DataError(
            f"{name} must be a path or an iterable of lines, got {type(lines).__name__}"
        ) from None
    for number, line in enumerate(iterator, 1):
        if not isinstance(line, str):
            raise DataError(f"{name}, line {number}: want a str, got {type(line).__name__}")
        line = strip_line_end(line)
        if "\n" in line:
            raise DataError(f"{name}, line {number}: a line end within the line: {line[:80]!r}")
        if "\0" in line:
            raise DataError(f"{name}, line {number}: a NUL character is not text")
        if not is_unicode(line):
            raise DataError(f"{name}, line {number}: not UTF-8: {line[:80]!r}")
        gathered.append(line)
        size += len(line)
        if size > BLOCK_BYTES:
            yield Block("\n".join(gathered) + "\n", first, name)
            gathered, size, first = [], 0, number + 1
    if gathered:
        yield Block("\n".join(gathered) + "\n", first, name)
    if number == 0:
        raise DataError(f"{name} is empty: it has no line of text")


def strip_line_end(line: str) -> str:
    """The line without its `\\n` or `\\r\\n`."""
    if line.endswith("\n"):
        line = line[:-1]
    return line[:-1] if line.endswith("\r") else line


def is_unicode(text: str) -> bool:
    """Whether a str can be written as UTF-8: it has no surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def progress_bar(total: int | None, what: str, show: bool) -> Any:
    """A tqdm bar over bytes on a terminal; one that draws nothing if not asked for or no tqdm."""
    if show and sys.stderr is not None and sys.stderr.isatty():
        try:
            from tqdm import tqdm
        except ImportError:
            return _NoBar()
        return tqdm(total=total, desc=what, unit="B", unit_scale=True, leave=False)
    return _NoBar()


def _size(file: BinaryIO) -> int | None:
    """How many bytes a file has; None for a pipe and for a stream in memory."""
    try:
        return os.fstat(file.fileno()).st_size or None
    except OSError:
        return None


class _NoBar:
    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, _: int) -> None:
        pass


def _last_end(data: bytes, whole_lines: bool) -> int:
    """How many bytes of data make whole lines (or whole words)."""
    cut = data.rfind(b"\n") + 1
    return cut if whole_lines else max(cut, data.rfind(b" ") + 1, data.rfind(b"\t") + 1)


def _decode(data: bytes, name: str, offset: int) -> str:
    nul = data.find(b"\0")
    if nul >= 0:
        raise DataError(
            f"{name}, byte {offset + nul}: a NUL byte: the file is binary, or not UTF-8"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}, byte {offset + error.start}: not UTF-8 ({error.reason})"
        ) from error


def _unix_line_ends(text: str) -> str:
    if "\r" not in text:
        return text
    # A last line "…\r" without "\n" had one appended before this.
    return text.replace("\r\n", "\n")
