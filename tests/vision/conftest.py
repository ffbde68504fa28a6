"""Small sets of pictures and runs, the program as a shell sees it, and child processes.

Pillow and matplotlib are imported where they are used: tests on a GPU may have to do without.
"""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import worlds
from run_files import run_copy  # noqa: F401 (a fixture)

import symrnn.vision.train
from symrnn.files import run_program

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROGRAM = "symrnn.vision.train"

TINY = (
    "--image-size 8 --workers 0 --model wrn-10-1-bottleneck --recipe cifar --batch-size 8 "
    "--lr 0.05 --epochs 2 --threads 1"
)

DRAWING = "symrnn.vision.train.draw_filters"


@pytest.fixture
def no_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing a filter takes longer than training these models; one test has it."""
    if "with_picture" not in request.fixturenames:
        monkeypatch.setattr(DRAWING, empty_figure)


@pytest.fixture
def with_picture() -> None:
    """Leaves the picture of the filter in."""


def empty_figure(_: object) -> Figure:
    from matplotlib.figure import Figure

    return Figure((1, 1))


def write_pictures(folder: Path, classes: int = 4, train: int = 7, val: int = 3) -> Path:
    """A folder with train/ and val/ of class folders, of noise, brighter from class to class.

    train, val: pictures of each class, 8×8 pixels.
    """
    from PIL import Image

    random = np.random.default_rng(7)
    for part, count in (("train", train), ("val", val)):
        for label in range(classes):
            place = folder / part / f"class{label}"
            place.mkdir(parents=True)
            for number in range(count):
                low = 200 * label // classes
                pixels = random.integers(low, low + 55, size=(8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 28 pictures to train on and 12 to validate on, of 4 classes."""
    return write_pictures(tmp_path_factory.mktemp("pictures") / "set")


@pytest.fixture
def train(pictures: Path) -> Callable[..., int]:
    """`train("--out", folder, …)` runs the program in this process, tiny, on `pictures`."""

    def run(*arguments: object) -> int:
        return symrnn.vision.train.main(
            ["--data", str(pictures), *TINY.split(), *map(str, arguments)]
        )

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The folder of a finished run; not to be written to."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DRAWING, empty_figure)
        arguments = ["--data", str(pictures), *TINY.split(), "--out", str(folder)]
        assert symrnn.vision.train.main(arguments) == 0
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused("--symm", "skew")`: the message with which the program refuses its arguments.

    It must be one line, the last on stderr, and the exit code 2.
    """

    def run(*arguments: object) -> str:
        capsys.readouterr()
        main = functools.partial(symrnn.vision.train.main, [str(a) for a in arguments])
        with pytest.raises(SystemExit) as end:
            run_program(main)
        assert end.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if "error: " in line]
        assert errors == lines[-1:], lines
        assert not any(line.startswith("Traceback") for line in lines), lines
        return errors[0].partition("error: ")[2]

    return run


@pytest.fixture
def spawn(
    forks: multiprocessing.context.ForkServerContext, tmp_path: Path
) -> Callable[..., BaseProcess]:
    """`spawn("--out", folder, …)` starts the program in a process of its own, unheard."""

    def start(*arguments: object) -> BaseProcess:
        values = [PROGRAM, *(str(a) for a in arguments)], {}, str(tmp_path / "spawned.txt")
        process = forks.Process(target=worlds.program, args=values, daemon=True)
        process.start()
        return process

    return start


@pytest.fixture
def together(
    forks: multiprocessing.context.ForkServerContext, tmp_path: Path
) -> Callable[..., list[BaseProcess]]:
    """`together(function, …)` starts it, of `worlds`, in two processes of the program."""

    def start(function: Callable[..., None], *arguments: object) -> list[BaseProcess]:
        return worlds.together(forks, tmp_path, function, PROGRAM, *arguments)

    return start
