"""``python -m symrnn.native``: the native library for programs in C."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from symrnn.native import building

EXAMPLE = """\
example:
  python -m symrnn.native --out /opt/symrnn
  cc program.c -I/opt/symrnn -L/opt/symrnn -lsymrnn -Wl,-rpath,/opt/symrnn

CXX is the compiler, CXXFLAGS and LDFLAGS its arguments. The library needs libc and libm alone.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m symrnn.native",
        description="Compile the kernels and the runtime into one library, its headers beside it.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", required=True, help="where they go")
    options = parser.parse_args(arguments)
    try:
        made = building.build_for_c(options.out)
    except building.NotBuiltError as error:
        parser.exit(2, f"error: not built: {error}\n")
    except OSError as error:
        parser.exit(2, f"error: --out {options.out}: {error.strerror}\n")
    for path in made:
        print(path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
