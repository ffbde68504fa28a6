"""Codecs: a line to ids and back, and stored as JSON."""

import json
import subprocess
import sys

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from data import (
    CallableCodec,
    DataError,
    SentencePieceCodec,
    Vocabulary,
    WordCodec,
    codec_from_state,
    make_codec,
)
from data.codec import read_codec
from data.text import Block, blocks_of_lines

PIECES = 26
WORDS = ["<eos>", "the", "cat", "<unk>"]
TEXT = [
    "the cat sees the <unk> dog",
    "the dogs see the cats",
    "a <unk> bird sings in the tree and the cat listens",
] * 20


@pytest.fixture(scope="module")
def pieces():
    return SentencePieceCodec.train(blocks_of_lines(TEXT, "train"), PIECES)


def lower(line):
    return line.lower().replace(".", " .").split()


class TestWords:
    codec = WordCodec(Vocabulary(WORDS))

    def test_a_line_is_its_words_and_eos(self):
        assert self.codec.encode_line("the  cat\t") == [1, 2, 0]
        assert self.codec.encode_line("") == [0]
        assert self.codec.encode_line("cat\r\n") == [2, 0]

    def test_an_unknown_word_becomes_unk_as_does_unk_itself(self):
        assert self.codec.encode_line("the dog <unk>") == [1, 3, 3, 0]

    def test_without_unk_an_unknown_word_is_refused_by_name(self):
        codec = WordCodec(Vocabulary(["<eos>", "a"]))
        assert codec.unk_id is None
        with pytest.raises(DataError, match="line 1: the word 'dog' is not in the vocabulary of 2"):
            codec.encode_line("a dog")

    def test_eos_in_the_text_is_refused(self):
        with pytest.raises(DataError, match="line 1: the text has the word '<eos>'"):
            self.codec.encode_line("the cat <eos>")
        assert self.codec.encode_line("x<eos>y") == [3, 0]

    def test_more_than_a_line_is_refused(self):
        with pytest.raises(DataError, match="one line"):
            self.codec.encode_line("the\ncat")

    def test_decodes_to_words_and_line_ends(self):
        assert self.codec.decode([1, 2, 0, 0, 3]) == "the cat\n\n<unk>"

    def test_token_names_an_id(self):
        assert self.codec.token(2) == "cat"
        with pytest.raises(DataError, match="0 … 3, got 4"):
            self.codec.token(4)
        with pytest.raises(DataError, match="got -1"):
            self.codec.decode([-1])


class TestCallable:
    codec = CallableCodec(Vocabulary([*WORDS, "."]), lower)

    def test_a_line_is_what_the_function_gives_and_eos(self):
        assert self.codec.encode_line("The CAT.") == [1, 2, 4, 0]

    def test_words_are_counted_by_white_space_all_the_same(self):
        assert self.codec.count_words("The CAT.") == 3

    def test_a_function_that_gives_no_list_of_str_is_refused(self):
        with pytest.raises(DataError, match="line 1: tokenizer must give a list of str"):
            CallableCodec(Vocabulary(WORDS), lambda line: line).encode_line("the")
        with pytest.raises(DataError, match="tokenizer must be a function"):
            CallableCodec(Vocabulary(WORDS), 3)

    def test_stored_without_its_function_it_still_decodes(self):
        state = json.loads(json.dumps(self.codec.state()))
        alone = codec_from_state(state)
        assert alone.decode([1, 2, 4]) == "the cat ."
        with pytest.raises(DataError, match=r"belongs to the tokenizer 'lower'.*pass the function"):
            alone.encode_line("The cat.")

    def test_and_encodes_once_it_has_the_function_or_text_in_tokens(self):
        state = self.codec.state()
        assert codec_from_state(state, lower).encode_line("The cat.") == [1, 2, 4, 0]
        assert codec_from_state(state, "whitespace").encode_line("the cat .") == [1, 2, 4, 0]
        assert codec_from_state(state, lower).fingerprint() == self.codec.fingerprint()

    def test_plain_white_space_makes_a_word_codec_which_is_stored_whole(self):
        assert isinstance(make_codec(str.split, WORDS), WordCodec)
        assert make_codec("whitespace", WORDS).kind == "word"
        assert make_codec(lower, WORDS).kind == "callable"


class TestChar:
    codec = make_codec("char", ["t", "h", "e", " ", "<eos>", "é"])

    def test_a_line_is_its_characters_and_eos(self):
        assert self.codec.encode_line("the  é") == [0, 1, 2, 3, 3, 5, 4]
        assert self.codec.encode_line("") == [4]
        assert (self.codec.kind, self.codec.unit) == ("char", "character")

    @given(st.text("the é\n"))
    def test_every_text_comes_back_as_it_was(self, text):
        ids, words = self.codec.encode_block(Block(text + "\n", 1, "text"))
        assert self.codec.decode(ids) == text + "\n"
        assert words == len(text.split()) + text.count("\n") + 1
        assert len(ids) == len(text) + 1

    def test_an_unknown_character_is_refused_by_name_or_becomes_unk(self):
        with pytest.raises(DataError, match="text, line 2: the character 'z' is not in the voc"):
            self.codec.encode_block(Block("the\ntz\n", 1, "text"))
        codec = make_codec("char", ["<unk>", "t", "<eos>"])
        assert codec.encode_line("tz<unk>") == [1, 0, 0, 0, 0, 0, 0, 2]

    def test_a_vocabulary_of_words_is_refused(self):
        with pytest.raises(DataError, match="a vocabulary of characters has the token 'the'"):
            make_codec("char", ["<eos>", "the"])


class TestAnySentencePieceModel:
    """One of the package's own making, whose end is called `</s>`."""

    def train(self, path, **options):
        lines = iter(["the cat sees the dog", "a dog sees cats"] * 30)
        sentencepiece.SentencePieceTrainer.Train(
            sentence_iterator=lines, model_prefix=str(path), vocab_size=15, minloglevel=3, **options
        )
        return path.with_suffix(".model")

    def test_is_taken_as_it_is(self, tmp_path):
        file = self.train(tmp_path / "other", model_type="bpe")
        codec, processor = read_codec(file), sentencepiece.SentencePieceProcessor(str(file))
        assert codec.encode_line("the  dogs") == [*processor.EncodeAsIds("the dogs"), 2]
        assert codec.token(codec.eos_id) == "</s>"
        assert codec.decode(codec.encode_line("the cat sees")) == "the cat sees\n"

    def test_without_an_end_it_is_refused(self, tmp_path):
        file = self.train(tmp_path / "other", eos_id=-1)
        with pytest.raises(DataError, match=r"other.model': the sentencepiece model has no end pi"):
            read_codec(file)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    tokenizers = pytest.importorskip("tokenizers", reason="needs the tokenizers package")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["the cat sees the dog"] * 20, trainer)
    made.enable_truncation(3)
    path = tmp_path_factory.mktemp("tokenizers") / "tokenizer.json"
    made.save(str(path))
    return path


class TestTokenizers:
    def test_a_line_is_what_the_file_makes_of_it_and_the_end(self, file):
        import tokenizers

        codec, plain = read_codec(file), tokenizers.Tokenizer.from_file(str(file))
        plain.no_truncation()
        line = "the  cat saw naïve dogs"
        ids, words = codec.encode_block(Block(f"{line}\n\n", 1, "text"))
        assert ids.tolist() == [*plain.encode(line).ids, 0, 0]
        assert (words, codec.token(0), codec.unk_id) == (7, "<|endoftext|>", None)
        assert codec.decode(ids) == f"{line}\n\n"
        assert len(codec) == plain.get_vocab_size()

    def test_it_is_stored_whole(self, file):
        codec = read_codec(file)
        back = codec_from_state(json.loads(json.dumps(codec.state())))
        assert back.encode_line("the cat") == codec.encode_line("the cat")
        assert back.fingerprint() == codec.fingerprint()

    def test_its_end_in_a_text_is_refused(self, file):
        with pytest.raises(DataError, match=r"x, line 2: the text has '<\|endoftext\|>'"):
            read_codec(file).encode_block(Block("a\nb <|endoftext|>\n", 1, "x"))

    def test_without_an_end_it_is_refused(self, file, tmp_path):
        other = tmp_path / "t.json"
        other.write_text(file.read_text().replace("<|endoftext|>", "<|start|>"))
        with pytest.raises(DataError, match=r"has none of <eos>, </s>, <\|endoftext\|>, "):
            read_codec(other)

    def test_what_is_no_such_file_is_refused(self, file, tmp_path):
        other = tmp_path / "t.json"
        for content in ("{}", "[", '{"model": 3}', "é"):
            other.write_text(content, encoding="latin-1")
            with pytest.raises(DataError, match=r"tokenizer '.*t.json': not "):
                read_codec(other)


def test_without_its_package_a_tokenizers_file_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(DataError, match=r"pip install 'symrnn\[tokenizers\]'"):
        read_codec(tmp_path / "t.json")


class TestSentencePiece:
    def test_has_as_many_ids_as_asked_for(self, pieces):
        assert len(pieces) == PIECES
        assert {pieces.token(pieces.unk_id), pieces.token(pieces.eos_id)} == {"<unk>", "<eos>"}

    def test_a_line_ends_in_one_eos(self, pieces):
        assert pieces.encode_line("the cat").count(pieces.eos_id) == 1
        assert pieces.encode_line("the cat")[-1] == pieces.eos_id
        assert pieces.encode_line("") == [pieces.eos_id]

    def test_decodes_what_it_encoded(self, pieces):
        line = "the dogs <unk> see <unk> <unk> cats"
        assert pieces.decode(pieces.encode_line(line)) == line + "\n"

    def test_the_characters_that_sentencepiece_has_for_itself_are_those_of_the_text(self):
        """U+2581 stands for a space there; a sentence with U+2585 is left out of training."""
        lines = ["▁ a▁b ▁▁ x▅y ▅ ab", "ab ba"] * 20
        codec = SentencePieceCodec.train(blocks_of_lines(lines, "train"), 12)
        for line in (*lines[:2], "▁", "▅▁▅ a", "b▁ ▁b"):
            ids = codec.encode_line(line)
            assert codec.decode(ids) == line + "\n"
            assert codec.unk_id not in ids
            assert codec.count_words(line) == len(codec.decode(ids).split()) + 1
        assert "".join(codec.token(id) for id in codec.encode_line("▁▅")) == "▁▁▅<eos>"

    def test_to_a_model_that_never_met_them_they_are_unknown(self, pieces):
        for line in ("the ▁ cat", "the ▅ cat"):
            assert pieces.decode(pieces.encode_line(line)) == "the <unk> cat\n"

    def test_what_stands_for_them_is_refused_in_a_text_with_its_line(self, pieces):
        lines = ["the", "a\ufdd1", "b\ufdd0"]
        with pytest.raises(DataError, match=r"x, line 3: the text has U\+FDD0, which is no char"):
            pieces.encode_block(next(blocks_of_lines(lines, "x")))
        with pytest.raises(DataError, match=r"x, line 2: the text has U\+FDD1.*stands for '▅'"):
            SentencePieceCodec.train(blocks_of_lines(lines[:2], "x"), PIECES)

    def test_every_character_it_was_trained_on_comes_back(self):
        ranges = ((1, 0x700), (0x2000, 0x2700), (0xFB00, 0xFDD0), (0xFE00, 0x10100))
        characters = [chr(c) for low, high in ranges for c in range(low, high)] + ["\U0010ffff"]
        characters = [c for c in characters if not c.isspace()]
        lines = [" ".join(characters[i : i + 40]) for i in range(0, len(characters), 40)]
        blocks = list(blocks_of_lines(lines, "train"))
        codec = SentencePieceCodec.train(blocks, len(characters) + 3)
        words = [word for c in characters for word in (c, f"a{c}b", f"{c}{c}")]
        assert codec.decode(codec.encode_line(" ".join(words))).split() == words

    def test_unk_in_the_text_is_one_piece(self, pieces):
        assert pieces.encode_line("<unk>") == [pieces.unk_id, pieces.eos_id]
        ids = pieces.encode_line("the <unk> cat")
        assert ids.count(pieces.unk_id) == 1
        assert ids == [
            *pieces.encode_line("the")[:-1],
            pieces.unk_id,
            *pieces.encode_line("cat"),
        ]

    def test_an_unseen_character_is_unk(self, pieces):
        assert pieces.unk_id in pieces.encode_line("戦")

    def test_words_are_counted_by_white_space(self, pieces):
        (block,) = blocks_of_lines(["the  cats", ""], "text")
        ids, words = pieces.encode_block(block)
        assert words == 4 == pieces.count_words("the  cats") + pieces.count_words("")
        assert len(ids) > words

    def test_eos_in_the_text_is_refused(self, pieces):
        with pytest.raises(DataError, match="'<eos>'"):
            pieces.encode_line("the <eos> cat")

    def test_the_same_text_gives_the_same_model(self, pieces):
        again = SentencePieceCodec.train(blocks_of_lines(TEXT, "train"), PIECES)
        assert again.fingerprint() == pieces.fingerprint()

    def test_too_large_a_vocabulary_says_how_large_it_may_be(self, capfd):
        with pytest.raises(
            DataError, match=r"vocab_size must be at most (\d+) .* got 8000"
        ) as error:
            SentencePieceCodec.train(blocks_of_lines(TEXT, "train"), 8000)
        most = int(str(error.value).split("at most ")[1].split()[0])
        assert len(SentencePieceCodec.train(blocks_of_lines(TEXT, "train"), most)) == most
        assert capfd.readouterr() == ("", "")

    def test_too_small_a_vocabulary_says_how_small_it_may_be(self):
        with pytest.raises(DataError, match=r"vocab_size must be at least (\d+) .* got 5"):
            SentencePieceCodec.train(blocks_of_lines(TEXT, "train"), 5)

    def test_an_error_in_the_text_comes_through_training(self):
        with pytest.raises(DataError, match="train, line 2: want a str"):
            SentencePieceCodec.train(blocks_of_lines(["a", 3], "train"), PIECES)

    def test_without_the_package_the_error_names_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "sentencepiece", None)
        with pytest.raises(DataError, match=r"pip install 'symrnn\[sentencepiece\]'"):
            SentencePieceCodec(b"")

    def test_what_is_no_model_is_refused(self):
        with pytest.raises(DataError, match="not a sentencepiece model"):
            SentencePieceCodec(b"nonsense")

    @pytest.mark.parametrize(
        ("piece", "other", "message"),
        [
            (b"\n\x01a", b"\n\x01\xff", r"has a piece that is not UTF-8: b'\\xff'"),
            (b"<unk>", b"<u\xffk>", "is not UTF-8"),
        ],
    )
    def test_a_damaged_model_is_refused(self, pieces, piece, other, message):
        assert piece in pieces.model
        with pytest.raises(DataError, match=message):
            SentencePieceCodec(pieces.model.replace(piece, other))

    def test_ctrl_c_ends_the_trainer_too(self, monkeypatch):
        """It is another process, and neither the text nor the model is waited for."""
        started = []

        class Watched(subprocess.Popen):
            def __init__(self, *arguments, **options):
                super().__init__(*arguments, **options)
                started.append(self)

        def text():
            yield Block("a b\n" * 1000, 1, "train")
            raise KeyboardInterrupt

        monkeypatch.setattr(subprocess, "Popen", Watched)
        with pytest.raises(KeyboardInterrupt):
            SentencePieceCodec.train(text(), PIECES)
        assert started[0].wait(60) != 0


def test_a_surrogate_is_no_text(pieces):
    for codec in (WordCodec(Vocabulary(WORDS)), pieces):
        with pytest.raises(DataError, match=r"not UTF-8: 'the \\udcff'"):
            codec.encode_line("the \udcff")
        with pytest.raises(DataError, match=r"x, line 2: not UTF-8: '\\ud800'"):
            list(blocks_of_lines(["a", "\ud800"], "x"))


def test_a_codec_comes_back_from_its_state(pieces):
    chars = make_codec("char", ["<eos>", *"the ca"])
    for codec in (WordCodec(Vocabulary(WORDS)), chars, pieces):
        back = codec_from_state(json.loads(json.dumps(codec.state())))
        assert back.kind == codec.kind
        assert back.fingerprint() == codec.fingerprint()
        assert back.encode_line("the cat") == codec.encode_line("the cat")


def test_other_codecs_have_other_fingerprints(pieces):
    codecs = [
        WordCodec(Vocabulary(WORDS)),
        WordCodec(Vocabulary(WORDS[::-1])),
        CallableCodec(Vocabulary(WORDS), lower),
        pieces,
    ]
    assert len({codec.fingerprint() for codec in codecs}) == 4


deep: list = []
for _ in range(50_000):
    deep = [deep]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            None,
            "must have kind 'word', 'char', 'callable', 'sentencepiece', 'tokenizers', got None",
        ),
        ({}, "got None"),
        ({"kind": "morse"}, "got 'morse'"),
        ({"kind": deep}, r"got \[\[\["),
        ({"kind": "word"}, "'tokens' must be a list, got NoneType"),
        ({"kind": "word", "tokens": 3}, "'tokens' must be a list, got int"),
        ({"kind": "word", "tokens": {"<eos>": 0}}, "'tokens' must be a list, got dict"),
        ({"kind": "word", "tokens": ["a"]}, "lacks '<eos>'"),
        ({"kind": "word", "tokens": ["<eos>", deep]}, r"token 1 must be .*, got \[\[\["),
        ({"kind": "callable", "tokens": ["<eos>"], "unk": [], "tokenizer": "f"}, "'unk' must be"),
        ({"kind": "callable", "tokens": ["<eos>"], "unk": "a"}, "'tokenizer' must be a str"),
        ({"kind": "sentencepiece", "model": 3}, "'model' must be a str, got int"),
        ({"kind": "sentencepiece", "model": "%"}, "the sentencepiece model is damaged"),
        ({"kind": "sentencepiece", "model": "é"}, "the sentencepiece model is damaged"),
        ({"kind": "sentencepiece", "model": ""}, "not a sentencepiece model"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else "",
)
def test_a_state_that_is_none_is_refused(state, message):
    with pytest.raises(DataError, match=message):
        codec_from_state(state)


@given(st.lists(st.sampled_from(["the", "cat", "<unk>"])))
def test_words_survive_the_way_there_and_back(words):
    codec = WordCodec(Vocabulary(WORDS))
    assert codec.decode(codec.encode_line(" ".join(words))) == " ".join(words) + "\n"
