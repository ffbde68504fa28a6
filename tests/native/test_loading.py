"""The native library is built by pip, found, checked and loaded; without it all else works."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from symrnn import SymLSTM, native
from symrnn.native import building, interface, loading, runtime
from symrnn.native.cuda import building as cuda_building
from symrnn.native.cuda import interface as cuda_interface

HEADER = (building.FOLDER / "symrnn.h").read_text()
RUNTIME_HEADER = (building.FOLDER / "symrnn_runtime.h").read_text()
CUDA_HEADER = (cuda_building.FOLDER / "symrnn_cuda.h").read_text()


@pytest.fixture
def afresh() -> Iterator[None]:
    """The library is looked for anew, in the test and after it."""
    noticed = native._noticed
    native._noticed = False
    native._loaded.cache_clear()
    yield
    native._noticed = noticed
    native._loaded.cache_clear()


def compiler() -> list[str]:
    try:
        return building.compiler()
    except building.NotBuiltError as error:
        pytest.skip(f"needs a C++ compiler: {error}")


@pytest.fixture
def elsewhere(afresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a library that is not there yet."""
    path = tmp_path / building.LIBRARY
    monkeypatch.setattr(native, "PATH", path)
    return path


def compile_library(source: str, path: Path) -> None:
    (path.parent / "stub.cpp").write_text(source)
    command = [*compiler(), *building.FLAGS, "-shared", "stub.cpp", "-o", str(path)]
    subprocess.run(command, cwd=path.parent, check=True)


# -- where it is


def test_pip_built_it() -> None:
    compiler()
    assert native.available(), native.why_not()
    assert native.why_not() == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        native.notice()


def test_no_dependence_on_torch_or_python() -> None:
    if not native.available():
        pytest.skip(native.why_not())
    if not (shutil.which("readelf") and sys.platform == "linux"):
        pytest.skip("needs readelf")
    needed = subprocess.run(
        ["readelf", "-d", str(native.PATH)], capture_output=True, text=True, check=True
    ).stdout
    libraries = set(re.findall(r"Shared library: \[(\w+)", needed))
    assert libraries & {"libtorch", "libtorch_cpu", "libc10", "libpython3", "libgomp"} == set()
    assert "libc" in libraries


def test_exports_what_the_header_declares() -> None:
    lib = native.library()
    if lib is None:
        pytest.skip(native.why_not())
    assert [name for name in prototypes() if not hasattr(lib, name)] == []
    if not (shutil.which("nm") and sys.platform == "linux"):
        return
    lines = subprocess.run(
        ["nm", "-D", "--defined-only", str(native.PATH)], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    # Weak symbols are the C++ library's own templates.
    strong = {line.split()[2] for line in lines if line.split()[1] in "TDBR"}
    declared = prototypes() | prototypes(RUNTIME_HEADER)
    assert strong - {"symrnn_sources"} == set(declared)


def test_kernels_are_those_of_the_environment(
    afresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SYMRNN_CPU is read when the library is loaded."""
    lib = native.library()
    if lib is None:
        pytest.skip(native.why_not())
    before = lib.symrnn_cpu()
    try:
        for name in ("portable", before.decode()):
            monkeypatch.setenv("SYMRNN_CPU", name)
            native._loaded.cache_clear()
            again = native.library()
            assert again is not None
            assert again.symrnn_cpu().decode() == name
    finally:
        native.check(lib.symrnn_use_cpu(before))
    monkeypatch.setenv("SYMRNN_CPU", "z80")
    native._loaded.cache_clear()
    with pytest.raises(ValueError, match="should be one of avx512, avx2, portable, got: 'z80'"):
        native.library()


def test_kernels_that_this_processor_lacks(afresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    lib = native.library()
    if lib is None:
        pytest.skip(native.why_not())
    before = lib.symrnn_cpu()
    try:
        lacking = [n for n in ("avx512", "avx2") if lib.symrnn_use_cpu(n.encode()) != 0]
    finally:
        native.check(lib.symrnn_use_cpu(before))
    if not lacking:
        pytest.skip("this processor has them all")
    monkeypatch.setenv("SYMRNN_CPU", lacking[0])
    native._loaded.cache_clear()
    with pytest.raises(RuntimeError, match=f"SYMRNN_CPU={lacking[0]}: this processor"):
        native.library()


def test_status_in_words() -> None:
    lib = native.library()
    if lib is None:
        pytest.skip(native.why_not())
    native.check(0)
    with pytest.raises(RuntimeError, match=r"a pointer that must not be null is \(status 1\)"):
        native.check(lib.symrnn_unpack(0, 3, 3, 1, native.Dtype.FLOAT, None, None))


def test_it_runs() -> None:
    lib = native.library()
    if lib is None:
        pytest.skip(native.why_not())
    x = torch.randn(37, dtype=torch.float64)
    y = torch.empty_like(x)
    native.check(lib.symrnn_activate(1, native.Dtype.DOUBLE, 37, x.data_ptr(), y.data_ptr()))
    assert torch.allclose(y, x.tanh(), rtol=1e-14)


def test_threads_of_its_own(repository: Path) -> None:
    """As many as a call asks for, less the caller, and never more than cores; no OpenMP runtime."""
    if not (native.available() and sys.platform == "linux"):
        pytest.skip(native.why_not() or "needs /proc")
    code = """
import os, re, threading, torch
from symrnn import native

def runtimes():
    return set(re.findall(r"/\\S*lib(?:g|i|)omp\\S*", open("/proc/self/maps").read()))

def threads():
    return int(re.search(r"Threads:\\s+(\\d+)", open("/proc/self/status").read())[1])

before, x, total = runtimes(), torch.ones(1 << 20), torch.zeros(1)
torch.set_num_threads(1)
read, start, found = native.library().symrnn_read, threads(), []
for asked in (1, 3, 3, 2, 64):
    native.check(read(x.data_ptr(), x.nbytes, 2, asked, total.data_ptr()))
    found.append(threads() - start)
cores = len(os.sched_getaffinity(0))
print(runtimes() == before, found == [min(n, cores) - 1 for n in (1, 3, 3, 3, 64)])
"""
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["True", "True"], run.stdout


# -- where it is not


def test_absent(elsewhere: Path) -> None:
    assert native.library() is None
    assert native.available() is False
    assert native.why_not() == (
        f"symrnn's native kernels are not built: {elsewhere} is missing; mend that and install "
        "symrnn again (pip install -e . in a clone, else pip install --force-reinstall --no-deps "
        "--no-cache-dir SOURCES, with the folder or the sdist that it was installed from)"
    )
    with pytest.raises(RuntimeError, match="there is no library"):
        native.check(3)


def test_the_build_says_why(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYMRNN_NATIVE", "0")
    elsewhere.write_text("left by an earlier build")
    assert building.build(elsewhere.parent)
    assert not elsewhere.exists()
    assert "not built: SYMRNN_NATIVE=0 was set when symrnn was installed;" in native.why_not()


def test_a_build_follows_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it write to a name that could be foretold."""
    compiler()
    tree, folder, owners = tmp_path / "tree", tmp_path / "built", tmp_path / "of the owner"
    for path in (tree, folder):
        path.mkdir()
    (tree / "nothing.cpp").write_text("int nothing;")
    owners.write_text("untouched")
    for name in (building.LIBRARY, f"{building.LIBRARY}.{os.getpid()}"):
        (folder / name).symlink_to(owners)
    monkeypatch.setattr(building, "FOLDER", tree)
    (folder / building.CALLS).symlink_to(owners)
    assert building.build(folder) == ""
    assert not (folder / building.CALLS).exists()  # its source is not in this tree
    assert owners.read_text() == "untouched"
    assert not (folder / building.LIBRARY).is_symlink()


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(building.NotBuiltError, match="no C\\+\\+ compiler was found"):
        building.compiler()
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    with pytest.raises(building.NotBuiltError, match="CXX=no-such-compiler -m64 is no command"):
        building.compiler()


def test_noticed_once(elsewhere: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        native.notice()
        native.notice()
    assert [str(one.message) for one in caught] == [native.why_not()]
    assert caught[0].category is UserWarning
    assert caught[0].filename == __file__  # the caller's line, not the library's


def test_cannot_be_loaded(elsewhere: Path) -> None:
    elsewhere.write_text("no library")
    assert re.fullmatch(
        r"symrnn's native kernels are built but cannot be loaded: .*; install symrnn again .*",
        native.why_not(),
    )


def test_another_interface(elsewhere: Path) -> None:
    compile_library(
        'extern "C" __attribute__((visibility("default"))) int symrnn_interface() { return 99; }',
        elsewhere,
    )
    assert (
        "symrnn's native kernels are built from other sources: their interface is number 99, this "
        f"symrnn's is {interface.INTERFACE}; install symrnn again"
    ) in native.why_not()


def test_another_library(elsewhere: Path) -> None:
    compile_library("int nothing;", elsewhere)
    assert "are built from other sources: " in native.why_not()


def test_sources_changed_since(afresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.available():
        pytest.skip(native.why_not())
    native._loaded.cache_clear()
    monkeypatch.setattr(building, "fingerprint", lambda: "changed")
    assert "built from other sources than those beside them; install" in native.why_not()
    native._loaded.cache_clear()
    monkeypatch.setattr(building, "fingerprint", lambda: "")  # installed without sources
    assert native.available()


def test_layers_work_without(elsewhere: Path) -> None:
    torch.manual_seed(0)
    layer = SymLSTM(5, 6, symm="avg")
    x = torch.randn(4, 3, 5)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="symrnn's native kernels are not built")
        output, _ = layer(x)
        output.sum().backward()
    expected, _ = layer.to_lstm()(x)
    assert torch.allclose(output, expected, atol=1e-6)


def test_installs_without_a_compiler(repository: Path, tmp_path: Path) -> None:
    """pip succeeds, and what it installed imports, runs, and says once what happened."""
    pytest.importorskip("setuptools", minversion="77")
    tree, target = tmp_path / "tree", tmp_path / "target"
    ignored = shutil.ignore_patterns("__pycache__", "_kernels.*", building.CALLS)
    shutil.copytree(repository / "symrnn", tree / "symrnn", ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(repository / name, tree)
    environment = os.environ | {"CXX": "/bin/false"}
    for name in ("SYMRNN_NATIVE", "PYTHONPATH"):
        environment.pop(name, None)
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
    subprocess.run(
        [*pip, "--no-build-isolation", "--target", str(target), str(tree)],
        env=environment,
        check=True,
        capture_output=True,
    )
    installed = target / "symrnn" / "native"
    assert not (installed / building.LIBRARY).exists()
    # What the kernels for GPUs are compiled of, when one needs them.
    needed = [path.relative_to(building.FOLDER) for path in cuda_building.sources()]
    needed += [path.relative_to(building.FOLDER) for path in cuda_building.headers()]
    assert [str(path) for path in needed if not (installed / path).exists()] == []
    code = """
import symrnn, torch
from symrnn import native
print(symrnn.__file__)
print(native.available(), native.why_not())
native.notice()
native.notice()
output, _ = symrnn.SymLSTM(5, 6)(torch.randn(4, 3, 5))
print(output.shape)
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    where, why, shape = run.stdout.splitlines()
    assert Path(where) == target / "symrnn" / "__init__.py"
    assert why.startswith("False symrnn's native kernels are not built: /bin/false ended with")
    assert shape == "torch.Size([4, 3, 6])"
    assert run.stderr.count("UserWarning: symrnn's native kernels are not built") == 1


# -- the header and its image in ctypes


def prototypes(header: str = HEADER) -> dict[str, tuple[str, list[str]]]:
    """Result and argument types of a header's functions."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    found = re.findall(r"^((?:const )?\w+ \*?)(symrnn_\w+)\(([^)]*)\);", text, re.MULTILINE)
    return {
        name: (result.strip(), [] if inside == "void" else inside.split(","))
        for result, name, inside in found
    }


def c_type(declaration: str) -> object:
    """What ctypes calls the type of an argument or a field."""
    declaration = " ".join(declaration.replace("*", " * ").split()).removeprefix("const ")
    if "*" not in declaration:
        numbers = {
            "int": ctypes.c_int,
            "int32_t": ctypes.c_int32,
            "int64_t": ctypes.c_int64,
            "uint64_t": ctypes.c_uint64,
            "uint32_t": ctypes.c_uint32,
            "double": ctypes.c_double,
            "void": None,
        }
        return numbers[declaration.split()[0]]
    structures = {
        "symrnn_map": interface.Map,
        "symrnn_term": interface.Term,
        "symrnn_skew": interface.Skew,
        "symrnn_product": interface.Product,
        "symrnn_layer": interface.Layer,
        "symrnn_gpu": interface.Gpu,
        "symrnn_fit": interface.Fit,
        "symrnn_about": runtime.About,
        "symrnn_generator": runtime.Generator,
        "char": None,
    }
    if "* *" in declaration:
        return ctypes.c_void_p
    pointee = structures.get(declaration.split()[0], False)
    if pointee is None:
        return ctypes.c_char_p
    return ctypes.POINTER(pointee) if pointee else ctypes.c_void_p


@pytest.mark.parametrize(
    ("header", "functions"),
    [
        (HEADER, interface.FUNCTIONS),
        (RUNTIME_HEADER, runtime.FUNCTIONS),
        (CUDA_HEADER, cuda_interface.FUNCTIONS),
    ],
    ids=["symrnn.h", "symrnn_runtime.h", "symrnn_cuda.h"],
)
def test_functions_are_those_of_the_header(header: str, functions: interface.Functions) -> None:
    declared = prototypes(header)
    assert len(declared) > 5
    assert set(functions) == set(declared)
    for name, (result, arguments) in declared.items():
        assert functions[name] == (c_type(result), [c_type(a) for a in arguments]), name


@pytest.mark.parametrize(
    "structure", ["Map", "Skew", "Term", "Product", "Layer", "Gpu", "Fit", "About", "Generator"]
)
def test_structures_are_those_of_the_header(structure: str) -> None:
    text = re.sub(r"/\*.*?\*/", "", HEADER + RUNTIME_HEADER, flags=re.DOTALL)
    body = re.search(rf"typedef struct symrnn_{structure.lower()} {{(.*?)}}", text, re.DOTALL)
    assert body
    fields = []
    for declaration in body[1].split(";"):
        first, *further = declaration.strip().split(",")
        if not first:
            continue
        if array := re.fullmatch(r"(\w+) (\w+)\[(\d+)\]", first):
            kind, name, count = array.groups()
            fields.append((name, c_type(kind) * int(count)))  # type: ignore[operator]
            continue
        kind, name = re.fullmatch(r"(.*?[\s*])(\w+)", first).groups()  # type: ignore[union-attr]
        fields += [(one.strip(), c_type(f"{kind} {one}")) for one in (name, *further)]
    module = interface if hasattr(interface, structure) else runtime
    mirrored = getattr(module, structure)._fields_
    assert [(name.rstrip("_"), kind) for name, kind in mirrored] == fields


@pytest.mark.parametrize(
    ("name", "enumeration"),
    [
        ("dtype", native.Dtype),
        ("mode", native.Mode),
        ("status", interface.Status),
        ("vocabulary", runtime.Vocabulary),
    ],
)
def test_numbers_are_those_of_the_header(name: str, enumeration: type) -> None:
    assert f"#define SYMRNN_INTERFACE {interface.INTERFACE}\n" in HEADER
    text = re.sub(r"/\*.*?\*/", "", HEADER + RUNTIME_HEADER, flags=re.DOTALL)
    body = re.search(rf"enum symrnn_{name} {{(.*?)}}", text, re.DOTALL)
    assert body
    values = {key: int(value) for key, value in re.findall(r"SYMRNN_(\w+) = (\d+)", body[1])}
    assert {member.name: member.value for member in enumeration} == values


# -- the extension module for calls


def test_calls_are_of_these_sources(tmp_path: Path) -> None:
    path, fingerprint = building.FOLDER / building.CALLS, building.calls_fingerprint()
    if not path.exists():
        pytest.skip(f"there is no {path.name}: it is compiled where Python.h is")
    assert fingerprint == loading.open_calls(path, fingerprint).SOURCES
    assert loading.open_calls(path, "changed") is None
    assert loading.open_calls(path, "") is not None  # installed without sources
    assert loading.open_calls(tmp_path / "none.so", "") is None
    (tmp_path / "text.so").write_text("no library")
    assert loading.open_calls(tmp_path / "text.so", "") is None


def test_calls_are_made_in_python_without(monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.available():
        pytest.skip(native.why_not())
    monkeypatch.setattr(native, "calls", lambda: None)
    torch.manual_seed(0)
    layer, x = SymLSTM(5, 6), torch.randn(1, 1, 5)
    with torch.no_grad():
        expected = layer.to_lstm()(x)[0]
        for _ in range(3):
            assert torch.allclose(layer(x)[0], expected, atol=1e-6)
        assert torch.allclose(layer.stream()(x[0]), expected[0], atol=1e-6)


def test_without_python_s_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    compiler()
    monkeypatch.setattr(building.sysconfig, "get_path", lambda name: str(tmp_path))
    building._build_calls(tmp_path / building.CALLS)
    assert not (tmp_path / building.CALLS).exists()
    said = f"calls are made by Python's code: there is no {tmp_path}/Python.h"
    assert said in capfd.readouterr().err


@pytest.mark.skipif(not native.available(), reason=native.why_not())
@pytest.mark.parametrize("now", [0, 1])
def test_huge_pages_leave_numbers_as_they_are(now: int) -> None:
    """Of arrays that hold no such page, one, or a few; and of whatever lies around them."""
    lib = native.library()
    assert lib is not None
    numbers = torch.arange(3 << 20, dtype=torch.int32)  # 12 MiB
    for first, bytes_ in [(0, 0), (3, 5), (0, 12 << 20), (1 << 20, 3 << 20), (12, (12 << 20) - 12)]:
        lib.symrnn_prefer_huge_pages(numbers.data_ptr() + first, bytes_, now)
    assert torch.equal(numbers, torch.arange(3 << 20, dtype=torch.int32))
