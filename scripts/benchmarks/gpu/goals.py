"""What the kernels for a GPU are to reach beside nn.LSTM; without torch, which loads for seconds.

`nn.LSTM / fused` of a call, both in a CUDA graph and both in plain calls. "fp16" is where cuDNN has
a kernel that runs all steps in one launch, as ours do: PyTorch takes it for one layer of at most
1024 units, widths that 128 divides and batches that 8 divides. It is what there is to be measured
by.
"""

from __future__ import annotations

from typing import NamedTuple


class Setting(NamedTuple):
    """A call of an LSTM with as many inputs as units. kind: of arithmetic, "tf32" or "bf16"."""

    side: int
    batch: int
    steps: int
    kind: str
    train: bool

    @property
    def name(self) -> str:
        what = "forward and backward" if self.train else "forward"
        return f"H={self.side} B={self.batch} T={self.steps} {self.kind}, {what}"


KINDS = ("tf32", "bf16")
PERSISTENT = [
    Setting(side, 16, 200, "fp16", train) for side in (768, 1024) for train in (False, True)
]

# The least ratios.
GOALS: dict[Setting, float] = {
    Setting(side, 20, 35, kind, train): ratio
    for side, ratios in ((1500, (1.6, 1.4)), (650, (1.9, 1.5)))
    for kind in KINDS
    for train, ratio in zip((False, True), ratios, strict=True)
} | {setting: 0.8 for setting in PERSISTENT if setting.side == 768}


def share(left: float, weights: list[float]) -> float:
    """Of the time that is left, what the first part has, by its weight against those to come."""
    return left * weights[0] / sum(weights)
