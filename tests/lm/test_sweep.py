"""A sweep trains each combination once, goes on after whatever stopped it, and makes its table."""

from __future__ import annotations

import argparse
import contextlib
import copy
import errno
import functools
import json
import math
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import swept
import torch
import worlds
from resumed import assert_same_run, lines_of

import lm.sweep
import lm.train
from data import DataError
from lm.options import make_parser, resolve
from lm.sweep_plan import PlannedRun, Resolver, Sweep, axes_of, seed_list, stem_of
from lm.sweep_processes import Process, how_it_ended, last_lines
from lm.sweep_results import made_with, markdown, merged, spread, summed_up, unknown_words
from symrnn import SymLSTM, count_parameters
from symrnn.files import UserError, run_program
from symrnn.training import RunFolder
from symrnn.training.command_line import MACHINE, given
from symrnn.training.run_folder import lock_folder

ROOT = Path(__file__).parents[2]

TINY = (
    "--hidden-size 8 --batch-size 4 --steps 5 --epochs 3 --threads 1 --dropout 0.5 --save-every 3"
)


@pytest.fixture(scope="module")
def common(corpus: Path) -> list[str]:
    """The arguments of lm.train that all runs of these tests have."""
    return ["--data", str(corpus), *TINY.split()]


Start = Callable[..., BaseProcess]


@pytest.fixture(scope="module")
def start(forks: multiprocessing.context.ForkServerContext, common: list[str]) -> Start:
    """`start(folder, "--seeds", …)` starts a sweep of two runs at a time in a process of its own.

    Its output goes to the file beside the folder.
    """

    def begin(folder: Path, *words: str, more: str = "") -> BaseProcess:
        arguments = ["--out", str(folder), "--jobs", "2", *words, "--", *common, *more.split()]
        output = str(folder.with_suffix(".out"))
        process = forks.Process(target=swept.sweep, args=(arguments, output))
        process.start()
        return process

    return begin


def ended(process: BaseProcess) -> int | None:
    process.join(600)
    return process.exitcode


def output_of(folder: Path) -> str:
    file = folder.with_suffix(".out")
    return file.read_text() if file.exists() else ""


FOUR = ("--seeds", "1,2", "--symm", "none", "avg:full")
NAMES = ["none-seed1", "avg-full-seed1", "none-seed2", "avg-full-seed2"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, start: Start) -> Path:
    """The folder of a sweep of four runs that nothing stopped; not to be written to."""
    folder = tmp_path_factory.mktemp("straight") / "sweep"
    assert ended(start(folder, *FOUR)) == 0, output_of(folder)
    return folder


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one sentence with which the program refuses its arguments."""
    capsys.readouterr()
    main = functools.partial(lm.sweep.main, [str(word) for word in words])
    with pytest.raises(SystemExit) as end:
        run_program(main, DataError)
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert not printed.out
    (line,) = [line for line in printed.err.splitlines() if "error: " in line]
    return line.partition("error: ")[2]


# ---- what is run ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("1-5", [1, 2, 3, 4, 5]),
        ("1,3,7", [1, 3, 7]),
        ("1-3,7", [1, 2, 3, 7]),
        ("7, 2-3,3-4", [7, 2, 3, 4]),
        ("0", [0]),
        ("4294967295", [2**32 - 1]),
    ],
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert seed_list(text) == seeds


@pytest.mark.parametrize(
    "text", ["", "a", "3-1", "1-", "-1", "1,,2", "4294967296", "1-99999", "1.5"]
)
def test_what_are_no_seeds(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=r"as in 1-3,7; got: "):
        seed_list(text)


@pytest.mark.parametrize(
    ("options", "stem"),
    [
        ({"symm": "avg"}, "avg"),
        ({"symm": "chunk4:rows", "symm_ih": "ifgo"}, "chunk4-rows-symm-ih=ifgo"),
        ({"symm": "avg", "symm_ih": "", "num_layers": "3"}, "avg-symm-ih=none-layers=3"),
        ({"symm": "tri", "data": "/some/where/my texts", "lr": "0.5"}, "tri-data=my-texts-lr=0.5"),
    ],
)
def test_names_of_folders(options: dict[str, str], stem: str) -> None:
    assert stem_of(options) == stem


def planned(
    sweep: Sweep,
    arguments: list[str],
    *vary: str,
    seeds: str = "1-2",
    forms: str = "none avg",
) -> tuple[list[PlannedRun], list[str]]:
    """The runs that are added to a sweep, or are there, and what is said of them."""
    axes = axes_of([shlex.split(words) for words in vary], arguments)
    return sweep.plan(Resolver(arguments, here=True), seed_list(seeds), forms.split(), axes)


def names_of(runs: list[PlannedRun]) -> list[str]:
    return [run.name for run in runs]


def test_each_combination_is_resolved_as_lm_train_does(common: list[str]) -> None:
    arguments = [*common, "--cell", "gru"]
    runs, notes = planned(Sweep(Path("s")), arguments, "lr 1 0.5", seeds="3,1", forms="avg block4")
    groups = ["avg-lr=1", "avg-lr=0.5", "block4-lr=1", "block4-lr=0.5"]
    assert names_of(runs) == [f"{group}-seed{seed}" for seed in (3, 1) for group in groups]
    assert not notes
    parser = make_parser()
    for run in runs:
        config = resolve(given(parser.parse_args([*arguments, *run.arguments])))
        told = {name for name in config if name not in MACHINE}
        assert {name: run.config[name] for name in told} == {name: config[name] for name in told}
    assert [run.config["lr"] for run in runs[:2]] == [1.0, 0.5]
    assert [run.config["seed"] for run in runs] == [3] * 4 + [1] * 4


def test_steps_and_parameters_are_those_of_the_run(common: list[str], straight: Path) -> None:
    runs, _ = planned(Sweep(Path("s")), common, seeds="1", forms="none avg:full")
    soft, _ = planned(
        Sweep(Path("s")), [*common, "--soft-symmetry", "0.1"], seeds="1", forms="none"
    )
    around = 21 * 8 + 8 * 21 + 21  # embedding and decoder of 20 words and <eos>
    plain, shared = (count_parameters(SymLSTM(8, 8, 2, symm=symm)) for symm in ("none", "avg"))
    for run, deployed in zip([*runs, *soft], (plain, shared, shared), strict=True):
        assert run.parameters == {
            "training": plain.training + around,
            "deployed": deployed.deployed + around,
            "recurrent": deployed.recurrent,
        }
    assert lines_of(straight / "none-seed1")[-1]["step"] == runs[0].steps


def test_combinations_of_one_configuration_are_one_run(common: list[str]) -> None:
    vary = 'symm-ih "" ifgo', "lr 0.5 0.50"
    runs, notes = planned(Sweep(Path("s")), common, *vary, seeds="1")
    assert names_of(runs) == ["none-seed1", "avg-symm-ih=none-seed1", "avg-symm-ih=ifgo-seed1"]
    assert [run.label for run in runs] == ["none", "avg, symm-ih none", "avg, symm-ih ifgo"]
    assert notes[0] == (
        "none is run once for: none, symm-ih none, lr 0.5; none, symm-ih none, lr 0.50; "
        "none, symm-ih ifgo, lr 0.5; none, symm-ih ifgo, lr 0.50"
    )
    assert len(notes) == 3


def test_a_sweep_is_extended(tmp_path: Path, common: list[str]) -> None:
    sweep = Sweep(tmp_path)
    first, _ = planned(sweep, common, seeds="1")
    sweep.write()
    sweep = Sweep.read(tmp_path)
    assert sweep.runs == first
    more, _ = planned(sweep, common, "lr 1.0 0.5", seeds="1-2", forms="avg tri")
    assert names_of(more[:4]) == ["avg-seed1", "avg-lr=0.5-seed1", "tri-lr=1.0-seed1", more[3].name]
    assert names_of(more[4:6]) == ["avg-seed2", "avg-lr=0.5-seed2"]
    assert names_of(sweep.runs) == names_of([*first, *more[1:]])


def test_two_folders_have_two_names(tmp_path: Path, common: list[str], corpus: Path) -> None:
    """Also where they would differ in letters' case alone, or in what a name cannot have."""
    texts = []
    for name in ("a/Texts", "b/texts", "c/texts"):
        texts.append(shutil.copytree(corpus, tmp_path / name))
        (texts[-1] / "train.txt").write_text(f"{name} naïve\n" + (corpus / "train.txt").read_text())
        (texts[-1] / "valid.txt").write_text("naïve naïve\n")
        (texts[-1] / "test.txt").write_text("naïve naïve\n")
    vary = "data " + " ".join(map(str, texts))
    runs, _ = planned(Sweep(tmp_path), common[2:], vary, seeds="1", forms="none")
    assert names_of(runs) == [f"none-data={name}-seed1" for name in ("Texts", "texts-2", "texts-3")]


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-- --epochs 0", "argument --epochs: should be an integer of at least 1, got: '0'"),
        ("--symm avg none -- --soft-symmetry 1", "--soft-symmetry wants --symm none, "),
        ("--symm evg", "argument --symm: it should be "),
        ("--vary symm-ih x", "--symm-ih should name gates of 'ifgo'"),
        ("--vary symm-ih ifgo -- --embedding-size 9", "symm_ih"),
        ("--vary lr 1 no", "argument --lr: should be a number above 0"),
        ("--vary lr", "--vary --lr: wants values"),
        ("--vary rl 1", "unrecognized arguments: --rl=1"),
        ("--vary tied 1", "argument --tied/--no-tied: ignored explicit argument '1'"),
        ("--vary threads 1 2", "--vary --threads: says where a run happens"),
        ("--vary seed 1 2", "--vary --seed: is not for --vary; a sweep has --seeds"),
        ("--vary out a b", "--vary --out: is not for --vary"),
        ("--vary lr 1 --vary lr 2", "--vary --lr: stands twice"),
        ("--vary lr 1 2 -- --lr 1", "--vary --lr: stands after the -- too"),
        ("-- --seed 3", "--seed is not for the single runs: before the --, a sweep has --seeds"),
        ("-- --symm avg", "--symm is not for the single runs"),
        ("-- --out x", "--out is not for the single runs"),
        ("-- --resume", "--resume is not for the single runs: before the --, a sweep has the same"),
        ("-- --dry-run", "--dry-run is not for the single runs"),
        ("--epochs 3", "unrecognized arguments: --epochs 3; those of lm.train stand after a --"),
        ("-- --data nowhere", "nowhere"),
        ("--vary optimizer sgd adam -- --beta1 1", "--optimizer adam: Invalid beta"),
        ("-- --device tpu", "device: 'tpu': there is no device of that name"),
        ("-- --backend fused --precision fp64 --device cuda:7", "device: 'cuda:7'"),
        ("--table", "holds no sweep (there is no sweep.json)"),
    ],
)
def test_refused_before_anything_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, message: str
) -> None:
    assert message in refused(capsys, "--out", tmp_path / "sweep", *shlex.split(words))
    assert not [*tmp_path.glob("sweep/*.json")]


def test_a_sweep_of_other_runs_is_refused(
    straight: Path, tmp_path: Path, common: list[str], corpus: Path, capsys: Any
) -> None:
    folder = shutil.copytree(straight, tmp_path / "sweep")
    before = (folder / "sweep.json").read_bytes()
    other = shutil.copytree(corpus, tmp_path / "other")
    (other / "train.txt").write_text((corpus / "train.txt").read_text() * 2)
    for more, message in (
        ("--epochs 4", "--epochs is 3, not 4: give the same arguments after the --"),
        (f"--data {other}", "the corpus is another: give"),
        ("--cell gru --lr 2", "--cell is lstm, not gru, --symm-hh is ifgo, not rzn, --lr is 1.0"),
    ):
        for mode in ("--print", "--dry-run"):
            words = ["--out", folder, "--seeds", "7", mode, "--", *common, *more.split()]
            assert message in refused(capsys, *words)
    assert (folder / "sweep.json").read_bytes() == before
    # What only says where runs happen may change.
    words = ["--out", folder, "--seeds", "7", "--dry-run", "--", *common, "--log-every", "9"]
    assert lm.sweep.main([str(word) for word in words]) == 0
    assert "4, of which 0 are finished" not in capsys.readouterr().out


def test_an_option_that_varied_varies_on(tmp_path: Path, common: list[str], capsys: Any) -> None:
    sweep = Sweep(tmp_path)
    planned(sweep, common, "lr 1 0.5", seeds="1", forms="none")
    sweep.write()
    words = ["--out", tmp_path, "--symm", "none", "--print", "--", *common, "--lr", "0.1"]
    assert "in which --lr varies: give it by --vary" in refused(capsys, *words)


def test_a_folder_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("")
    for mode in ("--print", "--dry-run"):
        assert "holds no sweep (thesis.tex)" in refused(capsys, "--out", tmp_path, mode)
        assert "it is a file" in refused(capsys, "--out", tmp_path / "thesis.tex", mode)


def test_a_sweep_in_use(straight: Path, common: list[str], capsys: Any) -> None:
    lock = lock_folder(straight)
    try:
        message = refused(capsys, "--out", straight, *FOUR, "--", *common)
    finally:
        os.close(lock or -1)
    assert f"is in use by process {os.getpid()}" in message


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1, "runs": [{}]}', '{"version": 2}'])
def test_a_damaged_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (tmp_path / "sweep.json").write_text(text)
    assert "sweep.json: is " in refused(capsys, "--table", "--out", tmp_path)


# ---- runs ----------------------------------------------------------------------------------------


def table_of(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((folder / "table.json").read_text())
    return table


def test_runs_are_those_of_lm_train(straight: Path, tmp_path: Path, common: list[str]) -> None:
    sweep = Sweep.read(straight)
    assert names_of(sweep.runs) == NAMES
    words = ["--symm", "avg:full", "--seed", "2", "--out", str(tmp_path / "run")]
    assert lm.train.main([*common, *words]) == 0
    assert_same_run(tmp_path / "run", straight / "avg-full-seed2")


def test_as_a_shell_runs_it(
    straight: Path, tmp_path: Path, common: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """The run in a process of its own, as ever; the table on stdout, all else on stderr."""
    folder = tmp_path / "sweep"
    words = ["--seeds", "1", "--symm", "none", "--out", str(folder)]
    assert lm.sweep.main([*words, "--", *common]) == 0
    printed = capfd.readouterr()
    assert printed.out == (folder / "table.md").read_text()
    assert "none-seed1: finished, valid " in printed.err
    assert_same_run(straight / "none-seed1", folder / "none-seed1")
    log = (folder / "logs" / "none-seed1.txt").read_text()
    assert log.startswith(f"$ {sys.executable} -m lm.train --data ")
    assert f"the run is kept in {folder / 'none-seed1'}\ncorpus " in log
    assert "\nepoch  1/3 " in log


def test_the_table_has_mean_and_deviation_over_seeds(straight: Path) -> None:
    table = table_of(straight)
    of = {name: lines_of(straight / name) for name in NAMES}
    valid = {n: min(x["valid/perplexity"] for x in of[n] if "valid/perplexity" in x) for n in NAMES}
    test = {name: of[name][-1]["test/perplexity"] for name in NAMES}
    for run in table["runs"]:
        assert (run["valid"], run["test"]) == (valid[run["name"]], test[run["name"]])
        assert run["state"] == "finished"
        assert run["epochs"] == 3
    for group, form in zip(table["groups"], ("none", "avg-full"), strict=True):
        one, other = test[f"{form}-seed1"], test[f"{form}-seed2"]
        assert group["test"]["mean"] == pytest.approx((one + other) / 2, rel=1e-14)
        assert group["test"]["std"] == pytest.approx(abs(one - other) / math.sqrt(2), rel=1e-14)
        assert group["test"]["n"] == 2
        values = [valid[f"{form}-seed{seed}"] for seed in (1, 2)]
        assert group["valid"]["std"] == statistics.stdev(values)
    text = (straight / "table.md").read_text()
    mean, std = (table["groups"][1]["test"][name] for name in ("mean", "std"))
    assert f"| {mean:.2f} ± {std:.2f} | 2 | " in text
    shares = {name: of[name][-1]["test/unknown_share"] for name in NAMES}
    assert {run["name"]: run["test_unknown"] for run in table["runs"]} == shares
    assert " Unknown words: valid 0.00%, test 0.00% of the tokens." in text
    assert output_of(straight).endswith(text)
    assert "4 of 4 finished" in output_of(straight)


def test_the_table_becomes_a_report(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script, out = ROOT / "scripts" / "tables" / "sweep.py", tmp_path / "results" / "seeds.md"
    words = [str(script), str(straight), "--out", str(out), "--title", "Two seeds"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(script), run_name="__main__")
    text = out.read_text()
    assert text.startswith(f"# Two seeds\n\n- command: `python {script} ")
    assert "- command: `python -m lm.sweep --out sweep --jobs 2 --seeds 1,2 --symm " in text
    rows = [line for line in (straight / "table.md").read_text().splitlines() if "|" in line]
    assert [line for line in text.splitlines() if "|" in line] == rows
    stored = json.loads(out.with_suffix(".json").read_text())
    assert stored["runs"] == table_of(straight)["runs"]
    assert str(straight.parent) not in json.dumps(stored)  # where it lay means nothing elsewhere

    monkeypatch.setattr(sys, "argv", [str(script), str(out.with_suffix(".json")), *words[1:]])
    runpy.run_path(str(script), run_name="__main__")  # of both, which have the same runs
    assert [line for line in out.read_text().splitlines() if "|" in line] == rows


def shared_out(table: dict[str, Any], seeds: list[int]) -> dict[str, Any]:
    """What a machine has that was given these seeds alone."""
    part = copy.deepcopy(table)
    part["runs"] = [run for run in part["runs"] if run["seed"] in seeds]
    part["commands"] = [f"python -m lm.sweep --seeds {seeds}"]
    here = {run["name"]: run for run in part["runs"]}
    for group in part["groups"]:
        names = [name for name in group["runs"] if name in here]
        group.update(summed_up({**group, "runs": [here[name] for name in names]}))
    return part


def test_parts_of_a_sweep_are_merged(straight: Path) -> None:
    whole = table_of(straight)
    first, second = shared_out(whole, [1]), shared_out(whole, [2])
    assert [group["test"]["n"] for group in first["groups"]] == [1, 1]
    table = merged([first, second])
    assert table["groups"] == whole["groups"]
    assert sorted(run["name"] for run in table["runs"]) == sorted(NAMES)
    made = made_with(table).split("\n\n")
    assert [one.splitlines()[0] for one in made] == [
        "Part 1:",
        "- command: `python -m lm.sweep --seeds [1]`",
        "Part 2:",
        "- command: `python -m lm.sweep --seeds [2]`",
    ]
    assert merged([table, second]) == table  # a part that has gone on


def test_parts_of_other_forms_are_merged(straight: Path) -> None:
    whole = table_of(straight)
    parts = []
    for group in whole["groups"]:
        part = copy.deepcopy(whole)
        part["groups"] = [group]
        part["runs"] = [run for run in part["runs"] if run["name"] in group["runs"]]
        part["config"] |= group["options"]  # common to what is in this part
        parts.append(part)
    table = merged(parts)
    for name in ("groups", "config"):
        assert table[name] == whole[name]


def test_of_a_run_in_several_parts_the_furthest_counts(straight: Path) -> None:
    whole = table_of(straight)
    begun = copy.deepcopy(whole)
    begun["runs"][0].update(finished=False, epochs=1, test=None, state="epoch 1 of 3")
    for tables in ([begun, whole], [whole, begun]):
        assert merged(tables)["runs"][0] == whole["runs"][0]


def test_parts_of_different_sweeps_are_refused(straight: Path) -> None:
    whole = table_of(straight)
    other = copy.deepcopy(whole)
    other["config"]["lr"] = 7.0
    with pytest.raises(UserError, match=r"different sweeps: lr is \S+ in one, 7\.0 in another"):
        merged([whole, other])
    other = copy.deepcopy(whole)
    other["groups"][0]["epochs"] = 9
    with pytest.raises(UserError, match=r"different sweeps: \S+ has epochs 3 in one, 9 in another"):
        merged([whole, other])


def test_what_is_unknown_may_differ_between_runs() -> None:
    runs = [{"test_unknown": share} for share in (0.0476, None, 0.01, 0.04761)]
    assert unknown_words(runs, "test") == "test 1.00% to 4.76%"
    assert unknown_words(runs[:1], "test") == "test 4.76%"
    assert unknown_words(runs[1:2], "test") == ""


def test_mean_and_deviation() -> None:
    assert spread([]) == {"mean": None, "std": None, "n": 0}
    assert spread([3.0]) == {"mean": 3.0, "std": None, "n": 1}
    assert spread([2.0, 4.0, 9.0]) == {"mean": 5.0, "std": math.sqrt(13), "n": 3}
    assert spread([2.0, math.inf]) == {"mean": math.inf, "std": None, "n": 2}


def test_characters_are_compared_by_their_bits(straight: Path) -> None:
    table = table_of(straight)
    table["config"]["tokenizer"] = "char"
    words, groups, runs = markdown(table)
    assert "Bits per character of the model that validated best" in words
    for group in table["groups"]:
        bits = math.log2(group["test"]["mean"])  # almost: of the mean, not the mean of
        assert group["test_bits"]["mean"] == pytest.approx(bits, abs=1e-3)
        assert f"| {group['test_bits']['mean']:.4f} ± {group['test_bits']['std']:.4f} | " in groups
    for run in table["runs"]:
        assert f"| {math.log2(run['valid']):.4f} | {math.log2(run['test']):.4f} | " in runs


def test_the_table_of_a_folder_that_may_only_be_read(
    straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    folder = shutil.copytree(straight, tmp_path / "sweep")

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "")

    monkeypatch.setattr("symrnn.files.atomic.replacing", read_only)
    assert lm.sweep.main(["--table", "--out", str(folder)]) == 0
    printed = capsys.readouterr()
    assert printed.out == (straight / "table.md").read_text()
    why = "was not written: the file system is read-only"
    assert printed.err == f"notice: {folder / 'table.md'}: {why}\n"


def test_finished_runs_are_not_run_again(straight: Path, tmp_path: Path, start: Start) -> None:
    folder = shutil.copytree(straight, tmp_path / "sweep")
    shutil.rmtree(folder / "logs")
    assert ended(start(folder, *FOUR)) == 0
    assert not (folder / "logs").exists()
    assert "4 runs in " in output_of(folder)
    assert "4 of them finished" in output_of(folder)


def processes_of(folder: Path) -> list[int]:
    """The processes that have a file of the folder open: its lock, a run's, a log."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            opened = [os.readlink(entry) for entry in (process / "fd").iterdir()]
            if any(name.startswith(str(folder)) for name in opened):
                found.append(int(process.name))
    return found


def wait_until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 300
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the runs go on")
def test_killed_and_started_again(straight: Path, tmp_path: Path, start: Start) -> None:
    """At once: the runs of the one that was killed may still be saving."""
    folder = tmp_path / "sweep"
    for name in ("none-seed1", "avg-full-seed2"):
        process = start(folder, *FOUR)
        wait_until((folder / name / "last.safetensors").exists)
        process.kill()
        process.join()
    assert ended(start(folder, *FOUR)) == 0, output_of(folder)
    wait_until(lambda: not processes_of(folder))
    for name in NAMES:
        assert_same_run(straight / name, folder / name)
    for ours, theirs in zip(*(table_of(f)["groups"] for f in (folder, straight)), strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(
    straight: Path,
    tmp_path: Path,
    start: Start,
    capsys: pytest.CaptureFixture[str],
    number: int,
    code: int,
) -> None:
    """The runs save where they are; the table says how far each is."""
    folder = tmp_path / "sweep"
    process = start(folder, *FOUR, more="--save-every 1000")
    wait_until((folder / "none-seed1" / "last.safetensors").exists)  # after its first epoch
    os.kill(process.pid or 0, number)
    assert ended(process) == code
    assert not processes_of(folder)
    output = output_of(folder)
    assert f"{number.name}: ending the runs under way, which save where they are" in output
    assert f"again:\n  python -m lm.sweep --out {folder} --jobs 2 --seeds 1,2 " in output
    assert re.search(r"^none-seed1(: finished| epoch [23]/3: saved)", output, re.MULTILINE)
    assert lm.sweep.main(["--table", "--out", str(folder)]) == 0
    printed = capsys.readouterr().out
    states = {run["name"]: run for run in table_of(folder)["runs"]}
    for name in NAMES[2:]:  # on a busy machine the first may be finished, and the next begun
        begun = states[name]["state"] != "not begun"
        assert begun or f"| {name} | not begun | – | – | – | 0.00 |" in printed
    one = states["none-seed1"]
    assert one["finished"] or one["state"] in [f"epoch {number} of 3" for number in (1, 2, 3)]
    curve = [x["valid/perplexity"] for x in lines_of(straight / "none-seed1") if "epoch" in x]
    assert one["valid"] == min(curve[: one["epochs"]])
    if not one["finished"]:
        assert "| none | – | – | 0 of 2 | " in printed


def test_a_failed_run_is_told_and_tried_again(tmp_path: Path, start: Start) -> None:
    folder = tmp_path / "sweep"
    words = ("--seeds", "1", "--symm", "none", "--vary", "lr", "1e30", "1")
    for attempt in (1, 2):
        assert ended(start(folder, *words)) == 1
        output = output_of(folder)
        assert "none-lr=1e30-seed1: failed (exit 2)" in output
        assert re.search(r"^    error: the .* is (nan|inf) in epoch 1", output, re.MULTILINE)
        assert "failed: none-lr=1e30-seed1: exit 2: error: the" in output.splitlines()[-1]
        assert output.count("none-lr=1e30-seed1: failed (exit 2)") == attempt
        assert "none-lr=1-seed1: finished" in output
        failed, finished = table_of(folder)["runs"]
        assert (failed["state"], finished["state"]) == ("failed", "finished")
        assert failed["failed"].startswith("exit 2: error: the ")
        assert "| none, lr 1e30 | – | – | 0 of 1, 1 failed |" in (folder / "table.md").read_text()


def test_a_run_that_another_process_has_is_waited_for(
    straight: Path, tmp_path: Path, start: Start
) -> None:
    folder = shutil.copytree(straight, tmp_path / "sweep")
    (folder / "none-seed1" / "last.safetensors").unlink()  # as if it had just begun
    with RunFolder.open(folder / "none-seed1"):
        process = start(folder, *FOUR)
        wait_until(lambda: "another process is at it; waiting for its end" in output_of(folder))
        assert process.is_alive()
    assert ended(process) == 0
    assert_same_run(straight / "none-seed1", folder / "none-seed1")


# ---- commands ------------------------------------------------------------------------------------


def test_printed_commands_run_by_themselves(
    straight: Path,
    tmp_path: Path,
    common: list[str],
    forks: multiprocessing.context.ForkServerContext,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each begins its run, and given again finds it; the sweep's table knows of them."""
    folder = tmp_path / "a sweep"
    assert lm.sweep.main(["--print", "--out", str(folder), *FOUR, "--", *common]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    for line in lines[:1] * 2:
        python, *words = shlex.split(line)
        assert (python, words[:2]) == (sys.executable, ["-m", "lm.train"])
        log = str(tmp_path / "log")
        process = forks.Process(target=worlds.program, args=([*words[1:]], {}, log))
        process.start()
        assert ended(process) == 0
    assert (tmp_path / "log").read_text().count("it is finished: 3 epochs") == 1
    assert_same_run(straight / NAMES[0], folder / NAMES[0])
    capsys.readouterr()
    assert lm.sweep.main(["--table", "--out", str(folder)]) == 0
    assert "- command: `python -m lm.sweep --print --out " in capsys.readouterr().out
    table = table_of(folder)
    assert [run["state"] for run in table["runs"]] == ["finished", *["not begun"] * 3]
    table["commands"].append("python -m lm.sweep")  # which ran them: then the others did not
    assert made_with(table).splitlines()[0] == "- command: `python -m lm.sweep`"


def test_auto_resume_wants_a_folder(common: list[str]) -> None:
    for words in (["--auto-resume"], ["--auto-resume", "--out", "a", "--resume", "b"]):
        with pytest.raises(UserError, match="--auto-resume wants the run's folder by --out"):
            lm.train.main([*common, *words])


def test_a_dry_run_says_what_would_be_run(
    tmp_path: Path, common: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--dry-run", "--seeds", "1-3", "--jobs", "2", "--out", str(tmp_path / "sweep")]
    assert lm.sweep.main([*words, "--", *common]) == 0
    printed = capsys.readouterr().out
    assert "runs         6, of which 0 are finished\n" in printed
    assert "at a time    2, with --threads 1 each\n" in printed
    plain = count_parameters(SymLSTM(8, 8, 2, symm="none"))
    training = plain.training + 21 * 8 + 8 * 21 + 21
    assert f"| none | {training:,} | {training:,} | {plain.recurrent:,} | 1, 2, 3 |" in printed
    assert not (tmp_path / "sweep").exists()


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        lm.sweep.main(["--help"])
    assert end.value.code == 0
    assert "  python -m lm.sweep --seeds 1-5 --symm none avg block4 " in capsys.readouterr().out


def test_threads_share_the_cores_and_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lm.sweep, "usable_cores", lambda: 12)
    sweep = Sweep(tmp_path)
    lm.sweep.set_threads(sweep, None, 5)
    assert sweep.threads == 2
    lm.sweep.set_threads(sweep, None, 1)
    assert (sweep.threads, capsys.readouterr().err) == (2, "")
    lm.sweep.set_threads(sweep, None, 12)
    assert sweep.threads == 2
    assert "12 at a time with 2 threads each" in capsys.readouterr().err
    lm.sweep.set_threads(sweep, 3, 12)
    assert sweep.threads == 3


def test_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert lm.sweep.devices_of("auto", 3) == ["cuda:0", "cuda:1", "cuda:0"]
    assert lm.sweep.devices_of("cuda:1", 2) == lm.sweep.devices_of("cpu", 2) == [None, None]


# ---- processes -----------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the process goes on")
def test_a_process_ends_with_the_one_that_started_it(
    tmp_path: Path, forks: multiprocessing.context.ForkServerContext
) -> None:
    log = tmp_path / "logs" / "run.txt"
    words = "import os, time; print(os.getpid(), os.getsid(0), flush=True); time.sleep(600)"
    process = forks.Process(target=swept.tied, args=([sys.executable, "-c", words], str(log)))
    process.start()
    wait_until(lambda: log.exists() and re.search(r"^\d+ \d+\n", log.read_text(), re.MULTILINE))
    number, session = map(int, log.read_text().splitlines()[-1].split())
    assert number == session
    process.kill()
    wait_until(lambda: not Path(f"/proc/{number}").exists())


def test_a_process_is_stopped_and_killed(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "run.txt"
    stopped, ended, failed = (
        Process([sys.executable, "-c", words], log)
        for words in ("import time; time.sleep(600)",) * 2 + ("print('why'); exit(3)",)
    )
    stopped.stop()
    ended.kill()
    wait_until(lambda: stopped.code() is not None and failed.code() is not None)
    stopped.stop()  # too late is no error
    assert (stopped.code(), ended.code(), failed.code()) == (-15, -9, 3)
    words = [how_it_ended(code) for code in (-15, -9, 3, 143, 1, 255)]
    assert words == [
        "ended by SIGTERM",
        "ended by SIGKILL",
        "exit 3",
        "ended by SIGTERM",
        "exit 1",
        "exit 255",
    ]
    assert last_lines(log, 1) == ["why"]
