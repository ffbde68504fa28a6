"""``python -m lm.generate``: text from a trained model, token by token."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch

from data import Codec, DataError
from data.text import read_blocks, standard_input
from lm.model import LanguageModel
from lm.options import TRAINED_UNKNOWN, UNTRAINED, model_parser
from lm.sampling import draw
from lm.saved import load_by_options, saved_configuration
from symrnn.files import UserError, run_program
from symrnn.training import autocast
from symrnn.training.command_line import number, print_table

EXAMPLE = """\
examples:
  python -m lm.generate                              from the newest run in ./runs
  python -m lm.generate runs/ptb-small-avg-seed1 --prompt "the company said" --temperature 0.8
  python -m lm.generate best.safetensors --top-p 0.9 --tokens 1000 --seed 7 > story.txt
  python -m lm.generate --prompt - < beginning.txt

The prompt and what follows it go to stdout, all else to stderr. On the CPU the same seed gives the
same text.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    saved = load_by_options(options)
    prompt = encode_prompt(options.prompt, saved.codec)
    if options.dry_run:
        for name in ("temperature", "top_k", "top_p", "seed", "prompt", "tokens"):
            print(f"{name:21} {getattr(options, name)}")
        print_table(saved_configuration(saved))
        return 0

    print(f"{saved.path}, seed {options.seed}", file=sys.stderr)
    if saved.codec.unk_id in prompt and saved.config.get(TRAINED_UNKNOWN) == 0:
        print(f"notice: {UNTRAINED}, as some of the prompt are", file=sys.stderr)
    generator = torch.Generator().manual_seed(options.seed)
    text = TextStream(saved.codec)
    for id in prompt:
        _show(text.push(id))
    started = time.perf_counter()
    for id in generate(
        saved.model.deployed(autocast=saved.config["precision"] == "bf16"),
        [saved.codec.eos_id, *prompt],
        options.tokens,
        lambda logits: draw(
            logits,
            generator,
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
        ),
        precision=autocast(saved.config["precision"], saved.device),
    ):
        _show(text.push(id))
    seconds = time.perf_counter() - started
    _show(text.end())
    speed = f"{options.tokens / seconds:,.0f} tokens per second"
    print(f"{options.tokens:,} tokens, {speed}", file=sys.stderr)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The options of ``python -m lm.generate``."""
    description = "Text from a trained model, streamed to stdout word by word."
    parser = model_parser("lm.generate", description, EXAMPLE)
    add = parser.add_argument
    add(
        "--prompt",
        default="",
        metavar="TEXT",
        help="what comes before, - for standard input (the start of a line)",
    )
    add("--tokens", type=number(int, 1), default=200, help="how many, line ends included (200)")
    add(
        "--temperature",
        type=number(float, 0),
        default=1.0,
        help="below 1 likelier tokens, above 1 less likely ones, 0 always the likeliest (1)",
    )
    add("--top-k", type=number(int, 1), metavar="K", help="only the K likeliest tokens (all)")
    add(
        "--top-p",
        type=number(float, 0, 1, open_low=True),
        metavar="P",
        help="only the fewest tokens whose probabilities sum to P, of those of --top-k (all)",
    )
    add("--seed", type=number(int, 0, 2**32 - 1), default=1, help="(1)")
    return parser


def encode_prompt(prompt: str, codec: Codec) -> list[int]:
    """The ids of a prompt of any number of lines, without the end of its last line.

    prompt: "-" is standard input, where a line end at the very end is that of the last line.

    Raises UserError for what is no text, or none that the codec can encode.
    """
    try:
        if prompt == "-":
            blocks = read_blocks(standard_input())
            lines = [line for block in blocks for line in block.lines()]
        else:
            lines = prompt.split("\n")
        return [id for line in lines for id in codec.encode_line(line)][:-1]
    except DataError as error:
        raise UserError(f"--prompt: {error}") from error


PIECE = 64
"""Tokens of a prompt at once, whose logits, which nobody wants, are all made."""


def generate(
    model: LanguageModel,
    prompt: Sequence[int],
    tokens: int,
    choose: Callable[[torch.Tensor], int],
    *,
    precision: Callable[[], AbstractContextManager[object]],
) -> Iterator[int]:
    """So many tokens that follow a prompt of at least one.

    choose: from the logits (V,) of the next token to its id.
    precision: makes the context that the model runs in (autocast or none).

    Raises UserError if the model gives no probabilities, as one that diverged may.
    """
    device = model.encoder.weight.device
    ids = torch.tensor(prompt, device=device).view(-1, 1)
    with torch.inference_mode(), precision():
        stream = model.stream()
        for start in range(0, len(prompt) - 1, PIECE):
            stream(ids[start : min(start + PIECE, len(prompt) - 1)])
    ids = ids[-1:]
    for made in range(tokens):
        with torch.inference_mode(), precision():
            logits = stream(ids)
        try:
            id = choose(logits[-1, 0])
        except ValueError as error:
            raise UserError(f"the model failed after {made} tokens: {error}") from error
        yield id
        ids = torch.full((1, 1), id, device=device)


class TextStream:
    """Ids to text as they come, in whole words: the same text as ``codec.decode`` of all."""

    WINDOW = 16
    """Tokens that are decoded anew with each new one; only the one before matters, mostly."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.recent: list[int] = []  # of this line
        self.parts: list[int] = []  # of a character, which takes several ids
        self.waiting = ""  # the last word, which may go on in the next piece

    def push(self, id: int) -> str:
        """The text that is certain once ``id`` has come."""
        if id == self.codec.eos_id:
            self._take(self.parts)
            self.recent, self.parts = [], []
            text, self.waiting = self.waiting + "\n", ""
            return text
        self.parts.append(id)
        if self.codec.unit != "piece":  # each token is a word, or a character
            self._take(self.parts)
            self.parts = []
            text, self.waiting = self.waiting, ""
            return text
        broken = self.codec.decode([*self.recent, *self.parts]).endswith("\ufffd")
        if broken and len(self.parts) < 4:  # a character has four bytes at most
            return ""
        self._take(self.parts)
        self.parts = []
        cut = max(self.waiting.rfind(" "), 0)
        text, self.waiting = self.waiting[:cut], self.waiting[cut:]
        return text

    def _take(self, ids: list[int]) -> None:
        """Put what the ids add to the line to what waits."""
        before = self.codec.decode(self.recent)
        self.recent = [*self.recent, *ids]
        self.waiting += self.codec.decode(self.recent)[len(before) :]
        self.recent = self.recent[-self.WINDOW :]

    def end(self) -> str:
        """What was held back, and the end of a line that is under way."""
        self._take(self.parts)
        self.parts = []
        text = self.waiting
        return text + "\n" if self.recent or text else text


def _show(text: str) -> None:
    if text:
        sys.stdout.write(text)
        sys.stdout.flush()


if __name__ == "__main__":
    run_program(main, DataError)
