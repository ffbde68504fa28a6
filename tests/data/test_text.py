"""How a text file is cut into lines and words, whatever is in it."""

import gzip

import pytest

from data import DataError, Vocabulary, WordCodec, text
from data.text import blocks_of_lines, read_blocks


def lines_of(path, **options):
    return "".join(block.text for block in read_blocks(path, **options)).split("\n")[:-1]


@pytest.fixture
def write(tmp_path):
    def write(content):
        path = tmp_path / "a text.txt"
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("whole_lines", [True, False])
@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"a b\nc\n", ["a b", "c"]),
        (b"a b\nc", ["a b", "c"]),
        (b"\n", [""]),
        (b"a\n\n\nb\n", ["a", "", "", "b"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"\xef\xbb\xbfa\n", ["a"]),
        ("a\u2028b\u0085c\x0bd\re\n".encode(), ["a\u2028b\u0085c\x0bd\re"]),
    ],
    ids=["plain", "no last \\n", "one empty", "empty", "CRLF", "BOM", "other line ends"],
)
def test_only_a_newline_ends_a_line(write, content, lines, whole_lines):
    assert lines_of(write(content), whole_lines=whole_lines) == lines


def test_every_white_space_separates_words(write):
    path = write("a\tb\u00a0c\u2028d  e\rf\n".encode())
    codec = WordCodec(Vocabulary(["<eos>", *"abcdef"]))
    (block,) = read_blocks(path)
    assert codec.encode_block(block)[0].tolist() == [1, 2, 3, 4, 5, 6, 0]


@pytest.mark.parametrize("whole_lines", [True, False])
@pytest.mark.parametrize("size", [3, 4, 7, 16])
def test_blocks_of_any_size_hold_the_same_text(write, monkeypatch, size, whole_lines):
    monkeypatch.setattr(text, "BLOCK_BYTES", size)
    content = "one two\r\n\r\nthree café 戦場 four\nfive"
    path = write(content.encode())
    blocks = list(read_blocks(path, whole_lines=whole_lines))
    joined = "".join(block.text for block in blocks)
    assert [line.split() for line in joined.split("\n")[:-1]] == [
        line.split() for line in content.split("\n")
    ]
    line = 1
    for block in blocks:
        assert block.line == line
        line += block.text.count("\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"abc \xff\n", "byte 4: not UTF-8"),
        (b"\xef\xbb\xbfabc \xff\n", "byte 7: not UTF-8"),
        ("a\n".encode("utf-16"), "byte 0: not UTF-8|byte 3: a NUL byte"),
        (b"ab\ncd\0\n", "byte 5: a NUL byte"),
        (b"caf\xc3", "byte 3: not UTF-8"),
    ],
)
@pytest.mark.parametrize("whole_lines", [True, False])
def test_what_is_no_text_is_refused_with_file_and_place(write, content, message, whole_lines):
    with pytest.raises(DataError, match=message) as error:
        list(read_blocks(write(content), whole_lines=whole_lines))
    assert "a text.txt" in str(error.value)


def test_the_byte_named_counts_from_the_start_of_the_file(write, monkeypatch):
    monkeypatch.setattr(text, "BLOCK_BYTES", 8)
    with pytest.raises(DataError, match="byte 400:"):
        list(read_blocks(write(b"abc\n" * 100 + b"\xff\n")))


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt.*No such file"):
        list(read_blocks(tmp_path / "none.txt"))
    with pytest.raises(DataError, match="is a folder"):
        list(read_blocks(tmp_path))


def test_a_line_of_any_length_is_read_by_words_but_not_whole(write, monkeypatch):
    monkeypatch.setattr(text, "BLOCK_BYTES", 100)
    monkeypatch.setattr(text, "LONGEST_BYTES", 1000)
    path = write(b"x\n" + b"word " * 1000)
    assert max(len(block.text) for block in read_blocks(path, whole_lines=False)) <= 200
    with pytest.raises(DataError, match="line 2, byte 2: a line of more than 1000 bytes"):
        list(read_blocks(path, whole_lines=True))


def test_a_word_without_end_is_refused(write, monkeypatch):
    monkeypatch.setattr(text, "BLOCK_BYTES", 100)
    monkeypatch.setattr(text, "LONGEST_BYTES", 1000)
    with pytest.raises(DataError, match="line 1, byte 0: a word of more than 1000 bytes"):
        list(read_blocks(write(b"x" * 5000), whole_lines=False))


def test_lines_in_memory_may_carry_their_line_ends():
    (block,) = blocks_of_lines(["a b\n", "", "c\r\n", "d"], "train")
    assert block.lines() == ["a b", "", "c", "d"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "train is empty"),
        (["a", "b\nc"], "train, line 2: a line end within"),
        (["a", 3], "train, line 2: want a str, got int"),
        (["a\0"], "train, line 1: a NUL"),
        (7, "train must be a path or an iterable of lines, got int"),
    ],
)
def test_other_things_in_memory_are_refused(lines, message):
    with pytest.raises(DataError, match=message):
        list(blocks_of_lines(lines, "train"))


def test_a_name_that_ends_in_gz_is_decompressed(tmp_path):
    path = tmp_path / "text.gz"
    content = "\ufeffone two\nthree\n" * 9000
    path.write_bytes(gzip.compress(content.encode()))
    blocks = list(read_blocks(path))
    assert len(blocks) > 1
    assert "".join(block.text for block in blocks) == content[1:]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"one two\n", "text.gz' cannot be read: Not a gzipped file"),
        (lambda content: content[:-9], "text.gz' cannot be read: Compressed file ended before"),
        (lambda content: content[:-8] + bytes(8), "text.gz' cannot be read: CRC check failed"),
        (lambda content: content[:12] + b"\xff" * 9 + content[21:], "text.gz' cannot be read: "),
    ],
)
def test_a_damaged_gz_is_refused(tmp_path, damage, message):
    path = tmp_path / "text.gz"
    path.write_bytes(damage(gzip.compress(b"one two three four five\n")))
    with pytest.raises(DataError, match=message):
        list(read_blocks(path))
