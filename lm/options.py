"""The command line of ``lm.train``, and the configuration that comes of it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data import TOKENIZERS, list_corpora
from data.batching import SHORTEST
from lm.model import CELLS
from lm.recipes import (
    ADDED,
    ENDLESS,
    INITS,
    LOSSES,
    OPTIMIZERS,
    RECIPES,
    SCHEDULES,
    SIZES,
    recipe_of,
)
from lm.saved import PRECISIONS, WEIGHTS
from symrnn.files import UserError
from symrnn.programs import run_parser
from symrnn.rnn import list_backends
from symrnn.rnn.gates import check_gates
from symrnn.training.command_line import (
    RUN_DEFAULTS,
    SOFT_DEFAULTS,
    add_machine_options,
    add_run_options,
    add_symmetry_options,
    check_configuration,
    check_soft_symmetry,
    continued,
    known_or_path,
    number,
    option_name,
)

EXAMPLE = """\
examples:
  python -m lm.train                                     the built-in corpus, in about 90 seconds
  python -m lm.train --data ptb --symm avg --size small
  python -m lm.train --data my/folder --min-count 2
  python -m lm.train --data my/folder --tokenizer sentencepiece --vocab-size 8000
  python -m lm.train --resume runs/ptb-small-avg-seed1 --epochs 20
  torchrun --nproc-per-node 2 -m lm.train --data ptb --size large
"""

DEFAULTS: dict[str, Any] = {
    "data": "builtin",
    "tokenizer": "word",
    "vocab_size": None,
    "min_count": None,
    "size": "small",
    "recipe": "zaremba",
    "cell": "lstm",
    "symm": "avg",
    "symm_hh": None,
    "symm_ih": "",
    **SOFT_DEFAULTS,
    "adaptive_softmax": None,
    "init_from": None,
    "backend": "auto",
    "precision": "fp32",
    **RUN_DEFAULTS,
}
"""What an option that isn't given stands for; the recipe's numbers come from the recipe, and the
gates with symmetric hidden weights (all) from the cell.
"""

TRAINED_UNKNOWN = "trained_unknown"
"""What a configuration holds since there is --min-count: how often <unk> stands in the train text.
"""

MARKS = ("vocabulary", "corpus", TRAINED_UNKNOWN)
"""What else a configuration holds, of the data: fingerprints, and that."""

READ_BY: dict[str, tuple[str, tuple[str, ...]]] = {
    "momentum": ("optimizer", ("sgd",)),
    "beta1": ("optimizer", ("adam", "adamw")),
    "beta2": ("optimizer", ("adam", "adamw", "rmsprop")),
    "epsilon": ("optimizer", ("adam", "adamw", "rmsprop")),
    "averaging": ("optimizer", ("sgd", "adam", "adamw", "rmsprop")),
    "non_monotone": ("optimizer", ("sgd", "adam", "adamw", "rmsprop")),
    "lr_divide": ("schedule", ("epochs", "plateau")),
    "lr_after": ("schedule", ("epochs",)),
    "lr_patience": ("schedule", ("plateau",)),
}
"""Numbers of a recipe that only some of its optimizers or schedules read."""

UNTRAINED = "a model whose train text has no <unk> does not learn what to expect of unknown words"
"""What is said of a model where that is never."""


def make_parser() -> argparse.ArgumentParser:
    """The options of ``python -m lm.train``. None stands for "not given"."""
    parser = argparse.ArgumentParser(
        prog="python -m lm.train",
        description="Train a language model with symmetric recurrent weights.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("data").add_argument
    names = list_corpora()
    add(
        "--data",
        type=known_or_path(names),
        help=f"{', '.join(names)}, or a folder with train.txt, valid.txt, test.txt ({names[0]})",
    )
    add(
        "--tokenizer",
        type=known_or_path(TOKENIZERS),
        help="word (between white space), char, sentencepiece (trained on the train text), or a "
        "file: a sentencepiece model, or FILE.json of Hugging Face's tokenizers (word)",
    )
    add(
        "--vocab-size",
        type=number(int, 1),
        help="words, characters: keep the most frequent, the rest becomes <unk> (all); "
        "sentencepiece: pieces",
    )
    add(
        "--min-count",
        type=number(int, 1),
        metavar="N",
        help="words that stand fewer times in the train text become <unk>, there too, so that the "
        "model learns what to expect of words it has never seen (keep all)",
    )

    add = parser.add_argument_group("model").add_argument
    add("--size", choices=list(SIZES), help="widths, unrolled steps and Zaremba's recipe (small)")
    add("--cell", choices=list(CELLS), help="of the recurrent layers (lstm)")
    add_symmetry_options(add, "avg", "hidden weights")
    letters = ", ".join(f"{name}: {layers.GATES}" for name, layers in CELLS.items())
    add("--symm-hh", metavar="GATES", help=f"gates with symmetric hidden weights ({letters})")
    add("--symm-ih", metavar="GATES", help="gates with symmetric input weights (none)")
    add(
        "--tied",
        action=argparse.BooleanOptionalAction,
        help="decoder and embedding share weights; if E is not H by way of a projection",
    )
    add(
        "--adaptive-softmax",
        type=number(int, 1),
        nargs="+",
        metavar="CUTOFF",
        help="for large vocabularies: so many of the most frequent tokens are decoded at once, the "
        "others by clusters that end at the further cutoffs, as 20000 60000 (one matrix for all)",
    )
    add("--hidden-size", type=number(int, 1), metavar="H")
    add(
        "--last-hidden-size",
        type=number(int, 1),
        metavar="H",
        help="of the highest of several layers (the hidden size)",
    )
    add("--embedding-size", type=number(int, 1), metavar="E", help="(the hidden size)")
    add("--layers", type=number(int, 1, 1000), metavar="L", dest="num_layers")
    add(
        "--init-from",
        type=os.path.realpath,
        metavar="FILE",
        help="start from the weights of another model, a file or a run's folder, of the same sizes "
        "and vocabulary; its matrices become the nearest ones of this model's form",
    )

    add = parser.add_argument_group("recipe (each number overrides the recipe's)").add_argument
    add("--recipe", choices=RECIPES, help="(zaremba)")
    add("--epochs", type=number(int, 1))
    add(
        "--batch-size",
        type=number(int, 1),
        metavar="B",
        help="streams read side by side, in all processes",
    )
    add("--steps", type=number(int, 1), metavar="T", help="unrolled time steps")
    add(
        "--random-steps",
        action=argparse.BooleanOptionalAction,
        help="windows of random length, around T, that differ from epoch to epoch, with the rate "
        "in proportion",
    )
    add("--lr", type=number(float, 0, open_low=True), help="learning rate of the first epoch")
    add(
        "--schedule",
        choices=SCHEDULES,
        help="divide the rate by epochs, or on a plateau; or let it fall to zero, as a cosine does",
    )
    add("--lr-divide", type=number(float, 1), help="what the rate is divided by")
    add("--lr-after", type=number(int, 0), metavar="EPOCH", help="epochs at the first rate")
    add(
        "--lr-patience",
        type=number(int, 1),
        metavar="EPOCHS",
        help="without a better validation, after which a plateau's rate is divided",
    )
    add("--warmup", type=number(int, 0), metavar="STEPS", help="in which the rate grows from zero")
    add("--optimizer", choices=OPTIMIZERS, help="asgd is sgd whose mean of all steps is the model")
    add("--momentum", type=number(float, 0, 1), help="of sgd")
    add("--beta1", type=number(float, 0, 1), help="of adam and adamw; 0 makes them like rmsprop")
    add("--beta2", type=number(float, 0, 1), help="of adam, adamw and rmsprop")
    add("--epsilon", type=number(float, 0, open_low=True), help="of these")
    add(
        "--weight-decay", type=number(float, 0), metavar="L", help="of L/2·‖w‖²; adamw's is its own"
    )
    add("--clip", type=number(float, 0, open_low=True), help="largest norm of the gradient")
    add(
        "--dropout",
        type=number(float, 0, 1),
        help="after the embedding, between and after layers",
    )
    add("--input-dropout", type=number(float, 0, 1), metavar="P", help="after the embedding")
    add("--output-dropout", type=number(float, 0, 1), metavar="P", help="before the decoder")
    add("--state-dropout", type=number(float, 0, 1), metavar="P", help="of h, one mask a window")
    add("--weight-dropout", type=number(float, 0, 1), metavar="P", help="of hidden parameters")
    add(
        "--embedding-dropout",
        type=number(float, 0, 1),
        metavar="P",
        help="of whole types of the vocabulary, one mask a window",
    )
    add(
        "--fixed-masks",
        action=argparse.BooleanOptionalAction,
        help="dropout of input, layers and output by one mask for all steps of a window "
        "(variational dropout)",
    )
    add(
        "--activation-penalty",
        type=number(float, 0),
        metavar="ALPHA",
        help="of the mean square of the last layer's output, after its dropout",
    )
    add(
        "--temporal-penalty",
        type=number(float, 0),
        metavar="BETA",
        help="of the mean square of its change from step to step, before the dropout",
    )
    add("--reset-state", type=number(float, 0, 1), metavar="P", help="zeros for a stream's state")
    add("--init-range", type=number(float, 0), metavar="R", help="weights start uniform in ±R")
    add(
        "--init",
        choices=INITS,
        help="all weights in ±R, or recurrent layers as PyTorch starts them (uniform)",
    )
    add("--forget-bias", type=number(float, 0), metavar="B", help="added to an LSTM's at the start")
    add(
        "--averaging",
        type=number(int, 1),
        metavar="EPOCHS",
        help="without a better validation, after which the mean of the weights is taken",
    )
    add(
        "--non-monotone",
        type=number(int, 1),
        metavar="N",
        help="that mean is taken once a validation is worse than the best of all but the N before "
        "it (NT-ASGD)",
    )
    add(
        "--patience",
        type=number(int, 1),
        metavar="EPOCHS",
        help="without a better validation, after which the run ends",
    )
    add(
        "--accumulate",
        type=number(int, 1),
        metavar="N",
        help="add up the gradients of the batch in N parts, for less memory",
    )
    add("--loss", choices=LOSSES, help="over the time steps; the batch is averaged")

    add = parser.add_argument_group("run").add_argument
    add_run_options(add)
    add_model_options(add)
    return parser


def add_model_options(add: Callable[..., Any]) -> None:
    """The options that all programs that run a model have. ``add``: an ``add_argument``."""
    add("--backend", choices=list_backends(), help="how the recurrent layers are run (auto)")
    add("--precision", choices=PRECISIONS, help="bf16 is autocast (fp32, or as in training)")


def model_parser(program: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """The options of a program that runs a trained model: which, and what it runs on."""
    parser = run_parser(program, description, epilog)
    add = parser.add_argument
    add_machine_options(add)
    add_model_options(add)
    add(
        "--weights",
        choices=WEIGHTS,
        help="the type of the recurrent weights; bfloat16 rounds them and halves what a step "
        "reads, int8 halves it again, on the native kernels for CPUs (float32)",
    )
    add("--dry-run", action="store_true", help="print configuration and counts, run nothing")
    return parser


def resolve(given: dict[str, Any]) -> dict[str, Any]:
    """The whole configuration of a new run: defaults, then the recipe, then what is given."""
    config = {**DEFAULTS, **given}
    check_soft_symmetry(given)
    if config["soft_symmetry"]:
        for name in ("symm_hh", "symm_ih"):
            if given.get(name):
                raise UserError(
                    "--soft-symmetry draws on the hidden weights of all gates, and no others: "
                    f"leave out --{name.replace('_', '-')} {given[name]}"
                )
        config["symm"] = "none"
    try:
        recipe = asdict(recipe_of(config["size"], config["recipe"]))
    except ValueError as error:
        raise UserError(f"--size {config['size']}: {error}") from error
    if config["cell"] != "lstm":
        recipe["forget_bias"] = None
        if "forget_bias" in given:
            raise UserError(f"--forget-bias is for --cell lstm, got: --cell {config['cell']}")
    narrow = recipe["embedding_size"] != recipe["hidden_size"]
    if "hidden_size" in given and "embedding_size" not in given and not narrow:
        recipe["embedding_size"] = given["hidden_size"]
    if "embedding_size" in given and recipe["last_hidden_size"] == recipe["embedding_size"]:
        recipe["last_hidden_size"] = given["embedding_size"]
    config = {**config, **recipe, **{name: given[name] for name in recipe if name in given}}
    if config["batch_size"] % config["accumulate"]:
        raise UserError(
            f"--accumulate {config['accumulate']} should divide the batch, got: --batch-size "
            f"{config['batch_size']}"
        )
    if config["tied"] and config["adaptive_softmax"] is not None:
        whose = "" if "tied" in given else f" (of --recipe {config['recipe']})"
        raise UserError(
            "--adaptive-softmax has no one matrix that could be the embedding too, got: "
            f"--tied{whose}; leave out one of them (--no-tied)"
        )
    last = config["last_hidden_size"]
    if config["num_layers"] == 1 and last not in (None, config["hidden_size"]):
        raise UserError(
            f"--last-hidden-size {last} is that of the highest of several layers, got: --layers 1 "
            f"of --hidden-size {config['hidden_size']}"
        )
    if config["random_steps"] and config["steps"] < SHORTEST:
        raise UserError(
            f"--random-steps makes windows of {SHORTEST} steps and more, got: --steps "
            f"{config['steps']}"
        )
    if config["symm_hh"] is None:
        config["symm_hh"] = CELLS[config["cell"]].GATES
    config |= gates_of(config, config["cell"])
    if config["symm"] == "none":
        config["symm_hh"] = config["symm_ih"] = ""
    return config


def without_effect(given: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """A sentence for each option that is given and that nothing in the whole ``config`` reads."""
    idle = [
        (name, f"--{reader} {config[reader]}")
        for name, (reader, kinds) in READ_BY.items()
        if name in given and config[reader] not in kinds
    ]
    if config["symm"] == "none":
        idle += [(name, "--symm none") for name in ("symm_hh", "symm_ih") if given.get(name)]
    ends = [config["input_dropout"], config["output_dropout"]]
    if "dropout" in given and config["num_layers"] == 1 and None not in ends:
        values = "--input-dropout {:g} and --output-dropout {:g}".format(*ends)
        idle.append(("dropout", f"--layers 1, {values}"))
    return [f"{option_name(name)} {given[name]} has no effect with {why}" for name, why in idle]


def gates_of(config: dict[str, Any], cell: str) -> dict[str, str]:
    """The gates that ``config`` names, in the order of ``cell``; UserError if it has them not."""
    found: dict[str, str] = {}
    for name in ("symm_hh", "symm_ih"):
        if name in config:
            try:
                option = "--" + name.replace("_", "-")
                found[name] = check_gates(option, config[name], CELLS[cell].GATES)
            except ValueError as error:
                raise UserError(f"{error} (--cell {cell})") from error
    return found


def resume_config(config: dict[str, Any], given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration of a run to be continued; UserError if ``given`` contradicts it."""
    # What former runs do not have; how often <unk> was trained is counted anew with the corpus.
    newer = {
        name: DEFAULTS[name] for name in ("min_count", "adaptive_softmax", "init_from", "keep")
    }
    config = {**newer, TRAINED_UNKNOWN: 0, **ADDED, **config}
    check_configuration(
        config,
        folder,
        program="lm.train",
        parser=make_parser(),
        resolve=resolve,
        defaults=DEFAULTS,
        marks=MARKS,
    )
    given = {**given, **gates_of(given, given.get("cell", config["cell"]))}
    if config["symm"] == "none":  # of a run without symmetric gates they say nothing
        given = {name: v for name, v in given.items() if name not in ("symm_hh", "symm_ih")}
    return continued(config, given, folder, extendable=config["schedule"] in ENDLESS)
