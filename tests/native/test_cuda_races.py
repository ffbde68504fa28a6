"""The order of accesses of the kernels for GPUs: that something orders each pair that needs it.

tests/native/happens_before.h follows every load and store of the emulated GPU's threads. Unlike
the tests of results in test_cuda.py it needs no order of execution in which a fault does harm: all
here runs first come first served, where the numbers come out right.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_int64, c_uint, c_void_p
from pathlib import Path

import pytest
import torch

from symrnn import native
from symrnn.native import building
from symrnn.native.interface import Gpu, Kernel, Layer, Mode
from tests.native.test_cuda import ALL_ARITHMETIC, FAULTS, Case, StoppedError, tight
from tests.native.test_cuda_rows import Holding
from tests.native.test_cuda_wavefront import Two

HERE = Path(__file__).parent
FIRST_COME = 0
RACE = 103  # the emulator's status
# The cases below need the kernels for no more than 16 columns at once.
COMMON = ["-std=c++17", "-fPIC", "-c", "-DSYMRNN_HAPPENS_BEFORE", "-DMOST_EIGHTS=2", f"-I{HERE}"]


@pytest.fixture(scope="module")
def build(
    folder_for: Callable[..., contextlib.AbstractContextManager[Path]],
) -> Callable[[Path, str], ctypes.CDLL]:
    """Compiles (the folder of the kernels' sources, a file beside this) to follow its accesses."""
    if not native.available():
        pytest.skip(native.why_not())
    try:
        compiler = building.compiler()
    except building.NotBuiltError as error:
        pytest.skip(f"needs a C++ compiler: {error}")
    observer = HERE / "happens_before.cpp"

    def built(cuda: Path, name: str) -> ctypes.CDLL:
        follow = [*compiler, *COMMON, "-O1", "-g1", "-fsanitize=thread", "-Wno-unknown-pragmas"]
        headers = [path for one in (cuda.parent, cuda, HERE) for path in sorted(one.glob("*.h"))]
        files = [*headers, observer, HERE / name]
        with folder_for(f"followed-{name}", files, follow) as folder:
            library = folder / "library.so"
            if not library.exists():
                objects = [str(folder / "followed.o"), str(folder / "observer.o")]
                followed = [*follow, f"-I{cuda}", str(HERE / name)]
                subprocess.run([*followed, "-o", objects[0]], check=True)
                watching = [*compiler, *COMMON, "-O2", str(observer)]
                subprocess.run([*watching, "-o", objects[1]], check=True)
                # Without the flag, which would bring the sanitizer's own library.
                linked = library.with_suffix(".part")
                subprocess.run([*compiler, "-shared", *objects, "-o", str(linked)], check=True)
                linked.rename(library)
        return ctypes.CDLL(str(library))

    return built


def with_places(races: str, library: ctypes.CDLL) -> str:
    """Files and lines in place of addresses of code, of the kernels rather than of the emulator."""
    if shutil.which("addr2line") is None:
        return races

    def place(address: re.Match[str]) -> str:
        command = ["addr2line", "-i", "-e", library._name, address[0]]
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        known = [line for line in lines if re.search(r":\d+$", line)]
        ours = [line for line in known if "emulated_gpu.h" not in line]
        return Path((ours or known or [address[0]])[0]).name

    return re.sub(r"(?<=code )0x[0-9a-f]+", place, races)


# ---- what orders accesses ------------------------------------------------------------------------

LITMUS = {  # the kernels of litmus.cpp, in their order, and whether something is not ordered
    "a message by a flag": False,
    "no barrier before the signal": True,
    "no barrier after the wait": True,
    "a wait for one signal too few": True,
    "neighbours with a barrier between": False,
    "neighbours without": True,
    "copies waited for, then a barrier": False,
    "the first of two copies waited for and read": False,
    "the first of two copies waited for, the second read": True,
    "a copy read by its own thread, not waited for": True,
    "copies waited for, read by others without a barrier": True,
    "the source of a copy overwritten after it": False,
    "the source of a copy overwritten meanwhile": True,
    "reads by all, writes by each of its own": False,
    "writes of the same by two blocks": True,
    "a read before another block's write, by luck": True,
    "a warp's instruction between its lanes": True,
}


@pytest.fixture(scope="module")
def litmus(build: Callable[[Path, str], ctypes.CDLL]) -> ctypes.CDLL:
    library = build(building.FOLDER / "cuda", "litmus.cpp")
    library.litmus.argtypes, library.litmus.restype = [c_int, c_uint], c_char_p
    return library


@pytest.mark.parametrize("case", LITMUS)
def test_what_orders_accesses(litmus: ctypes.CDLL, case: str) -> None:
    number = [*LITMUS].index(case)
    for order in range(4):
        assert bool(litmus.litmus(number, order)) == LITMUS[case], order


def test_a_race_is_told_by_its_array_and_both_threads(litmus: ctypes.CDLL) -> None:
    number = [*LITMUS].index("a wait for one signal too few")
    (line,) = litmus.litmus(number, FIRST_COME).decode().splitlines()
    line = with_places(line, litmus)
    place = r"code (0x[0-9a-f]+|litmus\.cpp:\d+)"  # by its line where addr2line is installed
    assert re.fullmatch(
        rf"global\[66\]: read by block 1 thread 1, flags at 1, {place}, "
        rf"not ordered after the write by block 0 thread 2, flags at 0, {place}",
        line,
    )


# ---- the kernels ---------------------------------------------------------------------------------

# Of the faults in test_cuda.py those that leave out or shorten a wait.
UNORDERED = [name for name in FAULTS if re.match("no (wait|barrier)|a wait|.* before they", name)]

# Of the kernel by rows, as in test_cuda.FAULTS.
ROW_FAULTS: dict[str, tuple[str, str]] = {
    "no wait": ("            wait(count, pass);", "            if (!FAULT) wait(count, pass);"),
    "a wait for one pass too few": (
        "wanted = value(count, pass);",
        "wanted = value(count, pass) - FAULT;",
    ),
    "no barrier after the wait": ("        sync_warp();", "        if (!FAULT) sync_warp();"),
    "no barrier before a signal": (
        "sync_block();\n        if (thread_index() == 0) signal_flag",
        "if (!FAULT) sync_block();\n        if (thread_index() == 0) signal_flag",
    ),
    "no barrier between the sums of two warps": (
        "        sync_block();\n        if (second) return;",
        "        if (!FAULT) sync_block();\n        if (second) return;",
    ),
    "one buffer in place of two": (
        "*const next = exchange((n + 1) % 2);",
        "*const next = exchange((n + 1 - FAULT) % 2);",
    ),
}

# Of two layers in one launch.
WAVEFRONT_FAULTS: dict[str, tuple[str, str]] = {
    "a wait for one tick too few": ("pass, n + 1, [&]", "pass, n + 1 - FAULT, [&]"),
    "one buffer in place of two": (
        "step(c, in, this->exchange((n + 1) % 2))",
        "step(c, in, this->exchange((n + 1 - FAULT) % 2))",
    ),
    "no barrier after the products": (
        "        sync_block();\n    }",
        "        if (!FAULT) sync_block();\n    }",
    ),
    "backward, a wait for one tick too few": ("pass, ticks, [&]", "pass, ticks - FAULT, [&]"),
    "backward, one buffer in place of two": (
        "this->exchange(ticks % 2)",
        "this->exchange((ticks + FAULT) % 2)",
    ),
}


def with_faults(name: str, faults: dict[str, tuple[str, str]], first: int) -> str:
    """A source in which the fault of each number, from ``first`` on, can be switched on."""
    source = (building.FOLDER / "cuda" / name).read_text()
    for number, (old, new) in enumerate(faults.values(), first):
        assert old in source, old
        source = source.replace(old, new.replace("FAULT", f"(fault == {number})"))
    return source


class Followed:
    """The kernels with all these faults, of which one at a time, or none, is on."""

    def __init__(self, build: Callable[[Path, str], ctypes.CDLL], folder: Path) -> None:
        source = with_faults("layer.h", FAULTS, 1)
        inside = "namespace symrnn {\n"
        counters = 'extern "C" { int fault = 0; }\nstatic int come = 0;\n\n'
        copied = folder / "native"
        shutil.copytree(building.FOLDER, copied, ignore=shutil.ignore_patterns("*.so", "*.py"))
        (copied / "cuda" / "layer.h").write_text(source.replace(inside, counters + inside, 1))
        rows = with_faults("rows.h", ROW_FAULTS, len(FAULTS) + 1)
        (copied / "cuda" / "rows.h").write_text(rows)
        two = with_faults("wavefront.h", WAVEFRONT_FAULTS, len(FAULTS) + len(ROW_FAULTS) + 1)
        (copied / "cuda" / "wavefront.h").write_text(two)
        self.library = build(copied / "cuda", "emulate.cpp")
        layer = [POINTER(Layer), c_int, c_int, c_int64, c_int64, c_int]
        gpu = [c_void_p, c_int64, POINTER(Gpu), c_uint]
        self.library.emulate_forward.argtypes = [*layer, *[c_void_p] * 7, *gpu]
        self.library.emulate_backward.argtypes = [*layer, *[c_void_p] * 12, *gpu]
        layers = [POINTER(Layer), c_int, c_int64, c_int64]
        self.library.emulate_forward_wavefront.argtypes = [*layers, *[c_void_p] * 9, *gpu]
        self.library.emulate_backward_wavefront.argtypes = [*layers, *[c_void_p] * 14, *gpu]
        self.library.emulate_races.restype = c_char_p
        self.fault = c_int.in_dll(self.library, "fault")

    def races(self, case: Case | Two, fault: int = 0) -> str:
        """Of both passes; of the second only if the first has none."""
        self.fault.value = fault
        try:
            case.both(self.library)
        except StoppedError as stopped:
            if stopped.args != (RACE,):
                raise
            return with_places(self.library.emulate_races().decode(), self.library)
        return ""


@pytest.fixture(scope="module")
def followed(
    build: Callable[[Path, str], ctypes.CDLL], tmp_path_factory: pytest.TempPathFactory
) -> Followed:
    return Followed(build, tmp_path_factory.mktemp("followed"))


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(("dtype", "tf32"), ALL_ARITHMETIC)
def test_every_access_is_ordered(
    followed: Followed, mode: Mode, dtype: torch.dtype, tf32: bool
) -> None:
    """In several passes over the sequences, of many squares."""
    case = Case(mode, 40, 9, 3, dtype, tf32, gpu=tight(9, mode, dtype, 40, 9), order=FIRST_COME)
    assert not followed.races(case)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(("dtype", "tf32"), ALL_ARITHMETIC)
def test_every_access_by_rows_is_ordered(
    followed: Followed, mode: Mode, dtype: torch.dtype, tf32: bool
) -> None:
    """In two passes over the sequences, of several blocks, with units that fill the last chunk."""
    case = Case(mode, 40, 33, 3, dtype, tf32, with_mask=True, kernel=Kernel.ROWS, order=FIRST_COME)
    assert case.fit(False).blocks > 2
    assert not followed.races(case)


@pytest.mark.parametrize("mode", [Mode.LSTM, Mode.GRU])
@pytest.mark.parametrize(("dtype", "tf32"), ALL_ARITHMETIC)
def test_every_access_with_rows_in_registers_is_ordered(
    followed: Followed, mode: Mode, dtype: torch.dtype, tf32: bool
) -> None:
    case = Holding(mode, 40, 9, 3, dtype, tf32, with_mask=True, order=FIRST_COME)
    assert not followed.races(case)


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize(("dtype", "tf32"), ALL_ARITHMETIC)
def test_every_access_of_two_layers_is_ordered(
    followed: Followed, mode: Mode, dtype: torch.dtype, tf32: bool
) -> None:
    """In two passes over the sequences; forward with one vector of the first layer's h or two."""
    between = (mode + tf32) % 2 == 1
    case = Two(mode, 40, 33, 2, dtype, tf32, with_between=between, order=FIRST_COME)
    assert case.fit().blocks > 2
    assert not followed.races(case)


@pytest.mark.parametrize("fault", UNORDERED)
def test_a_fault_is_found_where_the_numbers_are_right(followed: Followed, fault: str) -> None:
    number = [*FAULTS].index(fault) + 1
    lstm = Case(Mode.LSTM, 40, 20, 3, gpu=tight(13, Mode.LSTM, torch.float32, 40, 20))
    assert followed.races(lstm, number)


@pytest.mark.parametrize("fault", ROW_FAULTS)
def test_a_fault_by_rows_is_found_where_the_numbers_are_right(
    followed: Followed, fault: str
) -> None:
    number = len(FAULTS) + [*ROW_FAULTS].index(fault) + 1
    assert followed.races(Case(Mode.LSTM, 40, 33, 3, kernel=Kernel.ROWS, order=FIRST_COME), number)


@pytest.mark.parametrize("fault", WAVEFRONT_FAULTS)
def test_a_fault_of_two_layers_is_found_where_the_numbers_are_right(
    followed: Followed, fault: str
) -> None:
    number = len(FAULTS) + len(ROW_FAULTS) + [*WAVEFRONT_FAULTS].index(fault) + 1
    assert followed.races(Two(Mode.LSTM, 40, 33, 3, order=FIRST_COME), number)
