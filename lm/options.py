"""The command line of ``lm.train``, and the configuration that comes of it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data import list_corpora
from lm.model import CELLS
from lm.recipes import LOSSES, RECIPES, SCHEDULES, SIZES, recipe_of
from lm.saved import PRECISIONS, WEIGHTS
from symrnn import list_symmetries
from symrnn.files import UserError
from symrnn.rnn import list_backends
from symrnn.rnn.gates import check_gates
from symrnn.symmetry import check_symmetry_name
from symrnn.training.command_line import number

EXAMPLE = """\
examples:
  python -m lm.train                                     the built-in corpus, in about 90 seconds
  python -m lm.train --data ptb --symm avg --size small
  python -m lm.train --data my/folder --tokenizer sentencepiece --vocab-size 8000
  python -m lm.train --resume runs/ptb-small-avg-seed1
"""

DEFAULTS: dict[str, Any] = {
    "data": "builtin",
    "tokenizer": "word",
    "vocab_size": None,
    "size": "small",
    "recipe": "zaremba",
    "cell": "lstm",
    "symm": "avg",
    "symm_hh": None,
    "symm_ih": "",
    "soft_symmetry": 0.0,
    "soft_norm": 2,
    "tied": False,
    "backend": "auto",
    "precision": "fp32",
    "compile": False,
    "seed": 1,
    "device": "auto",
    "threads": None,
    "save_every": 500,
    "log_every": 50,
}
"""What an option that isn't given stands for; the recipe's numbers come from the recipe, and the
gates with symmetric hidden weights (all) from the cell.
"""

MACHINE = ("data", "device", "threads", "save_every", "log_every")
"""Options that say where a run happens, not what it is: a resumed run may change them."""


def symmetry(text: str) -> str:
    """An argparse type: the name of a symmetric form, or "none"."""
    try:
        check_symmetry_name("it", text, "none")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def make_parser() -> argparse.ArgumentParser:
    """The options of ``python -m lm.train``. None stands for "not given"."""
    parser = argparse.ArgumentParser(
        prog="python -m lm.train",
        description="Train a language model with symmetric recurrent weights.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("data").add_argument
    corpora = ", ".join(list_corpora())
    add(
        "--data", help=f"{corpora}, or a folder with train.txt, valid.txt, test.txt ({corpora[:7]})"
    )
    add("--tokenizer", choices=["word", "sentencepiece"], help="(word)")
    add(
        "--vocab-size",
        type=number(int, 1),
        help="words: keep the most frequent, the rest becomes <unk> (all); sentencepiece: pieces",
    )

    add = parser.add_argument_group("model").add_argument
    add("--size", choices=list(SIZES), help="widths, unrolled steps and Zaremba's recipe (small)")
    add("--cell", choices=list(CELLS), help="of the recurrent layers (lstm)")
    add("--symm", type=symmetry, metavar="FORM", help=f"none, {', '.join(list_symmetries())} (avg)")
    letters = ", ".join(f"{name}: {layers.GATES}" for name, layers in CELLS.items())
    add("--symm-hh", metavar="GATES", help=f"gates with symmetric hidden weights ({letters})")
    add("--symm-ih", metavar="GATES", help="gates with symmetric input weights (none)")
    add(
        "--soft-symmetry",
        type=number(float, 0, open_low=True),
        metavar="RHO",
        help="full hidden weights W, with RHO·‖W − Wᵀ‖ added to the loss; the model that is "
        "measured and kept has their upper triangles (implies --symm none)",
    )
    add("--soft-norm", type=int, choices=[1, 2], help="which norm that is (2)")
    add("--tied", action="store_true", default=None, help="decoder and embedding share weights")
    add("--hidden-size", type=number(int, 1), metavar="H")
    add("--embedding-size", type=number(int, 1), metavar="E", help="(the hidden size)")
    add("--layers", type=number(int, 1), metavar="L", dest="num_layers")

    add = parser.add_argument_group("recipe (each number overrides the recipe's)").add_argument
    add("--recipe", choices=RECIPES, help="(zaremba)")
    add("--epochs", type=number(int, 1))
    add("--batch-size", type=number(int, 1), metavar="B", help="streams read side by side")
    add("--steps", type=number(int, 1), metavar="T", help="unrolled time steps")
    add("--lr", type=number(float, 0, open_low=True), help="learning rate of the first epoch")
    add("--schedule", choices=SCHEDULES, help="divide the rate by epochs, or on a plateau")
    add("--lr-divide", type=number(float, 1), help="what the rate is divided by")
    add("--lr-after", type=number(int, 0), metavar="EPOCH", help="epochs at the first rate")
    add("--clip", type=number(float, 0, open_low=True), help="largest norm of the gradient")
    add("--dropout", type=number(float, 0, 1))
    add("--init-range", type=number(float, 0), metavar="R", help="weights start uniform in ±R")
    add("--loss", choices=LOSSES, help="over the time steps; the batch is averaged")

    add = parser.add_argument_group("run").add_argument
    add("--out", type=Path, metavar="FOLDER", help="where the run is kept (a new one in runs/)")
    add(
        "--resume",
        nargs="?",
        const=True,
        metavar="FOLDER",
        help="continue the run kept there (without FOLDER: in --out) exactly where it stopped",
    )
    add("--seed", type=number(int, 0, 2**32 - 1), help="(1)")
    add_machine_options(add)
    add("--compile", action="store_true", default=None, help="run the model by torch.compile")
    add("--save-every", type=number(int, 1), metavar="STEPS", help="between checkpoints (500)")
    add("--log-every", type=number(int, 1), metavar="STEPS", help="between logged points (50)")
    add("--dry-run", action="store_true", help="print configuration and counts, train nothing")
    return parser


def add_machine_options(add: Callable[..., Any]) -> None:
    """The options that all three programs have. ``add``: an ``add_argument``."""
    add("--device", help="auto, cpu, cuda, cuda:1, … (auto)")
    add("--backend", choices=list_backends(), help="how the recurrent layers are run (auto)")
    add("--precision", choices=PRECISIONS, help="bf16 is autocast (fp32, or as in training)")
    add("--threads", type=number(int, 1, 1024), help="of one CPU operation (PyTorch's choice)")


def add_weights_option(add: Callable[..., Any]) -> None:
    """The option that those have that only run a model. ``add``: an ``add_argument``."""
    add(
        "--weights",
        choices=WEIGHTS,
        help="as what the recurrent weights are kept; bfloat16 rounds them and halves what a step "
        "reads, on the native kernels for CPUs (float32)",
    )


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The options that stand on the command line, without those about the run's folder."""
    apart = ("out", "resume", "dry_run")
    return {k: v for k, v in vars(options).items() if v is not None and k not in apart}


def resolve(given: dict[str, Any]) -> dict[str, Any]:
    """The whole configuration of a new run: defaults, then the recipe, then what is given."""
    config = {**DEFAULTS, **given}
    if config["soft_symmetry"]:
        if given.get("symm", "none") != "none":
            raise UserError(
                f"--soft-symmetry wants --symm none, for it draws full matrices towards symmetric "
                f"ones; got: --symm {given['symm']}"
            )
        for name in ("symm_hh", "symm_ih"):
            if given.get(name):
                raise UserError(
                    "--soft-symmetry draws on the hidden weights of all gates, and no others: "
                    f"leave out --{name.replace('_', '-')} {given[name]}"
                )
        config["symm"] = "none"
    elif "soft_norm" in given:
        raise UserError(f"--soft-norm {given['soft_norm']} is that of --soft-symmetry: give both")
    recipe = asdict(recipe_of(config["size"], config["recipe"]))
    if "hidden_size" in given and "embedding_size" not in given:
        recipe["embedding_size"] = given["hidden_size"]
    config = {**config, **recipe, **{name: given[name] for name in recipe if name in given}}
    if config["symm_hh"] is None:
        config["symm_hh"] = CELLS[config["cell"]].GATES
    config |= gates_of(config, config["cell"])
    if config["symm"] == "none":
        config["symm_hh"] = config["symm_ih"] = ""
    if config["data"] not in list_corpora():
        config["data"] = str(Path(config["data"]).resolve())
    return config


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


def resume_config(kept: dict[str, Any], given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The configuration of a run to be continued; UserError if ``given`` contradicts it."""
    lacking = {*resolve({}), "vocabulary", "corpus"} - kept.keys()
    if lacking:
        raise UserError(
            f"{folder}: is no run of lm.train: its configuration lacks {', '.join(sorted(lacking))}"
        )
    if "data" in given and given["data"] not in list_corpora():
        given = {**given, "data": str(Path(given["data"]).resolve())}
    given = {**given, **gates_of(given, given.get("cell", kept["cell"]))}
    for name, value in given.items():
        if name not in MACHINE and kept.get(name) != value:
            option = "--" + ("layers" if name == "num_layers" else name.replace("_", "-"))
            raise UserError(
                f"{option} {value} contradicts the run in {folder}, which has {kept.get(name)}: "
                "leave the option out to continue that run, or start another with --out"
            )
    return {**kept, **{name: given[name] for name in MACHINE if name in given}}
