"""What the machine code of the kernels should look like, checked without a GPU.

    python -m symrnn.native.cuda.machine_code --arch 90

A kernel has *step loops*, in which it waits for other blocks and which have barriers, and in these
*product loops*: innermost ones that read shared memory, multiply, and write nothing to global
memory. In them is looked for what makes a step slow and no test sees:

- a load that is used at once: its latency is waited for, and nothing hides it (:attr:`Measured.l2`,
  :attr:`Measured.ahead`, :attr:`Measured.shared`);
- arithmetic of addresses between a barrier and the loads of partial sums, which all blocks do while
  the chip idles (:attr:`Measured.per_sum`), and around the products (:attr:`Measured.per_product`);
- calls and registers spilled to memory. A call that one can get around is none of these: the one
  that stops a launch, and the slow way of a division by a number that is hardly one.

Distances are in instructions, in the order of their addresses, in a loop from its end on to its
beginning. The code is read from cuobjdump, which is not among what an installation of nvcc must
have: ``pip install 'symrnn[cuda-check]'`` brings it along.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

from symrnn.files import UserError, run_program
from symrnn.native.building import NotBuiltError
from symrnn.native.cuda import building
from symrnn.native.cuda.resources import readable
from symrnn.native.cuda.sass import Function, Instruction, Loop, functions

MISSING = "no cuobjdump was found; pip install 'symrnn[cuda-check]' brings one"

EXAMPLE = """\
examples:
  python -m symrnn.native.cuda.machine_code --arch 80 90
  python -m symrnn.native.cuda.machine_code --library sm_90.so --arch 90

The first looks at the library that python -m symrnn.native.cuda has built for these.
"""


@dataclass(frozen=True)
class Measured:
    """Of one kernel on one architecture; None where there is no such load.

    l2: the least distance from a load of what other blocks wrote to its first use.
    ahead: the same in product loops.
    shared: in product loops, the least distance from a load of shared memory to its first use.
    sums: the most instructions from a barrier to the last load of partial sums.  per_sum: the same
        for each of these loads, where it is most.
    per_product: instructions in the longest product loop for each that multiplies.
    calls, spills: that one cannot get around.
    held: matrix instructions and shuffles in step loops that take weights which registers hold:
        nothing in the loop writes their first factor.
    """

    l2: int | None
    ahead: int | None
    shared: int | None
    sums: int | None
    per_sum: float | None
    per_product: float | None
    calls: int
    spills: int
    held: int = 0


@dataclass(frozen=True)
class Bounds:
    """At least `l2`, `ahead`, `shared` and `held`, at most the others; `sums` is for the eye."""

    l2: int
    ahead: int
    shared: int
    per_sum: float
    per_product: float
    calls: int = 0
    spills: int = 0
    held: int = 0


# By pattern of the readable name; the first that matches. These are what the kernels have today on
# compute capabilities 8.0 and 9.0, with some room for another compiler. Whoever makes them better
# tightens the bounds.
EXPECTED: dict[str, Bounds] = {
    # Partial sums are added as they come: l2 bounds little. They lie at equal distances; most
    # instructions before them are those of other numbers of gates. The longest loop of a product
    # is the one about the diagonal of a matrix, of few tiles, each of which may be transposed.
    r"run_layer<Exact": Bounds(l2=3, ahead=1, shared=1, per_sum=13.0, per_product=5.5),
    r"run_layer<": Bounds(l2=3, ahead=1, shared=1, per_sum=13.0, per_product=36.0),
    # Two layers: the sums of both stand at places that are computed for each. The longest way to
    # the last of them is past a cell that stores nothing, as it may at the ends of the backward
    # pass, where a layer has no step: what the next cell needs is read on it. The longest loop of a
    # product is the backward pass's, in which the rows change from gate to gate.
    r"run_rows_wavefront<Exact": Bounds(l2=25, ahead=12, shared=1, per_sum=56.0, per_product=2.3),
    r"run_rows_wavefront<.*, 1>": Bounds(l2=10, ahead=5, shared=1, per_sum=56.0, per_product=32.0),
    r"run_rows_wavefront<.*, 2>": Bounds(l2=10, ahead=5, shared=1, per_sum=56.0, per_product=19.0),
    r"run_rows_wavefront<": Bounds(l2=10, ahead=5, shared=1, per_sum=56.0, per_product=14.5),
    # States come from L2 some chunks before they are multiplied. With eight sequences there is
    # little to do for each, so the distance is short though the chunks are as many. Four sums of a
    # gate are loaded together, gate by gate. One kernel's loop is unrolled less on 8.0: 10.7
    # instructions for each product there, 6.0 on 9.0.
    r"run_rows<Exact": Bounds(l2=20, ahead=18, shared=2, per_sum=15.0, per_product=2.2),
    r"run_rows<.*, 1>": Bounds(l2=7, ahead=5, shared=1, per_sum=15.0, per_product=27.0),
    r"run_rows<.*, 2>": Bounds(l2=20, ahead=15, shared=1, per_sum=15.0, per_product=16.0),
    r"run_rows<Tf32, 3>": Bounds(l2=20, ahead=12, shared=1, per_sum=15.0, per_product=11.5),
    r"run_rows<": Bounds(l2=20, ahead=12, shared=1, per_sum=15.0, per_product=7.0),
    # A part of the rows is in registers, of the forward or (2) of the backward pass: 12 tiles of 16
    # rows of a chunk, or forward 8 in 16 bits. Each is multiplied by two instructions for every
    # eight sequences or, exactly, takes 32 shuffles. What is left of a backward pass is one tile of
    # each chunk, with as many instructions about it as if there were more.
    r"run_rows_held<Exact, 1, .*1>": Bounds(20, 20, 8, 9.0, 1.5, held=12 * 32),
    r"run_rows_held<Exact, 1, .*2>": Bounds(25, 75, 8, 10.5, 3.0, held=12 * 32),
    r"run_rows_held<Tf32, 1, .*1>": Bounds(40, 20, 10, 9.0, 9.5, held=12 * 2),
    r"run_rows_held<Tf32, 3, .*1>": Bounds(50, 12, 1, 9.0, 7.0, held=12 * 6),
    r"run_rows_held<.*, 1, .*1>": Bounds(40, 20, 10, 9.0, 9.5, held=8 * 2),
    r"run_rows_held<.*, 3, .*1>": Bounds(50, 14, 1, 9.0, 7.0, held=8 * 6),
    r"run_rows_held<.*, 1, .*2>": Bounds(15, 75, 1, 10.5, 48.0, held=12 * 2),
    r"run_rows_held<.*, 3, .*2>": Bounds(32, 75, 1, 10.5, 21.0, held=12 * 6),
}
LEAST = ("l2", "ahead", "shared", "held")
SPILLS = ("STL", "LDL")


# ---- what is measured --------------------------------------------------------------------------


def measure(kernel: Function) -> Measured:
    """Of one kernel's loops."""
    steps, products = step_loops(kernel), product_loops(kernel)
    hot = {number for loop in products for number in loop.blocks}
    multiplied = {one.address for number in hot for one in kernel.blocks[number].code}
    every = [kernel.instructions(loop) for loop in steps]
    code = [kernel.instructions(loop) for loop in products]
    sums = [found for one in steps for found in sums_after_barriers(kernel, one)]
    longest = max(code, key=len, default=None)
    return Measured(
        l2=least(every, lambda all_, at: from_l2(all_, at) and all_[at].address not in multiplied),
        ahead=least(code, from_l2),
        shared=least(code, lambda inside, at: reads_shared(inside[at])),
        sums=max((count for count, _ in sums), default=None),
        per_sum=max((count / loads for count, loads in sums), default=None),
        per_product=len(longest) / sum(map(multiplies, longest)) if longest else None,
        calls=unavoidable(kernel, steps, hot, lambda one: one.calls),
        spills=unavoidable(kernel, steps, hot, lambda one: one.name in SPILLS),
        held=sum(map(multiplies_held, every)),
    )


def step_loops(kernel: Function) -> list[Loop]:
    """The outermost loops that have both a wait for another block and a barrier."""
    found = []
    for loop in kernel.loops:
        code = kernel.instructions(loop)
        if any(one.name == "BAR" for one in code) and any(map(invalidates_l1, code)):
            found.append(loop)
    return [one for one in found if not any(one in other for other in found)]


def product_loops(kernel: Function) -> list[Loop]:
    """The innermost loops that multiply what they read of shared memory."""
    found = []
    for loop in kernel.innermost():
        code = kernel.instructions(loop)
        if (
            any(map(reads_shared, code))
            and any(map(multiplies, code))
            and not any(one.name == "STG" for one in code)
        ):
            found.append(loop)
    if any(one.name == "HMMA" for one in kernel.code):
        found = [
            loop for loop in found if any(one.name == "HMMA" for one in kernel.instructions(loop))
        ]
    return found


def multiplies(one: Instruction) -> bool:
    return one.name in ("HMMA", "FFMA")


def multiplies_held(code: Sequence[Instruction]) -> int:
    """How many matrix instructions and shuffles take their first factor from before the loop."""
    written = {register for one in code for register in one.written}
    return sum(
        one.name in ("HMMA", "SHFL") and one.first_factor not in (None, *written) for one in code
    )


def reads_shared(one: Instruction) -> bool:
    return one.name in ("LDS", "LDSM")


def invalidates_l1(one: Instruction) -> bool:
    """What an acquiring load ends with: the mark of a wait."""
    return one.opcode == "CCTL.IVALL"


def from_l2(code: Sequence[Instruction], at: int) -> bool:
    """Whether a load goes past L1, as those of what others wrote, and is no poll of a flag."""
    if code[at].name != "LDG" or ".STRONG.GPU" not in code[at].opcode:
        return False
    for one in code[at + 1 : at + 5]:
        if invalidates_l1(one):
            return False
        if one.name == "LDG":
            break
    return True


def until_used(code: Sequence[Instruction], at: int) -> int | None:
    """Instructions from a load to the first that reads it, around the loop; None if none does."""
    loaded = code[at].loaded
    for distance in range(1, len(code)):
        if code[(at + distance) % len(code)].reads(loaded):
            return distance
    return None


def sums_after_barriers(kernel: Function, loop: Loop) -> Iterator[tuple[int, int]]:
    """Of each barrier, instructions to the last load of a sum before anything is stored, and loads.

    By the longest way that does not go back: of several kinds of layer the longest counts.
    """
    inside = kernel.instructions(loop)
    sums = {one.address for k, one in enumerate(inside) if is_sum(inside, k)}
    numbers = sorted(loop.blocks, key=kernel.order.__getitem__)
    for first in numbers:
        for k, barrier in enumerate(kernel.blocks[first].code):
            if barrier.name != "BAR":
                continue
            furthest, most = {first: (-1 - k, 0)}, (0, 0)
            for number in numbers:
                if number not in furthest:
                    continue
                count, loads = furthest[number]
                for one in kernel.blocks[number].code:
                    count += 1
                    if count > 0 and one.address in sums:
                        loads += 1
                        most = max(most, (count, loads))
                    if count > 0 and one.name in ("BAR", "STG"):
                        break
                else:
                    for after in kernel.blocks[number].next:
                        if after in loop.blocks and kernel.order[after] > kernel.order[number]:
                            furthest[after] = max(furthest.get(after, (0, 0)), (count, loads))
            if most[1]:
                yield most


def is_sum(code: Sequence[Instruction], at: int) -> bool:
    """Whether a load is of one number, and the first that is done with it is to add it."""
    one = code[at]
    if len(one.loaded) != 1 or not (one.name == "LDS" or from_l2(code, at)):
        return False
    distance = until_used(code, at)
    return distance is not None and code[(at + distance) % len(code)].name == "FADD"


def unavoidable(
    kernel: Function,
    steps: Iterable[Loop],
    hot: set[int],
    counted: Callable[[Instruction], bool],
) -> int:
    """How many of these the loops lead through: all in product loops, else where no way is around.

    Registers that are written to memory for a call belong to it.
    """
    count = 0
    for loop in steps:
        for number in loop.blocks:
            found = sum(map(counted, kernel.blocks[number].code))
            if found and (number in hot or not aside(kernel, loop, number)):
                count += found
    return count


def aside(kernel: Function, loop: Loop, number: int) -> bool:
    """Whether a block ends in a call that its loop can do without."""
    return kernel.blocks[number].code[-1].calls and kernel.can_avoid(loop, number)


def least(
    loops: Iterable[Sequence[Instruction]], chosen: Callable[[Sequence[Instruction], int], bool]
) -> int | None:
    """Of the loads that are chosen the least distance to a first use; None if there is none."""
    distances = (
        until_used(code, at) for code in loops for at in range(len(code)) if chosen(code, at)
    )
    return min((one for one in distances if one is not None), default=None)


# ---- against what is expected ------------------------------------------------------------------


def faults(name: str, found: Measured) -> list[str]:
    """What of a kernel, by its readable name, is not as :data:`EXPECTED` has it, in words."""
    bounds = next((one for pattern, one in EXPECTED.items() if re.match(pattern, name)), None)
    if bounds is None:
        return [f"no bounds are known for {name}"]
    if found.per_product is None:
        return ["it has no product loop"]
    words = []
    for one in fields(Bounds):
        value, bound = getattr(found, one.name), getattr(bounds, one.name)
        if value is None:
            continue
        if value < bound if one.name in LEAST else value > bound:
            limit = "least" if one.name in LEAST else "most"
            words.append(f"{one.name} is {value:g}, should be at {limit} {bound:g}")
    return words


def table(rows: Sequence[tuple[str, int, Measured]]) -> str:
    """A line for each kernel and architecture."""
    names = [one.name for one in fields(Measured)]
    lines = [["instructions", "sm", *names]]
    for name, architecture, found in sorted(rows, key=lambda row: row[:2]):
        values = [getattr(found, one) for one in names]
        cells = ["" if value is None else f"{value:.4g}" for value in values]
        lines.append([name, str(architecture), *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


# ---- the disassembler --------------------------------------------------------------------------


def disassembler() -> Path | None:
    """cuobjdump of the path or of $CUDA_HOME, or else of the package from PyPI; None if none."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for place in ("cuobjdump", *(f"{home}/bin/cuobjdump" for home in homes)):
        found = shutil.which(place)
        if found:
            return Path(found)
    with suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nvidia-cuda-cuobjdump") or ():
            if file.name == "cuobjdump":
                return Path(str(file.locate())).resolve()
    return None


def disassembled(library: Path, architecture: int, program: Path) -> Iterator[Function]:
    """The functions of a library for one architecture. Raises UserError if that fails."""
    command = [
        str(program),
        "--dump-sass",
        "--gpu-architecture",
        f"sm_{architecture}",
        str(library),
    ]
    # It looks for nvdisasm, which stands beside it.
    path = os.pathsep.join([str(program.parent), os.environ.get("PATH", "")])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PATH": path},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        yield from functions(process.stdout)
        words = process.stderr.read().strip()
    if process.returncode:
        raise UserError(f"{program} on {library}: {words or process.returncode}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m symrnn.native.cuda.machine_code",
        description="Check the machine code of the CUDA kernels, and list what was measured of it.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--arch", nargs="+", type=int, required=True, metavar="N",
                        help="architectures, 90 for compute capability 9.0")  # fmt: skip
    parser.add_argument("--library", type=Path, help="(what is cached for these)")
    options = parser.parse_args(arguments)
    program = disassembler()
    if program is None:
        raise UserError(MISSING)
    library = options.library or building.find(options.arch)
    if library is None:
        raise UserError("the kernels for these architectures are not built")
    rows = []
    for architecture in options.arch:
        for one in disassembled(library, architecture, program):
            if "run_" in one.name and one.architecture == architecture:
                rows.append((one.name, architecture, measure(one)))
    if not rows:
        raise UserError(f"{library} has no kernels for {options.arch}")
    names = readable(name for name, _, _ in rows)
    rows = [(names[name], architecture, found) for name, architecture, found in rows]
    print(table(rows))
    words = [
        f"{name} on sm_{architecture}: {fault}"
        for name, architecture, found in rows
        for fault in faults(name, found)
    ]
    print("\n".join(words) or "all as expected")
    return 1 if words else 0


if __name__ == "__main__":
    run_program(main, NotBuiltError)
