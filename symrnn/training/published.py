"""What of a run goes to others: its configuration without its machine, and what it has measured."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from symrnn.training.command_line import MACHINE


def published(config: Mapping[str, Any], known: Container[str]) -> dict[str, Any]:
    """A run's configuration without what it says of the machine that it ran on.

    known: the data sets that have a name everywhere; that of a folder is left out.
    """
    made = {name: value for name, value in config.items() if name not in MACHINE}
    return made | ({"data": config["data"]} if config.get("data") in known else {})


def lines_with(metrics: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl that have a value of that name, in their order.

    No lines where there is no such file; damaged ones are passed over.
    """
    found = []
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), metrics.open("rb") as file:
        for line in file:
            if f'"{name}"'.encode() in line:  # they may be many: only these are parsed
                with contextlib.suppress(ValueError):
                    value = json.loads(line)
                    if isinstance(value, dict) and name in value:
                        found.append(value)
    return found
