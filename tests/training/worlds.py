"""Processes side by side, with around them what torchrun puts there."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch


def together(
    context: ForkServerContext, folder: Path, function: Callable[..., None], *arguments: object
) -> list[BaseProcess]:
    """Start `function` in two processes.

    It gets the arguments as strings, the environment and a file for stdout and stderr, for which
    see `begin`: `output0.txt`, `output1.txt` in the folder.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        values = ([str(a) for a in arguments], environment, str(folder / f"output{rank}.txt"))
        process = context.Process(target=function, args=values, daemon=True)
        process.start()
        processes.append(process)
    return processes


def begin(environment: dict[str, str], output: str) -> None:
    """Be a process that was started with that environment, stdout and stderr in a file."""
    os.environ.update(environment)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    torch.set_num_threads(1)


def ended(processes: list[BaseProcess], seconds: float = 60) -> list[int | None]:
    """Their exit codes, at the end of all."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(end - time.monotonic(), 0))
    return [process.exitcode for process in processes]
