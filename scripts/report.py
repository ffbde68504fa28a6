"""What every file in results/ begins with: how it was made, on what, and when."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from symrnn.training import environment


def write_report(path: Path, title: str, paragraphs: list[str]) -> None:
    """Write a Markdown report to ``path`` and print it.

    paragraphs: Markdown, each a block of its own (a table is one).
    """
    made = environment()
    machine = f"{made['cpu']}, {made['cores']} cores, {made['threads']} threads"
    if made["gpus"]:
        machine += f"; {', '.join(made['gpus'])}, CUDA {made['cuda']}"
    versions = f"Python {made['python']}, torch {made['torch']}, numpy {made['numpy']}"
    command = shlex.join(["python", *sys.argv])
    head = [
        f"# {title}",
        f"- command: `{command}`\n- machine: {machine}\n- versions: {versions}\n"
        f"- date: {made['date'][:10]}",
    ]
    text = "\n\n".join([*head, *paragraphs]) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(text)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    align = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, align, *rows])
