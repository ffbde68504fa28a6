"""Small corpora and runs, the programs as a shell sees them, and child processes to be killed."""

from __future__ import annotations

import functools
import multiprocessing
import random
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import matplotlib.figure
import pytest
import worlds
from run_files import run_copy  # noqa: F401 (a fixture)

import lm.evaluate
import lm.export
import lm.generate
import lm.hub
import lm.train
from data import DataError
from symrnn.files import run_program

PROGRAMS = {
    "train": lm.train.main,
    "evaluate": lm.evaluate.main,
    "export": lm.export.main,
    "generate": lm.generate.main,
    "hub": lm.hub.main,
}

TINY = "--hidden-size 8 --batch-size 4 --steps 5 --epochs 2 --threads 1"


@pytest.fixture(autouse=True)
def _no_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the eigenvalues takes longer than training these models; one test has it."""
    if "with_picture" not in request.fixturenames:
        monkeypatch.setattr("lm.train.spectrum_figure", lambda *_: matplotlib.figure.Figure((1, 1)))


@pytest.fixture
def with_picture() -> None:
    """Leaves the picture of the eigenvalues in."""


def write_corpus(folder: Path, words: list[str], lines: int = 60) -> Path:
    """A folder with train.txt, valid.txt and test.txt of random words, each of which occurs."""
    generator = random.Random(7)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", lines), ("valid", 12), ("test", 12)):
        text = [
            " ".join(generator.choices(words, k=generator.randint(1, 12))) for _ in range(count)
        ]
        text[0] = " ".join(words)
        (folder / f"{split}.txt").write_text("\n".join(text) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of texts of 20 words, without <unk>."""
    folder = tmp_path_factory.mktemp("texts") / "corpus"
    return write_corpus(folder, [f"w{number}" for number in range(19)] + ["naïve"])


@pytest.fixture
def train(corpus: Path) -> Callable[..., int]:
    """`train("--out", folder, …)` runs lm.train in this process, tiny, on `corpus`."""

    def run(*arguments: object) -> int:
        return lm.train.main(["--data", str(corpus), *TINY.split(), *map(str, arguments)])

    return run


def trained(folder: Path, corpus: Path, *options: str) -> Path:
    """`folder`, with a finished run on `corpus`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm.train.spectrum_figure", lambda *_: matplotlib.figure.Figure((1, 1)))
        command = ["--data", str(corpus), *TINY.split(), *options, "--out", str(folder)]
        assert lm.train.main(command) == 0
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The folder of a finished run; not to be written to."""
    return trained(tmp_path_factory.mktemp("runs") / "finished", corpus)


@pytest.fixture(scope="session")
def pieces_run(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The same of a model of sentencepiece's pieces."""
    folder = tmp_path_factory.mktemp("runs") / "pieces"
    return trained(folder, corpus, "--tokenizer", "sentencepiece", "--vocab-size", "28")


@pytest.fixture(scope="session")
def gru_run(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The same of a GRU of a form that folds, whose decoder and embedding share weights."""
    folder = tmp_path_factory.mktemp("runs") / "gru"
    return trained(folder, corpus, "--cell", "gru", "--symm", "block4", "--tied")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused("train", …)`: the message with which a program refuses its arguments.

    It must be one line, the last on stderr, and the exit code 2.
    """

    def run(program: str, *arguments: object) -> str:
        capsys.readouterr()
        main = functools.partial(PROGRAMS[program], [str(argument) for argument in arguments])
        with pytest.raises(SystemExit) as end:
            run_program(main, DataError)
        assert end.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if "error: " in line]
        assert errors == lines[-1:], lines
        assert not any(line.startswith("Traceback") for line in lines), lines
        return errors[0].partition("error: ")[2]

    return run


@pytest.fixture(scope="session")
def spawn(forks: multiprocessing.context.ForkServerContext) -> Callable[..., BaseProcess]:
    """`spawn("train", …)` starts a program in a process of its own, without loading torch anew."""

    def start(program: str, *arguments: object) -> BaseProcess:
        main = functools.partial(PROGRAMS[program], [str(argument) for argument in arguments])
        process = forks.Process(target=worlds.run, args=(main,), daemon=True)
        process.start()
        return process

    return start


@pytest.fixture
def together(
    forks: multiprocessing.context.ForkServerContext, tmp_path: Path
) -> Callable[..., list[BaseProcess]]:
    """`together(function, …)` starts it, of `worlds`, in two processes of lm.train, or `size`."""

    def start(
        function: Callable[..., None], *arguments: object, size: int = 2
    ) -> list[BaseProcess]:
        return worlds.together(forks, tmp_path, function, "lm.train", *arguments, size=size)

    return start
