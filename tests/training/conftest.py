"""Child processes that can be killed, started from one that has torch loaded already."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

import pytest


@pytest.fixture(scope="session")
def spawn(forks: multiprocessing.context.ForkServerContext) -> Callable[..., BaseProcess]:
    """Starts `function(*args)` in a process of its own."""

    def start(function: Callable[..., None], *args: Any) -> BaseProcess:
        process = forks.Process(target=function, args=args, daemon=True)
        process.start()
        return process

    return start
