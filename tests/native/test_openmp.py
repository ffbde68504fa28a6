"""Torch's threads are ended and come back; a child made by fork does not wait for them."""

from __future__ import annotations

import multiprocessing
import sys

import pytest
import torch

from symrnn.native import openmp

MANY = 1 << 30


def sums() -> torch.Tensor:
    """By an operator that runs on all threads."""
    return torch.ones(1 << 20).mul(2).view(8, -1).sum(1)


def in_child() -> None:
    openmp.release_threads(MANY)
    sys.exit(0 if openmp._forked else 1)


def test_operators_work_as_before() -> None:
    for _ in range(3):
        assert torch.equal(sums(), torch.full((8,), 2.0**18))
        openmp.release_threads(MANY)
        openmp.release_threads(MANY)  # there are none


@pytest.mark.skipif(sys.platform != "linux", reason="fork is for Linux")
def test_a_child_does_not_wait_for_threads_that_it_has_not() -> None:
    sums()
    child = multiprocessing.get_context("fork").Process(target=in_child)
    child.start()
    child.join(30)
    assert child.exitcode == 0
