"""``python -m lm.evaluate``: the perplexity of a trained model on any text."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from data import Codec, DataError, EncodedText, encode_file, list_corpora, open_split
from data.corpus import SPLITS
from data.text import standard_input
from lm.options import TRAINED_UNKNOWN, UNTRAINED, model_parser
from lm.perplexity import Unknown, measure
from lm.saved import Saved, load_by_options, saved_configuration
from symrnn.files import UserError, run_program
from symrnn.files.atomic import replacing
from symrnn.files.errors import describe_os_error
from symrnn.training import autocast
from symrnn.training.command_line import print_table

EXAMPLE = """\
examples:
  python -m lm.evaluate                              the newest run in ./runs, on its test text
  python -m lm.evaluate runs/ptb-small-avg-seed1 --split valid
  python -m lm.evaluate best.safetensors --data story.txt --per-token story.tsv
  zcat story.txt.gz | python -m lm.evaluate best.safetensors --data -

Every token of the text is predicted, the first too (after a line end), in one stream whose state
is carried over. A line end is a token, <eos>, and a word. A text is encoded with the vocabulary in
the checkpoint.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    saved = load_by_options(options)
    name, text, bound = open_text(saved, options.data, options.split)
    if options.dry_run:
        print(f"text                  {name}, {text.tokens:,} tokens")
        print_table(saved_configuration(saved))
        return 0

    with per_token_table(options.per_token, saved.codec) as each:
        started = time.perf_counter()
        score = measure(
            saved.model.deployed(autocast=saved.config["precision"] == "bf16"),
            text,
            saved.codec.eos_id,
            precision=autocast(saved.config["precision"], saved.device),
            each=each,
        )
        seconds = time.perf_counter() - started

    unknown = Unknown.of(text, saved.codec)
    lines = [
        f"checkpoint            {saved.path}",
        f"text                  {name}",
        f"tokens                {score.tokens:,}",
        f"words                 {score.words:,}",
        f"unknown words         {unknown}",
        f"nats                  {score.nats:.4f}",
        f"perplexity per token  {score.perplexity:.4f}",
        f"perplexity per word   {score.word_perplexity:.4f}",
        f"time                  {seconds:.2f} s",
        f"tokens per second     {score.tokens / seconds:,.0f}",
    ]
    if bound is not None:
        lines.insert(8, f"best possible         {bound:.4f} per word")
    # Beside a table on stdout, what else there is to say goes to stderr.
    print("\n".join(lines), file=sys.stderr if options.per_token == "-" else sys.stdout)
    if unknown.count and saved.config.get(TRAINED_UNKNOWN) == 0:
        print(f"notice: {UNTRAINED}: here {unknown}", file=sys.stderr)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The options of ``python -m lm.evaluate``."""
    description = "The perplexity of a trained model on a text, per token and per word."
    parser = model_parser("lm.evaluate", description, EXAMPLE)
    add = parser.add_argument
    corpora = ", ".join(list_corpora())
    add(
        "--data",
        help="a text file or a pipe, - for standard input, a folder of which only the text of "
        f"--split is read, or {corpora} (what the model trained on)",
    )
    add("--split", choices=SPLITS, help="which text of a corpus (test)")
    add(
        "--per-token",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write each token and its negative log-probability in nats, tab separated, to a new "
        "file (stdout, with the summary on stderr)",
    )
    return parser


def open_text(
    saved: Saved, data: str | None, split: str | None
) -> tuple[str, EncodedText, float | None]:
    """What is to be predicted, in ids of the checkpoint's codec.

    data: a text file or a pipe, "-" for standard input, a corpus folder or a corpus's name; None
        for what the model trained on.
    split: of a corpus, the only text of it that is read; None for "test".

    Returns a name for it, the text, and the least perplexity per word that any model can expect,
    where that is known.
    """
    if data is not None and data not in list_corpora() and not os.path.isdir(data):
        if data != "-" and not os.path.exists(data):
            known = ", ".join(list_corpora())
            raise UserError(
                f"--data {data}: there is no such file or folder, and it is none of {known}"
            )
        if split is not None:
            raise UserError(f"--split {split} is for a corpus, but --data {data} is one file")
        return data, encode_file(standard_input() if data == "-" else data, saved.codec), None
    source, split = data or saved.config.get("data"), split or "test"
    if not isinstance(source, str):
        raise UserError(f"{saved.path}: does not say what it was trained on; --data names a text")
    try:
        text, bound = open_split(source, split, saved.codec)
    except DataError as error:
        if data is not None:
            raise
        raise DataError(f"{error} (--data names another text)") from error
    return f"{source}, {split}", text, bound


@contextmanager
def per_token_table(
    target: str | None, codec: Codec
) -> Iterator[Callable[[Tensor, Tensor], None] | None]:
    """What writes the table of tokens, for :func:`measure`; a file is there when it is whole.

    target: a file that isn't there yet, "-" for stdout, None for no table.
    """
    if target is None:
        yield None
        return

    write: Callable[[str], object] = sys.stdout.write

    def each(targets: Tensor, nats: Tensor) -> None:
        for id, value in zip(targets.tolist(), nats.tolist(), strict=True):
            write(f"{escaped(codec.token(id))}\t{value!r}\n")

    if target == "-":
        write("token\tnats\n")
        yield each
        return
    path = Path(target)
    if path.exists():
        raise UserError(f"--per-token {target}: is there already; name a new file")
    try:
        with replacing(path) as new, new.open("w", encoding="utf-8", newline="\n") as file:
            write = file.write
            write("token\tnats\n")
            yield each
    except OSError as error:
        reason = describe_os_error(error)
        raise UserError(f"--per-token {target}: cannot be written: {reason}") from error


def escaped(token: str) -> str:
    """The token in printable characters: tab, line end and their like as Python escapes them."""
    return "".join(
        c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode() for c in token
    )


if __name__ == "__main__":
    run_program(main, DataError)
