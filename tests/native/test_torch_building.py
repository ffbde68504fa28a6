"""PyTorch's operators: compiled when wanted, once, and words for where they cannot be."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from symrnn import native
from symrnn.native import torch as operators
from symrnn.native.building import NotBuiltError
from symrnn.native.torch import building
from symrnn.native.torch.__main__ import main

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a compiler that only says that it ran: it links a copy of the kernels."""
    calls = tmp_path / "calls"
    command = tmp_path / "c++"
    command.write_text(
        f"#!/bin/sh\necho \"$*\" >> '{calls}'\n"
        'while [ $# -gt 0 ]; do [ "$1" = -o ] && to=$2; shift; done\n'
        f"cp '{building.KERNELS}' \"$to\"\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv("CXX", str(command))
    monkeypatch.setenv("SYMRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CXXFLAGS", raising=False)
    monkeypatch.delenv("LDFLAGS", raising=False)
    return tmp_path


def calls(cache: Path) -> list[str]:
    return (cache / "calls").read_text().splitlines()


def test_built_once(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = building.build()
    assert path == cache / "cache" / building.fingerprint() / "libsymrnn_torch.so"
    assert "compiling the operators of PyTorch for packed layers, once" in capsys.readouterr().err
    made = calls(cache)
    assert building.build() == path
    assert calls(cache) == made
    assert capsys.readouterr().err == ""
    # For the oldest torch, and the kernels looked for where they are, then beside the library.
    compiled = next(line for line in made if line.endswith("operators.o"))
    assert "-DTORCH_TARGET_VERSION=0x20a000000000000 " in compiled
    linked = made[-1]
    assert re.search(r"-rpath,\S+native -Wl,-rpath,(\$ORIGIN|@loader_path) ", linked)
    assert "-ltorch_cpu" in linked
    assert path.with_suffix(".txt").read_text().startswith(str(cache / "c++"))


def test_other_flags_and_sources_are_another_library(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = building.fingerprint()
    monkeypatch.setenv("CXXFLAGS", "-g")
    second = building.fingerprint()
    monkeypatch.setattr(building, "KERNELS", cache / "elsewhere" / "_kernels.so")
    assert len({first, second, building.fingerprint()}) == 3


def test_what_is_missing_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/no/compiler")
    with pytest.raises(NotBuiltError, match="CXX=/no/compiler is no command"):
        building.build()
    monkeypatch.setenv("CXX", shutil.which("false") or "false")
    with pytest.raises(NotBuiltError, match=r"false ended with status 1 at operators.cpp"):
        building.build()
    monkeypatch.setattr(building, "KERNELS", cache / "_kernels.so")
    with pytest.raises(NotBuiltError, match="they call the native kernels, and there are no /"):
        building.build()
    monkeypatch.setattr(building, "FOLDER", cache)
    with pytest.raises(NotBuiltError, match=f"there are no sources in {re.escape(str(cache))}"):
        building.fingerprint()


def test_a_graph_without_a_compiler_is_told_so(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "/no/compiler")
    monkeypatch.setattr(operators, "_loaded", False)
    monkeypatch.setattr(operators.torch.ops, "symrnn", object())
    with pytest.raises(
        RuntimeError,
        match=r"symrnn's operators for torch.compile, .* are not built: CXX=/no/compiler is no "
        "command; packed modules run without them where no graph is made",
    ):
        operators.load()


def test_the_program_prints_both_paths(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("symrnn.native.torch.__main__.load", lambda: None)
    assert main([]) == 0
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert paths == [building.build(), building.KERNELS]
