"""The tokens of a corpus and their ids."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data.errors import DataError
from data.text import is_unicode

EOS = "<eos>"
UNK = "<unk>"


class Vocabulary:
    """Distinct tokens in a fixed order; a token's id is its place, counted from 0.

    tokens: every token once. `<eos>`, which marks the end of a line, must be among them.
    unk: the token that stands for unknown ones. It is used if it is among the tokens; a
        vocabulary without it knows its own tokens only.

    Raises DataError if there is no token, if one is empty, not a str, not UTF-8 or there twice, or
    if `<eos>` is missing.
    """

    def __init__(self, tokens: Iterable[str], *, unk: str = UNK) -> None:
        self.tokens: tuple[str, ...] = tuple(tokens)
        if not self.tokens:
            raise DataError("the vocabulary is empty: it needs at least the token '<eos>'")
        self.ids: dict[str, int] = {}
        for place, token in enumerate(self.tokens):
            if not isinstance(token, str) or not token:
                raise DataError(
                    f"vocabulary: token {place} must be a non-empty str, got {reprlib.repr(token)}"
                )
            if self.ids.setdefault(token, place) != place:
                raise DataError(
                    f"vocabulary: token {token!r} stands at both {self.ids[token]} and {place}"
                )
        if not is_unicode("".join(self.tokens)):
            place = next(i for i, token in enumerate(self.tokens) if not is_unicode(token))
            raise DataError(f"vocabulary: token {place} is not UTF-8: {self.tokens[place]!r}")
        if EOS not in self.ids:
            raise DataError(
                f"the vocabulary of {len(self.tokens)} tokens lacks '<eos>', the mark of a line "
                "end: add it (with torchtext: specials=['<unk>', '<eos>'])"
            )
        self.unk = unk
        self.eos_id: int = self.ids[EOS]
        self.unk_id: int | None = self.ids.get(unk)

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: object) -> bool:
        return token in self.ids

    def __getitem__(self, token: str) -> int:
        """The id of `token`; KeyError if it is not in the vocabulary."""
        return self.ids[token]

    @classmethod
    def of(cls, source: Any) -> Vocabulary:
        """A Vocabulary from anything shaped like one.

        source: a Vocabulary, a list of tokens, a dict from token to id, or an object with
            `get_itos()` (what torchtext builds) or an `itos` list. The ids of a dict must be
            0 … n-1. Where the object has a default index, the token there plays `<unk>`.
        """
        if isinstance(source, Vocabulary):
            return source
        unk = UNK
        if isinstance(source, Mapping):
            tokens = _tokens_of_mapping(source)
        elif callable(getattr(source, "get_itos", None)):
            tokens = list(source.get_itos())
            default = source.get_default_index() if hasattr(source, "get_default_index") else None
            if default is not None:
                unk = tokens[default]
        elif isinstance(getattr(source, "itos", None), Sequence):
            tokens = list(source.itos)
        elif isinstance(source, Sequence) and not isinstance(source, (str, bytes)):
            tokens = list(source)
        else:
            raise DataError(
                "vocab must be a list of tokens, a dict from token to id, or an object with "
                f"get_itos(); got {type(source).__name__}"
            )
        return cls(tokens, unk=unk)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """The vocabulary in a UTF-8 file, one token per line, ids in the order of the lines.

        A line end may be `\\n` or `\\r\\n`, and a byte order mark is passed over. DataError, naming
        file and line, for a blank line, white space within a token or a token given twice.
        """
        tokens: list[str] = []
        lines: dict[str, int] = {}
        try:
            with open(path, encoding="utf-8-sig", newline="\n") as file:
                for number, line in enumerate(file, 1):
                    token = line.rstrip("\r\n")
                    if token.split() != [token]:
                        raise DataError(
                            f"vocab_file {os.fspath(path)!r}, line {number}: want one token "
                            f"without white space, got {token!r}"
                        )
                    if token in lines:
                        raise DataError(
                            f"vocab_file {os.fspath(path)!r}, line {number}: token {token!r} "
                            f"already stands on line {lines[token]}"
                        )
                    lines[token] = number
                    tokens.append(token)
        except OSError as error:
            raise DataError(
                f"vocab_file {os.fspath(path)!r} cannot be read: {error.strerror}"
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(
                f"vocab_file {os.fspath(path)!r} is not UTF-8: {error.reason}"
            ) from error
        try:
            return cls(tokens)
        except DataError as error:
            raise DataError(f"vocab_file {os.fspath(path)!r}: {error}") from error


def _tokens_of_mapping(source: Mapping[Any, Any]) -> list[Any]:
    tokens: list[Any] = [None] * len(source)
    taken = [False] * len(source)
    for token, place in source.items():
        if not hasattr(place, "__index__") or not 0 <= int(place) < len(source) or taken[place]:
            raise DataError(
                f"vocab: the ids of a dict of {len(source)} tokens must be 0 … {len(source) - 1}, "
                f"each once; got {place!r} for token {token!r}"
            )
        taken[place] = True
        tokens[place] = token
    return tokens
