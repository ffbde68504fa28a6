"""``python -m symrnn.native.cuda``: compiles the CUDA kernels, and says what they take."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from symrnn.files import UserError, run_program
from symrnn.native.cuda import AbsentError, architectures, building, load
from symrnn.native.cuda.resources import readable, resources, table

EXAMPLE = """\
examples:
  python -m symrnn.native.cuda                   for the GPUs of this machine
  python -m symrnn.native.cuda --arch 80 90      for A100 and H100, wherever this runs
  SYMRNN_CACHE=/opt/kernels python -m symrnn.native.cuda --arch 90

The last puts the library into that folder, as an image of a container wants it; the variable must
then be set wherever the kernels are used. There no compiler is needed any more.
"""

FALLBACK = (80, 90)
HOT = ("run_layer", "run_rows")  # in the names of the kernels that run at every step


def main(arguments: Sequence[str] | None = None) -> int:
    options = make_parser().parse_args(arguments)
    wanted = options.arch or architectures() or FALLBACK
    path = building.build(wanted)
    rows = resources(building.report(path))
    print(path)
    print(table(rows))
    try:
        load(path)  # also without a GPU: what cannot be loaded here will not be elsewhere
    except AbsentError as error:
        raise UserError(f"symrnn's CUDA kernels are {error}") from None
    if not options.check:
        return 0
    names = readable(one.name for one in rows)
    # A function that was not built into its kernels may be called by any of them.
    hot = [one for one in rows if is_hot(names[one.name]) or not one.registers]
    spilling = [f"{names[one.name]} on sm_{one.architecture}" for one in hot if one.spills]
    if spilling:
        print(f"spills in {', '.join(spilling)}")
        return 1
    seen = {one.architecture for one in hot if is_hot(names[one.name])}
    missing = [f"sm_{one}" for one in wanted if one not in seen]
    if missing:
        print(f"the report names no {' or '.join(HOT)} for {', '.join(missing)}")
        return 1
    return 0


def is_hot(name: str) -> bool:
    """Whether a kernel of this name runs at every step."""
    return any(hot in name for hot in HOT)


def make_parser() -> argparse.ArgumentParser:
    """The options of ``python -m symrnn.native.cuda``."""
    parser = argparse.ArgumentParser(
        prog="python -m symrnn.native.cuda",
        description="Compile the CUDA kernels ahead of time, and list the registers they take. "
        "What is there already is not compiled again.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--arch",
        nargs="+",
        type=architecture,
        metavar="N",
        help="architectures, 80 for compute capability 8.0 (those of the GPUs here, else 80 90)",
    )
    add(
        "--check",
        action="store_true",
        help=f"exit with 1 if a kernel called {' or '.join(HOT)} spills registers",
    )
    return parser


def architecture(text: str) -> int:
    """An argparse type."""
    if not text.isdecimal() or int(text) < building.OLDEST:
        raise argparse.ArgumentTypeError(
            f"should be an integer of at least {building.OLDEST}, got: {text!r}"
        )
    return int(text)


if __name__ == "__main__":
    run_program(main, building.NotBuiltError)
