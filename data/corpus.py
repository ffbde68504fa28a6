"""A corpus: a codec and three encoded texts, train, valid and test.

`open_corpus` takes a name or a folder. Encoding is done once and cached; what lies in the
cache is a folder like any that `encode_corpus` writes, and either opens as a source itself:

    codec.json  train.ids  valid.ids  test.ids
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from data.cache import cache_folder, new_folder
from data.catalogue import CATALOGUE, SPLITS
from data.codec import (
    STAND_INS,
    TOKENIZERS,
    Codec,
    SentencePieceCodec,
    Tokenizer,
    codec_from_state,
    is_whitespace,
    make_codec,
    read_codec,
)
from data.encoded import VERSION, EncodedText, encode_blocks, encode_first
from data.errors import DataError, require_integer
from data.text import Block, blocks_of_lines, open_binary, progress_bar, read_blocks
from data.vocabulary import Vocabulary

if TYPE_CHECKING:
    from data.grammar import Sample

FILE_NAMES = ("{split}.txt", "ptb.{split}.txt", "wiki.{split}.tokens", "wiki.{split}.raw")
"""What the text of a split may be called in a folder; with .gz after it, it is compressed."""

_SPELLINGS = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}
"""What a split is called in these names."""

_CODEC_FILE = "codec.json"
_FORMAT = "symrnn-corpus"


@dataclass(frozen=True)
class Entropy:
    """What is known exactly about a text drawn from a grammar; only `builtin` has it.

    rate: nats per token of the grammar itself, `<eos>` counted as a token.
    nats: for each split, -log of the probability the grammar gives its text, in nats.
    tokens: for each split, its tokens, `<eos>` counted.
    """

    rate: float
    nats: Mapping[str, float]
    tokens: Mapping[str, int]

    @property
    def perplexity(self) -> dict[str, float]:
        """For each split the grammar's own perplexity per word: no model can expect less."""
        return {split: math.exp(self.nats[split] / self.tokens[split]) for split in self.nats}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Entropy:
        """From what `state` gave; KeyError, TypeError or ValueError if it is something else."""
        nats = {split: float(state["nats"][split]) for split in SPLITS}
        tokens = {split: int(state["tokens"][split]) for split in SPLITS}
        entropy = cls(float(state["rate"]), nats, tokens)
        if min(tokens.values()) < 1 or not all(map(math.isfinite, entropy.perplexity.values())):
            raise ValueError(f"there is no perplexity of {nats} nats in {tokens} tokens")
        return entropy

    def state(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"rate": self.rate, "nats": dict(self.nats), "tokens": dict(self.tokens)}


@dataclass(frozen=True)
class Corpus:
    """A codec and the three texts it encoded.

    name: of the catalogue, or of the folder.
    entropy: for `builtin`, the exact bound on what a model can reach; else None, also where
        `vocab_size` or `min_count` made words of it `<unk>`.
    """

    name: str
    codec: Codec
    train: EncodedText
    valid: EncodedText
    test: EncodedText
    entropy: Entropy | None = None

    @property
    def fingerprint(self) -> str:
        """A SHA-256, in hex, of the codec and of all ids: equal for equal corpora."""
        digest = hashlib.sha256(self.codec.fingerprint().encode("ascii"))
        for text in (self.train, self.valid, self.test):
            digest.update(text.ids_sha256.encode("ascii"))
        return digest.hexdigest()

    def split(self, name: str) -> EncodedText:
        """The text of "train", "valid" or "test"."""
        _check_split(name)
        text: EncodedText = getattr(self, name)
        return text


def list_corpora() -> list[str]:
    """The names `open_corpus` knows: "builtin" and those that it downloads."""
    return ["builtin", *CATALOGUE]


def open_corpus(
    source: str | os.PathLike[str],
    *,
    tokenizer: Tokenizer | str = "word",
    vocab_size: int | None = None,
    min_count: int | None = None,
    vocab_file: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Corpus:
    """A corpus, encoded, its texts memory-mapped.

    source: a name of `list_corpora()`; or a folder with the texts of train, valid and test (named
        as in FILE_NAMES), or one that `encode_corpus` or `python -m data.encode` wrote. A name goes
        before a folder of that name: write ./ptb for the folder.
    tokenizer: "word" (words between white space), "char" (characters), "sentencepiece" (trained on
        the train text); or the file of a tokenizer there already is (`read_codec`).
        A folder already encoded brings its own; if that was made with a function, the function can
        be given here, so that the codec can encode further text.
    vocab_size: for words and characters, at most so many ids: the most frequent, `<eos>` and
        `<unk>`, which the others become; None keeps all. For sentencepiece, the number of pieces:
        required.
    min_count: for words and characters, those that stand fewer times in the train text become
        `<unk>`, in all three texts; that is how a model learns what to expect of words it has never
        seen. None keeps all. With vocab_size, both hold.
    vocab_file: for words, a file with the vocabulary, one token per line, in place of that of the
        train text.
    cache_dir: the cache of downloads and encoded texts (`cache_folder`). Encoded texts are found
        again by the contents of the texts and by the settings above, and a folder there has its
        name only when complete, so that processes may share it.
    progress: show bars on a terminal.

    Raises DataError for anything wrong with the arguments, the files or the network.
    """
    settings = _Settings(tokenizer, vocab_size, min_count, vocab_file)
    if _is_encoded(source):
        return _open_given(Path(source), settings)
    plan = _plan(source, settings, cache_folder(cache_dir), progress)
    cached = cache_folder(cache_dir) / "encoded" / settings.key(plan.contents)
    if not os.path.isdir(cached):
        with new_folder(cached, shared=True) as folder:
            plan.build(folder)
    try:
        return _open_encoded(cached, plan.name)
    except DataError as error:
        raise DataError(
            f"{error}. Delete the folder {str(cached)!r} to have it made again"
        ) from error


def open_split(
    source: str | os.PathLike[str],
    split: str,
    codec: Codec,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> tuple[EncodedText, float | None]:
    """One text of a corpus in the ids of a codec there already is, to evaluate what has it.

    Nothing is read but that text: the others may be missing, and words that the corpus's own
    vocabulary would lack reach the codec as they are. Only a folder that another codec encoded has
    its text by way of that codec's ids.

    source, cache_dir, progress: as for `open_corpus`.
    split: "train", "valid" or "test".

    Returns the text, and the least perplexity per word that any model can expect of it where that
    is known: of `builtin`, if the codec knows all of its words.
    """
    _check_split(split)
    name = os.fspath(source)
    if name == "builtin":
        sample = _draw_builtin(split)
        text = encode_blocks(blocks_of_lines(sample.lines, f"{name}, {split}"), codec, None)
        all_known = codec.unk_id is None or text.count(codec.unk_id) == 0
        bound = math.exp(float(sample.nats.sum()) / int(sample.tokens.sum()))
        return text, bound if all_known else None
    if _is_encoded(source):
        own, _, _ = _read_codec(Path(source))
        text = _open_ids(Path(source), split, own)
        if own.fingerprint() == codec.fingerprint():
            return text, None
        lines = own.decode(text.ids).split("\n")[:-1]
        return encode_blocks(blocks_of_lines(lines, f"{name}, {split}"), codec, None), None
    if name in CATALOGUE:
        path = _texts_of_catalogue(name, (split,), cache_folder(cache_dir), progress)[split]
        _check_download(name, split, path, _sha256(path, progress))
    else:
        path = _texts_of_folder(Path(source), (split,))[split]
    return encode_file(path, codec, progress=progress), None


def encode_source(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    tokenizer: str = "word",
    vocab_size: int | None = None,
    min_count: int | None = None,
    vocab_file: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Corpus:
    """The same into the new folder `out`; the cache is used for downloads only."""
    settings = _Settings(tokenizer, vocab_size, min_count, vocab_file)
    if _is_encoded(source):
        raise DataError(f"{os.fspath(source)!r} is already encoded: copy the folder")
    target = _new_folder(out)
    plan = _plan(source, settings, cache_folder(cache_dir), progress)
    with new_folder(target) as folder:
        plan.build(folder)
    return _open_encoded(target)


def encode_corpus(
    out: str | os.PathLike[str],
    *,
    train: str | os.PathLike[str] | Iterable[str],
    valid: str | os.PathLike[str] | Iterable[str],
    test: str | os.PathLike[str] | Iterable[str],
    tokenizer: Tokenizer | str = "word",
    vocab: Any = None,
    vocab_size: int | None = None,
    min_count: int | None = None,
    name: str | None = None,
    progress: bool = True,
) -> Corpus:
    """Encode three texts into the folder `out`, which `open_corpus` takes as a source.

    out: a folder that does not exist yet, or is empty.
    train, valid, test: each the path of a text file, or any iterable of lines. It is gone through
        once; `train` twice for sentencepiece, then it must be a path or a list.
    tokenizer: "word", "sentencepiece", or a function from a line to its tokens, such as what
        `torchtext.data.get_tokenizer` gives.
    vocab: a list of tokens, a dict from token to id, or an object with `get_itos()` such as what
        `torchtext.vocab.build_vocab_from_iterator` gives; it must have `<eos>`. None makes it from
        the train text.
    vocab_size, min_count: as for `open_corpus`.
    name: what the corpus is called; by default as the folder.

    Raises DataError as `open_corpus` does, and if `out` is there and not empty.
    """
    settings = _Settings(tokenizer, vocab_size, min_count, vocab=vocab)
    target = _new_folder(out)
    texts = {"train": train, "valid": valid, "test": test}
    target_name = name if name is not None else target.resolve().name
    with new_folder(target) as folder:
        _encode_splits(folder, target_name, texts, settings, progress=progress)
    return _open_encoded(target, tokenizer=tokenizer)


def encode_file(
    path: str | os.PathLike[str] | BinaryIO,
    codec: Codec,
    out: str | os.PathLike[str] | None = None,
    *,
    progress: bool = True,
) -> EncodedText:
    """A text encoded with a codec there already is, to evaluate it.

    path: of a file or a pipe; or a binary stream, such as `sys.stdin.buffer`.
    out: the file to write; None for a temporary one that is gone with the result.
    """
    blocks = read_blocks(path, whole_lines=codec.whole_lines, progress=progress)
    return encode_blocks(blocks, codec, out)


class _Settings:
    """How a text is turned into ids, checked."""

    def __init__(
        self,
        tokenizer: Tokenizer | str = "word",
        vocab_size: int | None = None,
        min_count: int | None = None,
        vocab_file: str | os.PathLike[str] | None = None,
        vocab: Any = None,
    ) -> None:
        self.codec: Codec | None = None
        if isinstance(tokenizer, str) and tokenizer not in TOKENIZERS:
            settings = {
                "vocab_size": vocab_size,
                "min_count": min_count,
                "vocab_file": vocab_file,
                "vocab": vocab,
            }
            for name, value in settings.items():
                if value is not None:
                    raise DataError(f"the tokenizer in {tokenizer!r} is whole: leave out {name}")
            self.codec = read_codec(tokenizer)
        if not isinstance(tokenizer, str) and not callable(tokenizer):
            raise DataError(f"tokenizer must be a name or a function, got {tokenizer!r}")
        self.sentencepiece = tokenizer == "sentencepiece"
        if vocab_size is not None:
            vocab_size = require_integer("vocab_size", vocab_size, least=2)
        if min_count is not None:
            min_count = require_integer("min_count", min_count, least=1)
        for name, value in (("vocab_size", vocab_size), ("min_count", min_count)):
            if value is not None and (vocab_file is not None or vocab is not None):
                which = "vocab_file" if vocab_file is not None else "vocab"
                raise DataError(f"{name} and {which} exclude each other: give one of them")
        if tokenizer == "char" and (vocab_file is not None or vocab is not None):
            raise DataError("a vocabulary is for words; that of characters is of the train text")
        if self.sentencepiece and (vocab_file is not None or vocab is not None):
            raise DataError("a vocabulary is for words; sentencepiece takes vocab_size")
        if self.sentencepiece and min_count is not None:
            raise DataError(
                f"min_count is for words, got {min_count} with tokenizer 'sentencepiece', whose "
                "pieces make up any word"
            )
        if self.sentencepiece and vocab_size is None:
            raise DataError("tokenizer 'sentencepiece' needs vocab_size, such as 8000")
        self.tokenizer = tokenizer
        self.vocab_size = vocab_size
        self.min_count = min_count
        self.vocab_file = vocab_file
        self.vocabulary: Vocabulary | None = None
        if vocab_file is not None:
            self.vocabulary = Vocabulary.read(vocab_file)
        elif vocab is not None:
            self.vocabulary = Vocabulary.of(vocab)

    def key(self, contents: object) -> str:
        """The name of the cache folder for these settings and contents."""
        what = {
            "layout": VERSION,
            "contents": contents,
            "tokenizer": self.codec.fingerprint() if self.codec else self.tokenizer,
            "vocab_size": self.vocab_size,
            "vocabulary": list(self.vocabulary.tokens) if self.vocabulary else None,
        }
        if self.min_count is not None:
            what["min_count"] = self.min_count
        if self.sentencepiece or isinstance(self.codec, SentencePieceCodec):
            what["stand_ins"] = STAND_INS  # formerly a text lost them
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode("ascii")).hexdigest()[:32]


@dataclass(frozen=True)
class _Plan:
    """How a corpus is made: its name, what identifies its contents, and what writes its files."""

    name: str
    contents: object
    build: Callable[[Path], None]


def _plan(
    source: str | os.PathLike[str], settings: _Settings, cache: Path, progress: bool
) -> _Plan:
    """The plan for a named corpus or a folder of texts."""
    if callable(settings.tokenizer):
        raise DataError(
            "a tokenizer function is for a folder already encoded with it: encode with "
            "data.encode_corpus first"
        )
    name = os.fspath(source)
    if name == "builtin":
        return _plan_builtin(settings)
    of_catalogue = name in CATALOGUE
    if of_catalogue:
        texts = _texts_of_catalogue(name, SPLITS, cache, progress)
    else:
        texts = _texts_of_folder(Path(source), SPLITS)
        name = Path(source).resolve().name
    before = [texts[split].stat() for split in SPLITS]
    contents = [_sha256(texts[split], progress) for split in SPLITS]
    if of_catalogue:
        for split, found in zip(SPLITS, contents, strict=True):
            _check_download(name, split, texts[split], found)

    def build(out: Path) -> None:
        _encode_splits(out, name, texts, settings, progress=progress)
        for split, old in zip(SPLITS, before, strict=True):
            new = texts[split].stat()
            if (old.st_size, old.st_mtime_ns) != (new.st_size, new.st_mtime_ns):
                raise DataError(f"{str(texts[split])!r} was changed while it was encoded")

    return _Plan(name, contents, build)


def _plan_builtin(settings: _Settings) -> _Plan:
    """The plan for the built-in corpus, drawn from its grammar."""
    from data.grammar import BUILTIN_SEEDS, BUILTIN_TOKENS, builtin_grammar
    from data.grammar import VERSION as GRAMMAR_VERSION

    def build(out: Path) -> None:
        grammar = builtin_grammar()
        texts: dict[str, list[str]] = {}
        nats: dict[str, float] = {}
        tokens: dict[str, int] = {}
        for split in SPLITS:
            sample = _draw_builtin(split)
            texts[split] = sample.lines
            nats[split], tokens[split] = float(sample.nats.sum()), int(sample.tokens.sum())
        used = settings
        entropy: Entropy | None = Entropy(grammar.entropy_rate, nats, tokens)
        whole = (settings.vocabulary, settings.vocab_size, settings.min_count) == (None,) * 3
        if settings.tokenizer == "word" and whole:
            # All words of the grammar, so that none is unknown that the train text happens to lack.
            used = _Settings(vocab=grammar.tokens())
        elif not settings.sentencepiece and not (settings.tokenizer == "char" and whole):
            entropy = None  # something may have become <unk>
        _encode_splits(out, "builtin", texts, used, entropy=entropy)

    return _Plan("builtin", ["builtin", GRAMMAR_VERSION, BUILTIN_TOKENS, BUILTIN_SEEDS], build)


def _draw_builtin(split: str) -> Sample:
    """The text of a split of the built-in corpus."""
    from data.grammar import BUILTIN_SEEDS, BUILTIN_TOKENS, builtin_grammar

    return builtin_grammar().sample(BUILTIN_TOKENS[split], BUILTIN_SEEDS[split])


def _encode_splits(
    out: Path,
    name: str,
    texts: Mapping[str, str | os.PathLike[str] | Iterable[str]],
    settings: _Settings,
    *,
    entropy: Entropy | None = None,
    progress: bool = False,
) -> None:
    """Writes the files of an encoded corpus into the folder `out`."""

    def blocks(split: str, whole_lines: bool) -> Iterator[Block]:
        text = texts[split]
        if isinstance(text, (str, os.PathLike)):
            return read_blocks(text, whole_lines=whole_lines, progress=progress)
        return blocks_of_lines(text, split)

    codec: Codec
    rest: tuple[str, ...] = SPLITS
    if settings.sentencepiece:
        if isinstance(texts["train"], Iterator):
            raise DataError(
                "train is gone through twice for sentencepiece: give a path or a list of lines"
            )
        assert settings.vocab_size is not None
        codec = SentencePieceCodec.train(blocks("train", True), settings.vocab_size)
    elif settings.codec is not None:
        codec = settings.codec
    elif settings.vocabulary is not None:
        codec = make_codec(settings.tokenizer, settings.vocabulary)
    else:
        codec, _ = encode_first(
            blocks("train", callable(settings.tokenizer) and not is_whitespace(settings.tokenizer)),
            settings.tokenizer,
            settings.vocab_size,
            out / "train.ids",
            min_count=settings.min_count,
        )
        rest = SPLITS[1:]
    for split in rest:
        encode_blocks(blocks(split, codec.whole_lines), codec, out / f"{split}.ids")
    about = {
        "format": _FORMAT,
        "version": VERSION,
        "name": name,
        "entropy": entropy.state() if entropy else None,
        "codec": codec.state(),
    }
    try:
        with open(out / _CODEC_FILE, "w", encoding="ascii") as file:
            json.dump(about, file)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise DataError(f"{str(out)!r} cannot be written: {error.strerror}") from error


def _open_given(folder: Path, settings: _Settings) -> Corpus:
    """The corpus in an encoded folder that the user named, with arguments that must fit it."""
    for argument in ("vocab_size", "min_count", "vocab_file"):
        value = getattr(settings, argument)
        if value is not None:
            raise DataError(
                f"{str(folder)!r} is already encoded: {argument} {value!r} does not apply"
            )
    corpus = _open_encoded(folder, tokenizer=settings.tokenizer)
    if settings.codec is not None and settings.codec.fingerprint() == corpus.codec.fingerprint():
        return corpus
    if settings.tokenizer not in ("word", corpus.codec.kind) and corpus.codec.kind != "callable":
        raise DataError(
            f"{str(folder)!r} is already encoded, with tokenizer {corpus.codec.kind!r}: "
            f"tokenizer {settings.tokenizer!r} does not apply"
        )
    return corpus


def _open_encoded(
    folder: Path, name: str | None = None, tokenizer: Tokenizer | str = "word"
) -> Corpus:
    """The corpus in an encoded folder, every file checked.

    tokenizer: a function, for a codec that was made with one.
    """
    codec, entropy, own_name = _read_codec(folder, tokenizer)
    texts = {split: _open_ids(folder, split, codec) for split in SPLITS}
    return Corpus(name if name is not None else own_name, codec, **texts, entropy=entropy)


def _read_codec(
    folder: Path, tokenizer: Tokenizer | str = "word"
) -> tuple[Codec, Entropy | None, str]:
    """What the codec file of an encoded folder says: the codec, the entropy, the corpus's name."""
    path = folder / _CODEC_FILE
    try:
        about = json.loads(path.read_text(encoding="ascii"))
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{str(path)!r} is damaged: {error}") from error
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise DataError(f"{str(path)!r} is not the codec of an encoded corpus of symrnn")
    if about.get("version") != VERSION:
        raise DataError(
            f"{str(path)!r} has version {about.get('version')!r}, this symrnn reads {VERSION}: "
            "encode the corpus again"
        )
    try:
        of_function = about["codec"]["kind"] == "callable" and callable(tokenizer)
        codec = codec_from_state(about["codec"], tokenizer if of_function else None)
        entropy = None if about["entropy"] is None else Entropy.of(about["entropy"])
        if not isinstance(about["name"], str):
            raise TypeError("the name must be a str")
        return codec, entropy, about["name"]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{str(path)!r} is damaged: {error!r:.200}") from error
    except DataError as error:
        raise DataError(f"{str(path)!r}: {error}") from error


def _open_ids(folder: Path, split: str, codec: Codec) -> EncodedText:
    """One text of an encoded folder, checked."""
    file = folder / f"{split}.ids"
    if not os.path.isfile(file):
        raise DataError(f"encoded corpus {str(folder)!r} lacks {split}.ids")
    return EncodedText.open(file, codec, verify=True)


def _is_encoded(source: str | os.PathLike[str]) -> bool:
    """Whether a source is a folder that is encoded already."""
    name = os.fspath(source)
    return name not in list_corpora() and os.path.isfile(os.path.join(name, _CODEC_FILE))


def _check_split(name: str) -> None:
    if name not in SPLITS:
        raise DataError(f"split must be one of {', '.join(SPLITS)}, got {name!r}")


def _new_folder(out: str | os.PathLike[str]) -> Path:
    """`out`, if it is not there yet or an empty folder; renaming onto it then works."""
    folder = Path(out)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise DataError(f"out {os.fspath(out)!r} is already there and not empty: give a new folder")
    return folder


def _texts_of_catalogue(
    name: str, splits: Iterable[str], cache: Path, progress: bool
) -> dict[str, Path]:
    """The text file of each of these splits, downloaded if one is missing."""
    folder = cache / "corpora" / name
    texts = {split: folder / f"{split}.txt" for split in splits}
    if all(map(os.path.isfile, texts.values())):
        return texts
    from data.download import download

    return download(name, folder, progress=progress)


def _check_download(name: str, split: str, path: Path, sha256: str) -> None:
    """DataError if a file of the catalogue has another SHA-256 than it should."""
    for file in CATALOGUE[name].files:
        if file.name == f"{split}.txt" and file.sha256 != sha256:
            raise DataError(
                f"{str(path)!r} is not the file of corpus {name!r} any more (SHA-256): "
                "delete it to have it downloaded again"
            )


def _texts_of_folder(folder: Path, splits: Iterable[str]) -> dict[str, Path]:
    """The text file of each of these splits."""
    if not os.path.isdir(folder):
        known = ", ".join(list_corpora())
        there = "is a file, not a folder" if os.path.exists(folder) else "is no folder"
        raise DataError(
            f"corpus {str(folder)!r} is not one of {known}, and {there} with "
            "train.txt, valid.txt and test.txt"
        )
    texts = {}
    for split in splits:
        names = [pattern.format(split=name) for name in _SPELLINGS[split] for pattern in FILE_NAMES]
        taken = [name + end for name in names for end in ("", ".gz")]
        found = [name for name in taken if os.path.isfile(folder / name)]
        if not found:
            raise DataError(
                f"corpus folder {str(folder)!r} lacks the {split} text: want {' or '.join(names)}"
                ", with or without .gz after it"
            )
        if len(found) > 1:
            raise DataError(
                f"corpus folder {str(folder)!r} has more than one {split} text: {', '.join(found)}"
            )
        texts[split] = folder / found[0]
    return texts


def _sha256(path: Path, progress: bool) -> str:
    digest = hashlib.sha256()
    with (
        open_binary(path) as file,
        progress_bar(path.stat().st_size, f"checking {path.name}", progress) as bar,
    ):
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()
