"""Language models that leave with packed weights: by torch.export, and in a package for C++."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import lm.export
from lm.saved import Saved, load_saved
from symrnn.native import building

CPU = torch.device("cpu")
TORCH = Path(torch.__file__).parent


def export(*arguments: object) -> int:
    return lm.export.main([str(argument) for argument in arguments])


def steps(saved: Saved, sizes: tuple[tuple[int, int], ...]) -> Iterator[tuple[Tensor, ...]]:
    for time, batch in sizes:
        state = [torch.randn(2, batch, 8) for _ in saved.model.states]
        yield torch.randint(len(saved.codec), (time, batch)), *state


@pytest.mark.parametrize("dtype", [None, "bfloat16", "int8"])
def test_programs_of_torch_export_hold_packed_weights(
    dtype: str | None, gru_run: Path, tmp_path: Path, operators: Any
) -> None:
    path = tmp_path / "model.pt2"
    lower = [] if dtype is None else ["--dtype", dtype]
    assert export(gru_run, "--to", "pt2", "--form", "packed", *lower, "--out", path) == 0
    extra = {"symrnn.json": ""}
    program = torch.export.load(path, extra_files=extra)
    about = json.loads(extra["symrnn.json"])
    assert (about["form"], about["packed_dtype"]) == ("packed", dtype or "float32")
    names = [str(node.target) for node in program.graph.nodes]
    assert sum("packed_layers" in name for name in names) == 1
    assert program.state_dict["rnn.weight_hh_l0"].dtype == getattr(torch, dtype or "float32")
    saved = load_saved(gru_run, CPU)
    saved.model.rnn.inference_dtype = None if dtype is None else getattr(torch, dtype)
    with torch.no_grad():
        for tokens, h0 in steps(saved, ((1, 1), (9, 2))):
            logits, (h,) = saved.model.eval()(tokens, (h0,))
            found = program.module()(tokens, h0)
            torch.testing.assert_close(found, (logits, h), rtol=0, atol=1e-6)


def test_a_package_runs_in_python_and_in_cpp(
    finished: Path, operators: SimpleNamespace, tmp_path: Path, repository: Path
) -> None:
    package = tmp_path / "model.aoti.pt2"
    assert export(finished, "--to", "aoti", "--out", package) == 0
    model = torch._inductor.aoti_load_package(str(package))
    about = json.loads(model.get_metadata()["symrnn"])
    assert (about["format"], about["form"], about["packed_dtype"]) == ("aoti", "packed", "float32")
    assert about["vocabulary"]["file"] == "model.aoti.vocab.txt"
    assert (tmp_path / "model.aoti.vocab.txt").exists()
    saved = load_saved(finished, CPU)
    with torch.no_grad():
        for tokens, h0, c0 in steps(saved, ((1, 1), (9, 2), (2, 5))):
            logits, state = saved.model.eval()(tokens, (h0, c0))
            found = tuple(model(tokens, h0, c0))
            torch.testing.assert_close(found, (logits, *state), rtol=0, atol=1e-5)

    program = compiled_program(repository / "docs" / "examples" / "package.cpp", tmp_path)
    run_in_cpp(program, saved, operators.path, package)


def compiled_program(source: Path, folder: Path) -> Path:
    """A program in C++ that links with torch, without Python."""
    program = folder / source.stem
    compiled = subprocess.run(
        [
            *building.compiler(), "-std=c++17", "-O0", str(source),
            *("-o", str(program), "-isystem", str(TORCH / "include"), f"-L{TORCH / 'lib'}"),
            *("-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"),
            f"-Wl,-rpath,{TORCH / 'lib'}",
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert compiled.returncode == 0, compiled.stderr
    return program


def run_in_cpp(program: Path, saved: Saved, operators: Path, package: Path) -> None:
    """The tokens that the example prints are those of the model, and so are their logits."""
    first = saved.codec.eos_id

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(program), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env={})

    ran = run(operators, package, 2, 8, first, 6)
    assert ran.returncode == 0, ran.stderr
    found = [(int(id), float(logit)) for id, logit in map(str.split, ran.stdout.splitlines())]
    packed, token, state, expected = saved.model.deployed("packed"), first, None, []
    for _ in range(6):
        with torch.no_grad():
            logits, state = packed(torch.tensor([[token]]), state)
        logit, id = logits[0, 0].max(0)
        token = int(id)
        expected.append((token, float(logit)))
    assert [id for id, _ in found] == [id for id, _ in expected]
    assert [logit for _, logit in found] == pytest.approx(
        [logit for _, logit in expected], abs=1e-5
    )
    # Without the operators there is an end before the package is opened.
    assert run("/nowhere.so", package, 2, 8, first, 1).returncode == 2


def test_arguments_that_do_not_go_together(
    finished: Path, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refused("export", finished, "--form", "packed") == (
        "--form packed is of --to pt2 and aoti, got: --to plain"
    )
    for form in ([], ["--form", "plain"]):
        assert refused("export", finished, "--to", "pt2", "--dtype", "int8", *form) == (
            "--dtype int8 is of packed weights: add --form packed"
        )
    where = tmp_path / "model.pt2"
    assert refused("export", finished, "--to", "aoti", "--out", where) == (
        f"--out {where}: names of --to aoti end in .aoti.pt2"
    )
    monkeypatch.setenv("CXX", "/no/compiler")
    assert refused("export", finished, "--to", "aoti") == (
        "--to aoti needs a C++ compiler: CXX=/no/compiler is no command"
    )
