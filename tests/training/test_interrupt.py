"""The first signal asks, the second ends, and the former handlers come back."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from symrnn.files.errors import Terminated
from symrnn.training import Interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_asks_second_ends(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    def former(*_: object) -> None:
        raise AssertionError

    old = signal.signal(number, former)
    try:
        with Interrupt("saving, then leaving") as interrupt:
            assert not interrupt.requested
            os.kill(os.getpid(), number)
            assert interrupt.requested
            line = capfd.readouterr().err
            assert line.strip() == (
                f"{signal.Signals(number).name}: saving, then leaving; once more to leave at once"
            )
            with pytest.raises(Terminated if number == signal.SIGTERM else KeyboardInterrupt):
                os.kill(os.getpid(), number)
            assert signal.getsignal(number) is former  # a third meets what was there before
        assert signal.getsignal(number) is former
    finally:
        signal.signal(number, old)


@pytest.mark.parametrize(
    ("number", "plan"), [(signal.SIGINT, "saving; the rest as well"), (signal.SIGTERM, "saving")]
)
def test_what_only_ctrl_c_leads_to(
    number: int, plan: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with Interrupt("saving", "the rest as well") as interrupt:
        os.kill(os.getpid(), number)
        assert interrupt.number == number
    assert f": {plan}; once more to leave at once" in capfd.readouterr().err


def test_handlers_come_back_after_an_error_and_it_can_be_used_again() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    interrupt = Interrupt()

    def fail() -> None:
        with interrupt:
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert interrupt.requested
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    with interrupt:
        assert not interrupt.requested


def test_a_dead_stderr_does_not_end_the_run() -> None:
    kept = os.dup(2)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        os.dup2(writer, 2)
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupt.requested
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(writer)


def test_other_threads_change_nothing() -> None:
    seen: list[object] = []

    def work() -> None:
        before = signal.getsignal(signal.SIGINT)
        with Interrupt() as interrupt:
            seen.append(signal.getsignal(signal.SIGINT) is before)
            seen.append(interrupt.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True, False]


@pytest.mark.parametrize(("number", "ended"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_forked_workers_outlive_ctrl_c_but_not_sigterm(number: int, ended: bool) -> None:
    with Interrupt() as interrupt:
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), number)
            finally:
                os._exit(7)
        status = os.waitpid(child, 0)[1]
        assert not interrupt.requested
    assert os.WIFSIGNALED(status) == ended
    assert os.WTERMSIG(status) == number if ended else os.WEXITSTATUS(status) == 7
