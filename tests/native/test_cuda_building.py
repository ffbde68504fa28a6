"""The CUDA kernels are compiled once, cached, found and loaded; without them all else works.

A shell script stands in for nvcc: it hands stubs to the C++ compiler and prints a report that a
real one once wrote. So there is neither a GPU nor CUDA in these tests.
"""

from __future__ import annotations

import errno
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from symrnn import native
from symrnn.native import cuda
from symrnn.native.building import compiler
from symrnn.native.cuda import __main__ as program
from symrnn.native.cuda import building
from symrnn.native.cuda.resources import Resources, readable, resources, table
from symrnn.native.interface import INTERFACE

REPOSITORY = Path(__file__).parents[2]

# Of nvcc 13.0, with -Xptxas=-v: a kernel that spills, and one that calls a function.
REPORT = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN6symrnn32_GLOBAL__N__3386598b_6_toy_cu_go4packI6__halfEEvPKT_Pfi' for 'sm_80'
ptxas info    : Function properties for _ZN6symrnn32_GLOBAL__N__3386598b_6_toy_cu_go4packI6__halfEEvPKT_Pfi
    256 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers, 256 bytes cumulative stack size, 372 bytes cmem[0]
ptxas info    : Compile time = 22.221 ms
ptxas info    : Function properties for _ZN30_INTERNAL_3386598b_6_toy_cu_go6symrnn32_GLOBAL__N__3386598b_6_toy_cu_go3farEPKfi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_ZN6symrnn32_GLOBAL__N__3386598b_6_toy_cu_go9run_layerI6__halfLi0EEEvPKfPfi' for 'sm_80'
ptxas info    : Function properties for _ZN6symrnn32_GLOBAL__N__3386598b_6_toy_cu_go9run_layerI6__halfLi0EEEvPKfPfi
    160 bytes stack frame, 316 bytes spill stores, 320 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers, 160 bytes cumulative stack size, 372 bytes cmem[0]
ptxas info    : Compile time = 17.260 ms
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN6symrnn32_GLOBAL__N__3386598b_6_toy_cu_go9run_layerI6__halfLi0EEEvPKfPfi' for 'sm_90'
ptxas info    : Function properties for _ZN6symrnn32_GLOBAL__N__3386598b_6_toy_cu_go9run_layerI6__halfLi0EEEvPKfPfi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers
ptxas info    : Compile time = 10.974 ms
"""  # noqa: E501

VERSION = """\
nvcc: NVIDIA (R) Cuda compiler driver
Copyright (c) 2005-2025 NVIDIA Corporation
Cuda compilation tools, release 13.0, V13.0.88
"""

# Runs `behaviour`, a piece of shell, before each compilation; appends its command lines to `calls`.
# What it has compiled once it copies.
SCRIPT = """\
#!/bin/sh
here=$(dirname "$0")
case "$*" in *--version*) cat "$here/version"; exit;; esac
echo "$*" >> "$here/calls"
mode=compile objects=
while [ $# -gt 0 ]; do
    case $1 in
    -o) out=$2; shift;;
    -c) source=$2; shift;;
    -shared) mode=link;;
    *.o) objects="$objects $1";;
    esac
    shift
done
if [ $mode = link ]; then exec CXX -shared $objects -o "$out"; fi
. "$here/behaviour"
case $source in */stub.cu) cat "$here/report" >&2;; esac
known=OBJECTS/$(cksum < "$source" | tr ' ' -)
[ -e "$known" ] && exec cp "$known" "$out"
CXX -x c++ -fPIC -fvisibility=hidden -c "$source" -o "$out" || exit
cp "$out" "$known.$$" && mv "$known.$$" "$known"
"""

STUB = """\
#include "symrnn_cuda.h"
int symrnn_cuda_interface(void) { return SYMRNN_INTERFACE; }
const char *symrnn_cuda_error(void) { return "invalid device ordinal"; }
int symrnn_cuda_gpu(int device, symrnn_gpu *gpu) {
    if (device == 1) return SYMRNN_FIT;
    if (device > 1) return SYMRNN_GPU;
    gpu->multiprocessors = 132;
    gpu->shared_bytes = 232448;
    return SYMRNN_OK;
}
"""
REST = "".join(
    f'extern "C" __attribute__((visibility("default"))) int symrnn_cuda_{name}() {{ return 0; }}\n'
    for name in ("pack", "forward", "forward_wavefront", "backward", "backward_wavefront")
)


@dataclass
class Fake:
    """The stand-in for nvcc, and a tree of sources for it."""

    folder: Path  # of the script
    tree: Path  # in place of symrnn/native/cuda
    cache: Path

    @property
    def command(self) -> Path:
        return self.folder / "nvcc"

    def behaves(self, shell: str) -> None:
        (self.folder / "behaviour").write_text(shell)

    def reports(self, text: str) -> None:
        (self.folder / "report").write_text(text)

    def calls(self, word: str = "stub.cu") -> list[str]:
        """Its command lines that have this in them."""
        calls = self.folder / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [line for line in lines if word in line]

    def libraries(self) -> list[str]:
        return sorted(path.name for path in self.cache.glob("*/*.so"))

    def left(self) -> list[Path]:
        """What an unfinished build leaves."""
        return list(self.cache.glob("*/building-*"))

    def start(self, code: str) -> subprocess.Popen[str]:
        """A process of its own that builds from the same sources into the same cache."""
        code = f"""
import sys
from pathlib import Path
from types import ModuleType

# Without what symrnn/__init__.py imports: a build needs no torch.
for name in ("symrnn", "symrnn.native", "symrnn.native.cuda"):
    sys.modules[name] = package = ModuleType(name)
    package.__path__ = [{str(REPOSITORY)!r} + "/" + name.replace(".", "/")]
from symrnn.native.cuda import building

building.FOLDER = Path({str(self.tree)!r})
{code}
"""
        return subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stand-in for nvcc finds what it has compiled before."""
    return tmp_path_factory.mktemp("objects")


@pytest.fixture
def fake(tmp_path: Path, objects: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake(tmp_path / "bin", tmp_path / "native" / "cuda", tmp_path / "cache")
    made.folder.mkdir()
    made.tree.mkdir(parents=True)
    try:
        command = shlex.join(compiler())
    except building.NotBuiltError as error:
        pytest.skip(f"needs a C++ compiler: {error}")
    made.command.write_text(SCRIPT.replace("CXX", command).replace("OBJECTS", str(objects)))
    made.command.chmod(0o755)
    (made.folder / "version").write_text(VERSION)
    made.behaves("")
    made.reports(REPORT)
    (made.tree / "stub.cu").write_text(STUB)
    (made.tree / "rest.cu").write_text(REST)
    (made.tree / "symrnn_cuda.h").write_bytes(
        (building.FOLDER / "symrnn_cuda.h").read_bytes(),
    )
    for name in building.SHARED_HEADERS:
        (made.tree.parent / name).write_bytes((building.FOLDER.parent / name).read_bytes())
    for name in ("CUDA_HOME", "CUDA_PATH", "NVCCFLAGS", "SYMRNN_NATIVE_CUDA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDACXX", str(made.command))
    monkeypatch.setenv("SYMRNN_CACHE", str(made.cache))
    monkeypatch.setattr(building, "FOLDER", made.tree)
    return made


@pytest.fixture
def loading(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """As on a machine with a GPU; the library is looked for anew, in the test and after it."""
    monkeypatch.setattr(cuda, "architectures", lambda: [90])
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    cuda._loaded.cache_clear()
    cuda._machine.cache_clear()
    yield fake
    cuda._loaded.cache_clear()
    cuda._machine.cache_clear()


@pytest.fixture
def no_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(building, "DEFAULT", str(tmp_path / "no-nvcc"))


# -- the compiler


def test_compiler(fake: Fake, no_nvcc: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDACXX before CUDA_HOME before PATH before the usual place."""
    with pytest.raises(building.NotBuiltError, match="no nvcc was found: neither in CUDACXX"):
        building.nvcc()
    monkeypatch.setattr(building, "DEFAULT", str(fake.command))
    assert building.nvcc() == [str(fake.command)]
    on_path = fake.folder.parent / "path"
    home = fake.folder.parent / "home"
    for folder in (on_path, home / "bin"):
        folder.mkdir(parents=True)
        (folder / "nvcc").symlink_to(fake.command)
    monkeypatch.setenv("PATH", str(on_path))
    assert building.nvcc() == [str(on_path / "nvcc")]
    monkeypatch.setenv("CUDA_PATH", str(home))
    monkeypatch.setenv("CUDA_HOME", "/without/nvcc")
    assert building.nvcc() == [str(home / "bin" / "nvcc")]
    monkeypatch.setenv("CUDACXX", f"{fake.command} -ccbin 'my g++'")
    assert building.nvcc() == [str(fake.command), "-ccbin", "my g++"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("no-such-nvcc -v", "CUDACXX=no-such-nvcc -v is no command"),
        ("nvcc 'x", "CUDACXX=nvcc 'x cannot be read: No closing quotation"),
    ],
)
def test_no_such_compiler(value: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDACXX", value)
    with pytest.raises(building.NotBuiltError, match=re.escape(words)):
        building.nvcc()


# -- building


def test_built_once(fake: Fake, capfd: pytest.CaptureFixture[str]) -> None:
    path = building.build([90, 80, 90])
    assert path == fake.cache / building.fingerprint() / "sm_80-sm_90.so"
    assert capfd.readouterr().err == (
        "symrnn: compiling the CUDA kernels for sm_80 and sm_90, once; this takes a minute or two\n"
    )
    first, second, *rest = building.report(path).splitlines()
    assert first == "Cuda compilation tools, release 13.0, V13.0.88"
    assert second.startswith(f"{fake.command} -std=c++17 -O3 ")
    assert rest == ["", *REPORT.splitlines()]
    assert building.build([80, 90]) == path
    assert capfd.readouterr().err == ""
    assert len(fake.calls()) == 1
    assert fake.left() == []
    cuda.load(path)


def test_flags(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCCFLAGS", "-O1 -DWORDS='a b'")
    building.build([80, 120])
    (call,) = fake.calls()
    assert call.startswith(
        f"{' '.join(building.FLAGS)} -gencode arch=compute_80,code=sm_80 "
        "-gencode arch=compute_120,code=sm_120 -O1 -DWORDS=a b -c "
    )
    (call,) = fake.calls("-shared")
    assert call.startswith("-shared -cudart=static -O1 -DWORDS=a b ")


@pytest.mark.parametrize("name", ["stub.cu", "symrnn_cuda.h", "../layout.h", "new.cu", "new.h"])
def test_other_sources_are_another_library(fake: Fake, name: str) -> None:
    before = building.build([90])
    with (fake.tree / name).open("a") as file:
        file.write("\n// changed")
    assert building.find([90]) is None
    after = building.build([90])
    assert after.parent != before.parent
    assert before.exists()
    cuda.load(after)


def test_other_flags_are_another_library(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    before = building.build([90])
    monkeypatch.setenv("NVCCFLAGS", "-G")
    assert building.find([90]) is None
    assert building.build([90]) != before
    monkeypatch.delenv("NVCCFLAGS")
    assert building.find([90]) == before


def test_the_smallest_that_runs(fake: Fake) -> None:
    assert building.find([90]) is None
    both, one = building.build([80, 90]), building.build([90])
    assert building.find([90]) == one
    assert building.find([80]) == both
    assert building.find([80, 90]) == both
    assert building.find([86]) == both  # code for 8.0 runs on 8.6,
    assert building.find([100]) is None  # that for 9.0 not on 10.0,
    assert building.find([75, 80]) is None  # and none on what is older


@pytest.mark.parametrize("architectures", [[], [75], [90, 70]])
def test_too_old(fake: Fake, architectures: list[int]) -> None:
    words = f"architectures should be 80 or more, got: {sorted(architectures)}"
    with pytest.raises(building.NotBuiltError, match=re.escape(words)):
        building.build(architectures)


def test_two_processes_at_once(fake: Fake) -> None:
    begun = [fake.folder / f"begun{number}" for number in range(2)]
    fake.behaves(f"until [ -e {begun[0]} ] && [ -e {begun[1]} ]; do sleep 0.01; done; sleep 0.2")
    code = "Path({!r}).touch(); print(building.build([90]))"
    both = [fake.start(code.format(str(path))) for path in begun]
    said = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    path = fake.cache / building.fingerprint() / "sm_90.so"
    assert [out for out, _ in said] == [f"{path}\n"] * 2
    assert "".join(err for _, err in said).count("compiling the CUDA kernels") == 1
    assert len(fake.calls()) == 1
    cuda.load(path)


def test_two_threads_without_locks(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has none, both build, and harm each other not."""
    fcntl = pytest.importorskip("fcntl")

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    both = 'until [ "$(grep -c stub.cu "$here/calls")" -ge 2 ]; do sleep 0.01; done'
    fake.behaves(f"case $source in */stub.cu) {both};; esac")
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(building.build, [[90], [90]])
    assert first == second
    assert len(fake.calls()) == 2
    assert fake.left() == []
    cuda.load(first)


# -- what others may have put there


def own_by_another(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)


@pytest.mark.parametrize(
    ("place", "fault"),
    [
        *(("cache", "group"), ("cache", "owner"), ("folder", "others"), ("folder", "owner")),
        *(("library", "group"), ("library", "others"), ("library", "owner")),
    ],
)
def test_what_others_may_change_is_not_loaded(
    loading: Fake, monkeypatch: pytest.MonkeyPatch, place: str, fault: str
) -> None:
    library = building.build([90])
    path = {"cache": loading.cache, "folder": library.parent, "library": library}[place]
    if fault == "owner":
        own_by_another(path, monkeypatch)
        words = " is not to be trusted with code: it belongs to another user ("
    else:
        path.chmod(0o720 if fault == "group" else 0o702)
        words = f"{path} is not to be trusted with code: its group or others may write it (mode 7"
    for look in (building.find, building.build):
        with pytest.raises(building.NotBuiltError, match=re.escape(words)):
            look([90])
    assert words in cuda.why_not()
    if place != "library":  # nor is anything put there
        with pytest.raises(building.NotBuiltError, match=re.escape(words)):
            building.build([80])
        assert loading.libraries() == ["sm_90.so"]


@pytest.mark.parametrize("fault", ["others", "owner", "link"])
def test_a_cache_that_others_may_replace_is_not_loaded(
    loading: Fake, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    above = loading.cache.parent / "above"
    above.mkdir()
    monkeypatch.setenv("SYMRNN_CACHE", str(above / "cache"))
    library = building.build([90])
    if fault == "others":
        above.chmod(0o757)
        words = f"{above} is not to be trusted with code: its group or others may write it (mode 7"
    elif fault == "owner":
        own_by_another(above, monkeypatch)
        words = " is not to be trusted with code: it belongs to another user ("
    else:  # through it another folder can be shown at any time
        link = loading.cache.parent / "link"
        link.symlink_to(above)
        if os.geteuid() != 0:
            pytest.skip("needs a link of another user")
        os.lchown(link, 12345, -1)
        monkeypatch.setenv("SYMRNN_CACHE", str(link / "cache"))
        words = f"{link} is not to be trusted with code: it belongs to another user (12345)"
    for look in (building.find, building.build):
        with pytest.raises(building.NotBuiltError, match=re.escape(words)):
            look([90])
    assert library.exists()


def test_a_cache_below_a_shared_folder_is_loaded(
    loading: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /tmp is, or a home that is the group's too; or at the end of a link of our own."""
    above, link = loading.cache.parent / "above", loading.cache.parent / "link"
    above.mkdir()
    link.symlink_to(above)
    monkeypatch.setenv("SYMRNN_CACHE", str(link / "cache"))
    for mode in (0o1777, 0o775):
        above.chmod(mode)
        assert building.build([90]) == building.find([90])


def test_what_root_owns_is_loaded(loading: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of the image of a container, which root made for others."""
    building.build([90])
    if os.geteuid() != 0:
        pytest.skip("needs files of root's")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert cuda.available(), cuda.why_not()


@pytest.mark.parametrize(("given", "mode"), [(False, 0o700), (True, 0o755)])
def test_only_we_can_write(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, given: bool, mode: int
) -> None:
    """Also where new files are the group's to write."""
    monkeypatch.setenv("HOME", str(fake.cache.parent))
    if not given:
        monkeypatch.delenv("SYMRNN_CACHE")
    before = os.umask(0o002)
    try:
        library = building.build([90])
    finally:
        os.umask(before)
    assert building.find([90]) == library
    assert library.stat().st_mode & 0o022 == 0
    assert [path.stat().st_mode & 0o777 for path in list(library.parents)[:2]] == [mode] * 2


def test_no_link_is_followed(fake: Fake) -> None:
    """Not the lock's, the one name that can be foretold."""
    before = building.build([90])
    owners = fake.cache.parent / "of the owner"
    owners.write_text("untouched")
    (before.parent / "lock").unlink()
    (before.parent / "lock").symlink_to(owners)
    fails(f"{before.parent} cannot be written: Too many levels of symbolic links; ", [80])
    assert owners.read_text() == "untouched"


# -- builds that fail


def fails(words: str, architectures: Collection[int] = (90,)) -> None:
    """The build fails with these words, and leaves nothing."""
    with pytest.raises(building.NotBuiltError, match=re.escape(words)):
        building.build(architectures)


def test_failed(fake: Fake, capfd: pytest.CaptureFixture[str]) -> None:
    fake.behaves('echo "in the header"; echo "stub.cu(3): error: expected a ;"; exit 2')
    fails(f"{fake.command} ended with status 2 at ")
    assert "in the header\nstub.cu(3): error: expected a ;\n" in capfd.readouterr().err
    fake.behaves("echo \"nvcc fatal   : Unsupported gpu architecture 'compute_90'\"; exit 1")
    fails("nvcc fatal   : Unsupported gpu architecture 'compute_90'")
    fake.behaves("kill -9 $$")
    fails(f"{fake.command} ended with status -9 at ")
    assert fake.libraries() == []
    assert fake.left() == []
    fake.behaves("")
    cuda.load(building.build([90]))


def test_edited_meanwhile(fake: Fake) -> None:
    fake.behaves(f'echo "// more" >> {fake.tree}/stub.cu')
    fails("the sources were changed while they were compiled")
    assert fake.libraries() == []


def test_killed(fake: Fake) -> None:
    """Of a process that is killed no library is left, and no lock; the next one clears up."""
    fake.behaves("sleep 600")
    process = fake.start("building.build([90])")
    while not fake.calls():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(fake.left()) == 1
    assert fake.libraries() == []
    assert building.find([90]) is None
    fake.behaves("")
    cuda.load(building.build([90]))
    assert fake.left() == []


def test_no_place(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.cache.write_text("a file where a folder is wanted")
    fails(f"{fake.cache / building.fingerprint()} cannot be written: Not a directory; another ")
    fake.cache.unlink()

    with monkeypatch.context() as patch:
        patch.setenv("SYMRNN_CACHE", f"/{300 * 'x'}")
        assert building.find([90]) is None
        fails("cannot be written: File name too long; another folder can be given in SYMRNN_CACHE")

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        fails(
            "cannot be written: No space left on device; another folder can be given in "
            "SYMRNN_CACHE"
        )
    assert fake.libraries() == []
    assert fake.left() == []


def test_no_home(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SYMRNN_CACHE")
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("SYMRNN_DATA", "/for/data/only")
    assert building.cache() == Path("/home/somebody/.cache/symrnn/kernels")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2**31)  # a user without an entry
    fails("there is no home folder to cache files in; another can be given in $SYMRNN_CACHE")


def test_relative_cache(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fake.cache.parent)
    monkeypatch.setenv("SYMRNN_CACHE", "cache")
    assert building.cache() == fake.cache


def test_no_sources(fake: Fake) -> None:
    for path in building.sources():
        path.unlink()
    fails(f"there are no sources in {fake.tree}")


def test_every_header_is_known() -> None:
    """What the sources include is in the fingerprint, and so in the package."""
    known = {path.resolve() for path in building.headers()}
    for path in building.sources() + building.headers():
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE):
            included = (path.parent / name).resolve()
            assert included in known or not included.exists(), f"{name} in {path.name}"


# -- loading


def test_compiled_at_first_use(loading: Fake) -> None:
    assert cuda.available()
    assert cuda.why_not() == ""
    assert len(loading.calls()) == 1
    assert loading.libraries() == ["sm_90.so"]


def test_built_ahead_and_found_without_nvcc(loading: Fake, no_nvcc: None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDACXX", str(loading.command))
        patch.setenv("PATH", os.defpath)
        path = building.build([80, 90])
    assert cuda.available(), cuda.why_not()
    assert loading.libraries() == [path.name]


def test_each_gpu(loading: Fake) -> None:
    gpu = cuda.machine(0)
    assert gpu is not None
    assert (gpu.multiprocessors, gpu.shared_bytes) == (132, 232448)
    assert cuda.machine(0) is gpu
    assert cuda.why_not(0) == ""
    assert cuda.machine(1) is None
    assert cuda.why_not(1) == (
        "symrnn's CUDA kernels do not run on GPU 1: it is too old, or the build has no code for it"
    )
    assert cuda.machine(2) is None
    assert cuda.why_not(2) == (
        "symrnn's CUDA kernels do not run on GPU 2: invalid device ordinal (status 10)"
    )


def test_status_in_words(loading: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda.check(0)
    monkeypatch.setattr(native, "library", lambda: None)
    with pytest.raises(RuntimeError, match=r"CUDA kernels: a layer that does not .* \(status 9\)$"):
        cuda.check(9)
    words = r"kernels: an error of CUDA: invalid device ordinal \(status 10\)$"
    with pytest.raises(RuntimeError, match=words):
        cuda.check(10)
    with pytest.raises(RuntimeError, match=r"kernels: an unknown status \(status 77\)$"):
        cuda.check(77)


def test_without_nvcc(loading: Fake, no_nvcc: None) -> None:
    assert cuda.library() is None
    assert cuda.machine(0) is None
    assert cuda.why_not(0) == cuda.why_not()
    assert re.fullmatch(
        "symrnn's CUDA kernels are not built: no nvcc was found: .*; mend that and start again",
        cuda.why_not(),
    )


def test_cannot_be_compiled(loading: Fake) -> None:
    loading.behaves('echo "stub.cu(3): error: expected a ;"; exit 2')
    assert cuda.library() is None
    assert re.fullmatch(
        f"symrnn's CUDA kernels are not built: {loading.command} ended with status 2 at .*: "
        r"stub.cu\(3\): error: expected a ;; mend that and start again",
        cuda.why_not(),
    )


def test_switched_off(loading: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYMRNN_NATIVE_CUDA", "0")
    assert cuda.library() is None
    assert cuda.why_not() == ("symrnn's CUDA kernels are switched off: SYMRNN_NATIVE_CUDA=0 is set")
    assert loading.calls() == []


def test_no_gpu(loading: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "architectures", lambda: [])
    assert cuda.why_not() == (
        "symrnn's CUDA kernels are not in use: torch finds no NVIDIA GPU of compute capability "
        "8.0 or later"
    )
    cuda._loaded.cache_clear()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert (
        cuda.why_not() == "symrnn's CUDA kernels are not in use: this torch is built without CUDA"
    )
    assert loading.calls() == []


def test_gpus_lost_in_a_child(loading: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> list[int]:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess.\nUse spawn.")

    monkeypatch.setattr(cuda, "architectures", lost)
    assert cuda.why_not().endswith(
        "are not in use: Cannot re-initialize CUDA in forked subprocess."
    )


def test_architectures_of_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = [(9, 0), (7, 5), (8, 6), (9, 0), (12, 0)]
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(gpus))
    monkeypatch.setattr(torch.cuda, "get_device_capability", gpus.__getitem__)
    assert cuda.architectures() == [86, 90, 120]
    monkeypatch.setattr(torch.version, "cuda", None)  # as of a build for other GPUs
    assert cuda.architectures() == []


def test_cannot_be_loaded(loading: Fake) -> None:
    path = building.build([90])
    path.write_text("no library")
    assert re.fullmatch(
        "symrnn's CUDA kernels are built but cannot be loaded: .*; "
        f"remove {re.escape(str(path))} and start again",
        cuda.why_not(),
    )
    path.unlink()
    cuda._loaded.cache_clear()
    assert cuda.available()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (f"{STUB}// changed", "than those beside them"),
        (
            STUB.replace("SYMRNN_INTERFACE", "77"),
            f": their interface is number 77, this symrnn's is {INTERFACE}",
        ),
        (STUB.replace("symrnn_cuda_error", "symrnn_other"), ": .*symrnn_cuda_error"),
    ],
)
def test_of_other_sources(loading: Fake, source: str, words: str) -> None:
    """A library that was put in the place of this one."""
    path = building.build([90])
    stub = loading.tree / "stub.cu"
    stub.write_text(source)
    other = building.build([90])
    stub.write_text(STUB)
    os.replace(other, path)
    assert re.fullmatch(
        f"symrnn's CUDA kernels are built from other sources ?{words}; "
        f"remove {re.escape(str(path))} and start again",
        cuda.why_not(),
    )


# -- what the compiler says of the kernels


def test_report() -> None:
    head = "_ZN6symrnn32_GLOBAL__N__3386598b_6_toy_cu_go"
    pack = f"{head}4packI6__halfEEvPKT_Pfi"
    far = f"_ZN30_INTERNAL_3386598b_6_toy_cu_go{head.removeprefix('_ZN')}3farEPKfi"
    run = f"{head}9run_layerI6__halfLi0EEEvPKfPfi"
    found = resources(f"V13.0.88\nnvcc -O3\n\n{REPORT}")
    assert found == [
        Resources(pack, 80, registers=40, stack=256),
        Resources(far, 80),
        Resources(run, 80, registers=32, spill_stores=316, spill_loads=320, stack=160),
        Resources(run, 90, registers=168),
    ]
    assert [one.spills for one in found] == [False, False, True, False]
    assert resources("") == []
    if readable([run])[run] == run:
        pytest.skip("needs c++filt")
    assert list(readable([pack, far, run]).values()) == [
        "pack<__half>",
        "far",
        "run_layer<__half, 0>",
    ]
    assert table(found) == (
        "registers per thread  sm_80                     sm_90\n"
        "far                   called\n"
        "pack<__half>          40, stack 256 bytes\n"
        "run_layer<__half, 0>  32, spills 316+320 bytes  168"
    )


# -- the command line


def test_ahead_of_time(
    loading: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert program.main(["--arch", "80", "90"]) == 0
    path, heading, *lines = capsys.readouterr().out.splitlines()
    assert Path(path) == building.find([80, 90])
    assert heading.split() == ["registers", "per", "thread", "sm_80", "sm_90"]
    assert len(lines) == 3
    # Without --arch: the GPUs here, or the two that are most common.
    monkeypatch.setattr(program, "architectures", lambda: [86])
    assert program.main([]) == 0
    monkeypatch.setattr(program, "architectures", lambda: [])
    assert program.main([]) == 0
    assert loading.libraries() == ["sm_80-sm_90.so", "sm_86.so"]


def test_spills_are_red(loading: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    whole = REPORT.replace("316 bytes spill stores, 320", "0 bytes spill stores, 0")
    hot = readable(one.name for one in resources(REPORT))
    run = next(name for name in hot.values() if "run_layer" in name)

    def check(report: str, *architectures: str) -> tuple[int, str]:
        loading.reports(report)
        (loading.tree / "stub.cu").write_text(f"{STUB}// {hash(report)}")
        status = program.main(["--check", "--arch", *architectures])
        return status, capsys.readouterr().out.splitlines()[-1]

    assert check(REPORT, "80", "90") == (1, f"spills in {run} on sm_80")
    assert check(whole, "80", "90")[0] == 0
    # A stack without spills, or spills in a kernel that runs once, are not red; those in a
    # function that may be called by any kernel are.
    pack, far = whole.split("ptxas info    : Compile time = 22.221 ms\n")
    assert check(pack.replace("0 bytes spill stores", "8 bytes spill stores") + far, "80")[0] == 0
    called = far.replace("0 bytes spill stores", "8 bytes spill stores", 1)
    assert check(pack + called, "80")[0] == 1
    assert check(whole, "80", "100") == (1, "the report names no run_layer or run_rows for sm_100")


def test_mistakes(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        program.main(["--arch", "90", "75"])
    assert stopped.value.code == 2
    words = "argument --arch: should be an integer of at least 80, got: '75'\n"
    assert capsys.readouterr().err.endswith(words)
    monkeypatch.setenv("CUDACXX", "no-such-nvcc")
    monkeypatch.setattr(sys, "argv", ["cuda"])
    with (
        pytest.warns(RuntimeWarning, match="found in sys.modules"),
        pytest.raises(SystemExit) as end,
    ):
        runpy.run_module("symrnn.native.cuda", run_name="__main__")
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: CUDACXX=no-such-nvcc is no command\n"


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["--help"])
    assert ended.value.code == 0
    assert "python -m symrnn.native.cuda --arch 80 90 " in capsys.readouterr().out


def test_check_without_nvcc(repository: Path) -> None:
    ended = subprocess.run(
        ["scripts/check_cuda"],
        cwd=repository,
        env=os.environ
        | {
            "CUDACXX": "no-such-nvcc",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "check_cuda: skipped: CUDACXX=no-such-nvcc is no command\n"
