"""``python -m symrnn.native.torch``: compiles PyTorch's operators, and prints where they are."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from symrnn.files import UserError, run_program
from symrnn.native.building import NotBuiltError
from symrnn.native.torch import building, load

EXAMPLE = """\
examples:
  python -m symrnn.native.torch
  SYMRNN_CACHE=/opt/kernels python -m symrnn.native.torch

A C++ program loads this one library, by dlopen or by linking, before it opens a package of
AOTInductor; Python without symrnn loads it by torch.ops.load_library. The library finds the
kernels, _kernels.so, where symrnn is installed; or beside itself, where both are copied to.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m symrnn.native.torch",
        description="Compile PyTorch's operators for packed layers ahead of time, and print the "
        "library's path and the kernels'. What is there already is not compiled again.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    print(building.build())
    print(building.KERNELS)
    try:
        load()
    except RuntimeError as error:
        raise UserError(str(error)) from None
    return 0


if __name__ == "__main__":
    run_program(main, NotBuiltError)
