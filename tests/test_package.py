"""The package as a user meets it: its names, its version, its types, what it pulls in."""

from __future__ import annotations

import ast
import email
import graphlib
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

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
    everything = "from symrnn import *"  # each name is imported when it is asked for
    loaded = loaded_by(everything, repository) - loaded_by("import torch", repository)
    extras = {"tensorboard", "tqdm", "matplotlib", "pooch", "PIL", "sentencepiece", "torchtext"}
    assert loaded & {"lm", "data", "huggingface_hub", *extras} == set()
    assert "sympy" not in loaded  # as torch's compiler is, which takes 70 MiB


def test_corpora_know_no_models(repository: Path) -> None:
    assert loaded_by("import data", repository) & {"lm", "symrnn"} == set()


def imports_in(repository: Path) -> dict[str, set[str]]:
    """The modules of the three packages, and which of them each imports, wherever it does so."""
    files = [
        file for name in ("symrnn", "lm", "data") for file in (repository / name).rglob("*.py")
    ]
    parts = {file: file.relative_to(repository).with_suffix("").parts for file in files}
    names = {file: ".".join(p[:-1] if p[-1] == "__init__" else p) for file, p in parts.items()}
    graph: dict[str, set[str]] = {}
    for file, module in names.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= inside & {*names.values()} or {node.module}
        graph[module] = found & {*names.values()}
    return graph


def test_no_module_imports_what_imports_it(repository: Path) -> None:
    graph = imports_in(repository)
    assert "lm.model" in graph["lm.saved"]
    graphlib.TopologicalSorter(graph).prepare()


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


@pytest.fixture(scope="module")
def tree(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all that a build might take up, as it writes beside its sources."""
    tree = tmp_path_factory.mktemp("tree")
    unwanted = shutil.ignore_patterns("__pycache__", "_kernels.*", "_calls.so")
    for name in ("symrnn", "lm", "data", "tests"):
        shutil.copytree(repository / name, tree / name, ignore=unwanted)
    for name in ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"):
        shutil.copy(repository / name, tree)
    return tree


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel without the kernels."""
    return build(tree, tmp_path_factory.mktemp("wheel"), "wheel")


def build(tree: Path, out: Path, kind: str, **environment: str) -> Path:
    """What setuptools builds of the tree, without a network; kind: wheel, sdist or editable."""
    code = f"import setuptools.build_meta as m; m.build_{kind}({str(out)!r})"
    variables = {**os.environ, "SYMRNN_NATIVE": "0", **environment}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=variables, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (made,) = out.iterdir()
    return made


def test_a_wheel_holds_the_library_alone(wheel: Path) -> None:
    """Names such as lm and data would stand in the way of everybody's own."""
    names = zipfile.ZipFile(wheel).namelist()
    dist_info = f"symrnn-{symrnn.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"symrnn", dist_info}
    assert {"symrnn/py.typed", "symrnn/native/symrnn.h"} <= set(names)


def test_the_description_stands_by_itself(wheel: Path) -> None:
    """Away from the clone no link into it leads anywhere; the example runs."""
    metadata = zipfile.ZipFile(wheel).read(f"symrnn-{symrnn.__version__}.dist-info/METADATA")
    described = email.message_from_bytes(metadata)
    assert described["Description-Content-Type"] == "text/markdown"
    text = described.get_payload()
    assert isinstance(text, str)
    assert re.findall(r"\]\((?!https:)[^)]*\)", text) == []
    (example,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["output"].shape == (35, 20, 650)


@pytest.fixture(scope="module")
def native_files(repository: Path) -> set[str]:
    """What git has of symrnn/native."""
    command = ["git", "ls-files", "symrnn/native"]
    try:
        listed = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this tree is no clone, or there is no git")
    names = set(listed.stdout.splitlines())
    return {name for name in names if (repository / name).exists()}


def test_a_wheel_holds_what_is_compiled_where_it_is_used(
    wheel: Path, native_files: set[str]
) -> None:
    """All headers, and the sources of what depends on a GPU's driver or on the version of torch."""
    folders = ("symrnn/native/cuda/", "symrnn/native/torch/")
    wanted = {
        name
        for name in native_files
        if name.startswith(folders) or re.fullmatch(r"symrnn/native/\w+(\.inc)?\.(h|py)", name)
    }
    assert "symrnn/native/cuda/pack.cu" in wanted
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name in native_files}
    assert held == wanted


def test_without_kernels_a_wheel_is_for_any_platform(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    described = zipfile.ZipFile(wheel).read(f"symrnn-{symrnn.__version__}.dist-info/WHEEL")
    assert b"Root-Is-Purelib: true" in described
    assert b"Tag: py3-none-any" in described
    assert "symrnn/native/_kernels.txt" in zipfile.ZipFile(wheel).namelist()  # says why


@pytest.mark.skipif(os.name != "posix", reason="there is no native build for this platform")
def test_with_kernels_a_wheel_is_for_this_platform(tree: Path, tmp_path: Path) -> None:
    compiler = tmp_path / "compiler"  # leaves an empty file for whatever it is to make
    compiler.write_text('#!/bin/sh\nwhile [ $# -gt 0 ]; do [ "$1" != -o ] || : >"$2"; shift; done')
    compiler.chmod(0o755)
    out = tmp_path / "out"
    wheel = build(tree, out, "wheel", SYMRNN_NATIVE="1", CXX=str(compiler))
    assert "-py3-none-" in wheel.name
    assert not wheel.name.endswith("-any.whl")
    made = {"symrnn/native/_kernels.so", "symrnn/native/_calls.so"}
    assert made <= set(zipfile.ZipFile(wheel).namelist())


def test_an_sdist_holds_what_the_wheel_is_built_of(
    tree: Path, wheel: Path, native_files: set[str], tmp_path: Path
) -> None:
    sdist = build(tree, tmp_path / "sdist", "sdist")
    shutil.unpack_archive(sdist, tmp_path)
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert {path.name for path in unpacked.iterdir()} == {
        *("LICENSE", "MANIFEST.in", "PKG-INFO"),
        *("pyproject.toml", "setup.cfg", "setup.py", "symrnn", "symrnn.egg-info"),
    }
    native = {path.relative_to(unpacked) for path in (unpacked / "symrnn/native").rglob("*")}
    assert native_files <= {path.as_posix() for path in native}
    assert not any(path.suffix == ".so" for path in native)
    again = build(unpacked, tmp_path / "wheel", "wheel")
    assert zipfile.ZipFile(again).namelist() == zipfile.ZipFile(wheel).namelist()


def test_an_editable_install_puts_the_clone_on_the_path(tree: Path, tmp_path: Path) -> None:
    """So that lm and data run from any folder, of a clone alone."""
    wheel = zipfile.ZipFile(build(tree, tmp_path, "editable"))
    (path,) = [name for name in wheel.namelist() if name.endswith(".pth")]
    assert Path(wheel.read(path).decode().strip()).samefile(tree)
