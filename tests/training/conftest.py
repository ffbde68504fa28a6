"""Child processes that can be killed, started from one that has torch loaded already."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # children import killed_programs by name


@pytest.fixture(scope="session")
def spawn() -> Callable[..., BaseProcess]:
    """Starts `function(*args)` in a process of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["killed_programs"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server's own is not ours
        multiprocessing.forkserver.ensure_running()

    def start(function: Callable[..., None], *args: Any) -> BaseProcess:
        process = context.Process(target=function, args=args, daemon=True)
        process.start()
        return process

    return start
