"""What the tests of stopped and resumed runs share: stopping them, and comparing what they left."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from symrnn import open_packed
from symrnn.training import load_checkpoint


def assert_same_run(one: Path, other: Path) -> None:
    """Equal to the bit, but for the times."""
    for read, file in ((load_checkpoint, "last.safetensors"), (open_packed, "best.safetensors")):
        first, second = (read(folder / file) for folder in (one, other))
        assert first.tensors.keys() == second.tensors.keys()
        for name, tensor in first.tensors.items():
            assert torch.equal(tensor, second.tensors[name]), name
        assert untimed(first.meta) == untimed(second.meta)
    assert lines_of(one) == lines_of(other)


def lines_of(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, without what says when or how fast."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [untimed(json.loads(line)) for line in lines]


def untimed(value: Any) -> Any:
    """Without what says when, where or how fast, in a line, or packed in a checkpoint's state."""
    apart = ("time", "tokens_per_second", "images_per_second", "seconds", "began", "data")
    if isinstance(value, dict):
        return {name: untimed(item) for name, item in value.items() if name not in apart}
    if isinstance(value, list):
        # A packed dict is a list of pairs of a key and a value.
        timed = [isinstance(item, list) and item[:1] in (["seconds"], ["began"]) for item in value]
        return [untimed(item) for item, out in zip(value, timed, strict=True) if not out]
    return value


def seconds_in(run: Path) -> float:
    """How long the run has taken, by its last checkpoint."""
    packed = load_checkpoint(run / "last.safetensors").meta["state"]
    state = dict(packed["dict"])
    return float(dict(state["progress"]["dict"])["seconds"])


def wait_for_new(file: Path, before: int, process: BaseProcess) -> None:
    """Until the file is another than that of `changed` before, or the process has ended."""
    while changed(file) == before and process.is_alive():
        time.sleep(0.001)


def changed(file: Path) -> int:
    """When the file was written; 0 if there is none."""
    return file.stat().st_mtime_ns if file.exists() else 0


class KilledError(BaseException):
    """Stands for SIGKILL: nobody catches it, and nothing is done on the way out."""


def dying_after(calls: int, function: Callable[..., None]) -> Callable[..., None]:
    """``function``, at whose so-many-th call the run is killed."""
    left = calls

    def dying(*values: object, **named: object) -> None:
        nonlocal left
        function(*values, **named)
        left -= 1
        if left == 0:
            raise KilledError

    return dying
