"""What each kernel takes of a GPU's multiprocessor, read from the compiler's report.

ptxas, told to be verbose, says of each kernel and architecture::

    ptxas info    : Compiling entry function '_ZN6symrnn9run_layerIfEEvPf' for 'sm_90'
    ptxas info    : Function properties for _ZN6symrnn9run_layerIfEEvPf
        0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
    ptxas info    : Used 168 registers, used 1 barriers

and, after a kernel, the properties of functions that it calls and that were not built into it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_KERNEL = re.compile(r"Compiling entry function '(\S+)' for 'sm_(\d+)\w*'")
_FUNCTION = re.compile(r"Function properties for (\S+)")
_BYTES = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")


@dataclass
class Resources:
    """Of a kernel on an architecture; per thread, and but for the registers in bytes.

    Of a function that kernels call the registers are 0: they count among a kernel's.
    """

    name: str  # as the linker knows it
    architecture: int
    registers: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    stack: int = 0

    @property
    def spills(self) -> bool:
        """Whether registers were too few."""
        return self.spill_stores + self.spill_loads > 0


def resources(report: str) -> list[Resources]:
    """All that a report of ptxas names, in its order."""
    found: list[Resources] = []
    kernel, architecture = "", 0
    for line in report.splitlines():
        if match := _KERNEL.search(line):
            kernel, architecture = match[1], int(match[2])
        elif match := _FUNCTION.search(line):
            found.append(Resources(match[1], architecture))
        elif not found:
            continue
        elif match := _BYTES.search(line):
            last = found[-1]
            last.stack, last.spill_stores, last.spill_loads = map(int, match.groups())
        elif (match := _USED.search(line)) and found[-1].name == kernel:
            found[-1].registers = int(match[1])
    return found


def readable(names: Iterable[str]) -> dict[str, str]:
    """What the sources call these: `run_layer<__half, 0>`. Unchanged where there is no c++filt."""
    names = list(dict.fromkeys(names))
    if not names or shutil.which("c++filt") is None:
        return dict(zip(names, names, strict=True))
    lines = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True).stdout
    return dict(zip(names, map(_shortened, lines.splitlines()), strict=True))


def _shortened(declaration: str) -> str:
    """Without result, namespaces and arguments."""
    for words in ("(anonymous namespace)::", "symrnn::"):
        declaration = declaration.replace(words, "")
    depth = 0
    for end, letter in enumerate(declaration):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            declaration = declaration[:end]
            break
    return re.sub(r"^(void |_INTERNAL_\w+::)+", "", declaration)


def table(rows: Sequence[Resources]) -> str:
    """A line for each kernel, a column for each architecture."""
    names = readable(one.name for one in rows)
    architectures = sorted({one.architecture for one in rows})
    cells = {(one.name, one.architecture): _cell(one) for one in rows}
    lines = [["registers per thread", *(f"sm_{one}" for one in architectures)]]
    for name in sorted(names, key=lambda name: names[name]):
        lines.append([names[name], *(cells.get((name, one), "") for one in architectures)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = (
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def _cell(one: Resources) -> str:
    words = str(one.registers) if one.registers else "called"
    if one.spills:
        words += f", spills {one.spill_stores}+{one.spill_loads} bytes"
    elif one.stack:
        words += f", stack {one.stack} bytes"
    return words
