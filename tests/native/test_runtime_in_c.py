"""The runtime without Python: the examples of docs/, the library for C, and damaged files."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from symrnn import SymGRU, SymLSTM, native, save_runtime
from symrnn.native import building
from symrnn.runtime_file import Words

COMPILER = shutil.which("cc")

pytestmark = [
    pytest.mark.skipif(not native.available(), reason="the native kernels are not built"),
    pytest.mark.skipif(COMPILER is None, reason="there is no cc"),
]


def run(*command: object, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([str(word) for word in command], capture_output=True, **options)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def compiled(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """An example of docs/examples as a program, linked with the library that Python has."""
    folder = tmp_path_factory.mktemp("examples")

    def program(name: str) -> Path:
        made = folder / name
        if not made.exists():
            source = repository / "docs" / "examples" / f"{name}.c"
            library = building.FOLDER / building.LIBRARY
            flags = ["-std=c11", "-pedantic", "-Wall", "-Wextra", "-Werror", "-O1"]
            link = [library, f"-Wl,-rpath,{building.FOLDER}"]
            ended = run(COMPILER, *flags, source, f"-I{building.FOLDER}", *link, "-o", made)
            assert ended.returncode == 0, ended.stderr.decode()
        return made

    return program


def test_a_layer_runs_over_a_stream_of_vectors(
    compiled: Callable[[str], Path], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    layers, linear = SymLSTM(6, 20, 2, symm="tri4"), nn.Linear(20, 3)
    save_runtime(layers, tmp_path / "layer.symrnn", linear=linear)
    x = torch.randn(11, 1, 6)
    with torch.no_grad():
        expected = linear(layers(x)[0])[:, 0].numpy()
    (tmp_path / "x.f32").write_bytes(x.numpy().tobytes())
    stream, model = compiled("stream"), tmp_path / "layer.symrnn"
    for ended in (
        run(stream, model, input=x.numpy().tobytes()),
        run(stream, model, tmp_path / "x.f32"),
    ):
        assert ended.returncode == 0, ended.stderr
        found = np.frombuffer(ended.stdout, np.float32).reshape(11, 3)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    for ended, words in (
        (run(stream, model, input=bytes(28)), b"ended after 1 of the 6 numbers"),
        (run(stream, tmp_path / "x.f32", input=b""), b"is no model that can be used"),
    ):
        assert ended.returncode == 2
        assert words in ended.stderr


def test_what_the_examples_cannot_do_is_one_sentence(
    compiled: Callable[[str], Path], tmp_path: Path
) -> None:
    generate, model = compiled("generate"), tmp_path / "model.symrnn"
    words = Words("word", ["<eos>", "a"], 0, None)
    save_runtime(
        SymGRU(4, 4), model, embedding=nn.Embedding(2, 4), linear=nn.Linear(4, 2), words=words
    )
    save_runtime(SymGRU(4, 4), tmp_path / "layer.symrnn")
    for arguments, sentence in (
        ([tmp_path / "absent"], "absent: No such file or directory"),
        ([tmp_path / "layer.symrnn"], "is no language model with a vocabulary"),
        ([model, "--prompt", "a zebra"], "the word zebra is not in the vocabulary"),
        ([model, "--tokens", "ten"], "--tokens should be a number, got: ten"),
        ([model, "--temperature", "-1"], "temperature should be finite and at least 0, got: -1"),
        ([model, "--top-p", "0"], "top_p should be above 0"),
        ([model, "--threads", "0"], "threads should be at least 1"),
        ([model, "--seed", "-1"], "--seed should be from 0"),
    ):
        ended = run(generate, *arguments)
        assert ended.returncode == 2, arguments
        assert ended.stderr.decode().startswith("error: ")
        assert sentence in ended.stderr.decode()
        assert ended.stderr.count(b"\n") == 1


def test_damaged_files_are_refused_or_run(repository: Path, tmp_path: Path) -> None:
    """Here 2,000 without sanitizers; scripts/check_native opens 10,000 under them."""
    tests = repository / "tests" / "native"
    program = tmp_path / "mutate"
    library = building.FOLDER / building.LIBRARY
    ended = run(
        *building.compiler(), "-std=c++17", "-O1", f"-I{building.FOLDER}", tests / "mutate.cpp",
        library, f"-Wl,-rpath,{building.FOLDER}", "-o", program,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr.decode()
    models = sorted(tests.glob("models/*.symrnn"))
    assert len(models) == 4
    ended = run(program, 500, *models)
    assert ended.returncode == 0, ended.stderr.decode()
    refused, opened = map(int, re.findall(r"\d+", ended.stdout.decode()))
    assert refused + opened == 2004
    assert min(refused, opened) > 200  # neither all of them, nor none


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ldd is Linux's")
def test_the_library_for_c_needs_libc_and_libm_alone(tmp_path: Path, repository: Path) -> None:
    """Compiled for any processor and without optimisation, which takes a tenth of the time."""
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": str(repository),
        "CXXFLAGS": "-O0 -DSYMRNN_WITHOUT_AVX512 -DSYMRNN_WITHOUT_AVX2",
    }
    out = tmp_path / "c"
    ended = run(sys.executable, "-m", "symrnn.native", "--out", out, env=environment)
    assert ended.returncode == 0, ended.stderr.decode()
    made = ["libsymrnn.so", "symrnn.h", "symrnn_runtime.h"]
    assert sorted(path.name for path in out.iterdir()) == made
    assert ended.stdout.decode().split() == [str(out / name) for name in made]
    needed = run("ldd", out / "libsymrnn.so").stdout.decode()
    libraries = set(re.findall(r"^\s*(?:\S*/)?([\w.+-]+)\.so", needed, re.MULTILINE))
    assert {re.sub(r"-.*", "", name) for name in libraries} <= {"linux", "libm", "libc", "ld"}
    names = run("nm", "-D", "--defined-only", out / "libsymrnn.so").stdout.decode()
    exported = {line.split()[-1] for line in names.splitlines()}
    assert {"symrnn_forward", "symrnn_model_open", "symrnn_draw"} <= exported

    # A program that is linked with it.
    save_runtime(SymGRU(4, 4), tmp_path / "layer.symrnn")
    source = repository / "docs" / "examples" / "stream.c"
    link = [f"-L{out}", "-lsymrnn", f"-Wl,-rpath,{out}"]
    stream = tmp_path / "stream"
    ended = run(COMPILER, source, f"-I{out}", *link, "-o", stream)
    assert ended.returncode == 0, ended.stderr.decode()
    ended = run(stream, tmp_path / "layer.symrnn", input=bytes(16))
    assert (ended.returncode, len(ended.stdout)) == (0, 16)
