"""The package as a user meets it: its names, its version, its types, what it pulls in."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import symrnn

PUBLIC = [
    "SymGRU",
    "SymGRUCell",
    "SymLSTM",
    "SymLSTMCell",
    "SymRNN",
    "SymRNNCell",
    "count_parameters",
    "get_symmetry",
    "harden",
    "list_symmetries",
    "load_packed",
    "parameter_groups",
    "save_packed",
    "soft_symmetry_penalty",
    "symmetrize",
]


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name(name: str) -> None:
    assert callable(getattr(symrnn, name))
    assert name in symrnn.__all__


def test_all_names_exist_once() -> None:
    assert len(set(symrnn.__all__)) == len(symrnn.__all__)
    assert [name for name in symrnn.__all__ if not hasattr(symrnn, name)] == []


def test_version_comes_from_one_place() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", symrnn.__version__)
    try:
        installed = importlib.metadata.version("symrnn")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("symrnn is imported from the source tree, not installed")
    assert installed == symrnn.__version__


def test_typed() -> None:
    assert (Path(symrnn.__file__).parent / "py.typed").is_file()


def loaded_by(statement: str, repository: Path) -> set[str]:
    """Top-level modules in memory after `statement` in a fresh interpreter."""
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


def test_library_needs_neither_programs_nor_extras(repository: Path) -> None:
    """The library knows nothing of lm and data, and imports where the `train` extra is missing."""
    loaded = loaded_by("import symrnn", repository) - loaded_by("import torch", repository)
    unwanted = {"lm", "data", "tensorboard", "tqdm", "matplotlib", "sentencepiece", "torchtext"}
    assert loaded & unwanted == set()


def test_corpora_know_no_models(repository: Path) -> None:
    assert loaded_by("import data", repository) & {"lm", "symrnn"} == set()


def test_every_direct_dependency_is_pinned(repository: Path) -> None:
    """What pyproject.toml requires, extras and build included, constraints.txt pins."""

    def name_of(requirement: str) -> str:
        return re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0].lower().replace("_", "-")

    lines = (repository / "constraints.txt").read_text().splitlines()
    pinned = {name_of(line) for line in lines if line and not line.startswith("#")}
    # Not a TOML parser (Python 3.10 has none): every quoted `name>=version` in the file.
    text = (repository / "pyproject.toml").read_text()
    required = {name_of(found) for found in re.findall(r'"([A-Za-z][\w.-]*>=[^"]*)"', text)}
    assert {"torch", "numpy", "pytest", "setuptools"} <= required
    assert required - pinned == set()
