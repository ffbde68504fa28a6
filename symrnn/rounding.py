"""Matrices rounded to int8, with scales: as packed models store them.

A full matrix is W[i,j] = s[i] · Q[i,j], a symmetric one s[i] · s[j] · Q[i,j]; |Q| ≤ 127. The native
kernels round alike (symrnn.h), for themselves.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST = 127
_TIMES = 4


def round_full(w: Tensor) -> tuple[Tensor, Tensor]:
    """w (R, C) to Q int8 (R, C) and s float32 (R, 1)."""
    scale = w.abs().amax(1, keepdim=True) / MOST
    return (w * _inverse(scale)).round().to(torch.int8), scale.float()


def restore_full(q: Tensor, scale: Tensor) -> Tensor:
    """The inverse of :func:`round_full`, float32."""
    return q * scale


def round_symmetric(w: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric w (S, N, N) to the upper triangles of Q, int8 (S, N·(N+1)/2), and s float32 (S, N).

    Each row's largest entry is to come near 127, by scales that are its column's too.
    """
    size = w.abs()
    scale = (size.amax(-1) / MOST).sqrt()
    for n in range(_TIMES + 1):
        by = _inverse(scale)
        reached = (size * by.unsqueeze(-1) * by.unsqueeze(-2)).amax(-1)
        if n == _TIMES:  # at last, none is to exceed it
            reached = reached.amax(-1, keepdim=True)
        scale = scale * (reached / MOST).sqrt()
    by = _inverse(scale)
    q = (w * by.unsqueeze(-1) * by.unsqueeze(-2)).round().to(torch.int8)
    rows, columns = torch.triu_indices(*w.shape[-2:])
    return q[:, rows, columns], scale.float()


def restore_symmetric(q: Tensor, scale: Tensor) -> Tensor:
    """The inverse of :func:`round_symmetric`: float32 (S, N, N)."""
    count, side = scale.shape
    rows, columns = torch.triu_indices(side, side)
    w = scale.new_zeros(count, side, side)
    w[:, rows, columns] = w[:, columns, rows] = q.float()
    return w * (scale.unsqueeze(-1) * scale.unsqueeze(-2))


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
