"""The names of the symmetries, and the one function that turns a name into an object."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from symrnn.symmetry.factored import LDL, Eigen
from symrnn.symmetry.folding import BySides, EvenOdd, Folding
from symrnn.symmetry.form import Symmetry
from symrnn.symmetry.linear import FullMatrix, OrbitCoordinates
from symrnn.symmetry.orbits import (
    Along,
    Generator,
    TransposeOutside,
    antitranspose,
    find_orbits,
    transpose,
)
from symrnn.symmetry.sides import Mirrored, Translated
from symrnn.symmetry.skew import SymmetricAndSkew

_MIRROR = Along(Mirrored(), "columns")

# The groups by their generators, and how their products fold.
_2WAY: tuple[Generator, ...] = (transpose,)
_4WAY: tuple[Generator, ...] = (transpose, antitranspose)
_8WAY: tuple[Generator, ...] = (transpose, antitranspose, _MIRROR)
_RAW = partial(OrbitCoordinates, orthonormal=False)
_ORTHONORMAL = partial(OrbitCoordinates, orthonormal=True)
_BOTH_SIDES = BySides(Mirrored(), Mirrored())


@dataclass(frozen=True)
class _Form:
    """make: the form of a name and a side.  numel: how many parameters it has on a side."""

    make: Callable[[str, int], Symmetry]
    numel: Callable[[int], int]


def _linear(
    form: Callable[..., Symmetry],
    generators: tuple[Generator, ...],
    numel: Callable[[int], int],
    folding: Folding | None = None,
) -> _Form:
    options = {"folding": folding} if folding else {}
    return _Form(lambda name, side: form(name, find_orbits(generators, side), **options), numel)


def _block(times: int) -> _Form:
    side = Mirrored(times)
    generators = (Along(side, "rows"), Along(side, "columns"))
    return _linear(_RAW, generators, lambda n: side.count(n) ** 2, BySides(side, side))


def _chunk(pieces: int, axis: str) -> _Form:
    side = Translated(pieces)
    folding = BySides(**{axis: side})
    return _linear(_RAW, (Along(side, axis),), lambda n: n * side.count(n), folding)


def _eigen(rank: int | None = None) -> _Form:
    def rank_on(side: int) -> int:
        return max(side // 2, 1) if rank is None else rank

    return _Form(
        lambda name, side: Eigen(name, side, rank_on(side)), lambda n: (n + 1) * rank_on(n)
    )


def _diag(form: Callable[..., Symmetry], block: int) -> _Form:
    def numel(side: int) -> int:
        blocks, last = divmod(side, block)
        return (side * (side + 1) + blocks * block * (block - 1) + last * (last - 1)) // 2

    return _linear(form, (TransposeOutside(block),), numel)


def _skew(pairs: int) -> _Form:
    def make(name: str, side: int) -> Symmetry:
        return SymmetricAndSkew(name, _ORTHONORMAL("avg", find_orbits(_2WAY, side)), pairs)

    return _Form(make, lambda n: _triangle(n) + 2 * n * pairs)


def _triangle(side: int) -> int:
    return side * (side + 1) // 2


def _quarter(side: int) -> int:
    return (side + 1) ** 2 // 4


def _eighth(side: int) -> int:
    return _triangle(Mirrored().count(side))


_FORMS: dict[str, _Form] = {
    "tri": _linear(_RAW, _2WAY, _triangle),
    "avg": _linear(_ORTHONORMAL, _2WAY, _triangle),
    "avg:full": _linear(FullMatrix, _2WAY, lambda n: n**2),
    "tri:diag16": _diag(_RAW, 16),
    "avg:diag16": _diag(_ORTHONORMAL, 16),
    "avg:skew8": _skew(8),
    "tri4": _linear(_RAW, _4WAY, _quarter, EvenOdd()),
    "avg4": _linear(_ORTHONORMAL, _4WAY, _quarter, EvenOdd()),
    "tri8": _linear(_RAW, _8WAY, _eighth, _BOTH_SIDES),
    "avg8": _linear(_ORTHONORMAL, _8WAY, _eighth, _BOTH_SIDES),
    "block4": _block(1),
    "block16": _block(2),
    **{f"chunk{k}": _chunk(k, "columns") for k in (2, 4, 8, 16, 32, 64)},
    **{f"chunk{k}:rows": _chunk(k, "rows") for k in (2, 4, 8, 16, 32, 64)},
    "eigen": _eigen(),
    "ldl": _Form(LDL, _triangle),
}

# Families whose names hold a number: how a form of one is made of it, and the family in words.
_NUMBERED: dict[str, tuple[Callable[[int], _Form], str]] = {
    "tri:diag": (partial(_diag, _RAW), "tri:diagB"),
    "avg:diag": (partial(_diag, _ORTHONORMAL), "avg:diagB (a block's side B)"),
    "avg:skew": (_skew, "avg:skewR (R planes)"),
    "eigen:": (_eigen, "eigen:R (a rank R)"),
}
_NUMBER = re.compile(rf"({'|'.join(_NUMBERED)})([1-9][0-9]*)")


def list_symmetries() -> list[str]:
    """The names that :func:`get_symmetry` knows, of some families one.

    "tri:diagB" and "avg:diagB" are known for blocks of any side B, "avg:skewR" for any number of
    planes R, and "eigen:R" for any rank R.

    >>> list_symmetries()[:5]
    ['tri', 'avg', 'avg:full', 'tri4', 'avg4']
    """
    return list(_FORMS)


def numbered_symmetries() -> list[str]:
    """The families whose names hold a number, as words: "avg:skewR (R planes)" and others."""
    return [words for _, words in _NUMBERED.values()]


def get_symmetry(name: str, side: int) -> Symmetry:
    """The symmetric form called ``name`` for matrices of ``side`` × ``side``.

    name: one of :func:`list_symmetries`, "tri:diagB", "avg:diagB" or "avg:skewR" with B, R ≥ 1, or
        "eigen:R" with a rank 1 ≤ R ≤ N.
    side: N ≥ 1.

    ========================  ============================================  ======================
    name                      entries that are one number                   parameters, for even N
    ========================  ============================================  ======================
    tri, avg                  mirrored in the diagonal                      N(N+1)/2
    tri4, avg4                mirrored in either diagonal                   N(N+2)/4
    tri8, avg8                and left to right                             (N/2)(N/2+1)/2
    block4                    mirrored left to right and top to bottom      (N/2)²
    block16                   and so again inside each quarter              (N/4)²
    chunkK                    N/K columns apart, K = 2, 4, … 64             N²/K
    chunkK:rows               N/K rows apart                                N²/K
    tri:diagB, avg:diagB      as tri and avg, outside blocks of B × B       N(N+1)/2 + N(B-1)/2
    avg:skewR                 avg, and U Vᵀ - V Uᵀ of N × R factors         N(N+1)/2 + 2NR
    eigen, eigen:R            V diag(λ) Vᵀ of rank R, N/2 if not given      NR + R
    ldl                       L diag(d) Lᵀ, L unit lower triangular         N(N+1)/2
    ========================  ============================================  ======================

    On a matrix of side 4, where equal letters are one number::

        tri, avg    tri4, avg4  tri8, avg8  block4      block16     chunk2      chunk2:rows
        a b c d     a b c d     a b b a     a b b a     a a a a     a b a b     a b c d
        b e f g     b e f c     b c c b     c d d c     a a a a     c d c d     e f g h
        c f h i     c f e b     b c c b     c d d c     a a a a     e f e f     a b c d
        d g i j     d c b a     a b b a     a b b a     a a a a     g h g h     e f g h

    ``tri``, ``block`` and ``chunk`` store an orbit's entry itself, ``avg`` the same in orthonormal
    coordinates; "avg:full" is an over-complete ``avg`` that stores a full matrix. On an odd side
    the middle row or column is its own mirror image; where K (or for ``block16`` 4) does not
    divide N, half a side and a K-th are rounded up. N = 1 is one number everywhere (for ``eigen``
    two).

    Raises ValueError for an unknown name, a side below 1 or too large for the indices, or a rank
    above it, TypeError for a side that is no int.

    >>> s = get_symmetry("tri", 3)
    >>> s.numel
    6
    >>> s.expand(torch.arange(6.0))
    tensor([[0., 1., 2.],
            [1., 3., 4.],
            [2., 4., 5.]])
    """
    return _form(name, side).make(name, side)


def numel_of(name: str, side: int) -> int:
    """``get_symmetry(name, side).numel`` without making the form, whose index map has N² entries.

    So that what a file claims can be checked before it is built. Raises as :func:`get_symmetry`,
    but for a rank above the side.
    """
    return _form(name, side).numel(side)


def _form(name: str, side: int) -> _Form:
    check_symmetry_name("name", name)
    if not isinstance(side, int) or isinstance(side, bool):
        raise TypeError(f"side should be of type int, got: {type(side).__name__}")
    if side < 1:
        raise ValueError(f"side should be at least 1, got: {side}")
    return _FORMS.get(name) or _numbered(name)


def _numbered(name: str) -> _Form:
    family, number = _NUMBER.fullmatch(name).groups()  # type: ignore[union-attr]
    make, _ = _NUMBERED[family]
    return make(int(number))


def is_symmetry_name(name: str) -> bool:
    """Whether :func:`get_symmetry` knows a form called ``name``."""
    return name in _FORMS or _NUMBER.fullmatch(name) is not None


def check_symmetry_name(argument: str, name: str, *others: str) -> None:
    """Raise ValueError unless ``name``, given as ``argument``, is a symmetry or of ``others``."""
    if name not in others and not (isinstance(name, str) and is_symmetry_name(name)):
        allowed = ", ".join([*others, *_FORMS, *numbered_symmetries()])
        raise ValueError(f"{argument} should be one of {allowed}, got: {name!r}")
