"""The check of the kernels' machine code, on a few lines of it that were written for this.

They are in the form of cuobjdump: each test assembles what it looks at. So there is neither a GPU
nor CUDA in these tests.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from symrnn.files import UserError
from symrnn.native.cuda import machine_code
from symrnn.native.cuda.machine_code import Bounds, Measured, faults, measure, table
from symrnn.native.cuda.sass import Function, Instruction, functions

ROWS = "_ZN6symrnn8run_rowsINS_4Tf32ELi3EEEvNS_6RowJobINT_6NumberEEE"  # run_rows<Tf32, 3>


def listing(text: str, name: str = ROWS, architecture: int = 90) -> str:
    """What cuobjdump prints of these instructions; a line may begin with a label."""
    lines = [line.strip() for line in text.strip().splitlines()]
    labels = {}
    code = []
    for number, line in enumerate(lines):
        label, colon, rest = line.partition(": ")
        if colon:
            labels[label] = f"0x{16 * number:x}"
        code.append(rest if colon else line)
    out = [f"\tcode for sm_{architecture}", f"\t\tFunction : {name}", '\t.headerflags\t@"EF_CUDA"']
    for number, line in enumerate(code):
        for label, address in labels.items():
            line = re.sub(rf"\b{label}\b", address, line)
        out.append(f"        /*{16 * number:04x}*/         {line} ;    /* 0x00000a00ff017b82 */")
        out.append("                                                  /* 0x000e220000000800 */")
    return "\n".join(out) + "\n"


def assembled(text: str) -> Function:
    (found,) = functions(listing(text).splitlines())
    return found


def instruction(text: str) -> Instruction:
    return assembled(text).code[0]


# ---- the text ----------------------------------------------------------------------------------


def test_functions_of_several_architectures() -> None:
    text = listing("EXIT", "first", 80) + listing("@!P0 EXIT\nBRA 0x0", "second", 90)
    found = list(functions(text.splitlines()))
    assert [(one.name, one.architecture) for one in found] == [("first", 80), ("second", 90)]
    assert found[1].code == [Instruction(0, "@!P0", "EXIT", ""), Instruction(16, "", "BRA", "0x0")]


@pytest.mark.parametrize(
    ("text", "loaded"),
    [
        ("LDS R4, [R2+0x10]", [4]),
        ("LDS.64 R4, [R2]", [4, 5]),
        ("@P0 LDG.E.128.STRONG.GPU R60, desc[UR8][R154.64+0x200]", [60, 61, 62, 63]),
        ("LDG.E.U16 R3, desc[UR8][R2.64]", [3]),
        ("LDSM.16.MT88.4 R8, [R2]", [8, 9, 10, 11]),
        ("LDSM.16.M88 R8, [R2]", [8]),
    ],
)
def test_what_a_load_fills(text: str, loaded: list[int]) -> None:
    assert list(instruction(text).loaded) == loaded


@pytest.mark.parametrize(
    ("text", "registers"),
    [
        ("FADD R1, R2, R3", [2, 3]),
        ("LDG.E R1, desc[UR8][R2.64]", [2, 3]),
        ("STG.E.64 desc[UR8][R2.64], R6", [2, 3, 6, 7]),
        ("STS.128 [R9], R36", [9, 36, 37, 38, 39]),
        ("HMMA.16816.F32.BF16 R20, R40.reuse, R50, R60", [40, 41, 42, 43, 50, 51, 60, 61, 62, 63]),
        ("ISETP.GE.U32.AND P2, PT, R35, R42, PT", [35, 42]),
    ],
)
def test_what_an_instruction_reads(text: str, registers: list[int]) -> None:
    one = instruction(text)
    assert [r for r in range(256) if one.reads(range(r, r + 1))] == registers


# ---- loops -------------------------------------------------------------------------------------


def loops(text: str) -> list[list[str]]:
    """The opcodes of each loop, in the order of their addresses."""
    found = assembled(text)
    return [[one.opcode for one in found.instructions(loop)] for loop in found.loops]


def test_loops_are_nested() -> None:
    text = """
        outer: MOV R1, R2
        inner: IADD3 R1, R1, R2, RZ
        @P0 BRA inner
        FADD R3, R3, R4
        @P1 BRA outer
        EXIT
    """
    found = assembled(text)
    assert loops(text) == [["MOV", "IADD3", "BRA", "FADD", "BRA"], ["IADD3", "BRA"]]
    outer, inner = found.loops
    assert inner in outer
    assert found.innermost() == [inner]


def test_a_loop_goes_where_its_branches_lead() -> None:
    """A part of it lies behind the function's end, and what lies within is none of it."""
    text = """
        head: MOV R1, R2
        @P0 BRA far
        back: IADD3 R1, R1, R2, RZ
        @P1 BRA head
        EXIT
        far: FMUL R1, R1, R1
        BRA back
    """
    assert loops(text) == [["MOV", "BRA", "IADD3", "BRA", "FMUL", "BRA"]]


def test_threads_come_together_where_the_region_ends() -> None:
    """BSYNC leads to what BSSY names, here past a part that is left out."""
    text = """
        head: BSSY B0, after
        @P0 BRA aside
        FADD R1, R1, R2
        aside: BSYNC B0
        FMUL R9, R9, R9
        after: IADD3 R1, R1, R2, RZ
        @P1 BRA head
        EXIT
    """
    assert loops(text) == [["BSSY", "BRA", "FADD", "BSYNC", "IADD3", "BRA"]]


def test_a_call_that_skips_an_instruction_is_a_jump() -> None:
    """So compute capability 8.0 leaves a loop."""
    text = """
        head: FADD R1, R1, R2
        @P0 CALL.REL.NOINC out
        BRA head
        out: EXIT
    """
    found = assembled(text)
    assert [one.opcode for one in found.instructions(found.loops[0])] == [
        "FADD", "CALL.REL.NOINC", "BRA"
    ]  # fmt: skip
    assert not any(one.calls for one in found.code)
    assert any(one.calls for one in assembled("CALL.REL.NOINC far\nEXIT\nfar: RET").code)


# ---- a kernel ----------------------------------------------------------------------------------

KERNEL = """
    LDG.E.STRONG.GPU R9, desc[UR8][R2.64]
    step: NOP
    poll: LDG.E.STRONG.GPU R3, desc[UR8][R2.64]
    ISETP.GE.U32.AND P2, PT, R3, R42, PT
    CCTL.IVALL
    @P2 BRA seen
    @P3 BRA poll
    STL [R1], R46
    CALL.REL.NOINC stop
    seen: NOP
    LDG.E.128.STRONG.GPU R60, desc[UR8][R4.64]
    NOP
    NOP
    product: LDS.128 R40, [R36]
    NOP
    HMMA.16816.F32.BF16 R20, R40, R60, R20
    LDG.E.128.STRONG.GPU R60, desc[UR8][R4.64]
    NOP
    @P0 BRA product
    BAR.SYNC.DEFER_BLOCKING 0x0
    IMAD R30, R31, R32, RZ
    LDS R50, [R30]
    LDS R51, [R30+0x10]
    FADD R52, R50, R51
    STG.E desc[UR8][R6.64], R52
    LDS R53, [R30]
    FADD R52, R53, R52
    @P1 BRA step
    EXIT
    stop: BPT.TRAP 0x1
"""

FOUND = Measured(l2=5, ahead=5, shared=2, sums=3, per_sum=1.5, per_product=6.0, calls=0, spills=0)


def test_what_is_measured_of_a_kernel() -> None:
    """Neither what comes before the steps counts, nor a poll, nor what stops a launch."""
    assert measure(assembled(KERNEL)) == FOUND


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        # The state is multiplied as it comes, before and in the product loop.
        ("NOP\n    NOP\n    product", "product", {"l2": 3}),
        ("R60, R20\n    LDG", "R60, R20\n    NOP\n    LDG", {"per_product": 7.0}),
        ("NOP\n    HMMA", "HMMA", {"shared": 1, "l2": 4, "ahead": 4, "per_product": 5.0}),
        # Weights that a shuffle or the matrix units take from registers that nothing writes.
        ("    BAR", "    HMMA.16816.F32.BF16 R20, R70, R60, R20\n    BAR", {"held": 1}),
        ("    BAR", "    SHFL.IDX PT, R75, R70, R28, 0x1f\n    BAR", {"held": 1}),
        ("    BAR", "    SHFL.IDX PT, R75, R70, R28, 0x1f\n    IMAD.WIDE R69, R3, R3, R2\n    BAR",
         {}),
        # Addresses are computed between the barrier and the sums.
        ("    IMAD R30", "    NOP\n    IMAD R30", {"sums": 4, "per_sum": 2.0}),
        ("LDS R51, [R30+0x10]", "LDS R51, [R30+0x10]\n NOP\n LDS R54, [R3]\n FADD R5, R54, R5",
         {"sums": 5, "per_sum": 5 / 3}),
        # A call that every step makes, one that some do, and one in the product loop.
        ("    IMAD R30", "    CALL.REL.NOINC stop\n    IMAD R30",
         {"calls": 1, "sums": 4, "per_sum": 2.0}),
        ("    IMAD R30", "    @P5 BRA past\n    CALL.REL.NOINC stop\n past: IMAD R30",
         {"sums": 5, "per_sum": 2.5}),
        ("    HMMA", "    @P5 BRA past\n    CALL.REL.NOINC stop\n past: HMMA",
         {"calls": 1, "shared": 4, "l2": 7, "ahead": 7, "per_product": 8.0}),
        # Registers that are stored for no call.
        ("    IMAD R30", "    STL [R1], R46\n    LDL R46, [R1]\n    IMAD R30",
         {"spills": 2, "sums": 5, "per_sum": 2.5}),
        ("    @P0 BRA product", "    STL [R1], R46\n    @P0 BRA product",
         {"spills": 1, "ahead": 6, "per_product": 7.0}),
    ],
)  # fmt: skip
def test_what_a_change_of_it_does(before: str, after: str, changed: dict[str, float]) -> None:
    assert KERNEL.count(before) == 1
    assert measure(assembled(KERNEL.replace(before, after))) == replace(FOUND, **changed)


def test_exact_products_are_multiplied_one_by_one() -> None:
    """A loop that writes to global memory is no product loop, though it multiplies too."""
    exact = KERNEL.replace("HMMA.16816.F32.BF16", "FFMA").replace(
        "STG.E desc", "cells: LDS R54, [R3]\n FFMA R5, R54, R5, R5\n STG.E desc[UR8][R6.64], R5\n"
        "@P0 BRA cells\n STG.E desc"
    )  # fmt: skip
    assert measure(assembled(exact)).per_product == 6.0


def test_a_kernel_without_steps() -> None:
    assert measure(assembled("LDS R4, [R2]\nEXIT")) == Measured(
        None, None, None, None, None, None, 0, 0
    )


# ---- against what is expected ------------------------------------------------------------------

BOUNDS = Bounds(l2=5, ahead=5, shared=2, per_sum=1.5, per_product=6.0)


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({}, []),
        ({"l2": 6}, ["l2 is 5, should be at least 6"]),
        ({"ahead": 6, "shared": 3},
         ["ahead is 5, should be at least 6", "shared is 2, should be at least 3"]),
        ({"per_sum": 1.0}, ["per_sum is 1.5, should be at most 1"]),
        ({"per_product": 5.5}, ["per_product is 6, should be at most 5.5"]),
        ({"calls": -1, "spills": -1},
         ["calls is 0, should be at most -1", "spills is 0, should be at most -1"]),
    ],
)  # fmt: skip
def test_a_bound_that_is_broken(
    monkeypatch: pytest.MonkeyPatch, bounds: dict[str, float], words: list[str]
) -> None:
    monkeypatch.setattr(machine_code, "EXPECTED", {"run_rows<": replace(BOUNDS, **bounds)})
    assert faults("run_rows<Tf32, 3>", FOUND) == words


def test_a_kernel_that_nobody_knows_is_a_fault() -> None:
    assert faults("run_cells<Tf32>", FOUND) == ["no bounds are known for run_cells<Tf32>"]
    nothing = Measured(None, None, None, None, None, None, 0, 0)
    assert faults("run_rows<Tf32, 3>", nothing) == ["it has no product loop"]


@pytest.mark.parametrize("policy", ["Exact", "Tf32", "Bits16<__half>", "Bits16<__nv_bfloat16>"])
@pytest.mark.parametrize("columns", [1, 2, 3, 4])
def test_there_are_bounds_for_every_kernel(policy: str, columns: int) -> None:
    good = Measured(10**6, 10**6, 10**6, 0, 0.0, 0.0, 0, 0)
    for kernel in ("run_layer", "run_rows", "run_rows_wavefront"):
        assert faults(f"{kernel}<{policy}, {columns}>", good) == []


@pytest.mark.parametrize("policy", ["Exact", "Tf32", "Bits16<__half>", "Bits16<__nv_bfloat16>"])
@pytest.mark.parametrize("direction", [1, 2])
def test_there_are_bounds_for_every_kernel_with_rows_in_registers(
    policy: str, direction: int
) -> None:
    good = Measured(10**6, 10**6, 10**6, 0, 0.0, 0.0, 0, 0, held=12 * 32)
    for columns in (1,) if policy == "Exact" else (1, 3):
        name = f"run_rows_held<{policy}, {columns}, (Held){direction}>"
        assert faults(name, good) == []
        assert faults(name, replace(good, held=0))[0].startswith("held is 0, should be at least")


def test_the_table() -> None:
    rows = [("run_rows<Tf32, 3>", 90, FOUND), ("run_layer<Exact, 1>", 80, replace(FOUND, l2=None))]
    assert table(rows).splitlines() == [
        "instructions         sm  l2  ahead  shared  sums  per_sum  per_product  calls  spills"
        "  held",
        "run_layer<Exact, 1>  80      5      2       3     1.5      6            0      0       0",
        "run_rows<Tf32, 3>    90  5   5      2       3     1.5      6            0      0       0",
    ]


# ---- the program -------------------------------------------------------------------------------

Cuobjdump = Callable[[Path, str], Path]


@pytest.fixture
def cuobjdump() -> Cuobjdump:
    """Writes a program that is called so into a folder, which prints these words."""

    def write(folder: Path, words: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "words").write_text(words)
        program = folder / "cuobjdump"
        program.write_text(f'#!/bin/sh\necho "$*" > {folder}/called\nexec cat {folder}/words\n')
        program.chmod(0o755)
        return program

    return write


@pytest.fixture
def _none(monkeypatch: pytest.MonkeyPatch) -> None:
    """No disassembler anywhere."""

    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(importlib.metadata, "files", missing)


@pytest.mark.usefixtures("_none")
def test_which_disassembler(
    tmp_path: Path, cuobjdump: Cuobjdump, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the path, else of $CUDA_HOME, else of the package."""
    find = machine_code.disassembler
    assert find() is None
    package = cuobjdump(tmp_path / "package", "")
    file = SimpleNamespace(name="cuobjdump", locate=lambda: package)
    monkeypatch.setattr(importlib.metadata, "files", lambda name: [file])
    assert find() == package
    home = cuobjdump(tmp_path / "home" / "bin", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert find() == home
    on_path = cuobjdump(tmp_path / "path", "")
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/usr/bin:/bin")
    assert find() == on_path


@pytest.mark.usefixtures("_none")
def test_a_library_is_green_or_red(
    tmp_path: Path,
    cuobjdump: Cuobjdump,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = listing(KERNEL) + listing("EXIT", "_ZN6symrnn9pack_tileIffEEvv")
    cuobjdump(tmp_path, words)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    call = ["--library", "sm_90.so", "--arch", "90"]
    monkeypatch.setattr(machine_code, "EXPECTED", {"run_rows<": BOUNDS})
    assert machine_code.main(call) == 0
    said = capsys.readouterr().out.splitlines()
    assert " ".join(said[1].split()) == "run_rows<Tf32, 3> 90 5 5 2 3 1.5 6 0 0 0"
    assert said[2:] == ["all as expected"]
    assert (tmp_path / "called").read_text() == "--dump-sass --gpu-architecture sm_90 sm_90.so\n"
    monkeypatch.setattr(machine_code, "EXPECTED", {"run_rows<": replace(BOUNDS, per_sum=1.25)})
    assert machine_code.main(call) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "run_rows<Tf32, 3> on sm_90: per_sum is 1.5, should be at most 1.25"


@pytest.mark.usefixtures("_none")
def test_what_a_user_is_told(
    tmp_path: Path, cuobjdump: Cuobjdump, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ["--library", "sm_90.so", "--arch", "90"]
    with pytest.raises(UserError, match=re.escape("pip install 'symrnn[cuda-check]' brings one")):
        machine_code.main(call)
    program = cuobjdump(tmp_path, "")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(UserError, match="has no kernels for"):
        machine_code.main(call)
    program.write_text("#!/bin/sh\necho no such file >&2\nexit 1\n")
    with pytest.raises(UserError, match="no such file"):
        machine_code.main(call)
