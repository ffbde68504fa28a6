"""Machine code of NVIDIA GPUs as text: instructions, the blocks of a function, its loops.

cuobjdump prints of each function, one instruction a line::

        Function : _ZN6symrnn8run_rowsI...
    /*0000*/                   LDC R1, c[0x0][0x28] ;                 /* 0x00000a00ff017b82 */
    /*0a10*/              @!P0 BRA 0x550 ;                            /* 0x0000000400048947 */

A *loop* is a natural one: of an edge back to a block that every way there leads through, all blocks
from which the edge can be reached without it. Where blocks lie in memory does not matter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

_ARCHITECTURE = re.compile(r"code for sm_(\d+)")
_FUNCTION = re.compile(r"Function : (\S+)")
_INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z]\S*)\s*(.*?)\s*;")
_TARGET = re.compile(r"\b0x([0-9a-f]+)")
_REGISTER = re.compile(r"\bR(\d+)")
_MATRICES = re.compile(r"^LDSM\..*\.(\d)$")
_WIDTH = re.compile(r"\.(64|128)\b")

_STORES = ("ST", "STG", "STS", "STL")
_NO_RESULT = (*_STORES, "RED", "BRA", "CALL", "RET")
BYTES = 16  # of an instruction
_FACTORS = (4, 2, 4)  # registers of a matrix instruction's A, B and C


class Instruction(NamedTuple):
    """guard: the predicate without which it does nothing, "@!P0" or ""."""

    address: int
    guard: str
    opcode: str  # with its modifiers: "LDG.E.128.STRONG.GPU"
    operands: str

    @property
    def name(self) -> str:
        """Without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def target(self) -> int | None:
        """Where a branch or a call leads; None if that is computed."""
        found = _TARGET.search(self.operands)
        return int(found[1], 16) if found else None

    @property
    def calls(self) -> bool:
        """Whether it is a call. One under a condition that skips a single instruction is none: so
        loops are left on some architectures."""
        skips = bool(self.guard) and self.target == self.address + 2 * BYTES
        return self.name == "CALL" and not skips

    @property
    def jumps(self) -> bool:
        """Whether it leads elsewhere, and not back again."""
        return self.name == "BRA" or (self.name == "CALL" and not self.calls)

    @property
    def may_fall_through(self) -> bool:
        """Whether a condition decides."""
        return bool(self.guard) or (self.name == "BRA" and not self.operands.startswith("0x"))

    @property
    def loaded(self) -> range:
        """The registers that a load fills."""
        first = _REGISTER.match(self.operands)
        if first is None:
            return range(0)
        matrices = _MATRICES.search(self.opcode)
        count = int(matrices[1]) if matrices else self._width
        return range(int(first[1]), int(first[1]) + count)

    @property
    def written(self) -> range:
        """The registers of its result."""
        if self.name in _NO_RESULT:
            return range(0)
        place = self.operands.removeprefix("PT, ")
        first = _REGISTER.match(place)
        if first is None:
            return range(0)
        count = _FACTORS[-1] if self.name == "HMMA" else 2 if ".WIDE" in self.opcode else 1
        return range(int(first[1]), int(first[1]) + max(count, len(self.loaded)))

    @property
    def first_factor(self) -> int | None:
        """The first register that it takes beside its result; None if there is none."""
        factors = self.operands.removeprefix("PT, ").partition(",")[2]
        found = _REGISTER.search(factors)
        return int(found[1]) if found else None

    def reads(self, registers: range) -> bool:
        """Whether it takes one of these as a factor, an address, or what it stores."""
        return any(one in registers for one in self._sources())

    def _sources(self) -> Iterator[int]:
        operands = [one.strip() for one in self.operands.split(",")]
        if self.name not in _NO_RESULT:
            place = operands.pop(0)
            operands += [place] if "[" in place else []
        for index, operand in enumerate(operands):
            for match in _REGISTER.finditer(operand):
                count = 2 if operand[match.end() :].startswith(".64") else 1
                if self.name == "HMMA":
                    count = _FACTORS[index]
                elif self.name in _STORES and "[" not in operand:
                    count = self._width
                yield from range(int(match[1]), int(match[1]) + count)

    @property
    def _width(self) -> int:
        """Registers that are loaded or stored."""
        width = _WIDTH.search(self.opcode)
        return int(width[1]) // 32 if width else 1


@dataclass
class Block:
    """Instructions that follow one another; where control goes then, by number."""

    code: list[Instruction]
    next: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Loop:
    """The blocks of a loop by number, and the one that it begins with."""

    head: int
    blocks: frozenset[int]

    def __contains__(self, other: Loop) -> bool:
        return other.blocks < self.blocks


@dataclass
class Function:
    """A kernel, with what it calls.

    order: the place of each block, by number, in an order in which only loops go back.
    """

    name: str  # as the linker knows it
    architecture: int
    code: list[Instruction]

    def __post_init__(self) -> None:
        self.blocks = blocks_of(self.code)
        order = _reverse_postorder(self.blocks)
        self.order = {k: place for place, k in enumerate(order)}
        self.loops = loops_of(self.blocks, order)

    def innermost(self) -> list[Loop]:
        return [one for one in self.loops if not any(other in one for other in self.loops)]

    def instructions(self, loop: Loop) -> list[Instruction]:
        """In the order of their addresses."""
        return [one for number in sorted(loop.blocks) for one in self.blocks[number].code]

    def can_avoid(self, loop: Loop, number: int) -> bool:
        """Whether there is a way around a loop that does not lead through a block of it."""
        if number == loop.head:
            return False
        seen, pending = {number, loop.head}, [loop.head]
        while pending:
            for after in self.blocks[pending.pop()].next:
                if after == loop.head:
                    return True
                if after in loop.blocks and after not in seen:
                    seen.add(after)
                    pending.append(after)
        return False


def functions(lines: Iterable[str]) -> Iterator[Function]:
    """All of what cuobjdump --dump-sass has printed, one at a time: the whole may be large."""
    architecture, name, code = 0, "", list[Instruction]()
    for line in lines:
        if match := _INSTRUCTION.match(line):
            address, guard, opcode, operands = match.groups()
            code.append(Instruction(int(address, 16), guard or "", opcode, operands))
        elif match := _FUNCTION.search(line) or _ARCHITECTURE.search(line):
            if code:
                yield Function(name, architecture, code)
                code = []
            if match.re is _FUNCTION:
                name = match[1]
            else:
                architecture = int(match[1])
    if code:
        yield Function(name, architecture, code)


def blocks_of(code: list[Instruction]) -> list[Block]:
    """Cut behind every branch and before everything that one leads to."""
    reconverges = _reconvergence(code)
    ends = ("BRA", "EXIT", "RET", "BSYNC", "CALL", "BPT")
    starts = {code[0].address}
    for one, after in pairwise(code):
        if one.name in ends:
            starts.add(after.address)
        if one.name in ("BRA", "CALL") and one.target is not None:
            starts.add(one.target)
    starts |= set(reconverges.values())
    blocks: list[Block] = []
    numbers: dict[int, int] = {}
    for one in code:
        if one.address in starts:
            numbers[one.address] = len(blocks)
            blocks.append(Block([]))
        blocks[-1].code.append(one)
    for number, block in enumerate(blocks):
        last = block.code[-1]
        follows = last.name not in ("BRA", "EXIT", "RET", "BPT", "BSYNC") or last.may_fall_through
        if last.jumps and last.target in numbers:
            block.next.append(numbers[last.target])
        if last.name == "BSYNC":
            block.next.append(numbers[reconverges[last.address]])
        if follows and number + 1 < len(blocks):
            block.next.append(number + 1)
    return blocks


def _reconvergence(code: list[Instruction]) -> dict[int, int]:
    """Where each BSYNC leads, by its address: to what the BSSY of its barrier names.

    A barrier is used for many regions; a BSYNC belongs to the last BSSY before it, unless one
    names the very next instruction, as those do that end their region.
    """
    known = {one.address for one in code}
    last: dict[str, int] = {}
    found = {}
    for one, after in zip(code, [*code[1:], code[-1]], strict=True):
        barrier = one.operands.partition(",")[0].strip()
        if one.name == "BSSY" and one.target in known:
            last[barrier] = one.target
        elif one.name == "BSYNC":
            found[one.address] = last.get(barrier, after.address)
    return found


def loops_of(blocks: list[Block], order: list[int]) -> list[Loop]:
    """Those that can be reached from the first block, each once; calls are not followed."""
    before: dict[int, list[int]] = {number: [] for number in order}
    for number in order:
        for after in blocks[number].next:
            before[after].append(number)
    dominator = _dominators(before, order)
    bodies: dict[int, set[int]] = {}
    for number in order:
        for head in blocks[number].next:
            if not _dominates(head, number, dominator):
                continue
            body = bodies.setdefault(head, {head})
            pending = [number]
            while pending:
                one = pending.pop()
                if one not in body:
                    body.add(one)
                    pending += before[one]
    return [Loop(head, frozenset(body)) for head, body in sorted(bodies.items())]


def _reverse_postorder(blocks: list[Block]) -> list[int]:
    seen, order = {0}, []
    pending = [(0, iter(blocks[0].next))]
    while pending:
        number, rest = pending[-1]
        for after in rest:
            if after not in seen:
                seen.add(after)
                pending.append((after, iter(blocks[after].next)))
                break
        else:
            order.append(number)
            pending.pop()
    return order[::-1]


def _dominators(before: dict[int, list[int]], order: list[int]) -> dict[int, int]:
    """Of each block the nearest one that every way to it leads through (Cooper et al.).

    before: of each block those that lead to it.
    """
    place = {number: k for k, number in enumerate(order)}
    found = {order[0]: order[0]}

    def common(a: int, b: int) -> int:
        while a != b:
            if place[a] > place[b]:
                a = found[a]
            else:
                b = found[b]
        return a

    changed = True
    while changed:
        changed = False
        for number in order[1:]:
            known = [one for one in before[number] if one in found]
            new = known[0]
            for one in known[1:]:
                new = common(new, one)
            if found.get(number) != new:
                found[number] = new
                changed = True
    return found


def _dominates(head: int, number: int, dominator: dict[int, int]) -> bool:
    while number != head and dominator[number] != number:
        number = dominator[number]
    return number == head
