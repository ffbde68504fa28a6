"""A run that is killed, again and again, ends as if it had not been."""

from __future__ import annotations

import functools
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import killed_programs
import pytest
import torch
from resumed import changed, lines_of, untimed, wait_for_new

from symrnn.files import run_program
from symrnn.training import load_checkpoint


def finish(process: BaseProcess) -> None:
    process.join(600)
    assert process.exitcode == 0


def assert_same_run(one: Path, other: Path) -> None:
    first, second = (load_checkpoint(folder / "last.safetensors") for folder in (one, other))
    assert untimed(first.meta) == untimed(second.meta)
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert torch.equal(tensor, second.tensors[name]), name
        assert tensor.isfinite().all()
    assert lines_of(one) == lines_of(other)


@pytest.mark.parametrize("stop_after", [1, 5, 7, 29])
def test_a_run_stopped_anywhere_ends_the_same(
    tmp_path: Path, spawn: Callable[..., BaseProcess], stop_after: int
) -> None:
    finish(spawn(killed_programs.train, tmp_path / "straight", 30, 5))
    finish(spawn(killed_programs.train, tmp_path / "halted", 30, 5, stop_after))
    finish(spawn(killed_programs.train, tmp_path / "halted", 30, 5))
    assert_same_run(tmp_path / "straight", tmp_path / "halted")


def test_a_run_killed_again_and_again_ends_the_same(
    tmp_path: Path, spawn: Callable[..., BaseProcess]
) -> None:
    steps = 300
    finish(spawn(killed_programs.train, tmp_path / "straight", steps, 4))
    moments, last = random.Random(0), tmp_path / "killed" / "last.safetensors"
    kills = 0
    while kills < 6:
        before = changed(last)
        process = spawn(killed_programs.train, tmp_path / "killed", steps, 4)
        # Let it come some way, however slow the machine, then kill it at any moment.
        wait_for_new(last, before, process)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()
        kills += 1
    finish(spawn(killed_programs.train, tmp_path / "killed", steps, 4))
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


def test_interrupted_twice_leaves_at_once(
    tmp_path: Path, spawn: Callable[..., BaseProcess]
) -> None:
    # Enough steps that it would go on for minutes.
    process = spawn(run_program, functools.partial(killed_programs.train, tmp_path, 10**6, 4))
    wait_for_new(tmp_path / "last.safetensors", 0, process)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)  # so that both arrive before it ends by the first
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGCONT)
    process.join(600)
    assert process.exitcode == 130
    load_checkpoint(tmp_path / "last.safetensors")


def test_a_kill_while_saving_leaves_a_whole_checkpoint(
    tmp_path: Path, spawn: Callable[..., BaseProcess]
) -> None:
    path, moments = tmp_path / "c", random.Random(0)
    for _ in range(8):
        before = changed(path)
        process = spawn(killed_programs.save_forever, path)
        # Let it begin, however slow the machine, then kill it at any moment.
        wait_for_new(path, before, process)
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()
        checkpoint = load_checkpoint(path)
        count = checkpoint.meta["count"]
        assert all((tensor == count).all() for tensor in checkpoint.tensors.values())
