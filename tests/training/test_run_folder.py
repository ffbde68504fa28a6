"""A run folder holds one run, of one process at a time."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import killed_programs
import pytest

from symrnn.files import UserError
from symrnn.training import RunFolder, load_checkpoint, save_checkpoint


def test_create_then_open(tmp_path: Path) -> None:
    config = {"size": "small", "lr": 1.0, "nested": {"a": [1, None]}, "name": "é"}
    path = tmp_path / "new" / "run"
    with RunFolder.create(str(path), config) as run:
        assert run.path == path
        assert run.config == config
        assert {run.last.parent, run.best.parent, run.metrics.parent} == {path}
        assert run.last.name == "last.safetensors"
        assert run.best.name == "best.safetensors"
        assert run.metrics.name == "metrics.jsonl"
        assert run.tensorboard == path / "tensorboard"
    with RunFolder.open(path) as run:
        assert run.config == config


def test_a_folder_that_holds_a_run_is_not_taken(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "a", {}).close()
    (tmp_path / "b").mkdir()
    save_checkpoint(tmp_path / "b" / "last.safetensors", {}, {})
    for name in "ab":
        before = sorted(os.listdir(tmp_path / name))
        with pytest.raises(UserError, match=rf"{name}: holds a run already.*--resume"):
            RunFolder.create(tmp_path / name, {})
        assert sorted(os.listdir(tmp_path / name)) == before


def test_a_foreign_folder_is_not_touched(tmp_path: Path) -> None:
    for name in ("d", "c", "b", "a"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"not empty and holds no run \(a, b, c, \.\.\.\)"):
        RunFolder.create(tmp_path, {})
    with pytest.raises(UserError, match=r"no run to resume: the folder holds no config\.json"):
        RunFolder.open(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c", "d"]


def test_paths_that_are_no_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match="is a file"):
            RunFolder.create(path, {})
    with pytest.raises(UserError, match="it is a file"):
        RunFolder.open(tmp_path / "file")
    with pytest.raises(UserError, match="there is no such folder"):
        RunFolder.open(tmp_path / "none")
    with pytest.raises(UserError, match="name is too long"):
        RunFolder.create(tmp_path / ("x" * 300), {})


def test_a_folder_whose_making_was_killed_is_empty(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("1\n")
    (tmp_path / ".symrnn-01234567.tmp").mkdir()
    (tmp_path / ".symrnn-01234567.tmp" / "new").write_text('{"siz')
    with RunFolder.create(tmp_path, {"a": 1}):
        assert sorted(os.listdir(tmp_path)) == [".lock", "config.json"]


def test_open_sweeps_what_a_kill_left(tmp_path: Path) -> None:
    RunFolder.create(tmp_path, {}).close()
    (tmp_path / ".symrnn-01234567.tmp").mkdir()
    (tmp_path / ".symrnn-01234567.tmp" / "new").write_text("half")
    RunFolder.open(tmp_path).close()
    assert sorted(os.listdir(tmp_path)) == [".lock", "config.json"]


@pytest.mark.parametrize("plant", ["link", "hard link", "link to nothing", "pipe"])
def test_a_lock_that_somebody_planted_is_not_followed(tmp_path: Path, plant: str) -> None:
    """Whoever may write the folder could otherwise have any file of ours emptied."""
    RunFolder.create(tmp_path / "run", {}).close()
    lock, ours = tmp_path / "run" / ".lock", tmp_path / "ours"
    lock.unlink()
    if plant != "link to nothing":
        ours.write_text("untouched")
    if plant == "hard link":
        lock.hardlink_to(ours)
    elif plant == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(ours)
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".lock").symlink_to(ours)
    for folder, take in (("run", RunFolder.open), ("new", lambda path: RunFolder.create(path, {}))):
        words = f"{folder}/.lock: is a link, or no file, and thus no lock; remove it"
        with pytest.raises(UserError, match=re.escape(words)):
            take(tmp_path / folder)
    assert os.listdir(tmp_path / "new") == [".lock"]
    if plant == "link to nothing":
        assert not ours.exists()
    else:
        assert ours.read_text() == "untouched"


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": \x00}', "[" * 100_000])
def test_a_damaged_config_is_named_and_the_lock_released(tmp_path: Path, text: str) -> None:
    RunFolder.create(tmp_path, {}).close()
    (tmp_path / "config.json").write_text(text)
    for _ in range(2):
        with pytest.raises(UserError, match=r"config\.json: is damaged"):
            RunFolder.open(tmp_path)


def test_a_config_that_is_not_json_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"config\['path'\] is pathlib"):
        RunFolder.create(tmp_path / "run", {"path": tmp_path})
    assert not (tmp_path / "run").exists()


def test_a_full_disk_is_a_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="the disk is full"):
            RunFolder.create(tmp_path / "run", {})
    RunFolder.create(tmp_path / "run", {}).close()


@contextlib.contextmanager
def limited(name: str, value: int) -> Iterator[None]:
    """As after `ulimit` in a shell."""
    resource = pytest.importorskip("resource")
    number = getattr(resource, name)
    former = resource.getrlimit(number)
    resource.setrlimit(number, (value, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(number, former)


@pytest.mark.parametrize("size", [0, 1])
def test_a_limit_on_file_sizes_is_a_users_error(tmp_path: Path, size: int) -> None:
    message = r"the run folder cannot be made: .* limit on file sizes \(ulimit -f\) allows"
    with pytest.raises(UserError, match=message), limited("RLIMIT_FSIZE", size):
        RunFolder.create(tmp_path / "run", {})
    RunFolder.create(tmp_path / "run", {}).close()


def test_too_few_descriptors_are_a_users_error(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", {}).close()
    for make in (
        lambda: RunFolder.create(tmp_path / "new", {}),
        lambda: RunFolder.open(tmp_path / "run"),
    ):
        message = r"may open no more files \(ulimit -n\)"
        # That many are open already.
        with pytest.raises(UserError, match=message), limited("RLIMIT_NOFILE", 3):
            make()
        make().close()


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, {}) as run:
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            RunFolder.open(tmp_path)
        run.close()
        RunFolder.open(tmp_path).close()  # released, and closing twice is fine


def test_a_killed_process_leaves_no_lock(tmp_path: Path, spawn: Callable[..., BaseProcess]) -> None:
    RunFolder.create(tmp_path, {}).close()
    process = spawn(killed_programs.hold, tmp_path)
    while not (tmp_path / "held").exists():
        assert process.is_alive()
        time.sleep(0.01)
    with pytest.raises(UserError, match=f"in use by process {process.pid};"):
        RunFolder.open(tmp_path)
    process.kill()
    process.join()
    child = int((tmp_path / "held").read_text())
    os.kill(child, 0)  # its forked child still lives
    RunFolder.open(tmp_path).close()
    os.kill(child, signal.SIGKILL)


def test_reading_a_checkpoint_needs_no_lock(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, {}) as run:
        save_checkpoint(run.best, {}, {"step": 1})
        assert load_checkpoint(tmp_path / "best.safetensors").meta == {"step": 1}
