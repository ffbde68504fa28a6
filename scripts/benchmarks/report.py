"""The command line of a benchmark and the file it writes: how it was made, on what, and when.

Importing this puts the repository's root on the path, so that `lm`, `data` and `symrnn` are those
of this tree.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def make_parser(doc: str | None, out: str | None = None) -> argparse.ArgumentParser:
    """A parser whose help is from a docstring: its first line, and the examples that follow.

    out: the default of --out; None for a program that has no such option.
    """
    summary, examples, *_ = (doc or "").split("\n\n")
    parser = argparse.ArgumentParser(
        description=summary,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if out is not None:
        parser.add_argument("--out", type=Path, default=Path(out), help=f"({out})")
    return parser


def explanation(doc: str | None) -> list[str]:
    """The paragraphs of a docstring after its examples, each in one line."""
    return [" ".join(paragraph.split()) for paragraph in (doc or "").split("\n\n")[2:]]


def write_report(path: Path, title: str, paragraphs: list[str], seed: int | None = None) -> None:
    """Write a Markdown report to ``path`` and print it.

    paragraphs: Markdown, each a block of its own (a table is one).
    seed: that of weights and inputs, where there are such.
    """
    text = "\n\n".join([f"# {title}", header(seed), *paragraphs]) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(text)


def header(seed: int | None = None, made: dict[str, Any] | None = None) -> str:
    """The command of this process, its machine, versions, seed and date, as a list.

    made: :func:`symrnn.training.environment` of another process, where this one does without torch.
    """
    if made is None:
        from symrnn.training import environment

        made = environment()
    machine = f"{made['cpu']}, {made['cores']} cores, {made['threads']} threads"
    if made["gpus"]:
        machine += f"; {', '.join(made['gpus'])}, CUDA {made['cuda']}"
    lines = {
        "command": f"`{shlex.join(['python', *sys.argv])}`",
        "machine": machine,
        "versions": f"Python {made['python']}, torch {made['torch']}, numpy {made['numpy']}",
        "seed": seed,
        "date": made["date"][:10],
    }
    return "\n".join(f"- {name}: {line}" for name, line in lines.items() if line is not None)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    align = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, align, *rows])


def save_picture(figure: Any, path: Path, dpi: int = 110) -> None:
    """Write a figure of matplotlib's, and print where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    print(path)
