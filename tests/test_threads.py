"""Torch's threads: what makes models starts none, so that a process may be forked afterwards."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path

import pytest
import torch
import worlds

from symrnn.threads import one_thread

# PyTorch's operators are parallel from 32,768 numbers on, and each matrix here has more. Threads
# are counted where the system lists them; anywhere the child would wait for them forever.
MAKES_MODELS = """
import os, signal, time
from pathlib import Path
import torch
from torch import nn
from symrnn import SymGRU, SymLSTM, SymLSTMCell, list_symmetries, symmetrize, unsymmetrize

N = 300
torch.set_num_threads(2)
threads = Path("/proc/self/task")

def running():
    return set(threads.iterdir()) if threads.is_dir() else set()

def check(what, make, *arguments, **options):
    before = running()
    make(*arguments, **options)
    for _ in range(1000):  # one that has ended is listed for a moment
        if running() <= before:
            return
        time.sleep(0.01)
    raise AssertionError(f"{what} started threads")

for symm in list_symmetries():
    check(symm, SymGRU, N, N, symm=symm, symm_hh="r")
lstm, linear = nn.LSTM(N, N), nn.Sequential(nn.Linear(N, N))
ours = SymLSTM(N, N, symm="avg")
check("input weights", SymLSTM, N, N, symm="avg", symm_ih="ifgo")
check("a cell", SymLSTMCell, N, N, symm="avg")
check("reset_parameters", ours.reset_parameters, nn.init.normal_)
check("from_lstm", SymLSTM.from_lstm, lstm)
check("to_lstm", ours.to_lstm)
check("symmetrize", symmetrize, linear, "avg")
check("unsymmetrize", unsymmetrize, linear)
assert torch.get_num_threads() == 2

child = os.fork()
if child == 0:
    signal.alarm(120)
    x = torch.randn(2, 1, N)
    for symm in ("avg", "avg8", "avg:skew8", "eigen"):
        layer = SymLSTM(N, N, symm=symm)
        for module in (ours, layer, linear[0]):
            y = module(x)
            (y if isinstance(y, torch.Tensor) else y[0]).sum().backward()
            with torch.no_grad():
                module(x)
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, f"the child ended with {status}"
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_process_may_be_forked_after_making_models(
    forks: multiprocessing.context.ForkServerContext, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    arguments = (["-c", MAKES_MODELS], {"PWD": str(tmp_path)}, str(output))
    process = forks.Process(target=worlds.python, args=arguments)
    process.start()
    process.join()
    assert (process.exitcode, output.read_text()) == (0, "")


def test_one_thread_and_then_as_many_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    counts: list[int] = []
    other = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))

    @one_thread()
    def fail() -> None:
        counts.append(torch.get_num_threads())
        other.start()  # which this is not about
        other.join()
        with one_thread():
            counts.append(torch.get_num_threads())
        raise ValueError("within")

    try:
        with pytest.raises(ValueError, match="within"):
            fail()
        assert counts == [1, 3, 1]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
