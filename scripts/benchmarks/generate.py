"""Tokens a second of ``lm.generate``: packed symmetric weights beside PyTorch's operator.

    python scripts/benchmarks/generate.py
    python scripts/benchmarks/generate.py --sizes small --threads 1

Models of Zaremba's three sizes with random weights and 10,000 words; what they say does not matter
to how fast they say it. "recurrent" is the time of the recurrent layers of one token; the rest is
mostly the decoder, whose 10,000 rows are read for every token, and the draw. Medians of blocks of
tokens, the ways to run in turn; "vendor" runs on weights expanded once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial

import torch
from report import explanation, make_parser, table, write_report
from timing import Peer, interleaved
from tqdm import tqdm

from lm.generate import generate
from lm.model import LanguageModel
from lm.recipes import SIZES
from lm.sampling import draw
from symrnn.training import set_threads

VOCABULARY = 10_000
SEED = 0
WAYS = {
    "vendor, none": ("none", "", "vendor", None),
    "script, none": ("none", "", "script", None),
    "auto, none": ("none", "", "auto", None),
    "auto, avg": ("avg", "", "auto", None),
    "auto, avg on hidden and input": ("avg", "ifgo", "auto", None),
    "auto, avg on hidden and input, bfloat16": ("avg", "ifgo", "auto", torch.bfloat16),
}


def model_of(size: str, way: str) -> LanguageModel:
    recipe = SIZES[size]
    symm, symm_ih, backend, dtype = WAYS[way]
    torch.manual_seed(SEED)
    model = LanguageModel(
        VOCABULARY,
        recipe.embedding_size,
        recipe.hidden_size,
        recipe.num_layers,
        symm=symm,
        symm_ih=symm_ih,
        backend=backend,
    )
    model.initialize(recipe.init_range)
    model.rnn.inference_dtype = dtype
    return model.deployed()


def a_token(model: LanguageModel, tokens: int) -> Peer:
    """So many tokens, of which the first two are not timed: weights packed, and in the cache."""
    stream: Iterator[int] = iter(())

    def prepare() -> None:
        nonlocal stream
        generator = torch.Generator().manual_seed(SEED)
        choose = partial(draw, generator=generator)
        stream = generate(model, [0], tokens + 2, choose, precision=nullcontext)
        next(stream)
        next(stream)

    return Peer("whole", lambda: deque(stream, maxlen=0), prepare)


def recurrent(model: LanguageModel, calls: int) -> Peer:
    """So many calls of the recurrent layers alone."""
    x = torch.randn(1, 1, model.rnn.input_size)

    def call() -> None:
        state = None
        with torch.inference_mode():
            for _ in range(calls):
                _, state = model.rnn(x, state)

    return Peer("part", call)


def main() -> None:
    parser = make_parser(__doc__, "results/generate.md")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=40, help="in a block")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    set_threads(options.threads)
    rows = []
    for size in options.sizes:
        models = [model_of(size, way) for way in tqdm(WAYS, desc=size, leave=False)]
        peers = [of(model, options.tokens) for model in models for of in (a_token, recurrent)]
        medians = [one.median / options.tokens for one in interleaved(peers, 0, options.rounds)]
        for way, token, part in zip(WAYS, medians[::2], medians[1::2], strict=True):
            cells = (1 / token, 1e6 * token, 1e6 * part)
            rows.append([f"{size}, {way}", *(f"{cell:,.0f}" for cell in cells)])
    header = ["", "tokens a second", "µs a token", "of these recurrent"]
    write_report(
        options.out,
        "Tokens a second of lm.generate",
        [*explanation(__doc__), table(header, rows)],
        seed=SEED,
    )


if __name__ == "__main__":
    main()
