"""``python -m lm.evaluate``: the perplexity of a trained model on any text."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from data import Codec, DataError, EncodedText, encode_file, list_corpora, open_split
from data.corpus import SPLITS
from data.text import standard_input
from lm.cache import Cache, ContinuousCache, require_memory
from lm.dynamic import Dynamic, gradient_scales, predict_dynamically
from lm.options import TRAINED_UNKNOWN, UNTRAINED, model_parser
from lm.perplexity import Score, Unknown, predict
from lm.saved import Saved, load_by_options, saved_configuration
from symrnn.files import UserError, run_program
from symrnn.files.atomic import replacing
from symrnn.files.errors import describe_os_error
from symrnn.training import autocast
from symrnn.training.command_line import number, option_name, print_table
from symrnn.training.progress import progress_bar

EXAMPLE = """\
examples:
  python -m lm.evaluate                              the newest run in ./runs, on its test text
  python -m lm.evaluate runs/ptb-small-avg-seed1 --split valid
  python -m lm.evaluate best.safetensors --data story.txt --per-token story.tsv
  zcat story.txt.gz | python -m lm.evaluate best.safetensors --data -
  python -m lm.evaluate runs/ptb-small-avg-seed1 --cache 500 --dynamic

Every token of the text is predicted, the first too (after a line end), in one stream whose state
is carried over. A line end is a token, <eos>, and a word. A text is encoded with the vocabulary in
the checkpoint.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    if options.data == options.dynamic_statistics == "-":
        raise UserError("standard input is one text: --data - and --dynamic-statistics - want two")
    saved = load_by_options(options)
    name, text, bound = open_text(saved, options.data, options.split)
    adapting = adaptation(options, saved)
    train = open_statistics(saved, options.dynamic_statistics) if "dynamic" in adapting else None
    if options.dry_run:
        print(f"text                  {name}, {text.tokens:,} tokens")
        print_table(adapting)
        print_table(saved_configuration(saved))
        return 0

    with per_token_table(options.per_token, saved.codec) as each:
        started = time.perf_counter()
        score, cached = measure_static(saved, text, adapting.get("cache"), each)
        seconds = time.perf_counter() - started
    unknown = Unknown.of(text, saved.codec)
    lines = {
        "checkpoint": saved.path,
        "text": name,
        "tokens": f"{score.tokens:,}",
        "words": f"{score.words:,}",
        "unknown words": unknown,
        "nats": f"{score.nats:.4f}",
        **perplexities(score, saved.codec),
        **({} if bound is None else {"best possible": f"{bound:.4f} per word"}),
        "time": f"{seconds:.2f} s",
        "tokens per second": f"{score.tokens / seconds:,.0f}",
    }
    if cached is not None:
        lines |= {"cache": adapting["cache"], **perplexities(cached, saved.codec, "cache")}
    if train is not None:
        dynamic = measure_dynamic(saved, text, train, adapting["dynamic"])
        lines |= {"dynamic": adapting["dynamic"], **perplexities(dynamic, saved.codec, "dynamic")}
    # Beside a table on stdout, what else there is to say goes to stderr.
    with redirect_stdout(sys.stderr if options.per_token == "-" else sys.stdout):
        print_table(lines)
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
        "file (stdout, with the summary on stderr); of the model as it was trained",
    )

    add = parser.add_argument_group(
        "models that adapt to the text (measured beside the model as it was trained)"
    ).add_argument
    add(
        "--cache",
        type=number(int, 1),
        metavar="SIZE",
        help="mix in a continuous cache of the last SIZE steps (Grave et al. 2017); 500 is usual",
    )
    add("--cache-theta", type=number(float, 0), metavar="THETA", help="weight of likeness (1)")
    add(
        "--cache-lambda",
        type=number(float, 0, 1),
        metavar="LAMBDA",
        help="the cache's share of the probabilities (0.1)",
    )
    add(
        "--dynamic",
        action="store_true",
        help="dynamic evaluation (Krause et al. 2018): a copy of the model learns from each "
        "segment of the text once it has predicted it",
    )
    add("--dynamic-lr", type=number(float, 0), metavar="ETA", help="learning rate (5e-5)")
    add(
        "--dynamic-decay",
        type=number(float, 0),
        metavar="LAMBDA",
        help="decay towards the trained weights (0.002)",
    )
    add(
        "--dynamic-epsilon",
        type=number(float, 0, open_low=True),
        metavar="E",
        help="added to the gradients' root mean squares (2e-5)",
    )
    add("--dynamic-segment", type=number(int, 1), metavar="T", help="steps of a segment (5)")
    add(
        "--dynamic-statistics",
        metavar="DATA",
        help="the training text, as --data, for the gradients' root mean squares (that of what "
        "the model trained on)",
    )
    return parser


def adaptation(options: argparse.Namespace, saved: Saved) -> dict[str, Any]:
    """What ``--cache`` and ``--dynamic`` ask for, by these names.

    Raises UserError for an option of one of them without it, and for what this model cannot do.
    """
    given = {name: value for name, value in vars(options).items() if value is not None}
    parts = {
        whole: {name: given[name] for name in given if name.startswith(f"{whole}_")}
        for whole in ("cache", "dynamic")
    }
    for whole, own in parts.items():
        if not getattr(options, whole) and own:
            name, value = next(iter(own.items()))
            raise UserError(f"{option_name(name)} {value} is that of --{whole}: give both")
    found: dict[str, Any] = {}
    if options.cache:
        names = {"cache_theta": "theta", "cache_lambda": "share"}
        own = {names[name]: value for name, value in parts["cache"].items()}
        found["cache"] = Cache(options.cache, **own)
        width, item = saved.model.feature_size, saved.model.encoder.weight.element_size()
        require_memory(options.cache, width, item, saved.device)
    if options.dynamic:
        parts["dynamic"].pop("dynamic_statistics", None)  # a text, no number
        own = {name.removeprefix("dynamic_"): v for name, v in parts["dynamic"].items()}
        found["dynamic"] = Dynamic(**own)
    weights = saved.config.get("weights", "float32")
    if "dynamic" in found and weights != "float32":
        raise UserError(f"--dynamic learns by gradients, which --weights {weights} has none of")
    return found


def open_statistics(saved: Saved, data: str | None) -> EncodedText:
    """The training text, for the statistics of dynamic evaluation."""
    split = "train" if data is None or data in list_corpora() or os.path.isdir(data) else None
    return open_text(saved, data, split, "--dynamic-statistics")[1]


def open_text(
    saved: Saved, data: str | None, split: str | None, option: str = "--data"
) -> tuple[str, EncodedText, float | None]:
    """What is to be predicted, in ids of the checkpoint's codec.

    data: a text file or a pipe, "-" for standard input, a corpus folder or a corpus's name; None
        for what the model trained on.
    split: of a corpus, the only text of it that is read; None for "test".
    option: which of the command line's that is.

    Returns a name for it, the text, and the least perplexity per word that any model can expect,
    where that is known.
    """
    if data is not None and data not in list_corpora() and not os.path.isdir(data):
        if data != "-" and not os.path.exists(data):
            known = ", ".join(list_corpora())
            raise UserError(
                f"{option} {data}: there is no such file or folder, and it is none of {known}"
            )
        if split is not None:
            raise UserError(f"--split {split} is for a corpus, but --data {data} is one file")
        return data, encode_file(standard_input() if data == "-" else data, saved.codec), None
    source, split = data or saved.config.get("data"), split or "test"
    if not isinstance(source, str):
        raise UserError(f"{saved.path}: does not say what it was trained on; {option} names a text")
    try:
        text, bound = open_split(source, split, saved.codec)
    except DataError as error:
        if data is not None:
            raise
        raise DataError(f"{error} ({option} names another text)") from error
    return f"{source}, {split}", text, bound


def measure_static(
    saved: Saved,
    text: EncodedText,
    settings: Cache | None,
    each: Callable[[Tensor, Tensor], None] | None,
) -> tuple[Score, Score | None]:
    """The score of the model as it was trained; and with a cache, if there is to be one.

    each: is called with the targets (T,) and their negative log-probabilities (T,), in order.
    """
    model = saved.model.deployed(autocast=saved.config["precision"] == "bf16")
    precision = autocast(saved.config["precision"], saved.device)
    cache = None if settings is None else ContinuousCache(settings)
    nats = cached = 0.0
    with _bar(text, "the model") as bar:
        for window in predict(model, text, saved.codec.eos_id, precision=precision):
            nats += window.nats.double().sum().item()
            if cache is not None:
                cached += cache(window).double().sum().item()
            if each is not None:
                each(window.targets, window.nats)
            bar.update(len(window.targets))
    score = Score(nats, text.tokens, text.words)
    return score, None if cache is None else replace(score, nats=cached)


def measure_dynamic(
    saved: Saved, text: EncodedText, train: EncodedText, settings: Dynamic
) -> Score:
    """The score of a copy of the model that adapts to the text.

    train: what the gradients' root mean squares are taken from.
    """
    precision = autocast(saved.config["precision"], saved.device)
    with _bar(train, "gradient statistics") as bar:
        scales = gradient_scales(
            saved.model, train, settings.segment, precision=precision, update=bar.update
        )
    nats = 0.0
    with _bar(text, "dynamic evaluation") as bar:
        for losses in predict_dynamically(
            saved.model, scales, text, saved.codec.eos_id, settings, precision=precision
        ):
            nats += losses.double().sum().item()
            bar.update(len(losses))
    return Score(nats, text.tokens, text.words)


def _bar(text: EncodedText, what: str) -> Any:
    return progress_bar(total=text.tokens, initial=0, desc=what, unit="tok")


def perplexities(score: Score, codec: Codec, of: str = "perplexity") -> dict[str, str]:
    """A score in words; of characters in bits too."""
    lines = {
        f"{of} per token": f"{score.perplexity:.4f}",
        f"{of} per word": f"{score.word_perplexity:.4f}",
    }
    if codec.unit == "character":
        name = "bits per character" if of == "perplexity" else f"{of}, bits per char."
        lines[name] = f"{score.bits:.4f}"
    return lines


@contextmanager
def per_token_table(
    target: str | None, codec: Codec
) -> Iterator[Callable[[Tensor, Tensor], None] | None]:
    """What writes the table of tokens; a file is there when it is whole.

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
