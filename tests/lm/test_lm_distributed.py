"""Two and four processes train as one with the whole batch; what ends one of them ends all."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
import worlds
from resumed import assert_same_run, lines_of
from worlds import ended, failing, impatient, interrupted, program, python, with_own_buffers

import lm.train
from symrnn.training import RunFolder, load_checkpoint

Together = Callable[..., list[BaseProcess]]

TINY = "--hidden-size 8 --batch-size 4 --steps 5 --threads 1 --log-every 1"
WHOLE = f"{TINY} --epochs 2 --dropout 0.4 --save-every 2 --recipe annealed"


def arguments(corpus: Path, out: Path, options: str) -> list[str]:
    return ["--data", str(corpus), *options.split(), "--out", str(out)]


def said(tmp_path: Path, rank: int) -> str:
    return (tmp_path / f"output{rank}.txt").read_text()


# ---- the same numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        "--symm avg --size small",
        "--recipe annealed --tied --symm tri8 --lr 5",
        "--cell gru --symm block4 --symm-ih rzn --lr 0.3 --precision fp64",
        "--cell rnn --lr 0.3 --soft-symmetry 0.05 --accumulate 2",
        "--adaptive-softmax 19 --lr 0.3",  # few windows have one of the other two words
        "--recipe annealed --dropout 0.4 --symm none --accumulate 2",
        "--recipe annealed --dropout 0.4 --symm avg",
        "--recipe compact --hidden-size 8 --embedding-size 4 --reset-state 0.3 --precision fp64",
    ],
)
def test_two_processes_are_one_with_the_whole_batch(
    together: Together, corpus: Path, tmp_path: Path, options: str
) -> None:
    """In the logs and the weights, and in what is dropped; the clipping acts."""
    options = f"{TINY} {options} --epochs 2 --clip 0.1 --save-every 7"
    processes = together(program, *arguments(corpus, tmp_path / "two", options))
    assert ended(processes) == [0, 0]
    assert said(tmp_path, 1) == ""
    lm.train.main(arguments(corpus, tmp_path / "one", options))
    assert_nearly_same_run(tmp_path / "one", tmp_path / "two")


def assert_nearly_same_run(one: Path, many: Path) -> None:
    """In the logs and the weights, to 1e-5; the gradients were clipped to 0.1."""
    lines, others = lines_of(one), lines_of(many)
    assert len(lines) == len(others) > 20
    assert any(line.get("gradient_norm", 0) > 0.1 for line in lines)
    for line, other in zip(lines, others, strict=True):
        assert other == pytest.approx(line, rel=1e-5)
    first, second = (load_checkpoint(run / "last.safetensors").tensors for run in (one, many))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-5, atol=1e-5)


def test_all_start_with_the_buffers_of_the_first(
    forks: multiprocessing.context.ForkServerContext, tmp_path: Path
) -> None:
    """As with the ranks of an adaptive softmax, which --init-from reads in the first process."""
    processes = worlds.together(forks, tmp_path, with_own_buffers)
    assert ended(processes) == [0, 0]
    assert str([[1.0] * 3] * 2) in said(tmp_path, 0)


# ---- four processes ------------------------------------------------------------------------------

OF_FOUR = f"{TINY} --symm avg --epochs 1 --clip 0.1 --save-every 5"


@pytest.fixture(scope="module")
def four(
    forks: multiprocessing.context.ForkServerContext,
    tmp_path_factory: pytest.TempPathFactory,
    corpus: Path,
) -> Path:
    """The folder of a run of four processes that nothing stopped."""
    folder = tmp_path_factory.mktemp("four")
    command = ["lm.train", *arguments(corpus, folder / "run", OF_FOUR)]
    assert ended(worlds.together(forks, folder, program, *command, size=4)) == [0, 0, 0, 0]
    return folder / "run"


def test_four_processes_are_one_with_the_whole_batch(
    four: Path, corpus: Path, tmp_path: Path
) -> None:
    """One stream in each."""
    lm.train.main(arguments(corpus, tmp_path / "one", OF_FOUR))
    assert_nearly_same_run(tmp_path / "one", four)


def test_one_of_four_is_killed_and_the_run_resumed(
    four: Path, together: Together, corpus: Path, tmp_path: Path
) -> None:
    """No step is lost or done twice: the run ends equal to the one that nothing stopped."""
    run = tmp_path / "run"
    processes = together(program, *arguments(corpus, run, OF_FOUR), size=4)
    while not (run / "last.safetensors").exists():
        assert all(process.is_alive() for process in processes)
        time.sleep(0.001)
    processes[2].kill()
    assert ended(processes, 60) == [2, 2, -9, 2]
    assert "lost another one, which ended" in said(tmp_path, 0)
    assert not any("Traceback" in said(tmp_path, rank) for rank in range(4))
    assert ended(together(program, "--resume", run, size=4)) == [0, 0, 0, 0]
    assert_same_run(four, run)


# ---- checkpoints, folders, ends ------------------------------------------------------------------


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("straight") / "run"


@pytest.fixture
def whole(straight: Path, together: Together, corpus: Path) -> Path:
    """The folder of the run of two processes, with dropout, that nothing stopped."""
    if not straight.exists():
        processes = together(program, *arguments(corpus, straight, WHOLE))
        assert ended(processes) == [0, 0]
    return straight


def test_killed_and_resumed(whole: Path, together: Together, corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes = together(program, *arguments(corpus, run, WHOLE))
    while not (run / "last.safetensors").exists():
        assert all(process.is_alive() for process in processes)
        time.sleep(0.001)
    for process in processes:
        process.kill()
    assert ended(processes) == [-9, -9]
    assert ended(together(program, "--resume", run)) == [0, 0]
    assert_same_run(whole, run)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_of_one_process_ends_both_at_the_same_step(
    whole: Path, together: Together, corpus: Path, tmp_path: Path, number: int, code: int
) -> None:
    run = tmp_path / "run"
    processes = together(interrupted, *arguments(corpus, run, WHOLE), int(number))
    assert ended(processes) == [code, code]
    assert lines_of(run)[-1]["step"] == 4
    assert f"to go on:\n  python -m lm.train --resume {run}" in said(tmp_path, 0)
    assert ("test perplexity" in said(tmp_path, 0)) == (number == signal.SIGINT)
    assert "test perplexity" not in said(tmp_path, 1)
    carried = load_checkpoint(run / "last.safetensors").tensors["state/hidden/0"]
    assert carried.shape == (2, 4, 8)  # of all streams
    alone = shutil.copytree(run, tmp_path / "alone")
    assert lm.train.main(["--resume", str(alone)]) == 0  # as well, and the same
    assert_nearly_same_run(whole, alone)
    assert ended(together(program, "--resume", run)) == [0, 0]
    assert_same_run(whole, run)


@pytest.mark.parametrize(("place", "rank"), [("step", 1), ("measure", 0)])
def test_an_error_of_one_process_ends_both(
    together: Together, corpus: Path, tmp_path: Path, place: str, rank: int
) -> None:
    options = arguments(corpus, tmp_path / "run", WHOLE)
    processes = together(failing, *options, place, rank)
    assert ended(processes) == [2, 2]
    assert said(tmp_path, rank).splitlines()[-1] == "error: the disk is full"
    assert "error:" not in said(tmp_path, 1 - rank)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_other(
    together: Together, corpus: Path, tmp_path: Path, rank: int
) -> None:
    options = arguments(corpus, tmp_path / "run", WHOLE)
    codes = ended(together(failing, *options, "killed", rank))
    assert codes == ([-9, 2] if rank == 0 else [2, -9])
    assert said(tmp_path, rank).count("error:") == 0


@pytest.mark.parametrize(
    ("rank", "error"),
    [(0, "did not find the others: "), (1, "found nobody at MASTER_ADDR=127.0.0.1, MASTER_PORT=")],
)
def test_a_process_without_the_others_ends(
    forks: multiprocessing.context.ForkServerContext, tmp_path: Path, rank: int, error: str
) -> None:
    """The first waits for the others, which look for the first."""
    environment = worlds.environment_of(rank, 2, worlds.free_port())
    values = (["lm.train"], environment, str(tmp_path / "output.txt"))
    process = forks.Process(target=impatient, args=values)
    process.start()
    assert ended([process]) == [2]
    (line,) = (tmp_path / "output.txt").read_text().splitlines()
    assert line.startswith(f"error: process {rank} of 2 {error}")


def test_a_server_that_never_answers_is_not_waited_for(
    forks: multiprocessing.context.ForkServerContext, tmp_path: Path
) -> None:
    """Another program listens at MASTER_PORT: it lets everybody in, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        environment = worlds.environment_of(1, 2, port)
        values = (["lm.train"], environment, str(tmp_path / "output.txt"))
        process = forks.Process(target=impatient, args=values)
        process.start()
        assert ended([process], 60) == [2]
    (line,) = (tmp_path / "output.txt").read_text().splitlines()
    assert line == (
        "error: process 1 of 2 did not find the others: what listens at MASTER_ADDR=127.0.0.1, "
        f"MASTER_PORT={port} is none of them, and never answers"
    )


@pytest.mark.parametrize(
    ("option", "error"),
    [
        ("--batch-size 3", "--batch-size should be a multiple of the 2 processes, got: 3"),
        ("--steps 5000", "the text is too short: "),
        ("--symm-hh x", "--symm-hh should name gates of 'ifgo', each at most once"),
        ("--lr 1e38", "the "),
    ],
)
def test_only_the_first_process_speaks_of_a_mistake(
    together: Together, corpus: Path, tmp_path: Path, option: str, error: str
) -> None:
    options = arguments(corpus, tmp_path / "run", WHOLE)
    assert ended(together(program, *options, *option.split())) == [2, 2]
    assert said(tmp_path, 0).count("error: ") == 1
    assert f"error: {error}" in said(tmp_path, 0)
    assert said(tmp_path, 1) == ""
    assert (tmp_path / "run").exists() == (option == "--lr 1e38")


def test_a_folder_in_use_ends_both(together: Together, whole: Path, tmp_path: Path) -> None:
    with RunFolder.open(whole):
        assert ended(together(program, "--resume", whole)) == [2, 2]
    assert f"error: {whole}: is in use by process {os.getpid()}" in said(tmp_path, 0)
    assert said(tmp_path, 1) == ""


def process_of(rank: int, run: Path) -> int:
    """The number of the process of a rank that torchrun started with a run's folder."""
    (found,) = (
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if str(run).encode() in bytes_of(process / "cmdline")
        and f"RANK={rank}".encode() in bytes_of(process / "environ").split(b"\0")
    )
    return found


def bytes_of(file: Path) -> bytes:
    """What is in it; nothing of a process that has ended."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux's /proc")
def test_torchrun(
    whole: Path,
    corpus: Path,
    tmp_path: Path,
    repository: Path,
    forks: multiprocessing.context.ForkServerContext,
) -> None:
    """It ends what is left of the processes, one of which is killed; one alone goes on as well."""
    run, output = tmp_path / "run", tmp_path / "said.txt"
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "lm.train", *arguments(corpus, run, WHOLE)]
    environment = {"PWD": str(repository)}
    torchrun = forks.Process(target=python, args=(command, environment, str(output)))
    torchrun.start()
    while not (run / "last.safetensors").exists():
        assert torchrun.is_alive()
        time.sleep(0.001)
    os.kill(process_of(1, run), signal.SIGKILL)
    assert ended([torchrun]) == [1]
    assert output.read_text().count("test perplexity") == 0
    assert lm.train.main(["--resume", str(run)]) == 0
    assert_nearly_same_run(whole, run)
