"""Tests of what only a GPU can tell; scripts/benchmarks/gpu/run.py runs them in parts.

With SYMRNN_GPU_TESTS=cpu in the environment, those that can do so run on the kernels for CPUs,
small ones: a rehearsal. With SYMRNN_GPU_RESULTS=FILE, each outcome becomes a line of JSON there as
it comes, with what the test recorded; a test that has a line there is not run again, for it may
have hung or lost the GPU.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from symrnn.native import cuda

DEVICE = torch.device(os.environ.get("SYMRNN_GPU_TESTS", "cuda"))
RESULTS = os.environ.get("SYMRNN_GPU_RESULTS")
PART = os.environ.get("SYMRNN_GPU_PART", "tests")

LOST = 3  # the status of a process whose GPU answers every call with an error


def pytest_runtest_setup(item: pytest.Item) -> None:
    if not torch.cuda.is_available() and (DEVICE.type == "cuda" or "gpu" in item.fixturenames):
        pytest.skip("needs a CUDA device")


@pytest.fixture
def device() -> torch.device:
    """The GPU, or in a rehearsal the CPU."""
    return DEVICE


@pytest.fixture
def gpu() -> torch.device:
    """The GPU, of tests that know no other device."""
    return torch.device("cuda")


@pytest.fixture(autouse=True)
def _seeded_and_usable() -> Iterator[None]:
    """End the process at once where the GPU is lost: whoever watches goes on in another."""
    torch.manual_seed(0)
    yield
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
            torch.ones(1, device="cuda").item()
        except RuntimeError as error:
            library = cuda.library()
            why = "" if library is None else library.symrnn_cuda_error().decode()
            print(f"the GPU is lost: {error}; {why}", flush=True)
            os._exit(LOST)


@pytest.fixture
def strict_warnings() -> Iterator[None]:
    """A word that PyTorch's operator stands in is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*PyTorch's operator.*")
        yield


class Results:
    """Writes outcomes to the file, where they are collected from all processes."""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write(case=nodeid, ok=None, words="begun")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        words = ""
        if report.skipped:
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            words = f"skipped: {why.removeprefix('Skipped: ')}"
        elif report.failed:
            words = (report.longreprtext.strip().splitlines() or [""])[-1]
            for line in report.longreprtext.splitlines():
                if line.startswith("E  "):
                    words = line[1:].strip()
                    break
        self._write(
            case=report.nodeid,
            ok=None if report.skipped else report.passed,
            words=words[:400],
            seconds=round(report.duration, 2),
            **dict(report.user_properties),
        )

    def _write(self, **found: Any) -> None:
        line = {"part": PART, **found}
        with Path(RESULTS or "").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this part has begun before."""
    if not RESULTS or not Path(RESULTS).exists():
        return
    lines = map(json.loads, Path(RESULTS).read_text(encoding="utf-8").splitlines())
    begun = {one["case"] for one in lines if one["part"] == PART}
    left_out = [item for item in items if item.nodeid in begun]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.nodeid not in begun]


def pytest_configure(config: pytest.Config) -> None:
    if RESULTS and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Results())
