"""The grammar of the built-in corpus, and that its entropy is the entropy."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

from data import DataError
from data.grammar import Grammar, WordClass, builtin_grammar, main

TINY = {
    "S": [(0.7, ("NP.sg", "V.sg")), (0.3, ("NP.pl", "V.pl"))],
    "NP.sg": [(0.6, ("N.sg",)), (0.4, ("N.sg", "near", "N"))],
    "NP.pl": [(0.8, ("N.pl",)), (0.2, ("N.pl", "near", "N"))],
    "N": [(0.5, ("N.sg",)), (0.5, ("N.pl",))],
}
TINY_WORDS = {
    "N.sg": WordClass(("cat", "dog"), (0.75, 0.25)),
    "N.pl": WordClass(("cats",), (1.0,)),
    "V.sg": WordClass(("sees", "runs"), (0.9, 0.1)),
    "V.pl": WordClass(("see", "run"), (0.4, 0.6)),
    "near": WordClass(("near",), (1.0,)),
}


@pytest.fixture(scope="module")
def tiny():
    return Grammar(TINY, TINY_WORDS)


@pytest.fixture(scope="module")
def grammar():
    return builtin_grammar()


def log_probability(grammar, words):
    """The log of the probability, in nats, that a grammar without left recursion writes a sentence.

    An oracle: a recursive-descent parser that sums over all derivations. words: without `<eos>`.
    -inf for what is no sentence of the language.
    """
    log_p = {
        word: (name, math.log(p))
        for name, of in grammar.classes.items()
        for word, p in zip(of.words, of.probabilities, strict=True)
    }
    table = {}

    def ends(symbol, start):
        """Where a symbol that begins at word `start` can end, with the log probability of that."""
        if symbol in grammar.classes:
            name, log = log_p.get(words[start], ("", 0)) if start < len(words) else ("", 0)
            return {start + 1: log} if name == symbol else {}
        if (symbol, start) not in table:
            sums = {}
            for p, right in grammar.rules[symbol]:
                so_far = {start: math.log(p)}
                for part in right:
                    after = {}
                    for middle, before in so_far.items():
                        for end, log in ends(part, middle).items():
                            after[end] = np.logaddexp(after.get(end, -math.inf), before + log)
                    so_far = after
                for end, log in so_far.items():
                    sums[end] = np.logaddexp(sums.get(end, -math.inf), log)
            table[symbol, start] = sums
        return table[symbol, start]

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, 10_000 + 40 * len(words)))
    try:
        return ends(grammar.start, 0).get(len(words), -math.inf)
    finally:
        sys.setrecursionlimit(limit)


def all_probabilities(grammar, longest):
    words = [word for word in grammar.tokens() if word != "<eos>"]
    for length in range(longest + 1):
        for sentence in itertools.product(words, repeat=length):
            log_p = log_probability(grammar, sentence)
            if log_p > -math.inf:
                yield length + 1, math.exp(log_p)


def test_probabilities_of_all_sentences_sum_to_one(tiny):
    assert math.fsum(p for _, p in all_probabilities(tiny, 5)) == pytest.approx(1, abs=1e-12)


def test_entropy_and_length_are_those_of_the_sentences(tiny):
    sentences = list(all_probabilities(tiny, 5))
    entropy = -math.fsum(p * math.log(p) for _, p in sentences)
    length = math.fsum(p * length for length, p in sentences)
    assert tiny.entropy == pytest.approx(entropy, abs=1e-12)
    assert tiny.length == pytest.approx(length, abs=1e-12)
    assert tiny.entropy_rate == pytest.approx(entropy / length, abs=1e-12)


def test_a_probability_by_hand(tiny):
    expected = 0.7 * 0.4 * 0.75 * 0.5 * 1.0 * 0.9  # cat near cats sees
    assert log_probability(tiny, ["cat", "near", "cats", "sees"]) == pytest.approx(
        math.log(expected)
    )


def test_recursion_by_hand():
    """S → a S | b with p = 1/3 for a: a geometric length, whose entropy has a formula."""
    classes = {"a": WordClass(("a",), (1.0,)), "b": WordClass(("b",), (1.0,))}
    grammar = Grammar({"S": [(1 / 3, ("a", "S")), (2 / 3, ("b",))]}, classes)
    assert grammar.length == pytest.approx(1.5 + 1)
    binary = -(math.log(1 / 3) / 3 + math.log(2 / 3) * 2 / 3)
    assert grammar.entropy == pytest.approx(binary / (2 / 3))
    assert log_probability(grammar, ["a"] * 300 + ["b"]) == pytest.approx(
        300 * math.log(1 / 3) + math.log(2 / 3)
    )


def test_left_recursion_by_hand():
    """S → S a | a, the same from the other side; and the text drawn has the length that is said."""
    rules = {"S": [(1 / 3, ("S", "a")), (2 / 3, ("a",))]}
    grammar = Grammar(rules, {"a": WordClass(("a",), (1.0,))})
    assert grammar.length == pytest.approx(1.5 + 1)
    binary = -(math.log(1 / 3) / 3 + math.log(2 / 3) * 2 / 3)
    assert grammar.entropy == pytest.approx(binary / (2 / 3))
    sample = grammar.sample(50_000, seed=1)
    error = sample.tokens.std() / math.sqrt(len(sample.tokens))
    assert abs(sample.tokens.mean() - grammar.length) < 4 * error


def test_agreement_reaches_across_what_stands_between(tiny):
    assert log_probability(tiny, ["cat", "near", "cats", "sees"]) > -math.inf
    assert log_probability(tiny, ["cat", "near", "cats", "see"]) == -math.inf


@pytest.mark.parametrize("sentence", ["", "sees", "cat", "cat sees sees", "cat <eos>", "bird sees"])
def test_what_is_no_sentence_has_no_probability(tiny, sentence):
    assert log_probability(tiny, sentence.split()) == -math.inf


class TestBuiltin:
    def test_size_and_bound_suit_a_small_model(self, grammar):
        assert 1000 <= len(grammar.tokens()) <= 3000
        assert len(set(grammar.tokens())) == len(grammar.tokens())
        assert 20 <= math.exp(grammar.entropy_rate) <= 60

    def test_each_sentence_has_one_derivation(self, grammar):
        """The generator knows the probability of the derivation, the scorer sums over all."""
        sample = grammar.sample(5000, seed=0)
        scores = [-log_probability(grammar, line.split()) for line in sample.lines]
        np.testing.assert_allclose(scores, sample.nats, rtol=1e-9)

    def test_the_mean_over_sentences_is_the_entropy(self, grammar):
        sample = grammar.sample(400_000, seed=5)
        count = len(sample.lines)
        for values, expected in (
            (sample.nats, grammar.entropy),
            (sample.tokens, grammar.length),
        ):
            error = values.std() / math.sqrt(count)
            assert abs(values.mean() - expected) < 4 * error

    def test_frequencies_are_those_of_the_classes(self, grammar):
        words = " ".join(grammar.sample(100_000, seed=2).lines).split()
        of = grammar.classes["Adj"]
        count = sum(word in of.words for word in words)
        top = words.count(of.words[0])
        p = of.probabilities[0]
        assert abs(top - p * count) < 4 * math.sqrt(count * p * (1 - p))

    def test_a_verb_of_the_wrong_number_or_kind_makes_no_sentence(self, grammar):
        noun = {form: grammar.classes[f"N.{form}"].words[0] for form in ("a.sg", "a.pl", "b.sg")}
        verb = {form: grammar.classes[f"Vi.{form}"].words[0] for form in ("a.sg", "a.pl", "b.sg")}
        seen = grammar.classes["Vt.a.pl"].words[0]
        for form in noun:
            for other in verb:
                sentence = f"the {noun[form]} that the {noun['a.pl']} {seen} {verb[other]}"
                assert (log_probability(grammar, sentence.split()) > -math.inf) == (form == other)

    def test_the_same_seed_gives_the_same_text_and_its_beginning(self, grammar):
        long, short = grammar.sample(60_000, seed=9), grammar.sample(500, seed=9)
        assert long.lines[: len(short.lines)] == short.lines
        assert grammar.sample(500, seed=10).lines != short.lines
        assert builtin_grammar().sample(500, seed=9).lines == short.lines

    def test_a_sample_ends_with_the_sentence_that_fills_it(self, grammar):
        for tokens in (1, 1000, 40_000):
            sample = grammar.sample(tokens, seed=0)
            counts = [len(line.split()) + 1 for line in sample.lines]
            assert sample.tokens.tolist() == counts
            assert sum(counts[:-1]) < tokens <= sum(counts)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"S": [(0.5, ("a",))]}, "'S': probabilities must be above 0 and sum to 1"),
        ({"S": [(1.0, ("a", "b"))]}, "'b' has no rules and no words"),
        ({"T": [(1.0, ("a",))]}, "start 'S' has no rules"),
        ({"S": [(0.4, ("a",)), (0.6, ("a", "S", "S"))]}, "no finite expected length"),
        ({"S": [(1.0, ("a",))], "a": [(1.0, ())]}, "both"),
    ],
)
def test_what_is_no_grammar_is_refused(rules, message):
    with pytest.raises(DataError, match=message):
        Grammar(rules, {"a": WordClass(("a",), (1.0,))})


def test_no_word_is_in_two_classes():
    classes = {"a": WordClass(("a",), (1.0,)), "b": WordClass(("a",), (1.0,))}
    with pytest.raises(DataError, match="'a' is no word, or there already"):
        Grammar({"S": [(1.0, ("a", "b"))]}, classes)


class TestProgram:
    def test_writes_the_sample(self, grammar, tmp_path, capsys):
        out = tmp_path / "a text.txt"
        assert main(["--tokens", "50000", "--out", str(out), "--seed", "4"]) == 0
        assert out.read_text().splitlines() == grammar.sample(50_000, seed=4).lines
        assert f"{math.exp(grammar.entropy_rate):.3f} expected" in capsys.readouterr().err

    @pytest.mark.parametrize("arguments", [["--tokens", "0"], ["--tokens", "5", "--seed", "-1"]])
    def test_an_error_is_one_line_and_leaves_no_file(self, tmp_path, capsys, arguments):
        assert main([*arguments, "--out", str(tmp_path / "x")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert not (tmp_path / "x").exists()

    def test_an_unwritable_file_is_named(self, tmp_path, capsys):
        assert main(["--tokens", "5", "--out", str(tmp_path / "none" / "x")]) == 2
        assert "No such file" in capsys.readouterr().err

    def test_prints_to_standard_output(self):
        command = [sys.executable, "-W", "error", "-m", "data.grammar", "--tokens", "20"]
        output = subprocess.run(
            [*command, "--out", "-"], capture_output=True, text=True, check=True
        )
        assert len(output.stdout.split()) + output.stdout.count("\n") >= 20
