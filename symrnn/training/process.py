"""The process a program runs in: seeds, threads, device, memory, and what it runs on."""

from __future__ import annotations

import ctypes
import datetime
import importlib.metadata
import os
import platform
import random
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from symrnn.files.errors import UserError

_MAX_SEED = 2**32 - 1  # numpy takes no more
_MAX_THREADS = 1024


def seed_everything(seed: int) -> None:
    """Seeds torch (CPU and every CUDA device), numpy's and Python's global generators.

    Raises UserError unless `seed` is an int from 0 to 2**32 - 1.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= _MAX_SEED:
        raise UserError(f"seed: {seed!r} is not an int from 0 to {_MAX_SEED}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, draw: int) -> None:
    """Seeds torch's generators for a draw of one step: dropout then needs no state of its own.

    draw: which of the step's: the rank of a process that has its own, for example.

    The numbers have nothing to do with those of another seed, step or draw (all of 0 or more).
    """
    torch.manual_seed(int(np.random.SeedSequence((seed, step, draw)).generate_state(1)[0]))


def set_threads(threads: int | None) -> None:
    """Sets how many CPU threads one torch operation uses; None leaves torch's own choice.

    Raises UserError unless `threads` is None or an int from 1 to 1024.
    """
    if threads is None:
        return
    valid = isinstance(threads, int) and not isinstance(threads, bool)
    if not valid or not 1 <= threads <= _MAX_THREADS:
        raise UserError(f"threads: {threads!r} is not an int from 1 to {_MAX_THREADS}")
    torch.set_num_threads(threads)


def keep_freed_memory() -> bool:
    """Asks the C library to keep freed memory for the next step instead of returning it.

    glibc gives every block above 32 MiB back to the system as it is freed, and the next step takes
    it anew, page by page; for a model with such weights on a CPU that is a tenth of a training
    step (results/step_time.md). The process then holds its peak until it ends.

    Returns whether there was such a library to ask; elsewhere nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, musl, Windows
        return False
    trim_threshold, mmap_max = -1, -4
    return bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, 2**31 - 1))


def autocast(precision: str, device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """Makes the context for a forward pass in a precision: a half is autocast, another is none.

    precision: "bf16" and "fp16" are autocast over float32 parameters; in any other the parameters
        have that type themselves.
    """
    halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
    if precision not in halves:
        return nullcontext
    return lambda: torch.autocast(device.type, halves[precision])


def resolve_device(name: str | torch.device) -> torch.device:
    """The device of that name; "auto" is CUDA where available, else the CPU.

    Raises UserError for a name other than "auto", "cpu", "cuda" and "cuda:NUMBER", and for
    CUDA devices that this machine does not have, naming those it has.
    """
    name = str(name)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    allowed = ["auto", "cpu"] + (["cuda"] if count else [])
    allowed += [f"cuda:{index}" for index in range(count)]
    if name == "auto":
        return torch.device("cuda" if count else "cpu")
    if name in allowed:
        return torch.device(name)
    known = re.fullmatch(r"cuda(:\d+)?", name)
    reason = "this machine has no such device" if known else "there is no device of that name"
    raise UserError(f"device: {name!r}: {reason}; allowed here are {', '.join(allowed)}")


def peak_memory(device: str | torch.device) -> int:
    """The most memory in use at any time so far, in bytes.

    On a CUDA device: what torch's allocator gave to tensors, since the last
    `torch.cuda.reset_peak_memory_stats`. On the CPU: the process's resident memory, all of it,
    the interpreter and its libraries included.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # getrusage would count what the parent had in use when it started us by fork and exec.
        status = Path("/proc/self/status").read_text()
        found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_memory(device: str | torch.device) -> int:
    """How much memory can still be taken on a device, in bytes; on a CPU without swapping."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        found = re.search(
            r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE
        )
        if found:
            return int(found[1]) * 1024
    except OSError:
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # all there is, at least


def environment() -> dict[str, Any]:
    """What a result was made with, as JSON: versions, processor, devices, threads, date (UTC).

    Names neither host nor user nor paths. `symrnn` is None if it is not installed as a package;
    `cores` are those this process may run on.
    """
    try:
        version = importlib.metadata.version("symrnn")
    except importlib.metadata.PackageNotFoundError:
        version = None
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "symrnn": version,
        "cuda": torch.version.cuda if cuda else None,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if cuda
        else [],
        "system": platform.system(),
        "machine": platform.machine(),
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    found = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def usable_cores() -> int:
    """How many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
