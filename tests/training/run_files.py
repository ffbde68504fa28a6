"""A run's files in the tests of both training programs: a copy to spoil, and what may spoil it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of `finished`, to be written to."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def snapshot(folder: Path) -> dict[str, bytes]:
    """What is in the files of a folder, those of its folders left out."""
    return {path.name: path.read_bytes() for path in folder.glob("*.*") if path.is_file()}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def corrupt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def replace_by_pickle(path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, path)


def replace_by_text(path: Path) -> None:
    path.write_text("not a checkpoint")


def replace_by_nothing(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_plain_safetensors(path: Path) -> None:
    safetensors.torch.save_file(safetensors.torch.load_file(path), path)


DAMAGES = {
    truncate: "is truncated or damaged: it ends after",
    corrupt: "is damaged, or another program changed it",
    replace_by_pickle: "is a pickle as torch.save writes it",
    replace_by_text: "it is no safetensors file",
    replace_by_nothing: "is empty (0 bytes)",
    replace_by_plain_safetensors: "is a safetensors file, but not a",
}
"""What may have become of any file, and what is said then."""
