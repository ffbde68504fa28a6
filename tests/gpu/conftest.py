"""Tests of what only a GPU can tell; scripts/benchmarks/gpu/run.py runs them in parts.

With SYMRNN_GPU_TESTS=cpu in the environment, those that can do so run on the kernels for CPUs,
small ones: a rehearsal. With SYMRNN_GPU_RESULTS=FILE, each outcome becomes a line of JSON there as
it comes, with what the test recorded.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

DEVICE = torch.device(os.environ.get("SYMRNN_GPU_TESTS", "cuda"))
RESULTS = os.environ.get("SYMRNN_GPU_RESULTS")

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
            print(f"the GPU is lost: {error}", flush=True)
            os._exit(LOST)


@pytest.fixture
def strict_warnings() -> Iterator[None]:
    """A word that PyTorch's operator stands in is an error."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*PyTorch's operator.*")
        yield


class Results:
    """Writes outcomes to the file, where they are collected from all processes."""

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
        line = {
            "part": os.environ.get("SYMRNN_GPU_PART", "tests"),
            "case": report.nodeid,
            "ok": None if report.skipped else report.passed,
            "words": words[:400],
            "seconds": round(report.duration, 2),
            **dict(report.user_properties),
        }
        with Path(RESULTS or "").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    if RESULTS and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Results())
