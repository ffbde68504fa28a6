"""Whole training runs: what they reach, what they leave behind, and every way to run them."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

import lm.evaluate
import lm.generate
import lm.train
from data import open_corpus
from lm.model import LanguageModel
from lm.saved import load_saved
from lm.spectrum import compare_spectra, spectrum_figure
from symrnn import count_parameters, native, open_packed
from symrnn.files import UserError
from symrnn.rnn import list_backends
from symrnn.training import load_checkpoint


def lines_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def value_of(folder: Path, name: str) -> float:
    """The last value of a scalar."""
    return [line[name] for line in lines_of(folder) if name in line][-1]


def write_source(folder: Path) -> float:
    """Texts of a source whose probabilities are known; the perplexity of its test text.

    A line is an opening word (of 4), then words that each follow from the one before, with
    probabilities 0.7, 0.2 and 0.1, and the closing word that belongs to the opening one.
    """
    generator = random.Random(1)
    folder.mkdir()
    nats = tokens = 0.0
    for split, count in (("train", 1500), ("valid", 150), ("test", 300)):
        lines = []
        nats = tokens = 0.0
        for _ in range(count):
            kind = generator.randrange(4)
            nats -= math.log(1 / 4)
            state, words = kind, [f"open{kind}"]
            for _ in range(4):
                step = generator.choices((1, 2, 5), (0.7, 0.2, 0.1))[0]
                nats -= math.log({1: 0.7, 2: 0.2, 5: 0.1}[step])
                state = (state + step) % 8
                words.append(f"w{state}")
            lines.append(" ".join([*words, f"close{kind}"]))
            tokens += 7  # with <eos>; the closing word and <eos> are certain
        (folder / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return math.exp(nats / tokens)


@pytest.mark.parametrize("symm", ["none", "avg"])
def test_a_trained_model_comes_close_to_the_best_possible(tmp_path: Path, symm: str) -> None:
    best_possible = write_source(tmp_path / "source")
    options = "--hidden-size 32 --batch-size 10 --epochs 8 --lr-after 4 --threads 1"
    out = tmp_path / "run"
    lm.train.main(
        ["--data", str(tmp_path / "source"), "--out", str(out), "--symm", symm, *options.split()]
    )
    perplexity = value_of(out, "test/perplexity")
    # A bigram model cannot know the closing word, which costs it at least log(4)/7 nats a token.
    assert best_possible < perplexity < 1.1 * best_possible < 4 ** (1 / 7) * best_possible


def test_the_builtin_corpus_and_its_bound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = "--hidden-size 32 --batch-size 40 --epochs 2 --threads 1"
    assert lm.train.main(["--out", str(out), *options.split()]) == 0
    report = capsys.readouterr().out
    bound = float(report.split("test perplexity")[1].split("best possible ")[1].split(")")[0])
    assert bound < value_of(out, "test/perplexity") < 5 * bound
    for split, best in open_corpus("builtin").entropy.perplexity.items():
        if split != "train":
            lm.evaluate.main([str(out), "--split", split, "--threads", "1"])
            assert f"best possible         {best:.4f} per word\n" in capsys.readouterr().out


def test_what_a_run_leaves_behind(
    train: Callable[..., int],
    tmp_path: Path,
    with_picture: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    assert train("--out", out, "--log-every", 10, "--save-every", 10, "--epochs", 3) == 0
    assert {path.name for path in out.iterdir()} == {
        ".lock",
        "best.safetensors",
        "config.json",
        "last.safetensors",
        "metrics.jsonl",
        "tensorboard",
    }
    lines = lines_of(out)
    steps = load_checkpoint(out / "last.safetensors").meta["state"]["dict"]
    training = [line for line in lines if "train/loss" in line]
    assert [line["step"] for line in training] == list(range(10, int(lines[-1]["step"]) + 1, 10))
    assert all(
        line.keys()
        == {
            "step",
            "time",
            "train/loss",
            "train/perplexity",
            "learning_rate",
            "gradient_norm",
            "tokens_per_second",
        }
        for line in training
    )
    assert all(math.exp(line["train/loss"]) == line["train/perplexity"] for line in training)
    valid = [line for line in lines if "valid/loss" in line]
    assert [line["epoch"] for line in valid] == [1, 2, 3]
    assert len([line for line in lines if "test/perplexity" in line]) == 1
    assert "test/perplexity" in lines[-1]
    assert steps

    events = EventAccumulator(str(out / "tensorboard"), size_guidance={"images": 0}).Reload()
    scalars = events.Tags()["scalars"]
    assert {
        "train/loss",
        "train/perplexity",
        "valid/perplexity",
        "test/perplexity",
        "learning_rate",
        "gradient_norm",
        "tokens_per_second",
        "hparam/test_perplexity",
    } <= set(scalars)
    for line in lines:
        for name, value in line.items():
            if name not in ("step", "time"):
                assert any(
                    event.step == line["step"] and event.value == pytest.approx(value)
                    for event in events.Scalars(name)
                ), name
    pictures = events.Images("recurrent eigenvalues")
    assert [picture.step for picture in pictures] == [line["step"] for line in valid[:2]]
    (picture,) = events.Images("eigenvalues, best model")
    assert picture.step == valid[-1]["step"]
    assert all(picture.encoded_image_string[1:4] == b"PNG" for picture in pictures)
    assert "environment/text_summary" in events.Tags()["tensors"]
    hparams = str(events.SummaryMetadata("_hparams_/session_start_info"))
    assert "hidden_size" in hparams

    report = capsys.readouterr().out
    assert report.splitlines()[0] == f"the run is kept in {out}"
    count = count_parameters(load_saved(out / "best.safetensors", torch.device("cpu")).model)
    assert report.splitlines()[1:4] == [
        "corpus           corpus: train 457, valid 111, test 90 tokens; 21 types",
        "model            lstm, 2 layers of 8, embedding 8, avg (hidden ifgo)",
        f"parameters       {count.training:,}, of these recurrent {count.recurrent:,}",
    ]
    assert report.splitlines()[4].startswith("runs on          cpu (")
    assert report.splitlines()[4].endswith("backend auto, fp32")
    assert report.splitlines()[5].startswith("length           3 epochs of ")
    assert report.splitlines()[6].startswith("epoch  1/3  lr 1 ")
    assert f"test perplexity       {lines[-1]['test/perplexity']:.2f}" in report
    assert "best possible" not in report


@pytest.fixture
def unheard(corpus: Path, tmp_path: Path) -> Path:
    """`corpus` with a rare word, and words in its valid and test text that the train text lacks."""
    folder = shutil.copytree(corpus, tmp_path / "unheard")
    for split, more in (("train", "rare"), ("valid", "new rare"), ("test", "new newer newest")):
        with (folder / f"{split}.txt").open("a", encoding="utf-8") as file:
            file.write(f"{more}\n")
    return folder


def test_rare_words_stand_for_the_unknown(
    train: Callable[..., int], unheard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert train("--data", unheard, "--min-count", 2, "--out", out, "--epochs", 1) == 0
    said = capsys.readouterr()
    assert "notice" not in said.err
    texts = {split: (unheard / f"{split}.txt").read_text("utf-8") for split in ("valid", "test")}
    tokens = {split: len(text.replace("\n", " <eos> ").split()) for split, text in texts.items()}
    shares = {"valid": 2 / tokens["valid"], "test": 3 / tokens["test"]}
    parts = [f"{2 + i} ({share:.2%} of tokens)" for i, share in enumerate(shares.values())]
    assert f"unknown words         valid {parts[0]}, test {parts[1]}\n" in said.out
    assert f"  unknown words {parts[0]}  " in said.out.splitlines()[6]
    for split, share in shares.items():
        assert value_of(out, f"{split}/unknown_share") == pytest.approx(share)
    config = json.loads((out / "config.json").read_text())
    assert (config["min_count"], config["trained_unknown"]) == (2, 1)
    # The same vocabulary to whoever evaluates, and to whoever goes on.
    assert lm.evaluate.main([str(out), "--threads", "1"]) == 0
    said = capsys.readouterr()
    assert f"unknown words         {parts[1]}\n" in said.out
    assert "notice" not in said.err
    assert lm.train.main(["--resume", str(out)]) == 0
    with pytest.raises(UserError, match=r"--min-count 3 contradicts the run in .*, which has 2"):
        lm.train.main(["--resume", str(out), "--min-count", "3"])


def test_an_unknown_word_that_was_never_trained_is_warned_of(
    train: Callable[..., int], unheard: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    warning = "a model whose train text has no <unk> does not learn what to expect of unknown words"
    (unheard / "valid.txt").write_text("w1 w2\n")
    for limit in ("--vocab-size 100", "--min-count 1"):
        assert train("--data", unheard, *limit.split(), "--dry-run") == 0
        said = capsys.readouterr().err
        assert said.startswith(f"notice: {warning}: valid 0 (0.00% of tokens), test 3 (")
        assert said.endswith("; --min-count 2 makes the rare words of the train text <unk>\n")
    pieces = ["--tokenizer", "sentencepiece", "--vocab-size", 30, "--epochs", 1]
    (unheard / "test.txt").write_text("newer\n")
    assert train("--data", unheard, *pieces, "--out", out) == 0
    assert warning not in capsys.readouterr().err  # its pieces make up all words
    (unheard / "test.txt").write_text("w1 戦\n", encoding="utf-8")
    lm.evaluate.main([str(out), "--data", str(unheard)])
    said = capsys.readouterr()
    assert f"notice: {warning}: here 1 (" in said.err
    assert "unknown words         1 (" in said.out
    for prompt, warned in (("w1", False), ("w1 戦", True)):
        lm.generate.main([str(out), "--prompt", prompt, "--tokens", "1"])
        assert (
            f"notice: {warning}, as some of the prompt are" in capsys.readouterr().err
        ) == warned
    assert train("--data", unheard, *pieces, "--dry-run") == 0
    assert f"notice: {warning}: valid 0 (0.00% of tokens), test 1 (" in capsys.readouterr().err


def test_a_run_from_before_there_was_a_least_count_goes_on(run_copy: Path) -> None:
    config = json.loads((run_copy / "config.json").read_text())
    del config["min_count"], config["trained_unknown"]
    (run_copy / "config.json").write_text(json.dumps(config))
    assert lm.train.main(["--resume", str(run_copy)]) == 0


def test_the_picture_has_a_panel_for_each_layer_and_gate() -> None:
    for cell, gates in {"lstm": "ifgo", "gru": "rzn", "rnn": "h"}.items():
        figure = spectrum_figure(LanguageModel(5, 4, 4, cell=cell, symm="avg").rnn)
        titles = [panel.get_title() for panel in figure.axes]
        assert titles == [f"layer {layer}, gate {gate}" for layer in (0, 1) for gate in gates]


def test_spectra_of_several_models_side_by_side() -> None:
    """A symmetric matrix has real eigenvalues; planes and free blocks give others."""
    forms = ("avg", "none", "avg:diag2", "avg:skew2")
    torch.manual_seed(1)
    models = {form: LanguageModel(5, 8, 8, symm=form).rnn for form in forms}
    v = models["avg:skew2"].weight_hh_l0_avg_skew2
    torch.nn.init.normal_(v.data)  # it starts symmetric
    figure = compare_spectra(models, 0, "hh")
    panels = {panel.get_title(): panel for panel in figure.axes}
    assert list(panels) == [f"{form}, gate {gate}" for form in forms for gate in "ifgo"]
    off_the_line = dict.fromkeys(forms, 0.0)
    for title, panel in panels.items():
        (points,) = [line for line in panel.lines if line.get_marker() == "."]
        assert len(points.get_xdata()) == 8
        form = title.partition(",")[0]
        off_the_line[form] = max(off_the_line[form], *abs(points.get_ydata()))
    assert off_the_line["avg"] == 0
    assert min(off_the_line[form] for form in forms[1:]) > 1e-3
    assert len(compare_spectra(models, 1, "ih").axes) == 16
    with pytest.raises(ValueError, match=r"^layer should be 0 to 1, got: 2$"):
        compare_spectra(models, 2, "hh")
    wide = {"none": LanguageModel(5, 6, 8, symm="none").rnn}
    with pytest.raises(ValueError, match=r"^the blocks of weight_ih_l0 are not square$"):
        compare_spectra(wide, 0, "ih")
    with pytest.raises(ValueError, match=r"^models should have the same gates, got: ifgo, rzn$"):
        compare_spectra(models | {"gru": LanguageModel(5, 8, 8, cell="gru").rnn}, 0, "hh")


def test_the_plateau_divides_when_validation_is_no_better(
    train: Callable[..., int], tmp_path: Path
) -> None:
    # So large a rate that random words get worse from epoch to epoch, sometimes.
    arguments = "--recipe annealed --epochs 6 --lr 20 --log-every 1"
    train("--out", tmp_path / "run", *arguments.split())
    rates: list[float] = []
    losses: list[float] = []
    for line in lines_of(tmp_path / "run"):
        if "learning_rate" in line:
            rate = line["learning_rate"]
        elif "valid/loss" in line:
            rates.append(rate)
            losses.append(line["valid/loss"])
    wanted, best = [20.0], math.inf
    for loss in losses:
        wanted.append(wanted[-1] if loss < best else wanted[-1] / 4)
        best = min(best, loss)
    assert rates == wanted[:-1]
    assert len(set(rates)) > 1
    kept = open_packed(tmp_path / "run" / "best.safetensors").meta
    assert kept["epoch"] == losses.index(best) + 1
    assert kept["valid_perplexity"] == pytest.approx(math.exp(best))


def test_a_log_says_how_far_a_validation_is(
    train: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A large model takes minutes for it on a CPU. Here there is a line for every window."""
    monkeypatch.setattr("symrnn.training.progress.FIRST", 0.0)
    monkeypatch.setattr("symrnn.training.progress.EVERY", 0.0)
    monkeypatch.setattr("lm.perplexity.STEPS", 20)
    train("--epochs", 1, "--out", tmp_path / "run")
    lines = capsys.readouterr().err.splitlines()
    corpus = open_corpus(load_saved(tmp_path / "run", torch.device("cpu")).config["data"])
    for split in ("valid", "test"):
        said = [line for line in lines if line.startswith(f"{split} text ")]
        tokens = corpus.split(split).tokens
        shares = [f"{done / tokens:.0%}" for done in range(20, tokens, 20)]
        assert [line.split()[2] for line in said] == shares


def test_a_dry_run_writes_nothing(
    train: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train("--dry-run") == 0
    assert train("--dry-run", "--out", tmp_path / "out") == 0
    assert list(tmp_path.iterdir()) == []
    lines = capsys.readouterr().out.splitlines()
    assert "hidden_size      8" in lines
    assert any(line.split() == ["parameters,", "training", "1,285"] for line in lines)


def test_without_out_each_run_gets_a_folder_of_its_own(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        train("--epochs", 1)
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert folders == ["corpus-small-avg-seed1", "corpus-small-avg-seed1-2"]
    first, second = (open_packed(tmp_path / "runs" / n / "best.safetensors") for n in folders)
    for name, tensor in first.tensors.items():  # and the same seed gives the same run
        assert torch.equal(tensor, second.tensors[name])
    train("--epochs", 1, "--cell", "gru")
    assert (tmp_path / "runs" / "corpus-small-gru-avg-seed1" / "best.safetensors").exists()
    train("--epochs", 1, "--soft-symmetry", 0.01)
    assert (tmp_path / "runs" / "corpus-small-soft0.01-seed1" / "best.safetensors").exists()
    train("--epochs", 1, "--symm", "chunk2:rows", "--recipe", "annealed", "--lr", 1)
    assert (tmp_path / "runs" / "corpus-small-chunk2-rows-annealed-seed1").exists()


def has_compiler() -> bool:
    return any(map(shutil.which, ("c++", "g++", "clang++")))


EXTRAS = ("matplotlib", "pooch", "sentencepiece", "tensorboard", "tqdm")


@pytest.mark.parametrize("packages", [EXTRAS, ["matplotlib"]])
def test_without_what_is_no_necessity(
    train: Callable[..., int],
    tmp_path: Path,
    with_picture: None,
    without: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
    packages: Sequence[str],
) -> None:
    """That there are no curves or figures is said at the start, and all else is done."""
    without(*packages)
    out = tmp_path / "run"
    assert train("--out", out) == 0
    output = capsys.readouterr()
    assert output.err.count("notice: ") == 1
    assert "(pip install 'symrnn[train]'): " in output.err
    assert value_of(out, "epoch") == 2
    assert (out / "tensorboard").exists() == ("tensorboard" not in packages)
    assert lm.evaluate.main([str(out)]) == 0
    assert lm.generate.main([str(out), "--tokens", "3"]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        "--precision bf16",
        "--precision fp64",
        "--tied --dropout 0.5",
        "--symm-hh if --symm-ih go",
        "--cell gru --lr 0.3",
        "--cell gru --lr 0.3 --symm-hh nz --symm-ih r --precision bf16",
        "--cell rnn",
        "--cell rnn --symm none --backend script",
        "--embedding-size 5 --layers 1 --dropout 0.3",
        "--layers 3 --dropout 0.3 --recipe annealed",
        "--tokenizer sentencepiece --vocab-size 28",
        "--vocab-size 10",
        pytest.param(
            "--compile --layers 1",
            marks=pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler"),
        ),
        *(
            f"--backend {name}"
            for name in list_backends()
            if name != "folded" and (name != "fused" or native.available())
        ),
        "--symm none",
        "--symm avg:full --precision bf16",
        "--symm tri8 --backend folded",
        "--symm chunk4:rows --cell gru --lr 0.3 --backend folded --precision fp64",
        "--symm eigen:3 --symm-ih g",
        "--soft-symmetry 0.01 --precision bf16",
        "--cell rnn --lr 0.3 --soft-symmetry 0.01 --soft-norm 1 --precision fp64",
        "--soft-symmetry 0.01 --tied --layers 1",
    ],
)
def test_ways_to_train(
    train: Callable[..., int], tmp_path: Path, arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--out", tmp_path / "run", "--epochs", 1, "--steps", 20, *arguments.split()) == 0
    assert value_of(tmp_path / "run", "test/perplexity") < 60
    tensors = open_packed(tmp_path / "run" / "best.safetensors").tensors
    wanted = torch.float64 if "fp64" in arguments else torch.float32
    assert {tensor.dtype for tensor in tensors.values()} == {wanted}
    for program in (lm.evaluate.main, lm.generate.main):
        assert program([str(tmp_path / "run"), "--threads", "1"]) == 0
    evaluated = capsys.readouterr().out.split("perplexity per token  ")[1].split()[0]
    logged = value_of(tmp_path / "run", "test/perplexity")
    assert float(evaluated) == pytest.approx(logged, rel=1e-3 if "bf16" in arguments else 1e-5)
