"""A decoder for large vocabularies: the adaptive softmax.

Grave, Joulin, Cissé, Grangier and Jégou, "Efficient softmax approximation for GPUs" (2017, arXiv
1609.04309), as PyTorch has it: the most frequent tokens are decoded at once, the others by
clusters, through ever narrower projections.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn


class AdaptiveDecoder(nn.Module):
    """From hidden states (..., H) to log-probabilities (..., V), for ids in any order.

    hidden_size: H.  vocab_size: V.
    cutoffs: rising, from 1 to V - 1: how many of the most frequent tokens are in the head, in the
        head and the first cluster, and so on. Cluster k is decoded through H // 4ᵏ numbers, of
        which there must be one.

    ranks: the place of each id by its frequency, from 0, int64 (V,): a buffer.
    """

    def __init__(self, hidden_size: int, vocab_size: int, cutoffs: Sequence[int]) -> None:
        super().__init__()
        ends = [*cutoffs, vocab_size]
        if not cutoffs or cutoffs[0] < 1 or any(a >= b for a, b in pairwise(ends)):
            raise ValueError(
                f"the cutoffs of an adaptive softmax should rise from 1 or more to less than the "
                f"{vocab_size:,} types of the vocabulary, got: {' '.join(map(str, cutoffs))}"
            )
        if hidden_size < 4 ** len(cutoffs):
            raise ValueError(
                f"an adaptive softmax of {len(cutoffs)} cutoffs wants a hidden size of at least "
                f"{4 ** len(cutoffs)}, got: {hidden_size}"
            )
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(
            hidden_size, vocab_size, list(cutoffs), div_value=4.0, head_bias=True
        )
        self.ranks: Tensor
        self.register_buffer("ranks", torch.arange(vocab_size))

    def order_by(self, counts: NDArray[np.int64]) -> None:
        """Order the tokens by how often each occurs (V,); equally frequent ones by their ids."""
        order = torch.from_numpy(np.argsort(-counts, kind="stable"))
        self.ranks[order] = torch.arange(len(order), device=self.ranks.device)

    def forward(self, features: Tensor) -> Tensor:
        """(..., H) -> log-probabilities (..., V), whose softmax they are too."""
        with self._whole_precision(features):
            flat = features.flatten(0, -2).to(self.softmax.head.weight.dtype)
            by_rank = self.softmax.log_prob(flat)
        return by_rank[:, self.ranks].unflatten(0, features.shape[:-1])

    def losses(self, features: Tensor, targets: Tensor) -> Tensor:
        """(T, B, H), int64 (T, B) -> negative log-probabilities in nats (T·B,).

        Faster than all of :meth:`forward`: of a cluster without a target nothing is computed. Its
        gradient is zero, not missing, so that what an optimizer does with it does not depend on
        how a batch is divided among processes.
        """
        with self._whole_precision(features):
            flat = features.flatten(0, -2).to(self.softmax.head.weight.dtype)
            output, _ = self.softmax(flat, self.ranks[targets.flatten()])
        if torch.is_grad_enabled():
            tail = self.softmax.tail.parameters()
            output = output + 0.0 * sum(parameter.flatten()[0] for parameter in tail)
        return -cast(Tensor, output)

    def check(self) -> None:
        """Raise ValueError unless the ranks are a permutation, as in a file they might not be."""
        if not torch.equal(self.ranks.sort().values.cpu(), torch.arange(len(self.ranks))):
            raise ValueError("the ranks of its adaptive softmax are no order of the vocabulary")

    @staticmethod
    def _whole_precision(features: Tensor) -> torch.autocast:
        """PyTorch's adaptive softmax mixes types under autocast."""
        return torch.autocast(features.device.type, enabled=False)
