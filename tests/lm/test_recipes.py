"""Every number of the recipes, against the published tables; and that each can be overridden."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

import lm.train
from lm.model import LanguageModel
from lm.optimizers import make_optimizer
from lm.options import READ_BY, make_parser, resolve, without_effect
from lm.recipes import OPTIMIZERS, SIZES, Recipe, lr_in, recipe_of
from symrnn.training.command_line import given

# hidden, steps, dropout, init, divide, after, epochs, clip: Zaremba et al. 2014, section 4.1.
ZAREMBA = {
    "small": (200, 20, 0.0, 0.1, 2.0, 4, 13, 5.0),
    "medium": (650, 35, 0.5, 0.05, 1.2, 6, 39, 5.0),
    "large": (1500, 35, 0.65, 0.04, 1.15, 14, 55, 10.0),
}


def config(*arguments: str) -> dict[str, object]:
    return resolve(given(make_parser().parse_args(arguments)))


@pytest.mark.parametrize("size", ZAREMBA)
def test_the_sizes_are_zarembas(size: str) -> None:
    hidden, steps, dropout, init, divide, after, epochs, clip = ZAREMBA[size]
    assert recipe_of(size, "zaremba") == Recipe(
        hidden_size=hidden,
        embedding_size=hidden,
        num_layers=2,
        steps=steps,
        batch_size=20,
        dropout=dropout,
        init_range=init,
        lr=1.0,
        schedule="epochs",
        lr_divide=divide,
        lr_after=after,
        epochs=epochs,
        clip=clip,
        loss="sum",
    )


@pytest.mark.parametrize("size", SIZES)
def test_the_annealed_recipe(size: str) -> None:
    made, size_of = recipe_of(size, "annealed"), recipe_of(size, "zaremba")
    assert (made.lr, made.clip, made.lr_divide, made.schedule) == (20.0, 0.25, 4.0, "plateau")
    assert (made.loss, made.init_range) == ("mean", 0.1)
    assert 40 <= made.epochs <= 50
    assert made.hidden_size == size_of.hidden_size
    assert (made.steps, made.dropout) == (size_of.steps, size_of.dropout)


def test_a_rate_too_small_for_a_number() -> None:
    assert lr_in(13, 1.0, 1e300, 12) == 1e-300
    assert lr_in(14, 1.0, 1e300, 12) == 0.0


@pytest.mark.parametrize("size", ZAREMBA)
def test_the_learning_rate_epoch_by_epoch(size: str) -> None:
    divide, after, epochs = ZAREMBA[size][4:7]
    rate, wanted = 1.0, []
    for epoch in range(1, epochs + 1):
        if epoch > after:
            rate /= divide
        wanted.append(rate)
    recipe = SIZES[size]
    found = [lr_in(n, recipe.lr, recipe.lr_divide, recipe.lr_after) for n in range(1, epochs + 1)]
    assert found == pytest.approx(wanted)
    assert found[after - 1] == 1.0
    assert found[after] == pytest.approx(1 / divide)


def test_without_options_small_avg_on_the_builtin_corpus() -> None:
    made = config()
    assert (made["data"], made["size"], made["symm"]) == ("builtin", "small", "avg")
    assert (made["recipe"], made["symm_hh"], made["symm_ih"]) == ("zaremba", "ifgo", "")
    assert (made["seed"], made["device"], made["backend"]) == (1, "auto", "auto")


OVERRIDES = {
    "hidden_size": "7",
    "embedding_size": "6",
    "num_layers": "3",
    "steps": "4",
    "batch_size": "3",
    "dropout": "0.25",
    "init_range": "0.02",
    "lr": "0.5",
    "schedule": "plateau",
    "lr_divide": "3",
    "lr_after": "2",
    "epochs": "9",
    "clip": "1.5",
    "loss": "mean",
    "tied": "",
    "input_dropout": "0.1",
    "output_dropout": "0.2",
    "state_dropout": "0.3",
    "weight_dropout": "0.4",
    "forget_bias": "1.5",
    "reset_state": "0.05",
    "optimizer": "adam",
    "momentum": "0.7",
    "beta1": "0.8",
    "beta2": "0.98",
    "epsilon": "0.001",
    "weight_decay": "0.01",
    "lr_patience": "4",
    "warmup": "10",
    "patience": "5",
    "averaging": "6",
    "accumulate": "2",
    "random_steps": "",
    "last_hidden_size": "5",
    "fixed_masks": "",
    "embedding_dropout": "0.35",
    "activation_penalty": "2.5",
    "temporal_penalty": "1.25",
    "non_monotone": "3",
    "init": "torch",
}


def test_each_number_of_the_recipe_can_be_overridden() -> None:
    assert OVERRIDES.keys() == {field.name for field in fields(Recipe)}
    plain = config("--size", "large")
    for name, text in OVERRIDES.items():
        option = "--layers" if name == "num_layers" else "--" + name.replace("_", "-")
        made = config("--size", "large", option, *([text] if text else []))
        assert str(made[name]) in (text or "True", f"{text}.0")
        changed = {key for key in made if made[key] != plain[key]}
        # The embedding is as wide as the hidden state, unless it is given.
        assert changed == ({name, "embedding_size"} if name == "hidden_size" else {name})


@pytest.mark.parametrize(
    ("arguments", "sentences"),
    [
        ("--lr-after 3 --lr-divide 2 --momentum 0.5", []),
        ("--optimizer adam --beta1 0.5 --epsilon 1e-3", []),
        ("--recipe compact", []),  # what a recipe has stands for nothing that was asked for
        ("--optimizer adam --momentum 0.5", ["--momentum 0.5 has no effect with --optimizer adam"]),
        ("--optimizer rmsprop --beta1 0.5", ["--beta1 0.5 has no effect with --optimizer rmsprop"]),
        ("--optimizer asgd --averaging 2", ["--averaging 2 has no effect with --optimizer asgd"]),
        ("--lr-patience 3", ["--lr-patience 3 has no effect with --schedule epochs"]),
        ("--recipe annealed --lr-after 1", ["--lr-after 1 has no effect with --schedule plateau"]),
        ("--schedule cosine --lr-after 2", ["--lr-after 2 has no effect with --schedule cosine"]),
        ("--symm none --symm-ih ifgo", ["--symm-ih ifgo has no effect with --symm none"]),
        (
            "--recipe compact --dropout 0.5 --momentum 0.5",
            [
                "--momentum 0.5 has no effect with --optimizer adam",
                "--dropout 0.5 has no effect with --layers 1, --input-dropout 0.579892 and "
                "--output-dropout 0.327009",
            ],
        ),
        ("--recipe compact --layers 2 --dropout 0.5", []),
    ],
)
def test_an_option_that_nothing_reads_is_named(arguments: str, sentences: list[str]) -> None:
    own = given(make_parser().parse_args(arguments.split()))
    assert without_effect(own, resolve(own)) == sentences


def test_the_program_says_so_before_it_trains(capsys: pytest.CaptureFixture[str]) -> None:
    assert lm.train.main(["--optimizer", "adam", "--momentum", "0.5", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert said.err == "notice: --momentum 0.5 has no effect with --optimizer adam\n"
    assert "momentum         0.5" in said.out


@pytest.mark.parametrize("arguments", ["--schedule cosine", "--warmup 1000000", "--lr-after 1"])
def test_the_rate_that_is_said_is_the_last_steps(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str
) -> None:
    small = "--hidden-size 4 --batch-size 4 --steps 5 --epochs 3 --log-every 1"
    out = tmp_path / "run"
    run = ["--data", str(corpus), *f"{small} {arguments}".split(), "--out", str(out)]
    assert lm.train.main(run) == 0
    said = re.findall(r"^epoch +\d/3  lr (\S+) ", capsys.readouterr().out, re.MULTILINE)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}
    ends = [line["step"] for line in lines if "valid/loss" in line]
    assert said == [f"{rates[step]:.4g}" for step in ends]


def test_which_optimizers_read_a_number() -> None:
    """As make_optimizer has it: the groups differ if, and only if, the number is read."""
    model = LanguageModel(5, 4, 4)
    for name, (reader, kinds) in READ_BY.items():
        if reader != "optimizer" or name in ("averaging", "non_monotone"):
            continue
        for kind in OPTIMIZERS:
            first, other = (
                make_optimizer(model, {**config("--optimizer", kind), name: value}).defaults
                for value in (0.25, 0.5)
            )
            assert (first != other) == (kind in kinds), (name, kind)


def test_the_gates_come_in_pytorchs_order() -> None:
    assert config("--symm-hh", "of")["symm_hh"] == "fo"
    assert config("--symm-hh", "")["symm_hh"] == ""


@pytest.mark.parametrize("program", ["train", "evaluate", "generate"])
def test_help_has_an_example(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    import importlib

    module = importlib.import_module(f"lm.{program}")
    with pytest.raises(SystemExit) as end:
        module.main(["--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert f"  python -m lm.{program} " in text
    assert all(len(line) <= 100 for line in text.splitlines())
