"""What the programs share that take a trained model."""

from __future__ import annotations

import argparse


def run_parser(program: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """A parser whose ``checkpoint`` says which model; None is the newest run's.

    program: the module, "lm.export".
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        metavar="RUN",
        help="a run's folder for its best model, or a file (the newest run in ./runs)",
    )
    return parser
