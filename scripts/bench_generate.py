"""Tokens a second of ``lm.generate``: packed symmetric weights beside PyTorch's operator.

    python scripts/bench_generate.py

Models of Zaremba's three sizes with random weights and 10,000 words; what they say does not matter
to how fast they say it. "recurrent" is the time of the recurrent layers of one token; the rest is
mostly the decoder, whose 10,000 rows are read for every token, and the draw. Medians of blocks of
tokens, the ways to run in turn; "vendor" runs on weights expanded once.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from report import table, write_report
from tqdm import tqdm

from lm.generate import generate
from lm.model import LanguageModel
from lm.recipes import SIZES
from lm.sampling import draw
from symrnn.training import set_threads

VOCABULARY = 10_000
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
    torch.manual_seed(0)
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


def seconds_a_token(model: LanguageModel, tokens: int) -> float:
    generator = torch.Generator().manual_seed(0)
    stream = generate(
        model, [0], tokens + 2, lambda logits: draw(logits, generator), precision=nullcontext
    )
    next(stream)
    next(stream)  # packed, and in the cache
    started = time.perf_counter()
    for _ in stream:
        pass
    return (time.perf_counter() - started) / tokens


def recurrent_seconds(model: LanguageModel, calls: int) -> float:
    x = torch.randn(1, 1, model.rnn.input_size)
    state = None
    laps = []
    with torch.inference_mode():
        for _ in range(calls):
            started = time.perf_counter()
            _, state = model.rnn(x, state)
            laps.append(time.perf_counter() - started)
    return statistics.median(laps)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=40, help="in a block")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, default=Path("results/generate.md"))
    options = parser.parse_args()
    set_threads(options.threads)
    rows = []
    for size in options.sizes:
        models = {way: model_of(size, way) for way in tqdm(WAYS, desc=size, leave=False)}
        whole: dict[str, list[float]] = {way: [] for way in WAYS}
        part: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in tqdm(range(options.rounds), desc=size):
            for way, model in models.items():
                whole[way].append(seconds_a_token(model, options.tokens))
                part[way].append(recurrent_seconds(model, options.tokens))
        for way in WAYS:
            token, recurrent = statistics.median(whole[way]), statistics.median(part[way])
            rows.append(
                [
                    f"{size}, {way}",
                    *(f"{x:,.0f}" for x in (1 / token, 1e6 * token, 1e6 * recurrent)),
                ]
            )
    header = ["", "tokens a second", "µs a token", "of these recurrent"]
    write_report(
        options.out,
        "Tokens a second of lm.generate",
        [" ".join((__doc__ or "").split("\n\n")[2].split()), table(header, rows)],
    )


if __name__ == "__main__":
    main()
