"""The one idea: groups acting on the positions of a matrix, and the matrices they leave alone."""

from symrnn.symmetry.drawing import draw_symmetries, draw_symmetry
from symrnn.symmetry.form import Symmetry
from symrnn.symmetry.registry import (
    check_symmetry_name,
    get_symmetry,
    is_symmetry_name,
    list_symmetries,
    numbered_symmetries,
    numel_of,
)
from symrnn.symmetry.tensor import SymmetricTensor, parameter_shape

__all__ = [
    "SymmetricTensor",
    "Symmetry",
    "check_symmetry_name",
    "draw_symmetries",
    "draw_symmetry",
    "get_symmetry",
    "is_symmetry_name",
    "list_symmetries",
    "numbered_symmetries",
    "numel_of",
    "parameter_shape",
]
