"""The lines that tell how far an epoch is, where no terminal shows a bar."""

from __future__ import annotations

import sys

import pytest

from symrnn.training import progress
from symrnn.training.progress import progress_bar


class Clock:
    """A clock that stands still but where it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


def test_the_first_line_comes_after_ten_seconds_and_then_one_a_minute(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar(total=100_000, initial=20_000, desc="epoch 2/13", unit="tok") as bar:
        for second in range(1, 80):
            clock.now = 100.0 + second
            bar.update(1_000)
            bar.set_postfix_str(f"perplexity {second}.5")
        assert capsys.readouterr() == (
            "",
            "epoch 2/13   30%  perplexity 9.5  1,000 tok/s, 70 s left of 100 s\n"
            "epoch 2/13   90%  perplexity 69.5  1,000 tok/s, 10 s left of 100 s\n",
        )
        clock.now += 100
        bar.update(1_000)  # the last one: the line at the end of the epoch follows
    bar.close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("rate", "words"),
    [(99, "95 s left of 105 s"), (10, "17 min left of 17 min"), (1, "2.6 h left of 2.9 h")],
)
def test_how_long_is_said_in_a_unit_that_fits(
    clock: Clock, capsys: pytest.CaptureFixture[str], rate: int, words: str
) -> None:
    with progress_bar(total=10_400, initial=0, desc="epoch 1/1", unit="img") as bar:
        clock.now += 10 if rate > 1 else 990
        bar.update(rate * 10 if rate > 1 else 990)
    assert capsys.readouterr().err.rstrip().endswith(words)


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    tqdm = pytest.importorskip("tqdm", reason="tqdm is not installed")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar(10, 0, "epoch 1/1", "tok") as bar:
        assert isinstance(bar, tqdm.tqdm)


def test_a_terminal_without_tqdm_has_lines(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with progress_bar(10, 0, "epoch 1/1", "tok") as bar:
        clock.now += 20
        bar.update(2)
    assert capsys.readouterr().err == "epoch 1/1   20%  0 tok/s, 80 s left of 100 s\n"
