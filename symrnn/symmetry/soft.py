"""Symmetry as a constraint on full matrices: a penalty while training, hardened at its end."""

from __future__ import annotations

import torch
from torch import Tensor


def asymmetry(w: Tensor, p: int) -> Tensor:
    """‖vec W − vec Wᵀ‖ₚ of each w (groups, N, N, ...): (groups,).

    p: 1 or 2. The transpose swaps axes 1 and 2, the two channels of a weight.
    """
    if p not in (1, 2):
        raise ValueError(f"p should be 1 or 2, got: {p!r}")
    return torch.linalg.vector_norm((w - w.transpose(1, 2)).flatten(1), p, dim=1)


def upper(w: Tensor) -> Tensor:
    """The symmetric weights with the upper triangle of w (groups, N, N, ...), diagonal included."""
    above = torch.ones(w.shape[1:3], dtype=torch.bool, device=w.device).triu()
    above = above.view(*above.shape, *[1] * (w.dim() - 3))
    return torch.where(above, w, w.transpose(1, 2))
