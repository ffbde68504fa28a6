"""Opening corpora: by name, from a folder of texts, from an encoded folder."""

import gzip
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import data.download
import data.text
from data import (
    DataError,
    SentencePieceCodec,
    codec_from_state,
    encode_corpus,
    list_corpora,
    open_corpus,
    open_split,
)
from data.cache import new_folder
from data.catalogue import CATALOGUE
from data.text import blocks_of_lines

TEXTS = {"train": "the cat sees\nthe dog\n", "valid": "the dog sees\n", "test": "the cat\n"}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "my texts"
    folder.mkdir()
    for split, content in TEXTS.items():
        (folder / f"{split}.txt").write_text(content)
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "the cache"


def test_a_folder_of_texts(folder, cache):
    corpus = open_corpus(folder, cache_dir=cache)
    assert corpus.name == "my texts"
    assert corpus.codec.kind == "word"
    assert corpus.codec.vocabulary.tokens == ("the", "cat", "sees", "<eos>", "dog")
    assert [corpus.split(split).tokens for split in TEXTS] == [7, 4, 3]
    assert corpus.codec.decode(corpus.train.ids) == TEXTS["train"]
    assert corpus.entropy is None


@pytest.mark.parametrize("pattern", ["ptb.{}.txt", "wiki.{}.tokens", "wiki.{}.raw"])
def test_the_names_ptb_and_wikitext_come_with(folder, cache, pattern):
    expected = open_corpus(folder, cache_dir=cache).fingerprint
    for split in TEXTS:
        (folder / f"{split}.txt").rename(folder / pattern.format(split))
    assert open_corpus(folder, cache_dir=cache).fingerprint == expected


def test_the_valid_text_may_be_called_val(folder, cache):
    expected = open_corpus(folder, cache_dir=cache).fingerprint
    (folder / "valid.txt").rename(folder / "val.txt")
    assert open_corpus(folder, cache_dir=cache).fingerprint == expected
    (folder / "wiki.valid.raw").write_text("the dog\n")
    with pytest.raises(DataError, match=r"more than one valid text: wiki.valid.raw, val.txt"):
        open_corpus(folder, cache_dir=cache)


def test_compressed_texts_are_read_as_what_they_hold(folder, cache):
    expected = open_corpus(folder, cache_dir=cache)
    for split, content in TEXTS.items():
        (folder / f"{split}.txt").unlink()
        (folder / f"{split}.txt.gz").write_bytes(gzip.compress(content.encode()))
    found = open_corpus(folder, cache_dir=cache)
    assert found.fingerprint == expected.fingerprint
    assert found.train.path != expected.train.path
    text, _ = open_split(folder, "test", expected.codec)
    assert text.ids_sha256 == expected.test.ids_sha256


def test_characters_whatever_the_blocks_they_come_in(folder, cache, monkeypatch):
    monkeypatch.setattr(data.text, "BLOCK_BYTES", 8)
    (folder / "train.txt").write_text("the  cat\tsees \n\nthe dog\r\n", newline="")
    corpus = open_corpus(folder, tokenizer="char", cache_dir=cache)
    assert corpus.codec.decode(corpus.train.ids) == "the  cat\tsees \n\nthe dog\n"
    assert corpus.codec.vocabulary.tokens == (*"the ca\ts", "<eos>", *"dog")
    assert (corpus.train.words, corpus.train.lines, corpus.train.tokens) == (8, 3, 24)
    assert corpus.codec.decode(corpus.valid.ids) == TEXTS["valid"]
    small = open_corpus(folder, tokenizer="char", min_count=2, cache_dir=cache)
    assert small.codec.decode(small.valid.ids) == "the <unk><unk><unk> sees\n"


def test_the_file_of_a_tokenizer(folder, cache, tmp_path):
    """It makes the same ids wherever it lies, from which nothing is trained."""
    codec = SentencePieceCodec.train(blocks_of_lines(TEXTS["train"].splitlines() * 9, "x"), 13)
    files = [tmp_path / name for name in ("one.model", "other.model")]
    for file in files:
        file.write_bytes(codec.model)
    first, second = (open_corpus(folder, tokenizer=str(f), cache_dir=cache) for f in files)
    assert first.codec.fingerprint() == codec.fingerprint()
    assert first.train.path == second.train.path
    assert first.valid.ids[:].tolist() == codec.encode_line("the dog sees")
    for settings in ({"vocab_size": 9}, {"min_count": 2}, {"vocab_file": "v"}):
        with pytest.raises(
            DataError, match=f"one.model' is whole: leave out {next(iter(settings))}"
        ):
            open_corpus(folder, tokenizer=str(files[0]), cache_dir=cache, **settings)


def test_what_is_encoded_once_is_found_again_by_its_contents(folder, cache):
    first = open_corpus(folder, cache_dir=cache)
    made = first.train.path.stat().st_mtime_ns
    again = open_corpus(folder, cache_dir=cache)
    assert again.train.path == first.train.path
    assert again.train.path.stat().st_mtime_ns == made
    (folder / "test.txt").write_text("the the\n")
    changed = open_corpus(folder, cache_dir=cache)
    assert changed.train.path != first.train.path
    assert changed.fingerprint != first.fingerprint
    assert changed.test.tokens == 3


def test_other_settings_are_another_encoding(folder, cache):
    whole = open_corpus(folder, cache_dir=cache)
    small = open_corpus(folder, vocab_size=3, cache_dir=cache)
    assert len(small.codec) == 3
    assert small.codec.decode(small.train.ids) == "the <unk> <unk>\nthe <unk>\n"
    often = open_corpus(folder, min_count=2, cache_dir=cache)
    assert often.codec.decode(often.train.ids) == "the <unk> <unk>\nthe <unk>\n"
    often = open_corpus(folder, min_count=1, cache_dir=cache)
    assert often.codec.vocabulary.tokens == (*whole.codec.vocabulary.tokens, "<unk>")
    assert len({corpus.fingerprint for corpus in (whole, small, often)}) == 3
    assert len(list((cache / "encoded").iterdir())) == 4


def test_a_vocabulary_file_takes_the_place_of_the_train_text(folder, cache, tmp_path):
    (tmp_path / "vocab.txt").write_text("<unk>\n<eos>\ndog\n")
    corpus = open_corpus(folder, vocab_file=tmp_path / "vocab.txt", cache_dir=cache)
    assert corpus.codec.decode(corpus.train.ids) == "<unk> <unk> <unk>\n<unk> dog\n"


def test_sentencepiece(folder, cache):
    (folder / "train.txt").write_text("the cat sees the dog\n" * 50)
    corpus = open_corpus(folder, tokenizer="sentencepiece", vocab_size=13, cache_dir=cache)
    assert (corpus.codec.kind, len(corpus.codec)) == ("sentencepiece", 13)
    assert corpus.train.words == 50 * 6 < corpus.train.tokens
    assert corpus.codec.decode(corpus.valid.ids) == TEXTS["valid"]
    assert open_corpus(folder, cache_dir=cache).valid.words == corpus.valid.words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"tokenizer": "bpe"},
            "tokenizer must be word, char, sentencepiece, or the file of a sent",
        ),
        ({"tokenizer": "sentencepiece"}, "needs vocab_size"),
        ({"tokenizer": "sentencepiece", "vocab_size": 8000}, "vocab_size must be at most"),
        ({"vocab_size": 1}, "vocab_size must be at least 2, got 1"),
        ({"vocab_size": 5, "vocab_file": "v"}, "vocab_size and vocab_file exclude each other"),
        ({"min_count": 5, "vocab_file": "v"}, "min_count and vocab_file exclude each other"),
        ({"min_count": 0}, "min_count must be at least 1, got 0"),
        (
            {"tokenizer": "sentencepiece", "vocab_size": 9, "min_count": 2},
            "min_count is for words, got 2 with tokenizer 'sentencepiece'",
        ),
        ({"tokenizer": "sentencepiece", "vocab_file": "v"}, "vocabulary is for words"),
        ({"vocab_file": "no such file"}, "'no such file' cannot be read"),
        ({"tokenizer": "char", "vocab_file": "v"}, "a vocabulary is for words; that of char"),
        ({"tokenizer": str.lower}, "encode with data.encode_corpus first"),
    ],
)
def test_wrong_arguments_are_named(folder, cache, arguments, message):
    with pytest.raises(DataError, match=message):
        open_corpus(folder, cache_dir=cache, **arguments)
    kept = cache / "encoded"
    assert not kept.exists() or list(kept.iterdir()) == []


class TestWrongFolder:
    def refused(self, source, cache, message):
        with pytest.raises(DataError, match=message):
            open_corpus(source, cache_dir=cache)

    def test_unknown_name(self, cache):
        self.refused(
            "wikitext-3", cache, "builtin, ptb, wikitext-2, wikitext-103, and is no folder"
        )

    def test_a_file(self, folder, cache):
        self.refused(folder / "train.txt", cache, "is a file, not a folder")

    def test_lacking_a_split(self, folder, cache):
        (folder / "valid.txt").unlink()
        self.refused(folder, cache, "lacks the valid text: want valid.txt or ptb.valid.txt or")

    def test_two_texts_for_one_split(self, folder, cache):
        (folder / "ptb.test.txt").write_text("a\n")
        self.refused(folder, cache, "more than one test text: test.txt, ptb.test.txt")

    def test_an_empty_split(self, folder, cache):
        (folder / "test.txt").write_text("")
        self.refused(folder, cache, "test.txt' is empty")

    def test_a_word_the_train_text_lacks(self, folder, cache):
        (folder / "valid.txt").write_text("the dog\nthe bird sees\n")
        self.refused(
            folder, cache, r"valid.txt', line 2: the word 'bird'.*Train with --min-count 2 "
        )

    def test_an_unwritable_cache(self, folder, tmp_path):
        (tmp_path / "file").write_text("")
        self.refused(folder, tmp_path / "file", r"cannot be written.*SYMRNN_DATA")


def test_the_cache_is_where_the_environment_says(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SYMRNN_DATA", str(tmp_path / "elsewhere"))
    assert tmp_path / "elsewhere" in open_corpus(folder).train.path.parents
    monkeypatch.delenv("SYMRNN_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert tmp_path / "home" / ".cache" / "symrnn" in open_corpus(folder).train.path.parents


def test_without_a_home_the_error_names_the_variable(folder, monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SYMRNN_DATA")
    monkeypatch.setattr(Path, "home", no_home)
    for source in (folder, "builtin"):
        with pytest.raises(DataError, match=r"no home folder.*cache_dir or in \$SYMRNN_DATA"):
            open_corpus(source)
    assert data.download.main(["ptb"]) == 2
    codec = open_corpus(folder, cache_dir=folder / "cache").codec
    assert open_split(folder, "test", codec)[0].tokens == 3  # which needs no cache


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system that has the locks")
def test_what_a_killed_process_was_encoding_is_removed_and_no_others(folder, cache):
    script = (
        "import os, sys; from data import cache; from pathlib import Path\n"
        "with cache.new_folder(Path(sys.argv[1])) as made:\n"
        "    (made / 'train.ids').write_text('half'); os.kill(os.getpid(), 9)"
    )
    encoded = cache / "encoded"
    subprocess.run([sys.executable, "-c", script, encoded / "one"], check=False)
    assert len(list(encoded.glob(".*/train.ids"))) == 1
    (encoded / ".mine").mkdir()
    with new_folder(encoded / "two") as living:
        made = open_corpus(folder, cache_dir=cache).train.path.parent
        assert set(encoded.iterdir()) == {living, made, encoded / ".mine"}
    assert set(encoded.iterdir()) == {encoded / "two", made, encoded / ".mine"}


@pytest.mark.parametrize("damage", ["short", "flipped", "missing", "codec", "other codec"])
def test_a_damaged_cache_is_said_not_used(folder, cache, damage):
    ids = open_corpus(folder, cache_dir=cache).train.path
    codec = ids.parent / "codec.json"
    content = ids.read_bytes()
    if damage == "short":
        ids.write_bytes(content[:-1])
    elif damage == "flipped":
        ids.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        ids.unlink()
    elif damage == "codec":
        codec.write_text(codec.read_text()[:-5])
    else:
        codec.write_text(codec.read_text().replace("dog", "dig"))
    with pytest.raises(DataError, match="Delete the folder"):
        open_corpus(folder, cache_dir=cache)


def open_in_process(folder, cache):
    open_corpus(folder, cache_dir=cache, progress=False)


def test_processes_may_encode_the_same_at_once(folder, cache):
    (folder / "train.txt").write_text("the cat sees the dog\n" * 20_000)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=open_in_process, args=(folder, cache)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list((cache / "encoded").iterdir())) == 1
    assert open_corpus(folder, cache_dir=cache).train.lines == 20_000


def test_who_comes_second_takes_what_the_first_made(folder, cache, monkeypatch):
    expected = open_corpus(folder, cache_dir=cache)
    kept = expected.train.path.parent
    away = kept.with_name("away")
    os.rename(kept, away)
    real = os.rename

    def beaten(source, target):
        real(away, kept)
        real(source, target)

    monkeypatch.setattr(os, "rename", beaten)
    assert open_corpus(folder, cache_dir=cache).fingerprint == expected.fingerprint
    assert list((cache / "encoded").iterdir()) == [kept]


def entropy(nats, tokens):
    return {"rate": 1.0, "nats": nats, "tokens": tokens}


class TestEncodedFolder:
    def test_opens_as_a_source_anywhere(self, folder, cache, tmp_path):
        made = encode_corpus(tmp_path / "out", **{s: folder / f"{s}.txt" for s in TEXTS})
        opened = open_corpus(tmp_path / "out", cache_dir=cache)
        assert opened.fingerprint == made.fingerprint
        assert opened.fingerprint == open_corpus(folder, cache_dir=cache).fingerprint
        files = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert files == ["codec.json", "test.ids", "train.ids", "valid.ids"]
        state = json.loads((tmp_path / "out" / "codec.json").read_text())["codec"]
        assert codec_from_state(state).fingerprint() == opened.codec.fingerprint()

    def test_from_lines_tokenizer_and_vocabulary(self, tmp_path):
        def tokenizer(line):
            return list(line.replace(" ", ""))

        made = encode_corpus(
            tmp_path / "out",
            train=["a b\n", "c"],
            valid=iter(["b"]),
            test=("a c",),
            tokenizer=tokenizer,
            vocab={"<unk>": 0, "<eos>": 1, "a": 2, "b": 3},
        )
        assert made.train.ids.tolist() == [2, 3, 1, 0, 1]
        assert made.codec.encode_line("b a") == [3, 2, 1]
        opened = open_corpus(tmp_path / "out")
        assert opened.fingerprint == made.fingerprint
        assert opened.codec.decode([3, 2]) == "b a"
        with pytest.raises(DataError, match="pass the function again"):
            opened.codec.encode_line("b a")
        again = open_corpus(tmp_path / "out", tokenizer=tokenizer)
        assert again.codec.encode_line("b a") == [3, 2, 1]

    def test_refuses_settings_that_would_do_nothing(self, folder, tmp_path):
        encode_corpus(tmp_path / "out", **{s: folder / f"{s}.txt" for s in TEXTS})
        for arguments in (
            {"vocab_size": 5},
            {"min_count": 2},
            {"tokenizer": "sentencepiece", "vocab_size": 9},
        ):
            with pytest.raises(DataError, match=r"already encoded.*does not apply"):
                open_corpus(tmp_path / "out", **arguments)
        with pytest.raises(DataError, match="already encoded, with tokenizer 'word'"):
            open_corpus(tmp_path / "out", tokenizer=str.split)

    def test_lacking_a_file(self, folder, tmp_path):
        encode_corpus(tmp_path / "out", **{s: folder / f"{s}.txt" for s in TEXTS})
        (tmp_path / "out" / "valid.ids").unlink()
        with pytest.raises(DataError, match=r"lacks valid\.ids"):
            open_corpus(tmp_path / "out")

    def test_a_foreign_codec_file(self, folder, tmp_path):
        for content, message in (
            ("{}", "is not the codec"),
            ('{"format": "symrnn-corpus", "version": 99}', "has version 99"),
            ('{"format": "symrnn-corpus", "version": 1}', "damaged"),
            ("[" * 50_000 + "]" * 50_000, r"codec\.json' is damaged: maximum recursion depth"),
        ):
            (folder / "codec.json").write_text(content)
            with pytest.raises(DataError, match=message):
                open_corpus(folder)

    @pytest.mark.parametrize(
        "change",
        [
            {"name": 3},
            {"name": None},
            {"codec": None},
            {"codec": []},
            {"entropy": 3},
            {"entropy": entropy({}, {})},
            {"entropy": entropy(dict.fromkeys(TEXTS, "x"), dict.fromkeys(TEXTS, 1))},
            {"entropy": entropy(dict.fromkeys(TEXTS, 1), dict.fromkeys(TEXTS, 0))},
            {"entropy": entropy(dict.fromkeys(TEXTS, 1e9), dict.fromkeys(TEXTS, 1))},
        ],
    )
    def test_a_codec_file_that_was_edited_by_hand(self, folder, tmp_path, change):
        encode_corpus(tmp_path / "out", **{s: folder / f"{s}.txt" for s in TEXTS})
        path = tmp_path / "out" / "codec.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(DataError, match=r"codec\.json'( is damaged)?: "):
            open_corpus(tmp_path / "out")

    def test_does_not_write_over_anything(self, folder, tmp_path):
        with pytest.raises(DataError, match="already there"):
            encode_corpus(folder, train=["a"], valid=["a"], test=["a"])

    def test_leaves_nothing_when_it_fails(self, tmp_path):
        with pytest.raises(DataError, match="valid, line 1: the word 'b'"):
            encode_corpus(tmp_path / "out", train=["a"], valid=["b"], test=["a"])
        assert list(tmp_path.iterdir()) == []

    def test_sentencepiece_needs_the_train_text_twice(self, tmp_path):
        with pytest.raises(DataError, match="gone through twice"):
            encode_corpus(
                tmp_path / "out",
                train=iter(["a"]),
                valid=["a"],
                test=["a"],
                tokenizer="sentencepiece",
                vocab_size=8,
            )


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


class TestBuiltin:
    def test_knows_the_best_perplexity_there_is(self, shared_cache):
        corpus = open_corpus("builtin", cache_dir=shared_cache)
        assert corpus.train.tokens == pytest.approx(120_000, abs=100)
        assert corpus.entropy.tokens == {s: corpus.split(s).tokens for s in TEXTS}
        best = corpus.entropy.perplexity
        for split in TEXTS:
            assert best[split] == pytest.approx(np.exp(corpus.entropy.rate), rel=0.05)

    def test_no_word_is_unknown(self, shared_cache):
        corpus = open_corpus("builtin", cache_dir=shared_cache)
        assert corpus.codec.unk_id is None
        assert max(text.ids.max() for text in (corpus.valid, corpus.test)) < len(corpus.codec)

    def test_is_the_same_everywhere(self, shared_cache):
        corpus = open_corpus("builtin", cache_dir=shared_cache)
        assert corpus.fingerprint == FINGERPRINT
        assert open_corpus("builtin", cache_dir=shared_cache).entropy == corpus.entropy

    def test_with_characters_the_bound_per_word_stays(self, shared_cache):
        words, chars = (
            open_corpus("builtin", tokenizer=t, cache_dir=shared_cache) for t in ("word", "char")
        )
        assert chars.entropy == words.entropy
        assert chars.test.words == words.test.words < chars.test.tokens
        assert open_split("builtin", "test", chars.codec)[0].ids_sha256 == chars.test.ids_sha256
        few = open_corpus("builtin", tokenizer="char", vocab_size=9, cache_dir=shared_cache)
        assert few.entropy is None

    def test_with_pieces_the_bound_per_word_stays_with_unk_it_goes(self, shared_cache):
        pieces = open_corpus(
            "builtin", tokenizer="sentencepiece", vocab_size=500, cache_dir=shared_cache
        )
        assert pieces.valid.words == pieces.entropy.tokens["valid"]
        assert open_corpus("builtin", vocab_size=500, cache_dir=shared_cache).entropy is None
        assert open_corpus("builtin", min_count=9, cache_dir=shared_cache).entropy is None


# Changes if and only if the text of `builtin` does: then raise data.grammar.VERSION.
FINGERPRINT = "e232ddb742dc8147fb25ac14c05b7be08683c5c2134247bb0f65a71345322c8d"


def test_names_that_open_without_a_folder():
    assert list_corpora() == ["builtin", "ptb", "wikitext-2", "wikitext-103"]


def test_a_name_of_the_catalogue_is_downloaded_into_the_cache(folder, cache, monkeypatch):
    def download(name, target, progress):
        assert (name, target) == ("wikitext-2", cache / "corpora" / "wikitext-2")
        return {split: folder / f"{split}.txt" for split in TEXTS}

    monkeypatch.setattr(data.download, "download", download)
    corpus = open_corpus("wikitext-2", cache_dir=cache)
    assert (corpus.name, corpus.train.tokens) == ("wikitext-2", 7)


def test_a_changed_download_is_not_taken_for_the_corpus(cache):
    folder = cache / "corpora" / "ptb"
    folder.mkdir(parents=True)
    for split, content in TEXTS.items():
        (folder / f"{split}.txt").write_text(content)
    with pytest.raises(DataError, match=r"train.txt' is not the file of corpus 'ptb' any more"):
        open_corpus("ptb", cache_dir=cache)


def corpus_folder(name, variable):
    folder = Path(__file__).parents[3] / "shared" / "data" / name
    folder = Path(os.environ.get(variable, folder))
    if not folder.is_dir():
        pytest.skip(f"needs the texts of {name}: set {variable} to their folder")
    return folder


@pytest.mark.parametrize(
    ("name", "variable"),
    [("ptb", "SYMRNN_TEST_PTB"), ("wikitext-2", "SYMRNN_TEST_WIKITEXT2")],
)
def test_published_counts(name, variable, cache):
    corpus = open_corpus(corpus_folder(name, variable), cache_dir=cache)
    known = CATALOGUE[name]
    assert {split: corpus.split(split).tokens for split in TEXTS} == known.tokens
    assert len(corpus.codec) == known.types
