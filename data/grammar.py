"""The built-in corpus: text of a small probabilistic grammar, whose entropy is known exactly.

A sentence is a subject and a verb that agrees with it in number (singular, plural) and in kind
(there are three kinds of nouns, as of genders), with phrases between that hold other nouns:

    the DET  noun(k,n)  [near  the noun(k',n')]  verb(k,n)
    the noun(k,n)  that  the noun(k',n')  saw(k',n')  verb(k,n)
    the noun(k,n)  that  sees(k,n)  the noun(k',n')  verb(k,n)
    the noun(k,n)  thinks(k,n)  that  <sentence>

and so on, one within another. Words are made of syllables; within a class their probabilities
follow a power law, as words of a language do.

Mathematics. The grammar is a context-free one with a probability p(r) for each rule r. Let H(X) be
the entropy of the choice among the rules of X and of the words it writes itself, and m(X, Y) the
expected number of Y in one expansion of X. The entropy h(X) and the expected number of tokens l(X)
of all that X becomes solve the linear equations

    h = H + m h        l = t + m l        (t(X): expected terminals in one expansion of X)

Every sentence of the language has exactly one derivation (word classes are disjoint, a noun takes
at most one phrase after it), so that h(start) is the entropy of a sentence, and h(start) / l(start)
the entropy rate in nats per token when the ends of sentences are seen, as they are: `<eos>`.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError, require_integer, run_program
from data.vocabulary import EOS

VERSION = 1
"""Raised whenever the same seed gives another text."""

BUILTIN_TOKENS = {"train": 120_000, "valid": 10_000, "test": 10_000}
BUILTIN_SEEDS = {"train": 1, "valid": 2, "test": 3}

Rules = Mapping[str, Sequence[tuple[float, Sequence[str]]]]

_DRAWS = 4096  # rule choices drawn at once for a symbol
_BLOCK = 1 << 15  # terminals before their words are drawn


@dataclass(frozen=True)
class WordClass:
    """The words of one class and their probabilities, which sum to 1; none is in another class."""

    words: tuple[str, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Sample:
    """Sentences drawn from a grammar.

    lines: one sentence each, words joined by spaces, without `<eos>`.
    tokens: for each, its words and its `<eos>`; int64 of shape (len(lines),).
    nats: for each, -log of its derivation's probability, in nats; float64 of the same shape.
    """

    lines: list[str]
    tokens: NDArray[np.int64]
    nats: NDArray[np.float64]

    def first(self, count: int) -> Sample:
        """The first `count` sentences."""
        return Sample(self.lines[:count], self.tokens[:count], self.nats[:count])


class Grammar:
    """A probabilistic context-free grammar over word classes.

    rules: for each symbol its expansions, with probabilities that sum to 1. A name in `classes` is
        a terminal: one word of that class.
    classes: the word classes.
    start: the symbol of a sentence. `<eos>` follows each sentence and is none of the symbols.

    The expected length must be finite: else DataError. Whether derivations are unique is the
    author's care; `entropy` is exact for the text only then.
    """

    def __init__(self, rules: Rules, classes: Mapping[str, WordClass], start: str = "S") -> None:
        self.rules = {name: [(p, tuple(right)) for p, right in of] for name, of in rules.items()}
        self.classes = dict(classes)
        self.start = start
        _check(self.rules, self.classes, start)
        self.entropy, self.length = self._solve()

    @property
    def entropy_rate(self) -> float:
        """Nats per token, `<eos>` counted as one: the least cross-entropy a model can expect."""
        return self.entropy / self.length

    def tokens(self) -> list[str]:
        """All words, class by class, and `<eos>` first."""
        return [EOS, *(word for of in self.classes.values() for word in of.words)]

    def _solve(self) -> tuple[float, float]:
        """Entropy in nats and expected tokens, `<eos>` counted, of a sentence."""
        names = list(self.rules)
        place = {name: i for i, name in enumerate(names)}
        inside = np.zeros((len(names), len(names)))
        own = np.zeros(len(names))
        written = np.zeros(len(names))
        class_entropy = {
            name: -math.fsum(p * math.log(p) for p in of.probabilities)
            for name, of in self.classes.items()
        }
        for name, expansions in self.rules.items():
            row = place[name]
            for p, right in expansions:
                own[row] -= p * math.log(p)
                for symbol in right:
                    if symbol in self.classes:
                        own[row] += p * class_entropy[symbol]
                        written[row] += p
                    else:
                        inside[row, place[symbol]] += p
        if max(abs(np.linalg.eigvals(inside))) >= 1:
            raise DataError("the grammar's sentences have no finite expected length")
        both = np.linalg.solve(np.eye(len(names)) - inside, np.stack([own, written], axis=1))
        entropy, length = both[place[self.start]]
        return float(entropy), float(length) + 1

    def sentences(self, seed: int) -> Iterator[Sample]:
        """Sentences without end, some thousand at a time, the same for the same seed."""
        seed = require_integer("seed", seed, least=0)
        random = np.random.Generator(np.random.PCG64(seed))
        numbers = {name: number for number, name in enumerate(self.classes)}
        end = len(numbers)
        drawers = [_Drawer(of.words, of.probabilities) for of in self.classes.values()]
        expand = {
            name: _endless(_Drawer([right[::-1] for _, right in of], [p for p, _ in of]), random)
            for name, of in self.rules.items()
        }
        while True:
            written: list[int] = []  # the class of each word, `end` after each sentence
            rule_nats: list[float] = []
            while len(written) < _BLOCK:
                nats = 0.0
                stack = [self.start]
                while stack:
                    symbol = stack.pop()
                    if symbol in numbers:
                        written.append(numbers[symbol])
                    else:
                        right, more = next(expand[symbol])
                        stack += right
                        nats += more
                written.append(end)
                rule_nats.append(nats)
            classes = np.array(written)
            tokens = np.full(len(classes), "\n", dtype=object)
            nats_of = np.zeros(len(classes))
            for number, drawer in enumerate(drawers):
                places = np.flatnonzero(classes == number)
                tokens[places], nats_of[places] = drawer.draw(random, len(places))
            ends = np.flatnonzero(classes == end) + 1
            starts = np.concatenate([[0], ends[:-1]])
            yield Sample(
                " ".join(tokens).replace(" \n ", "\n").removesuffix(" \n").split("\n"),
                ends - starts,
                np.array(rule_nats) + np.add.reduceat(nats_of, starts),
            )

    def samples(self, tokens: int, seed: int) -> Iterator[Sample]:
        """The first of these sentences that have at least `tokens` tokens together, in parts."""
        left = require_integer("tokens", tokens, least=1)
        for part in self.sentences(seed):
            needed = int(np.searchsorted(np.cumsum(part.tokens), left)) + 1
            yield part.first(needed)
            left -= int(part.tokens[:needed].sum())
            if left <= 0:
                return

    def sample(self, tokens: int, seed: int) -> Sample:
        """The same in one."""
        parts = list(self.samples(tokens, seed))
        return Sample(
            [line for part in parts for line in part.lines],
            np.concatenate([part.tokens for part in parts]),
            np.concatenate([part.nats for part in parts]),
        )


class _Drawer:
    """Draws items with given probabilities, and knows what each costs in nats."""

    def __init__(self, items: Sequence[object], probabilities: Sequence[float]) -> None:
        self.items = np.empty(len(items), dtype=object)
        self.items[:] = items
        self.nats = -np.log(np.array(probabilities))
        bounds = np.cumsum(np.array(probabilities))
        self.bounds = bounds[:-1] / bounds[-1]

    def draw(self, random: np.random.Generator, count: int) -> tuple[Any, NDArray[np.float64]]:
        """`count` items, and -log of the probability of each."""
        drawn = np.searchsorted(self.bounds, random.random(count), "right")
        return self.items[drawn], self.nats[drawn]


def _endless(drawer: _Drawer, random: np.random.Generator) -> Iterator[tuple[Any, float]]:
    while True:
        items, nats = drawer.draw(random, _DRAWS)
        yield from zip(items.tolist(), nats.tolist(), strict=True)


def _check(rules: Mapping[str, Any], classes: Mapping[str, WordClass], start: str) -> None:
    """DataError unless the parts make a grammar."""
    if start not in rules:
        raise DataError(f"start {start!r} has no rules")
    if both := set(rules) & set(classes):
        raise DataError(f"{sorted(both)} are both symbols with rules and word classes")
    words: set[str] = {EOS}
    for name, of in classes.items():
        _check_probabilities(f"word class {name!r}", of.probabilities)
        for word in of.words:
            if word.split() != [word] or word in words:
                raise DataError(f"word class {name!r}: {word!r} is no word, or there already")
            words.add(word)
    for name, expansions in rules.items():
        _check_probabilities(f"symbol {name!r}", [p for p, _ in expansions])
        for _, right in expansions:
            for symbol in right:
                if symbol not in rules and symbol not in classes:
                    raise DataError(f"symbol {name!r}: {symbol!r} has no rules and no words")


def _check_probabilities(what: str, probabilities: Sequence[float]) -> None:
    if not probabilities or min(probabilities) <= 0 or abs(math.fsum(probabilities) - 1) > 1e-9:
        raise DataError(f"{what}: probabilities must be above 0 and sum to 1: {probabilities}")


# The grammar of the built-in corpus.

KINDS = ("a", "b", "c")
NUMBERS = ("sg", "pl")


def builtin_grammar(
    seed: int = 0,
    *,
    nouns: int = 120,
    adjectives: int = 150,
    verbs: int = 60,
    exponent: float = 1.1,
) -> Grammar:
    """The grammar of the corpus `builtin`.

    seed: of the words' spelling.
    nouns: stems for each of the three kinds, a singular and a plural form of each.
    verbs: stems of each sort (without object, with object) for each kind, two forms of each.
    adjectives: for all kinds together.
    exponent: within a class, the word of rank r has probability proportional to r ** -exponent.
    """
    spell = _Speller(seed)
    classes: dict[str, WordClass] = {
        "that": WordClass(("that",), (1.0,)),
        "Det": WordClass(("the",), (1.0,)),
        "Det.sg": _word_class(["a", "this", "every"], 1.0),
        "Det.pl": _word_class(["some", "these", "many"], 1.0),
        "Prep": _word_class([spell.word(1) for _ in range(12)], exponent),
        "Adj": _word_class([spell.word(2) + "y" for _ in range(adjectives)], exponent),
        "Adv": _word_class([spell.word(2) + "ly" for _ in range(30)], exponent),
    }
    for kind in KINDS:
        stems = {
            "N": ([spell.word(2) for _ in range(nouns)], {"sg": "", "pl": "s"}),
            "Vi": ([spell.word(2) for _ in range(verbs)], {"sg": "eth", "pl": "en"}),
            "Vt": ([spell.word(2) for _ in range(verbs)], {"sg": "eth", "pl": "en"}),
            "Vs": ([spell.word(2) for _ in range(verbs // 4)], {"sg": "eth", "pl": "en"}),
        }
        for sort, (words, endings) in stems.items():
            for number, ending in endings.items():
                classes[f"{sort}.{kind}.{number}"] = _word_class(
                    [word + ending for word in words], exponent
                )
    return Grammar(_builtin_rules(), classes)


def _builtin_rules() -> Rules:
    """The rules; symbols carry the kind and number of their noun: `NP.a.pl`."""
    forms = [(f"{kind}.{number}", kind, number) for kind in KINDS for number in NUMBERS]
    kind_share = {"a": 0.5, "b": 0.3, "c": 0.2}
    number_share = {"sg": 0.6, "pl": 0.4}
    # The kind of the object a verb takes, by the kind of its subject.
    object_share = {
        "a": {"a": 0.15, "b": 0.70, "c": 0.15},
        "b": {"a": 0.10, "b": 0.10, "c": 0.80},
        "c": {"a": 0.75, "b": 0.10, "c": 0.15},
    }
    rules: dict[str, list[tuple[float, Sequence[str]]]] = {
        "S": [
            (kind_share[kind] * number_share[number], (f"NP.{form}", f"VP.{form}"))
            for form, kind, number in forms
        ],
        "Any": [
            (kind_share[kind] * number_share[number], (f"NP.{form}",))
            for form, kind, number in forms
        ],
        "Adjs": [(0.7, ()), (0.3, ("Adj", "Adjs"))],
        "Advs": [(0.7, ()), (0.3, ("Adv",))],
        # A subject within a relative clause, and the verb that it brings: "… that [the cats see]"
        "Clause": [
            (kind_share[kind] * number_share[number], (f"NP.{form}", f"Vt.{form}"))
            for form, kind, number in forms
        ],
    }
    for form, kind, number in forms:
        rules[f"NP.{form}"] = [
            (0.5, ("Det", "Adjs", f"N.{form}", f"After.{form}")),
            (0.5, (f"Det.{number}", "Adjs", f"N.{form}", f"After.{form}")),
        ]
        rules[f"After.{form}"] = [
            (0.66, ()),
            (0.16, ("Prep", "Any")),
            (0.10, ("that", f"VP.{form}")),
            (0.08, ("that", "Clause")),
        ]
        rules[f"VP.{form}"] = [
            (0.40, (f"Vi.{form}", "Advs")),
            (0.52, (f"Vt.{form}", f"Object.{kind}")),
            (0.08, (f"Vs.{form}", "that", "S")),
        ]
    for kind in KINDS:
        rules[f"Object.{kind}"] = [
            (object_share[kind][other] * number_share[number], (f"NP.{form}",))
            for form, other, number in forms
        ]
    return rules


def _word_class(words: Sequence[str], exponent: float) -> WordClass:
    """Words by rank, the probability of rank r proportional to r ** -exponent."""
    weights = [rank**-exponent for rank in range(1, len(words) + 1)]
    total = math.fsum(weights)
    return WordClass(tuple(words), tuple(weight / total for weight in weights))


class _Speller:
    """New pronounceable words, none of which is another with an ending."""

    ONSETS = (*"bdfgklmnprstvz", "br", "dr", "fl", "gr", "kl", "pr", "sk", "sl", "st", "tr")
    VOWELS = (*"aeiou", "ai", "ou")
    CODAS = (*"nrlmk", "sk", "nt", "rd")
    TAKEN = frozenset({"that", "the", "a", "this", "every", "some", "these", "many"})

    def __init__(self, seed: int) -> None:
        self._random = np.random.Generator(np.random.PCG64(seed))
        self._taken = set(self.TAKEN)

    def word(self, syllables: int) -> str:
        """A word of so many syllables, with a consonant at the end."""
        while True:
            parts = [self._one(self.ONSETS) + self._one(self.VOWELS) for _ in range(syllables)]
            word = "".join(parts) + self._one(self.CODAS)
            if word not in self._taken:
                self._taken.add(word)
                return word

    def _one(self, of: Sequence[str]) -> str:
        return of[int(self._random.random() * len(of))]


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m data.grammar`; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data.grammar",
        description="Write text of the built-in grammar, of any size, one sentence per line.",
        epilog="example: python -m data.grammar --tokens 1000000 --seed 7 --out text.txt",
    )
    parser.add_argument(
        "--tokens", type=int, required=True, metavar="N",
        help="write whole sentences until there are at least N tokens, line ends counted",
    )  # fmt: skip
    parser.add_argument("--out", required=True, metavar="FILE", help="the file to write; - prints")
    parser.add_argument("--seed", type=int, default=0, help="of the sentences (default: 0)")
    options = parser.parse_args(arguments)
    try:
        grammar = builtin_grammar()
        tokens = lines = 0
        nats = 0.0
        parts = grammar.samples(options.tokens, options.seed)
        first = next(parts)  # arguments are checked before a file is opened
        with (
            contextlib.nullcontext(sys.stdout)
            if options.out == "-"
            else open(options.out, "w", encoding="utf-8")
        ) as file:
            for part in itertools.chain([first], parts):
                file.write("\n".join(part.lines) + "\n")
                tokens += int(part.tokens.sum())
                lines += len(part.lines)
                nats += float(part.nats.sum())
    except DataError as error:
        print(f"data.grammar: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        raise  # whoever read it, as `head`, has enough
    except OSError as error:
        print(f"data.grammar: error: --out {options.out!r}: {error.strerror}", file=sys.stderr)
        return 2
    print(
        f"{lines} sentences, {tokens} tokens with {EOS}; perplexity of the grammar itself "
        f"{math.exp(nats / tokens):.3f} here, {math.exp(grammar.entropy_rate):.3f} expected",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    run_program(main)
