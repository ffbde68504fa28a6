"""A vocabulary: distinct tokens, `<eos>` among them, from any shape one comes in."""

import pytest

from data import DataError, Vocabulary


def test_ids_are_the_places_of_the_tokens():
    vocabulary = Vocabulary(["the", "<eos>", "<unk>"])
    assert len(vocabulary) == 3
    assert vocabulary["the"] == 0
    assert (vocabulary.eos_id, vocabulary.unk_id) == (1, 2)
    assert "the" in vocabulary
    assert "cat" not in vocabulary


def test_without_unk_there_is_no_unk_id():
    assert Vocabulary(["<eos>", "a"]).unk_id is None


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "empty"),
        (["a", "<eos>", "a"], "'a' stands at both 0 and 2"),
        (["a"], "lacks '<eos>'"),
        (["<eos>", ""], "token 1 must be a non-empty str, got ''"),
        (["<eos>", 3], "token 1 must be a non-empty str, got 3"),
        (["<eos>", "a", "\ud800"], r"token 2 is not UTF-8: '\\ud800'"),
    ],
)
def test_what_is_no_vocabulary_is_refused(tokens, message):
    with pytest.raises(DataError, match=message):
        Vocabulary(tokens)


class Torchtext:
    """The shape of what torchtext's build_vocab_from_iterator gives."""

    def __init__(self, itos, default=None):
        self._itos, self._default = itos, default

    def __getitem__(self, token):
        return self._itos.index(token) if token in self._itos else self._default

    def __contains__(self, token):
        return token in self._itos

    def __len__(self):
        return len(self._itos)

    def get_itos(self):
        return list(self._itos)

    def get_default_index(self):
        return self._default


@pytest.mark.parametrize(
    "source",
    [["<eos>", "b", "a"], {"a": 2, "<eos>": 0, "b": 1}, Torchtext(["<eos>", "b", "a"])],
    ids=["list", "dict", "torchtext"],
)
def test_is_made_of_whatever_maps_tokens_to_ids(source):
    assert Vocabulary.of(source).tokens == ("<eos>", "b", "a")


def test_a_default_index_says_which_token_is_the_unknown_one():
    assert Vocabulary.of(Torchtext(["<oov>", "<eos>"], default=0)).unk_id == 0


@pytest.mark.parametrize("ids", [{"<eos>": 0, "a": 2}, {"<eos>": 0, "a": 0}, {"<eos>": "0"}])
def test_a_dict_must_number_its_tokens_without_gaps(ids):
    with pytest.raises(DataError, match="each once"):
        Vocabulary.of(ids)


def test_other_things_are_refused():
    with pytest.raises(DataError, match="got int"):
        Vocabulary.of(3)


def test_reads_a_file_of_one_token_per_line(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("\ufeff<eos>\r\ncafé\n<unk>".encode())
    assert Vocabulary.read(path).tokens == ("<eos>", "café", "<unk>")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<eos>\n\na\n", "line 2: want one token"),
        (b"<eos>\nnew york\n", "line 2: want one token without white space, got 'new york'"),
        (b"<eos>\na\na\n", "line 3: token 'a' already stands on line 2"),
        (b"a\nb\n", "lacks '<eos>'"),
        (b"", "empty"),
        (b"<eos>\n\xff\n", "not UTF-8"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_and_line(tmp_path, content, message):
    path = tmp_path / "vocab.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        Vocabulary.read(path)
    assert "vocab.txt" in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt.*No such file"):
        Vocabulary.read(tmp_path / "none.txt")
