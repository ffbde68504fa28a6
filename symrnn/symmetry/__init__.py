"""The one idea: groups acting on the positions of a matrix, and the matrices they leave alone."""

from symrnn.symmetry.form import Symmetry
from symrnn.symmetry.registry import check_symmetry_name, get_symmetry, list_symmetries

__all__ = ["Symmetry", "check_symmetry_name", "get_symmetry", "list_symmetries"]
