"""The names of the symmetries, and the one function that turns a name into an object."""

from __future__ import annotations

from symrnn.symmetry.linear import FullMatrix, OrthonormalOrbits, RawOrbits, Symmetry
from symrnn.symmetry.orbits import Generator, orbit_map, transpose

# name -> (form, generators of the group)
_LINEAR: dict[str, tuple[type[Symmetry], tuple[Generator, ...]]] = {
    "tri": (RawOrbits, (transpose,)),
    "avg": (OrthonormalOrbits, (transpose,)),
    "avg:full": (FullMatrix, (transpose,)),
}


def list_symmetries() -> list[str]:
    """The names that :func:`get_symmetry` knows.

    >>> list_symmetries()
    ['tri', 'avg', 'avg:full']
    """
    return list(_LINEAR)


def get_symmetry(name: str, side: int) -> Symmetry:
    """The symmetric form called ``name`` for matrices of ``side`` × ``side``.

    name: one of :func:`list_symmetries`.
    side: N ≥ 1.

    Raises ValueError for an unknown name or a side below 1, TypeError for a side that is no int.

    >>> s = get_symmetry("tri", 3)
    >>> s.numel
    6
    >>> s.expand(torch.arange(6.0))
    tensor([[0., 1., 2.],
            [1., 3., 4.],
            [2., 4., 5.]])
    """
    check_symmetry_name("name", name)
    if not isinstance(side, int) or isinstance(side, bool):
        raise TypeError(f"side should be of type int, got: {type(side).__name__}")
    if side < 1:
        raise ValueError(f"side should be at least 1, got: {side}")
    form, generators = _LINEAR[name]
    return form(name, orbit_map(generators, side))


def check_symmetry_name(argument: str, name: str, *others: str) -> None:
    """Raise ValueError unless ``name``, given as ``argument``, is a symmetry or of ``others``."""
    allowed = [*others, *_LINEAR]
    if name not in allowed:
        raise ValueError(f"{argument} should be one of {', '.join(allowed)}, got: {name!r}")
