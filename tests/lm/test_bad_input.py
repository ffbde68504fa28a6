"""What a user may get wrong: exit code 2, one clear line, no traceback, and nothing harmed."""

from __future__ import annotations

import functools
import io
import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import run_files
import torch
import worlds
from mutations import mutations
from resumed import KilledError, dying_after
from run_files import replace_by_plain_safetensors, snapshot
from torch import nn

import lm.evaluate
import lm.generate
import lm.train
from data import DataError
from lm.model import LanguageModel
from lm.options import DEFAULTS, MARKS, resume_config
from lm.recipes import ADDED
from lm.saved import check_machine, load_saved
from symrnn import list_symmetries, native, open_packed, save_packed
from symrnn.files import UserError, run_program
from symrnn.training import World, load_checkpoint, loop, save_checkpoint

Refused = Callable[..., str]

SMALL = "--hidden-size 8 --batch-size 4 --steps 5 --epochs 1 --threads 1"


def texts(folder: Path, **changed: bytes | None) -> Path:
    """A corpus folder, with some files changed or missing."""
    folder.mkdir()
    for split in ("train", "valid", "test"):
        content = changed.get(split, b"a b c d\n" * 20)
        if content is not None:
            (folder / f"{split}.txt").write_bytes(content)
    return folder


# ---- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"valid": None}, "lacks the valid text"),
        ({"train": b""}, "train.txt' is empty"),
        ({"test": b""}, "test.txt' is empty"),
        ({"valid": b"a b\n\xff c\n"}, "valid.txt', byte 4: not UTF-8"),
        ({"train": b"a b c d\n"}, "the text is too short: 5 tokens"),
        ({"test": b"a b\nunheard\n"}, "line 2: the word 'unheard' is not in the vocabulary"),
        ({"train": b"a <eos> b\n" * 20}, "line 1: the text has the word '<eos>'"),
    ],
)
def test_texts(
    refused: Refused, tmp_path: Path, changed: dict[str, bytes | None], message: str
) -> None:
    folder = texts(tmp_path / "corpus", **changed)
    out = tmp_path / "run"
    assert message in refused("train", "--data", folder, "--out", out, *SMALL.split())
    assert not out.exists()


def test_processes_with_different_texts(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two machines may have them in folders of one name."""
    monkeypatch.setattr(World, "gather", lambda _, value: [value, f"{value} of another"])
    folder, out = texts(tmp_path / "corpus"), tmp_path / "run"
    message = refused("train", "--data", folder, "--out", out, *SMALL.split())
    assert message.startswith(f"--data {folder} is not the same corpus on all machines")
    assert not out.exists()


def test_no_corpus(refused: Refused, tmp_path: Path) -> None:
    message = refused("train", "--data", tmp_path / "missing")
    assert "missing' is not one of builtin, ptb, wikitext-2" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no such file or folder"),
        (b"", "is empty"),
        (b"w1 w2\n\xc3(\n", "byte 6: not UTF-8"),
        (b"w1\nw1 unheard\n", "line 2: the word 'unheard' is not in the vocabulary"),
    ],
)
def test_evaluated_file(
    refused: Refused, finished: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_bytes(content)
    table = tmp_path / "table.tsv"
    assert message in refused("evaluate", finished, "--data", text, "--per-token", table)
    assert not table.exists()


def test_evaluate_options(refused: Refused, finished: Path, corpus: Path) -> None:
    text = corpus / "test.txt"
    assert "is one file" in refused("evaluate", finished, "--data", text, "--split", "valid")
    assert "invalid choice: 'all'" in refused("evaluate", finished, "--split", "all")
    before = text.read_bytes()
    assert "is there already" in refused("evaluate", finished, "--per-token", text)
    assert text.read_bytes() == before
    missing = corpus / "missing" / "table.tsv"
    assert "cannot be written" in refused("evaluate", finished, "--per-token", missing)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--cache 0", "--cache: should be an integer of at least 1, got: '0'"),
        ("--cache 900000000000", "--cache 900000000000 is larger than memory: its states of 8 num"),
        ("--cache 5 --cache-theta -1", "--cache-theta: should be a number of at least 0, got: '-1"),
        ("--cache 5 --cache-lambda 2", "should be a number of at least 0 and at most 1, got: '2'"),
        ("--cache-lambda 0.5", "--cache-lambda 0.5 is that of --cache: give both"),
        ("--cache-theta 2", "--cache-theta 2.0 is that of --cache: give both"),
        ("--dynamic-lr 0.5", "--dynamic-lr 0.5 is that of --dynamic: give both"),
        ("--dynamic-statistics x", "--dynamic-statistics x is that of --dynamic: give both"),
        ("--dynamic --dynamic-epsilon 0", "--dynamic-epsilon: should be a number above 0, got: '0"),
        (
            "--dynamic --dynamic-segment 5000",
            "are taken from has 457 tokens: a segment takes 5,001",
        ),
        (
            "--dynamic --weights int8",
            "--dynamic learns by gradients, which --weights int8 has none",
        ),
        ("--dynamic --weights bfloat16", "which --weights bfloat16 has none of"),
        ("--dynamic --dynamic-statistics gone", "--dynamic-statistics gone: there is no such file"),
        ("--dynamic --dynamic-lr 1e38", "--dynamic-lr 1e+38 is too large: the adapted model is no"),
    ],
)
def test_models_that_adapt(refused: Refused, finished: Path, arguments: str, message: str) -> None:
    assert message in refused("evaluate", finished, *arguments.split())


def test_prompt(refused: Refused, finished: Path) -> None:
    message = refused("generate", finished, "--prompt", "w1 unheard")
    assert "the word 'unheard' is not in the vocabulary" in message
    assert "'<eos>'" in refused("generate", finished, "--prompt", "w1 <eos> w2")


@pytest.mark.parametrize("run", ["finished", "pieces_run"])
def test_a_prompt_that_is_not_utf8(
    refused: Refused, run: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = request.getfixturevalue(run)
    argument = os.fsdecode(b"w1 \xff")
    assert refused("generate", folder, "--prompt", argument) == r"--prompt: not UTF-8: 'w1 \udcff'"
    for content, message in (
        (b"w1 \xff", "--prompt: <stdin>, byte 3: not UTF-8 (invalid start byte)"),
        (b"", "--prompt: <stdin> is empty: it has no line of text"),
    ):
        stdin = io.TextIOWrapper(io.BufferedReader(Named(content)))
        monkeypatch.setattr("sys.stdin", stdin)
        assert refused("generate", folder, "--prompt", "-") == message
    monkeypatch.setattr("sys.stdin", None)
    for option in ("--prompt", "--data"):
        program = "generate" if option == "--prompt" else "evaluate"
        assert "standard input is closed" in refused(program, folder, option, "-")


class Named(io.BytesIO):
    """Standard input, by its name."""

    name = "<stdin>"


def test_output_that_the_terminal_cannot_hold_is_escaped(
    finished: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A word of the corpus, and the name of its folder."""
    folder = shutil.copytree(corpus, tmp_path / "texte…")
    arguments = [finished, "--prompt", "naïve", "--tokens", 1]
    table = [finished, "--data", folder, "--per-token"]
    training = ["--data", folder, *SMALL.split(), "--dry-run"]
    for main, options, wanted in (
        (lm.generate.main, arguments, r"na\xefve "),
        (lm.evaluate.main, table, "na\\xefve\t"),
        (lm.evaluate.main, table[:-1], r"texte\u2026"),
        (lm.train.main, training, r"texte\u2026"),
        (lm.train.main, ["--help"], r"\u2016W"),
    ):
        stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        program = functools.partial(main, [str(option) for option in options])
        monkeypatch.setattr("sys.stdout", stdout)
        with pytest.raises(SystemExit) as end:
            run_program(program, DataError)
        assert end.value.code == 0
        stdout.flush()
        assert wanted in stdout.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]


# ---- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--symm skew", f"should be one of none, {', '.join(list_symmetries())}, tri:diagB"),
        ("--symm skew", "got: 'skew'"),
        ("--symm avg:skew0", "avg:skewR (R planes), eigen:R (a rank R), got: 'avg:skew0'"),
        ("--symm eigen:0", "eigen:R (a rank R), got: 'eigen:0'"),
        ("--symm eigen:1.5", "eigen:R (a rank R), got: 'eigen:1.5'"),
        ("--symm chunk3", "eigen:R (a rank R), got: 'chunk3'"),
        ("--symm eigen:99", "'eigen:99' has rank 99; a matrix of side 8 takes 1 to 8"),
        ("--symm avg --backend folded", 'backend="folded" wants hidden weights of all gates in'),
        ("--soft-symmetry 0", "--soft-symmetry: should be a number above 0, got: '0'"),
        ("--soft-symmetry nan", "--soft-symmetry: should be a number above 0, got: 'nan'"),
        ("--soft-symmetry 0.1 --soft-norm 3", "--soft-norm: invalid choice: 3 (choose from 1, 2)"),
        ("--soft-norm 1", "--soft-norm 1 is that of --soft-symmetry: give both"),
        ("--soft-norm 2 --symm none", "--soft-norm 2 is that of --soft-symmetry: give both"),
        ("--soft-symmetry 0.1 --symm avg", "--soft-symmetry wants --symm none, for it draws full"),
        ("--soft-symmetry 0.1 --symm eigen:3", "ones; got: --symm eigen:3"),
        ("--soft-symmetry 0.1 --symm-hh if", "of all gates, and no others: leave out --symm-hh if"),
        ("--soft-symmetry 0.1 --symm-ih g", "of all gates, and no others: leave out --symm-ih g"),
        ("--soft-symmetry 0.1 --backend folded", "wants hidden weights of all gates in a form"),
        ("--symm-hh ix", "--symm-hh should name gates of 'ifgo', each at most once"),
        ("--cell gru --symm-hh ifgo", "--symm-hh should name gates of 'rzn', each at most once"),
        ("--cell rnn --symm-ih z", "got: 'z' (--cell rnn)"),
        ("--cell elman", "'lstm', 'gru', 'rnn'"),
        ("--symm-ih ii", "should name gates of 'ifgo', each at most once"),
        ("--recipe adam", "'zaremba', 'annealed'"),
        ("--size huge", "'small', 'medium', 'large'"),
        ("--backend metal", "'reference', 'script', 'vendor'"),
        ("--epochs 0", "--epochs: should be an integer of at least 1, got: '0'"),
        ("--epochs 1.5", "should be an integer of at least 1, got: '1.5'"),
        ("--lr 1e39", "should be at most 3.4028234663852886e+38, got: '1e39'"),
        ("--hidden-size 9223372036854775808", "should be at most 9223372036854775807, got: '922"),
        ("--layers 1001", "should be an integer of at least 1 and at most 1000, got: '1001'"),
        ("--dropout 1.5", "should be a number of at least 0 and at most 1, got: '1.5'"),
        ("--lr 0", "should be a number above 0, got: '0'"),
        ("--lr nan", "should be a number above 0, got: 'nan'"),
        ("--lr inf", "should be a number above 0, got: 'inf'"),
        ("--seed 4294967296", "at most 4294967295, got: '4294967296'"),
        ("--device tpu", "'tpu': there is no device of that name; allowed here are auto, cpu"),
        ("--symm-ih i --embedding-size 5", "symm_ih='i' wants square input weights"),
        ("--tokenizer sentencepiece", "needs vocab_size"),
        ("--tokenizer sentencepiece --vocab-size 28 --min-count 2", "min_count is for words, got"),
        ("--tokenizer gone.model", "or the file of a sentencepiece model or of Hugging Face token"),
        ("--tokenizer gone.json --vocab-size 9", "gone.json' is whole: leave out vocab_size"),
        (f"--tokenizer {__file__}", "test_bad_input.py': not a sentencepiece model"),
        ("--adaptive-softmax 21", "less than the 21 types of the vocabulary, got: 21"),
        ("--adaptive-softmax 9 9", "less than the 21 types of the vocabulary, got: 9 9"),
        (
            "--adaptive-softmax 0",
            "--adaptive-softmax: should be an integer of at least 1, got: '0'",
        ),
        ("--adaptive-softmax 5 9", "of 2 cutoffs wants a hidden size of at least 16, got: 8"),
        ("--adaptive-softmax 5 --tied", "could be the embedding too, got: --tied; leave out one"),
        ("--keep -1", "--keep: should be an integer of at least 0, got: '-1'"),
        ("--min-count 0", "--min-count: should be an integer of at least 1, got: '0'"),
        ("--tokenizer sentencepiece --vocab-size 500", "vocab_size must be at most"),
        ("--batch-size 5000", "the text is too short"),
        ("--resume", "--resume wants the run's folder"),
    ],
)
def test_options(
    refused: Refused,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(
        "train", "--data", corpus, *SMALL.split(), *arguments.split()
    ).replace("\\", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_no_cuda(refused: Refused, finished: Path) -> None:
    for program, arguments in (("train", []), ("evaluate", [finished]), ("generate", [finished])):
        message = refused(program, *arguments, "--device", "cuda")
        assert "'cuda': this machine has no such device; allowed here are auto, cpu" in message


def test_no_compiler(refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    message = refused("train", "--compile", "--device", "cpu")
    assert "--compile needs a C++ compiler" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--precision fp64", "kernels in float32, got: --precision fp64"),
        ("--precision bf16", "kernels in float32, got: --precision bf16"),
        ("--backend vendor", "kernels, --backend auto or fused, got: --backend vendor"),
    ],
)
@pytest.mark.parametrize("weights", ["bfloat16", "int8"])
@pytest.mark.parametrize("program", ["evaluate", "generate"])
def test_weights_that_only_the_native_kernels_take(
    refused: Refused, finished: Path, program: str, weights: str, arguments: str, message: str
) -> None:
    said = refused(program, finished, "--weights", weights, *arguments.split())
    assert f"--weights {weights} is for the native {message}" in said
    assert "invalid choice: 'int4'" in refused(program, finished, "--weights", "int4")


def test_without_native_kernels(
    refused: Refused,
    finished: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.setattr(native, "why_not", lambda: "the kernels are not built: no compiler")
    wanted = "the kernels are not built: no compiler"
    assert wanted in refused("generate", finished, "--weights", "bfloat16")
    assert wanted in refused("evaluate", finished, "--backend", "fused")
    arguments = ("--data", corpus, *SMALL.split(), "--out", tmp_path / "run")
    assert wanted in refused("train", *arguments, "--backend", "fused")


def test_kernels_on_a_device_that_has_none() -> None:
    config = {"backend": "fused", "precision": "fp32"}
    with pytest.raises(UserError, match="is for CPUs and NVIDIA GPUs, got: --device mps"):
        check_machine(config, torch.device("mps"))
    config = {"backend": "auto", "precision": "fp32", "weights": "bfloat16"}
    with pytest.raises(UserError, match="native kernels for CPUs, got: --device cuda"):
        check_machine(config, torch.device("cuda"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--temperature -1", "should be a number of at least 0, got: '-1'"),
        ("--top-k 0", "should be an integer of at least 1, got: '0'"),
        ("--top-p 0", "should be a number above 0 and at most 1, got: '0'"),
        ("--top-p 1.1", "should be a number above 0 and at most 1, got: '1.1'"),
        ("--tokens 0", "should be an integer of at least 1, got: '0'"),
    ],
)
def test_sampling_options(refused: Refused, finished: Path, arguments: str, message: str) -> None:
    assert message in refused("generate", finished, *arguments.split())


# ---- folders -------------------------------------------------------------------------------------


def test_a_folder_that_holds_another_run(
    refused: Refused, run_copy: Path, corpus: Path, tmp_path: Path
) -> None:
    before = snapshot(run_copy)
    message = refused("train", "--data", corpus, *SMALL.split(), "--out", run_copy)
    assert "holds a run already; continue it with --resume, or choose another folder" in message
    assert snapshot(run_copy) == before
    message = refused("train", "--data", corpus, *SMALL.split(), "--out", corpus)
    assert "is not empty and holds no run" in message


def test_no_run_to_resume(refused: Refused, corpus: Path, tmp_path: Path) -> None:
    assert "there is no such folder" in refused("train", "--resume", tmp_path / "missing")
    assert "holds no config.json" in refused("train", "--resume", corpus)
    message = refused("train", "--resume", tmp_path / "one", "--out", tmp_path / "two")
    assert f"leave out --out {tmp_path / 'two'}" in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", ["evaluate", "generate"])
def test_no_run_yet(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(program)
    assert "there is no trained run in ./runs: train one with python -m lm.train" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--symm tri", "--symm tri contradicts the run in {run}, which has avg"),
        ("--soft-symmetry 0.1", "--soft-symmetry 0.1 contradicts the run in {run}, which has 0.0"),
        ("--hidden-size 16", "--hidden-size 16 contradicts the run in {run}, which has 8"),
        ("--layers 1", "--layers 1 contradicts the run in {run}, which has 2"),
        ("--vocab-size 10", "--vocab-size 10 contradicts the run in {run}, which has None"),
        (
            "--epochs 1",
            "--epochs 1 contradicts the run in {run}, which has 2: it can be made longer",
        ),
        ("--init-from x", "/x contradicts the run in {run}, which has None"),
        ("--data {other}", "the vocabulary of {other} is not the one that the run in {run} was"),
        ("--data {moved}", "the corpus of {moved} is not the one that the run in {run} was"),
        ("--data {gone}", "where the corpus is now, --data says"),
    ],
)
def test_resuming_something_else(
    refused: Refused, run_copy: Path, corpus: Path, tmp_path: Path, arguments: str, message: str
) -> None:
    texts(tmp_path / "other")
    moved = shutil.copytree(corpus, tmp_path / "moved")
    with (moved / "test.txt").open("a") as file:
        file.write("w1\n")
    names = {
        "run": run_copy,
        "other": tmp_path / "other",
        "moved": moved,
        "gone": tmp_path / "gone",
    }
    before = snapshot(run_copy)
    said = refused("train", "--resume", run_copy, *arguments.format(**names).split())
    assert message.format(**names) in said
    assert snapshot(run_copy) == before


def test_a_run_of_another_program(refused: Refused, run_copy: Path) -> None:
    (run_copy / "config.json").write_text(json.dumps({"model": "wrn-16-1-bottleneck"}))
    assert "is no run of lm.train" in refused("train", "--resume", run_copy)
    (run_copy / "config.json").write_text("{")
    assert "config.json: is damaged" in refused("train", "--resume", run_copy)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": "2"}, "--epochs should be 2, got: '2'"),
        ({"epochs": 2.0}, "argument --epochs: should be an integer of at least 1, got: '2.0'"),
        ({"epochs": 0}, "argument --epochs: should be an integer of at least 1, got: '0'"),
        ({"epochs": None}, "--epochs should be 13, got: None"),
        ({"lr": math.nan}, "argument --lr: should be a number above 0, got: 'nan'"),
        ({"cell": ["lstm"]}, "--cell should be 'lstm', got: ['lstm']"),
        ({"cell": {}}, "--cell should be flat, got: a dict"),
        ({"tied": 0}, "argument --tied/--no-tied: ignored explicit argument '0'"),
        ({"tied": "yes"}, "argument --tied/--no-tied: ignored explicit argument 'yes'"),
        ({"seed": True}, "--seed should be 1, got: True"),
        ({"symm_hh": "xy"}, "--symm-hh should name gates of 'ifgo', each at most once"),
        ({"soft_norm": 1}, "--soft-norm 1 is that of --soft-symmetry: give both"),
        ({"data": 5}, "--data should be "),
    ],
)
def test_a_configuration_that_no_command_line_gives(
    refused: Refused, run_copy: Path, changed: dict[str, Any], message: str
) -> None:
    file = run_copy / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    said = refused("train", "--resume", run_copy).replace("\\", "")
    assert said.startswith(f"{file}: is damaged, cannot resume: ")
    assert message in said


def test_a_configuration_of_another_version(refused: Refused, run_copy: Path) -> None:
    file = run_copy / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "mogrifier": 5}))
    message = "is no run of lm.train: its configuration holds mogrifier"
    assert message in refused("train", "--resume", run_copy)


def test_a_configuration_that_is_not_the_checkpoints(refused: Refused, run_copy: Path) -> None:
    file = run_copy / "config.json"
    config = json.loads(file.read_text())
    for name, value in {"epochs": 1, "steps": 6}.items():
        file.write_text(json.dumps({**config, name: value}))
        message = f"not the checkpoint of this run: {name} is {config[name]} in it, {value} in conf"
        assert f"last.safetensors: {message}" in refused("train", "--resume", run_copy)


def test_any_change_of_a_configuration(run_copy: Path) -> None:
    """It is refused, or one that could have been given."""
    config, kept = json.loads((run_copy / "config.json").read_text()), 0
    for mutated in mutations(config, 300):
        try:
            resumed = resume_config(mutated, {}, run_copy)
        except UserError:
            continue
        kept += 1
        for name in config.keys() - {*MARKS}:
            value, found = config[name], resumed[name]
            if found is None:
                assert {**DEFAULTS, **ADDED}[name] is None
                continue
            assert value == found or value is None or type(value) in (type(found), float), name
    assert 0 < kept < 100  # most of 300 are refused; a change of one number to another may be kept


# ---- checkpoints and packed models ---------------------------------------------------------------


def replace_by_another_program(path: Path) -> None:
    save_checkpoint(path, {"weight": torch.zeros(3)}, {"config": {"model": "resnet-18"}})


DAMAGES = {
    **run_files.DAMAGES,
    replace_by_plain_safetensors: "is a safetensors file, but not a training checkpoint",
    replace_by_another_program: ": not ",
}
"""What may have become of any file, and what is said then."""


def another_size(path: Path) -> None:
    kept = load_checkpoint(path)
    tensors = {name: tensor[..., :1] for name, tensor in kept.tensors.items()}
    save_checkpoint(path, tensors, kept.meta)


def lose_a_tensor(path: Path) -> None:
    kept = load_checkpoint(path)
    kept.tensors.pop("model/decoder.bias")
    save_checkpoint(path, kept.tensors, kept.meta)


def lose_the_state(path: Path) -> None:
    kept = load_checkpoint(path)
    save_checkpoint(path, kept.tensors, {**kept.meta, "state": 5, "codec": {"kind": "?"}})


@pytest.fixture
def half(
    tmp_path: Path,
    train: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    without: Callable[..., None],
) -> Path:
    """The folder of a run that was killed in its first epoch, and has a checkpoint."""
    without("tensorboard")  # whose files take longer than the steps
    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", dying_after(1, loop.save_checkpoint))
        with pytest.raises(KilledError):
            train("--out", tmp_path / "half", "--save-every", 4, "--dropout", 0.2)
    return tmp_path / "half"


def test_any_change_of_a_checkpoint(half: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a right checksum: it is refused, or the run goes on to its end."""
    file = half / "last.safetensors"
    kept, ends = load_checkpoint(file), {True: 0, False: 0}
    for meta in mutations(kept.meta, 15):
        try:
            save_checkpoint(file, kept.tensors, meta)
        except ValueError:  # no UTF-8
            continue
        try:
            ends[lm.train.main(["--resume", str(half)]) == 0] += 1
        except UserError:
            ends[False] += 1
        (half / "best.safetensors").unlink(missing_ok=True)
    assert ends[False] > ends[True] > 0


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("progress/epoch", "1", "epoch should be of type int, got: '1'"),
        ("progress/epoch", True, "epoch should be of type int, got: True"),
        ("progress/epoch", 2, "step 4 is not batch 4 of 22 in epoch 2 of 2"),
        ("progress/batch", -1, "batch should be 0 or more, got: -1"),
        ("progress/nats", math.nan, "nats should be 0 or more, got: nan"),
        ("progress/lr", None, "lr should be of type float, got: None"),
        ("progress/tested", {"dict": []}, "tested should have "),
        ("hidden", {"list": []}, "packed: {'list': []} was not made by pack_state"),
        ("hidden", [], "hidden is not 2 tensors of shape (2, 4, 8)"),
        ("optimizer", [], "optimizer should be of type dict, got: []"),
        ("optimizer/param_groups", [], "zip() argument 2 is longer than argument 1"),
        ("optimizer/param_groups", [5], "optimizer/param_groups/0 should be of type dict, got: 5"),
        ("optimizer/state", {"dict": [["x", {"dict": []}]]}, "optimizer/state has 'x', for 1"),
    ],
)
def test_wrong_types_in_a_checkpoint(
    refused: Refused, half: Path, place: str, value: object, message: str
) -> None:
    file = half / "last.safetensors"
    kept = load_checkpoint(file)
    *way, last = place.split("/")
    inner = kept.meta["state"]["dict"]
    for name in way:
        inner = dict(inner)[name]["dict"]
    (pair,) = (pair for pair in inner if pair[0] == last)
    pair[1] = value
    save_checkpoint(file, kept.tensors, kept.meta)
    said = refused("train", "--resume", half).replace("\\", "")
    assert said.startswith(f"{file}: not a checkpoint that a run goes on from: ")
    assert message in said


@pytest.mark.parametrize("name", ["model/decoder.weight", "state/hidden/0"])
def test_a_tensor_of_another_type_in_a_checkpoint(refused: Refused, half: Path, name: str) -> None:
    file = half / "last.safetensors"
    kept = load_checkpoint(file)
    kept.tensors[name] = kept.tensors[name].to(torch.float64)
    save_checkpoint(file, kept.tensors, kept.meta)
    said = refused("train", "--resume", half)
    assert said.startswith(f"{file}: not a checkpoint that a run goes on from: ")


@pytest.mark.parametrize("program", ["train", "evaluate", "generate"])
@pytest.mark.parametrize("damage", [*DAMAGES, another_size, lose_a_tensor, lose_the_state])
def test_damaged_checkpoints(
    refused: Refused, run_copy: Path, program: str, damage: Callable[[Path], None]
) -> None:
    file = run_copy / "last.safetensors"
    damage(file)
    before = snapshot(run_copy)
    arguments = ["--resume", run_copy] if program == "train" else [file]
    message = refused(program, *arguments)
    assert str(file) in message
    assert DAMAGES.get(damage, "") in message
    assert snapshot(run_copy) == before


def repack(path: Path, model: nn.Module | None = None, **meta: object) -> None:
    """Write a packed model anew, with another model or other entries of its meta."""
    kept = open_packed(path).meta
    save_packed(model or load_saved(path, torch.device("cpu")).model, path, meta={**kept, **meta})


def pack_another_size(path: Path) -> None:
    repack(path, LanguageModel(21, 16, 16))


def pack_without_a_tensor(path: Path) -> None:
    model = load_saved(path, torch.device("cpu")).model
    model.decoder.bias = None
    repack(path, model)


def pack_another_form(path: Path) -> None:
    repack(path, LanguageModel(21, 8, 8, symm="tri8"))


def pack_other_gates(path: Path) -> None:
    repack(path, LanguageModel(21, 8, 8, symm="avg", symm_hh="if"))


def pack_a_plain_model(path: Path) -> None:
    repack(path, LanguageModel(21, 8, 8, symm="none"))


def pack_another_cell(path: Path) -> None:
    repack(path, LanguageModel(21, 8, 8, cell="gru"))


def pack_another_vocabulary(path: Path) -> None:
    repack(path, codec={"kind": "word", "tokens": ["<eos>", "a", "b"]})


def pack_no_vocabulary(path: Path) -> None:
    repack(path, codec={"kind": "?"})


def pack_another_kind_of_model(path: Path) -> None:
    save_packed(nn.Linear(3, 3), path)


def pack_of_another_program(path: Path) -> None:
    repack(path, nn.Linear(3, 3), config={"model": "resnet-18"})


PACKED_DAMAGES = {
    pack_another_size: "has another size: ",
    pack_without_a_tensor: "is not of this model: the file lacks decoder.bias",
    pack_another_form: "rnn.weight_hh_l0 has another form: tri8 of side 8 for the gates ifgo of "
    "ifgo in the file, avg of side 8 for the gates ifgo of ifgo in the model",
    pack_other_gates: "rnn.weight_hh_l0 has another form: avg of side 8 for the gates if of ifgo",
    pack_a_plain_model: "weight_hh_l0 is a plain matrix in the file; the model stores it as avg",
    pack_another_cell: "rnn.weight_hh_l0 has another size: (24, 8) in the file, (32, 8) in the mod",
    pack_another_vocabulary: "encoder.weight has another size: (21, 8) in the file, (3, 8) in the ",
    pack_no_vocabulary: "not a language model: the state of a codec must have kind 'word', ",
    pack_another_kind_of_model: "not a language model: its meta lacks 'config'",
    pack_of_another_program: "not a language model: its meta lacks 'precision'",
}


@pytest.mark.parametrize("program", ["evaluate", "generate"])
@pytest.mark.parametrize("damage", [*DAMAGES, *PACKED_DAMAGES])
def test_damaged_packed_models(
    refused: Refused, run_copy: Path, program: str, damage: Callable[[Path], None]
) -> None:
    file = run_copy / "best.safetensors"
    damage(file)
    before = snapshot(run_copy)
    message = refused(program, run_copy)
    assert message.startswith(f"{file}: ")
    assert {**DAMAGES, **PACKED_DAMAGES}[damage] in message
    assert snapshot(run_copy) == before


@pytest.mark.parametrize("damage", [*DAMAGES, *PACKED_DAMAGES])
def test_a_damaged_best_model_of_a_run_to_be_tested(
    refused: Refused, run_copy: Path, damage: Callable[[Path], None]
) -> None:
    """A finished run that is resumed only tests its best model."""
    file = run_copy / "best.safetensors"
    damage(file)
    assert str(file) in refused("train", "--resume", run_copy)


def test_a_checkpoint_that_does_not_say_what_it_was_trained_on(
    refused: Refused, run_copy: Path, corpus: Path
) -> None:
    file = run_copy / "best.safetensors"
    config = open_packed(file).meta["config"]
    for data in (None, 3, ["builtin"]):
        repack(file, config={**config, "data": data})
        message = refused("evaluate", file)
        assert message == f"{file}: does not say what it was trained on; --data names a text"
    assert lm.evaluate.main([str(file), "--data", str(corpus), "--threads", "1"]) == 0


def test_a_missing_checkpoint(refused: Refused, run_copy: Path) -> None:
    missing = run_copy / "none.safetensors"
    assert f"{missing}: there is no such checkpoint file" in refused("evaluate", missing)
    (run_copy / "best.safetensors").unlink()
    message = refused("generate", run_copy)
    assert f"before the first validation; {run_copy / 'last.safetensors'} can be named" in message


# ---- while it runs -------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "what"), [("1e30", "perplexity"), ("1e38", "")])
def test_a_diverging_run_stops(
    refused: Refused, train: Callable[..., int], corpus: Path, tmp_path: Path, rate: str, what: str
) -> None:
    out = tmp_path / "run"
    options = ["--data", corpus, *SMALL.split(), "--out", out, "--save-every", 1]
    message = refused("train", *options, "--lr", rate)
    assert f"at learning rate {float(rate):g}: stopped; checkpoints from before: " in message
    assert "in epoch 1, after " in message
    assert what in message
    if (out / "last.safetensors").exists():
        for tensor in load_checkpoint(out / "last.safetensors").tensors.values():
            assert tensor.isfinite().all()


def test_a_run_that_diverges_late_keeps_its_best(
    refused: Refused, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, original = tmp_path / "run", lm.train.save_best

    def then_diverge(path: Path, model: LanguageModel, *more: Any, **meta: Any) -> None:
        original(path, model, *more, **meta)
        nn.init.constant_(model.decoder.bias, math.nan)

    monkeypatch.setattr(lm.train, "save_best", then_diverge)
    message = refused("train", "--data", corpus, *SMALL.split(), "--epochs", 2, "--out", out)
    assert "the largest weight is nan in epoch " in message
    assert message.endswith(f"checkpoints from before: {out / 'best.safetensors'}")
    assert lm.evaluate.main([str(out), "--threads", "1"]) == 0


def test_a_model_that_gives_no_probabilities(refused: Refused, run_copy: Path) -> None:
    best = run_copy / "best.safetensors"
    model = load_saved(best, torch.device("cpu")).model
    nn.init.constant_(model.decoder.bias, math.nan)
    repack(best, model)
    assert "the largest logit is nan" in refused("generate", best)


@pytest.mark.parametrize("room", [1000, 20_000, 40_000])
def test_a_full_disk_spares_the_last_checkpoint(
    refused: Refused, train: Callable[..., int], small_disk: Path, room: int
) -> None:
    """Whatever hits it first: a checkpoint, the metrics or TensorBoard's events."""
    out = small_disk / "run"
    train("--out", out)
    before = snapshot(out)
    wanted = open_packed(out / "best.safetensors")
    shutil.rmtree(out / "tensorboard")
    (out / "last.safetensors").unlink()
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free - room))
    message = refused("train", "--resume", out, "--log-every", 1, "--save-every", 1)
    assert "the disk is full" in message
    assert open_packed(out / "best.safetensors").meta.keys() == wanted.meta.keys()
    assert not list(out.glob(".symrnn-*"))
    (small_disk / "ballast").unlink()
    # With room again, it goes on from what there is.
    assert lm.train.main(["--resume", str(out)]) == 0
    after = snapshot(out)
    assert after.keys() == before.keys()


def test_a_full_disk_ends_a_process_with_one_line(
    small_disk: Path, corpus: Path, forks: multiprocessing.context.ForkServerContext, tmp_path: Path
) -> None:
    """TensorBoard writes from a thread of its own, whose traceback nobody wants."""
    free = shutil.disk_usage(small_disk).free
    (small_disk / "ballast").write_bytes(bytes(free - 8500))
    options = ["--data", str(corpus), "--out", str(small_disk / "run"), *SMALL.split()]
    command, output = ["lm.train", *options, "--epochs", "3", "--log-every", "1"], tmp_path / "said"
    process = forks.Process(target=worlds.program, args=(command, {}, str(output)))
    process.start()
    process.join()
    assert process.exitcode == 2
    lines = output.read_text().splitlines()
    facts = (
        "the run is kept in ",
        "corpus ",
        "model ",
        "parameters ",
        "runs on ",
        "length ",
        "epoch ",
    )
    said = [line for line in lines if not line.startswith(facts)]
    assert said == [f"error: {small_disk}/run/metrics.jsonl: metrics: the disk is full"]
