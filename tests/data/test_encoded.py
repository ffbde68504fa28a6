"""The file of an encoded text: one pass over the text, whole or not there at all."""

import errno
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import DataError, EncodedText, Vocabulary, WordCodec, encode_file, encoded, text
from data.encoded import encode_blocks, encode_first, id_width
from data.text import blocks_of_lines

LINES = ["the cat sees the dog", "", "a dog sees"]


@pytest.fixture
def out(tmp_path):
    return tmp_path / "train.ids"


def first(lines, out, tokenizer="word", vocab_size=None, **limits):
    return encode_first(blocks_of_lines(lines, "train"), tokenizer, vocab_size, out, **limits)


def test_ids_go_by_first_appearance(out):
    codec, encoded_text = first(LINES, out)
    assert codec.vocabulary.tokens == ("the", "cat", "sees", "dog", "<eos>", "a")
    assert encoded_text.ids.tolist() == [0, 1, 2, 0, 3, 4, 4, 5, 3, 2, 4]
    assert (encoded_text.tokens, encoded_text.words, encoded_text.lines) == (11, 11, 3)


def test_the_ids_are_a_read_only_map_of_two_bytes_each(out):
    _, encoded_text = first(LINES, out)
    assert isinstance(encoded_text.ids, np.memmap)
    assert encoded_text.ids.dtype == np.dtype("<u2")
    with pytest.raises(ValueError, match="read-only"):
        encoded_text.ids[0] = 1


def test_more_than_65536_ids_take_four_bytes(out):
    assert [id_width(size) for size in (65536, 65537)] == [2, 4]
    words = [str(number) for number in range(65536)]
    codec, encoded_text = first(words, out)
    assert len(codec) == 65537
    assert encoded_text.ids.dtype == np.dtype("<u4")
    assert encoded_text.ids[-2] == 65536
    codec, encoded_text = first(words[:65535], out)
    assert encoded_text.ids.dtype == np.dtype("<u2")
    assert encoded_text.ids.max() == 65535


def test_encoding_again_with_the_codec_gives_the_same_ids(out, tmp_path):
    codec, encoded_text = first(LINES, out)
    again = encode_blocks(blocks_of_lines(LINES, "train"), codec, tmp_path / "again.ids")
    assert again.ids_sha256 == encoded_text.ids_sha256
    assert (tmp_path / "again.ids").read_bytes() == out.read_bytes()


class TestVocabularySize:
    def test_keeps_the_most_frequent_and_of_equals_the_first_to_appear(self, out):
        codec, encoded_text = first(["b a c", "c d d d a"], out, vocab_size=5)
        assert codec.vocabulary.tokens == ("a", "c", "<eos>", "d", "<unk>")
        assert codec.decode(encoded_text.ids) == "<unk> a c\nc d d d a\n"

    def test_counts_unk_and_eos_and_does_not_add_what_is_there(self, out):
        codec, _ = first(["<unk> a", "b b"], out, vocab_size=3)
        assert codec.vocabulary.tokens == ("<unk>", "<eos>", "b")

    def test_is_the_most_a_small_text_may_have(self, out):
        codec, _ = first(["a b"], out, vocab_size=100)
        assert codec.vocabulary.tokens == ("a", "b", "<eos>", "<unk>")

    @pytest.mark.parametrize("size", [1, 0, -5, True, 2.5, "8"])
    def test_must_leave_room_for_unk_and_eos(self, out, size):
        with pytest.raises(DataError, match="vocab_size must be"):
            first(["a b"], out, vocab_size=size)
        assert not out.exists()

    @given(
        lines=st.lists(st.lists(st.sampled_from("abcdefg"), max_size=6), min_size=1, max_size=9),
        size=st.integers(2, 10),
    )
    def test_agrees_with_a_counter(self, tmp_path_factory, lines, size):
        out = tmp_path_factory.mktemp("ids") / "x.ids"
        codec, encoded_text = first([" ".join(line) for line in lines], out, vocab_size=size)
        counts = Counter(word for line in lines for word in line)  # first appearance breaks ties
        kept = {word for word, _ in counts.most_common(size - 2)}
        expected = [
            word if word in kept or word == "<eos>" else "<unk>"
            for line in lines
            for word in [*line, "<eos>"]
        ]
        assert [codec.token(id) for id in encoded_text.ids] == expected


class TestLeastCount:
    def test_rare_words_become_unk_in_the_text_they_are_counted_in(self, out):
        codec, encoded_text = first(["b a c", "c d a", "c"], out, min_count=2)
        assert codec.vocabulary.tokens == ("a", "c", "<eos>", "<unk>")
        assert codec.decode(encoded_text.ids) == "<unk> a c\nc <unk> a\nc\n"
        assert encoded_text.count(codec.unk_id) == 2
        assert codec.encode_line("c unheard") == [1, 3, 2]

    def test_unk_and_line_ends_stay_however_few(self, out):
        codec, encoded_text = first(["<unk> a a b b b"], out, min_count=3)
        assert codec.vocabulary.tokens == ("<unk>", "b", "<eos>")
        assert encoded_text.count(codec.unk_id) == 3

    def test_1_only_adds_unk(self, out):
        codec, encoded_text = first(["a b"], out, min_count=1)
        assert codec.vocabulary.tokens == ("a", "b", "<eos>", "<unk>")
        assert encoded_text.count(codec.unk_id) == 0

    def test_holds_beside_a_size(self, out):
        lines = ["a a a b b c"]
        assert len(first(lines, out, min_count=2, vocab_size=10)[0]) == 4
        assert len(first(lines, out, min_count=1, vocab_size=4)[0]) == 4
        assert first(lines, out, min_count=2, vocab_size=3)[0].vocabulary.tokens[0] == "a"

    @pytest.mark.parametrize("count", [0, -1, True, 2.5, "8"])
    def test_must_be_at_least_1(self, out, count):
        with pytest.raises(DataError, match="min_count must be"):
            first(["a b"], out, min_count=count)
        assert not out.exists()


def test_ids_are_counted_over_chunks(tmp_path, monkeypatch):
    codec = WordCodec(Vocabulary(["<eos>", "a"]))
    made = encode_blocks(blocks_of_lines(["a a", "a"] * 5, "x"), codec, tmp_path / "x.ids")
    monkeypatch.setattr(encoded, "_CHUNK", 4)
    assert [made.count(id) for id in range(3)] == [10, 15, 0]
    assert made.counts().tolist() == [10, 15]


def test_a_tokenizer_function_makes_the_vocabulary_too(out):
    codec, encoded_text = first(["The Cat"], out, tokenizer=lambda line: line.lower().split())
    assert codec.kind == "callable"
    assert codec.vocabulary.tokens == ("the", "cat", "<eos>")
    assert encoded_text.words == 3


def test_an_unknown_word_is_named_with_file_and_line(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "BLOCK_BYTES", 8)
    path = tmp_path / "my valid.txt"
    path.write_text("a a a\n" * 10 + "a b\n")
    codec = WordCodec(Vocabulary(["<eos>", "a"]))
    with pytest.raises(DataError, match=r"my valid\.txt', line 11: the word 'b'"):
        encode_file(path, codec)


def test_eos_in_a_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("a\na a <eos>\n")
    with pytest.raises(DataError, match=r"x\.txt', line 2: the text has the word '<eos>'"):
        encode_file(path, WordCodec(Vocabulary(["<eos>", "a"])))


def test_a_file_is_encoded_for_once_or_for_good(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("a b\na")
    codec = WordCodec(Vocabulary(["<eos>", "a", "b"]))
    for_once = encode_file(path, codec)
    for_good = encode_file(path, codec, tmp_path / "x.ids")
    assert for_once.ids.tolist() == for_good.ids.tolist() == [1, 2, 0, 1, 0]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.ids", "x.txt"]


class TestDamage:
    @pytest.fixture
    def codec(self, out):
        return first(LINES, out)[0]

    def refused(self, out, message, **options):
        with pytest.raises(DataError, match=message) as error:
            EncodedText.open(out, **options)
        assert "train.ids" in str(error.value)

    def test_a_whole_file_opens(self, out, codec):
        assert EncodedText.open(out, codec, verify=True).tokens == 11

    def test_cut_short_or_too_long(self, out, codec):
        whole = out.read_bytes()
        for content in (whole[:-1], whole + b"\0", whole[:128]):
            out.write_bytes(content)
            self.refused(out, "is damaged: it has")

    def test_foreign(self, out, codec):
        for content in (b"", b"short", b"x" * 1000):
            out.write_bytes(content)
            self.refused(out, "is not an encoded text")

    def test_of_another_version(self, out, codec):
        content = bytearray(out.read_bytes())
        content[8] = 9
        out.write_bytes(content)
        self.refused(out, "has version 9")

    def test_a_changed_header(self, out, codec):
        content = bytearray(out.read_bytes())
        content[24] ^= 1
        out.write_bytes(content)
        self.refused(out, "header does not match")

    def test_a_changed_id_is_found_when_verified(self, out, codec):
        content = bytearray(out.read_bytes())
        content[-1] ^= 1
        out.write_bytes(content)
        self.refused(out, "ids do not match their checksum", verify=True)

    def test_an_id_beyond_the_vocabulary_is_found_when_verified(self, out):
        """Though every checksum is right: another program may have written the file."""
        six = WordCodec(Vocabulary(["<eos>", *"abcde"]))
        with encoded._Writer(out, 2) as writer:
            writer.append(np.array([0, 5, 6, 1]), 4, 1)
            writer.finish(six)
        EncodedText.open(out, six)
        self.refused(out, "it has the id 6, of a vocabulary of 6", codec=six, verify=True)

    @pytest.mark.parametrize(
        ("place", "value", "message"),
        [
            (32, 2, "it has 3 line ends, its header promises 2"),
            (32, 0, "its header has 0 lines, 11 tokens and 11 words"),
            (24, 0, "its header has 3 lines, 11 tokens and 0 words"),
            (24, 2, "its header has 3 lines, 11 tokens and 2 words"),
        ],
    )
    def test_counts_that_are_not_those_of_the_ids(self, out, codec, place, value, message):
        """Though every checksum is right."""
        content = bytearray(out.read_bytes())
        content[place : place + 8] = value.to_bytes(8, "little")
        content[104:108] = zlib.crc32(content[:104]).to_bytes(4, "little")
        out.write_bytes(content)
        self.refused(out, message, codec=codec, verify=True)

    def test_a_vocabulary_of_another_size_than_the_codec_has(self, out, codec):
        content = bytearray(out.read_bytes())
        content[12] += 1
        content[104:108] = zlib.crc32(content[:104]).to_bytes(4, "little")
        out.write_bytes(content)
        self.refused(out, "another codec", codec=codec)

    def test_of_another_codec(self, out, codec):
        self.refused(out, "another codec", codec=WordCodec(Vocabulary(["<eos>"])))

    def test_missing(self, tmp_path):
        with pytest.raises(DataError, match="No such file"):
            EncodedText.open(tmp_path / "none.ids")


def test_a_full_disk_leaves_nothing_behind(tmp_path, out, monkeypatch):
    def full(self, ids, words, lines):
        with encoded._explained(str(self.path)):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(encoded._Writer, "append", full)
    with pytest.raises(DataError, match=r"train\.ids' cannot be written: the disk is full"):
        first(LINES, out)
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_text_leaves_the_old_file_as_it_was(tmp_path, out):
    first(LINES, out)
    before = out.read_bytes()
    with pytest.raises(DataError):
        first(["a", "b <eos>"], out)
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_an_unwritable_place_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none/x\.ids' cannot be written: No such file"):
        first(LINES, tmp_path / "none" / "x.ids")
