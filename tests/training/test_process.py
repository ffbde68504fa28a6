"""Seeds, threads, devices, memory, and the description of the machine."""

from __future__ import annotations

import json
import os
import platform
import random
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from symrnn.files import UserError
from symrnn.training import (
    environment,
    keep_freed_memory,
    peak_memory,
    resolve_device,
    seed_everything,
    set_threads,
)
from symrnn.training.process import free_memory


def test_a_seed_fixes_every_generator() -> None:
    drawn = []
    for seed in (3, 3, 4):
        seed_everything(seed)
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]
    assert all(a != b for a, b in zip(drawn[1], drawn[2], strict=True))
    seed_everything(0)
    seed_everything(2**32 - 1)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "1", True, None])
def test_other_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(UserError, match=r"seed: .* is not an int from 0 to 4294967295"):
        seed_everything(seed)


def test_threads() -> None:
    before = torch.get_num_threads()
    try:
        set_threads(1)
        assert torch.get_num_threads() == 1
        set_threads(None)
        assert torch.get_num_threads() == 1
    finally:
        set_threads(before)
    for bad in (0, -1, 1025, 2.0, True, "2"):
        with pytest.raises(UserError, match=r"threads: .* is not an int from 1 to 1024"):
            set_threads(bad)  # type: ignore[arg-type]


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    assert resolve_device(torch.device("cpu")) == torch.device("cpu")
    for name in ("cuda", "cuda:0"):
        with pytest.raises(UserError, match=r"no such device; allowed here are auto, cpu$"):
            resolve_device(name)
    for name in ("", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:x", "cpu:0", "mps"):
        with pytest.raises(UserError, match=f"device: '{name}': there is no device of that name"):
            resolve_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match=r"allowed here are auto, cpu, cuda, cuda:0, cuda:1$"):
        resolve_device("cuda:2")


def test_peak_memory_counts_what_was_used_and_freed() -> None:
    before = peak_memory("cpu")
    assert before > 20 << 20
    torch.ones(before // 4 + (8 << 20))  # as many bytes as were ever in use, and 32 MiB
    assert peak_memory(torch.device("cpu")) > before


def test_free_memory_is_less_than_all() -> None:
    everything = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < free_memory("cpu") <= everything


def test_environment_is_json_and_names_no_host_or_path() -> None:
    described = environment()
    text = json.dumps(described)
    assert described["torch"] == torch.__version__
    assert described["threads"] == torch.get_num_threads()
    assert described["cores"] >= 1
    assert described["cpu"]
    assert described["date"].endswith("+00:00")
    assert socket.gethostname() not in text
    assert str(Path.cwd()) not in text


def test_freed_memory_is_kept_where_the_c_library_is_glibc() -> None:
    """In a process of its own, since it lasts until the process ends."""
    child = os.fork()
    if child == 0:
        code = 2
        try:
            code = int(keep_freed_memory())
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) == (platform.libc_ver()[0] == "glibc")
