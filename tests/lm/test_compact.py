"""The recipe compact and what it is made of: each part against a hand-made one."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from resumed import KilledError, assert_same_run, dying_after
from torch import Tensor, nn
from torch.nn import functional as F

import lm.train
from lm.export import linear_end
from lm.learner import LanguageLearner
from lm.model import LanguageModel
from lm.optimizers import make_optimizer
from lm.options import make_parser, resolve
from lm.recipes import lr_at
from lm.saved import build_model, load_saved
from lm.sweep_results import standing_of
from symrnn import SymLSTM, count_parameters
from symrnn.files import UserError
from symrnn.training import Tracker, World
from symrnn.training.command_line import given

TINY = "--hidden-size 6 --embedding-size 4 --layers 1 --batch-size 4 --steps 5"


def config_of(*arguments: str) -> dict[str, Any]:
    return resolve(given(make_parser().parse_args(arguments)))


def learner_of(*arguments: str, vocabulary: int = 12) -> LanguageLearner:
    config = {**config_of(*TINY.split(), *arguments), "device": "cpu"}
    torch.manual_seed(1)
    model = build_model(config, vocabulary)
    model.initialize(config["init_range"], config["forget_bias"])
    with World() as world:
        return LanguageLearner(model, config, world)


def batch_of(seed: int, vocabulary: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, (6, 4), generator=generator)
    return ids[:-1], ids[1:]


# ---- the model ---------------------------------------------------------------------------------


def test_the_published_size() -> None:
    """Ten million weights for 10,000 words; 7.2 million if the hidden ones are symmetric."""
    for symm, recurrent in (("none", 4 * 1194**2), ("avg", 4 * 1194 * 1195 // 2)):
        config = config_of("--recipe", "compact", "--symm", symm)
        with torch.device("meta"):
            model = build_model(config, 10_000)
        words, others = 10_000 * 268 + 10_000, 4 * 1194 * 268 + 8 * 1194 + 1194 * 268
        assert count_parameters(model).training == words + others + recurrent
    assert words + others + recurrent == pytest.approx(7.2e6, rel=0.01)


def test_a_tied_decoder_of_another_width_has_a_projection() -> None:
    torch.manual_seed(1)
    model = LanguageModel(11, 4, 6, 1, tied=True)
    model.initialize(0.3)
    ids = torch.randint(11, (5, 2))
    logits, (h, _) = model.eval()(ids)
    output, _ = model.rnn.to_plain()(F.embedding(ids, model.encoder.weight))
    assert isinstance(model.projection, nn.Linear)
    assert model.projection.bias is None
    expected = output @ model.projection.weight.T @ model.encoder.weight.T + model.decoder.bias
    torch.testing.assert_close(logits, expected)
    assert torch.equal(h[0], output[-1])
    assert isinstance(LanguageModel(11, 6, 6, tied=True).projection, nn.Identity)
    stream = model.stream(2)
    torch.testing.assert_close(torch.cat([stream(ids[:2]), stream(ids[2:])]), expected)


def test_the_runtime_gets_projection_and_decoder_as_one() -> None:
    torch.manual_seed(1)
    model = LanguageModel(11, 4, 6, 1, tied=True)
    x = torch.randn(5, 6)
    torch.testing.assert_close(linear_end(model)(x), model.decoder(model.projection(x)))
    assert linear_end(LanguageModel(11, 6, 6, tied=True)).weight.shape == (11, 6)
    with pytest.raises(UserError, match="--to runtime has no adaptive softmax"):
        linear_end(LanguageModel(11, 6, 6, adaptive=[4]))


def test_the_forget_gates_start_open() -> None:
    model = LanguageModel(5, 4, 6, 2)
    model.initialize(0.1, forget_bias=3.0)
    for layer in range(2):
        i, f, g, o = getattr(model.rnn, f"bias_ih_l{layer}").chunk(4)
        assert f.min() > 2.89
        assert max(part.abs().max() for part in (i, g, o)) <= 0.1


def test_each_dropout_has_its_place() -> None:
    config = config_of("--recipe", "compact", "--dropout", "0.1", "--layers", "2")
    model = build_model(config | {"hidden_size": 6, "embedding_size": 4}, 12)
    assert (model.input_drop.p, model.rnn.dropout, model.output_drop.p) == pytest.approx(
        (0.5799, 0.1, 0.327), abs=1e-3
    )
    assert model.rnn.state_dropout == pytest.approx(0.2153, abs=1e-4)
    plain = build_model(config_of("--dropout", "0.2"), 12)
    assert (plain.input_drop.p, plain.output_drop.p, plain.rnn.state_dropout) == (0.2, 0.2, 0.0)
    still, ids = model.without_dropout(), torch.randint(12, (3, 2))
    assert still.training
    assert torch.equal(still(ids)[0], model.eval()(ids)[0])


# ---- optimizers --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adam", "adamw", "rmsprop"])
@pytest.mark.parametrize("symm", ["none", "tri", "avg", "avg4", "block4"])
def test_the_first_adaptive_step_moves_every_entry_as_in_a_plain_layer(
    name: str, symm: str
) -> None:
    """By the rate, whatever the gradient, and wherever in its orbit the entry is."""
    model = LanguageModel(5, 8, 8, 1, symm=symm)
    config = config_of("--optimizer", name, "--lr", "0.01", "--beta1", "0")
    optimizer = make_optimizer(model, config | {"beta2": 0.99})
    before = model.rnn.weight_hh_l0.detach().clone()
    torch.manual_seed(2)
    (model.rnn.weight_hh_l0 * torch.randn(32, 8)).sum().backward()
    optimizer.step()
    moved = (model.rnn.weight_hh_l0.detach() - before).abs() / 0.01
    # RMSprop's first average lacks a factor of 1 - beta2.
    moved = moved / 10 if name == "rmsprop" else moved
    orbit = {"avg": 64 / 36, "avg4": 64 / 20}.get(symm, 1.0)  # on average
    sizes = {"avg": (1, 2), "avg4": (1, 2, 4)}.get(symm, (1,))
    allowed = torch.tensor([math.sqrt(orbit / size) for size in sizes])
    assert ((moved[..., None] - allowed).abs().min(-1).values < 1e-3).all()


@pytest.mark.parametrize("name", ["sgd", "adam", "rmsprop", "adamw"])
@pytest.mark.parametrize("symm", ["none", "avg", "avg4", "block4", "chunk2"])
def test_a_symmetric_matrix_decays_as_a_plain_one(name: str, symm: str) -> None:
    """By lr · decay of itself; what it loses to the decay, a gradient of that size gives back."""
    model = LanguageModel(5, 8, 8, 1, symm=symm).double()
    arguments = f"--optimizer {name} --lr 0.01 --beta1 0 --weight-decay 0.3"
    optimizer = make_optimizer(model, config_of(*arguments.split()))
    before = model.rnn.weight_hh_l0.detach().clone()
    given_back = 0.0 if name == "adamw" else 0.3  # its decay is no part of the gradient
    (-given_back / 2 * model.rnn.weight_hh_l0.square().sum()).backward()
    optimizer.step()
    wanted = before * (1 - 0.01 * 0.3) if name == "adamw" else before
    torch.testing.assert_close(model.rnn.weight_hh_l0.detach(), wanted, rtol=1e-7, atol=1e-9)


def test_optimizers_are_torchs_with_the_numbers_given() -> None:
    model = LanguageModel(5, 4, 4)
    arguments = "--lr 0.5 --momentum 0.9 --beta1 0.1 --beta2 0.2 --epsilon 0.3 --weight-decay 0.4"
    wanted: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
        "sgd": (torch.optim.SGD, {"momentum": 0.9}),
        "adam": (torch.optim.Adam, {"betas": (0.1, 0.2), "eps": 0.3}),
        "adamw": (torch.optim.AdamW, {"betas": (0.1, 0.2), "eps": 0.3}),
        "rmsprop": (torch.optim.RMSprop, {"alpha": 0.2, "eps": 0.3}),
        "asgd": (torch.optim.ASGD, {}),
    }
    for name, (kind, numbers) in wanted.items():
        made = make_optimizer(model, config_of("--optimizer", name, *arguments.split()))
        assert type(made) is kind
        for group in made.param_groups:
            decay = group["weight_decay"] * (group["lr_scale"] if name == "adamw" else 1.0)
            assert decay == pytest.approx(0.4)
            assert {key: group[key] for key in numbers} == numbers
    with pytest.raises(UserError, match="--optimizer adam: Invalid beta parameter"):
        make_optimizer(model, config_of("--optimizer", "adam", "--beta2", "1"))


def test_warmup_and_cosine() -> None:
    assert [lr_at(k, 2.0, 4, None) for k in range(1, 7)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    rates = [lr_at(k, 2.0, 0, 8) for k in range(1, 9)]
    assert rates == pytest.approx([1 + math.cos(math.pi * k / 8) for k in range(8)])
    warmed = [lr_at(k, 2.0, 2, 10) for k in range(1, 11)]
    assert warmed[:2] == [1.0, 2.0]
    assert warmed[2:] == pytest.approx([1 + math.cos(math.pi * k / 8) for k in range(8)])


# ---- a step ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--symm none --soft-symmetry 0.1",
        "--dropout 0.5 --input-dropout 0.3 --output-dropout 0.2",
        "--dropout 0.5 --symm none --layers 2",
        "--dropout 0.5 --fixed-masks --embedding-dropout 0.3 --layers 2",
        "--state-dropout 0.4 --weight-dropout 0.3 --reset-state 0.3",
    ],
)
def test_gradients_added_up_are_those_of_the_whole_batch(options: str) -> None:
    """With whatever falls in it."""
    given = options.split()
    whole, parts = learner_of(*given), learner_of(*given, "--accumulate", "2")
    for seed in range(3):
        values = [learner.step(*batch_of(seed)) for learner in (whole, parts)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert whole.hidden is not None
    assert parts.hidden is not None
    for one, other in zip(whole.hidden, parts.hidden, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_processes_exchange_the_gradients_of_all_parts_at_once() -> None:
    learner, seen = learner_of("--accumulate", "4"), []

    @contextmanager
    def alone() -> Iterator[None]:
        seen.append("alone")
        yield

    learner.alone = alone
    learner.model.encoder.register_forward_hook(lambda *_: seen.append("part"))
    learner.step(*batch_of(0))
    assert seen == ["alone", "part"] * 3 + ["part"]


def test_a_state_begins_anew_by_chance() -> None:
    learner = learner_of("--reset-state", "0.25")
    learner.config["batch_size"] = 4000
    learner.hidden = tuple(torch.ones(1, 4000, 6) for _ in "hc")
    h, c = learner._carried() or ()
    assert torch.equal(h, c)
    assert {*h.unique().tolist()} == {0.0, 1.0}
    assert torch.equal(h.amin(-1), h.amax(-1))  # a stream as a whole
    # 4,000 streams: a standard deviation of 0.0068 of the share.
    assert abs(h.mean().item() - 0.75) < 0.03
    learner.config["reset_state"] = 0.0
    assert learner._carried() is learner.hidden


# ---- over epochs -------------------------------------------------------------------------------


def test_a_rate_waits_before_it_is_divided() -> None:
    learner = learner_of("--schedule", "plateau", "--lr", "8", "--lr-divide", "2")
    learner.config["lr_patience"] = 2
    rates = []
    for is_best in (True, False, True, False, False, False, False, True, False):
        learner.judge(is_best)
        rates.append(learner.progress.lr)
    assert rates == [8, 8, 8, 8, 4, 4, 2, 2, 2]


def test_a_run_ends_when_its_patience_does() -> None:
    learner = learner_of("--patience", "3")
    judged = [learner.judge(is_best) for is_best in (True, False, False, True, *[False] * 3)]
    assert judged == [False] * 6 + [True]


def test_the_average_is_the_mean_of_the_weights_after_each_step() -> None:
    learner = learner_of("--averaging", "2", "--optimizer", "adam", "--lr", "0.01")
    assert learner.final() is learner.model
    for is_best in (True, False, False):
        learner.step(*batch_of(0))
        learner.judge(is_best)
    assert learner.final() is learner.model  # nothing to average yet
    seen: list[list[Tensor]] = []
    for seed in range(3):
        learner.step(*batch_of(seed))
        seen.append([p.detach().clone() for p in learner.model.parameters()])
    for mean, *each in zip(learner.final().parameters(), *seen, strict=True):
        torch.testing.assert_close(mean.detach(), torch.stack(each).mean(0))
    other = copy.deepcopy(learner.state())
    again = learner_of("--averaging", "2", "--optimizer", "adam", "--lr", "0.01")
    again.load_state(other)
    for mean, loaded in zip(learner.final().parameters(), again.final().parameters(), strict=True):
        assert torch.equal(mean, loaded)


def test_averaged_sgd_is_the_mean_of_all_steps_of_sgd() -> None:
    """Neither weights nor rate decay, as they would by torch's defaults."""
    options = ["--lr", "0.5", "--momentum", "0"]
    averaged, plain = (learner_of("--optimizer", name, *options) for name in ("asgd", "sgd"))
    seen: list[list[Tensor]] = []
    for seed in range(4):
        for learner in (averaged, plain):
            learner.step(*batch_of(seed))
        seen.append([p.detach().clone() for p in plain.model.parameters()])
    for mean, last, *each in zip(
        averaged.final().parameters(), averaged.model.parameters(), *seen, strict=True
    ):
        torch.testing.assert_close(last.detach(), each[-1])
        torch.testing.assert_close(mean.detach(), torch.stack(each).mean(0))


def test_a_former_run_of_averaged_sgd_goes_on_as_it_was() -> None:
    """With torch's own decay, and without a mean."""
    options = ["--optimizer", "asgd", "--lr", "0.5"]
    former, again = learner_of(*options), learner_of(*options)
    former.average = None
    for group in former.optimizer.param_groups:
        group["lambd"] = 1e-4
    former.step(*batch_of(0))
    again.load_state(copy.deepcopy(former.state()))
    again.model.load_state_dict(former.model.state_dict())
    again.progress = copy.deepcopy(former.progress)
    for learner in (former, again):
        learner.step(*batch_of(1))
    assert again.final() is again.model
    for one, other in zip(former.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


# ---- whole runs --------------------------------------------------------------------------------

RUNS = {
    "compact": "--recipe compact --averaging 1 --epochs 3 --lr 0.05",
    "adamw": "--optimizer adamw --lr 0.02 --schedule cosine --warmup 3 --epochs 2 --accumulate 2",
    "momentum": "--momentum 0.9 --weight-decay 1e-4 --weight-dropout 0.3 --epochs 2",
    "asgd": "--optimizer asgd --state-dropout 0.2 --epochs 2",
}


@pytest.mark.parametrize("name", RUNS)
def test_killed_and_resumed(
    name: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends as the run that nothing stopped, and its best model can be loaded."""
    monkeypatch.setattr(Tracker, "hparams", lambda *_: None)
    arguments = ["--data", str(corpus), *TINY.split(), *RUNS[name].split(), "--threads", "1"]
    arguments += ["--save-every", "3", "--log-every", "2", "--out"]
    straight, run = tmp_path / "straight", tmp_path / "run"
    assert lm.train.main([*arguments, str(straight)]) == 0
    original = Tracker.scalars
    monkeypatch.setattr(Tracker, "scalars", dying_after(7, original))
    with pytest.raises(KilledError):
        lm.train.main([*arguments, str(run)])
    monkeypatch.setattr(Tracker, "scalars", original)
    assert lm.train.main(["--resume", str(run)]) == 0
    assert_same_run(straight, run)
    saved = load_saved(run, torch.device("cpu"))
    assert isinstance(saved.model.rnn, SymLSTM)


def test_a_run_without_patience_left_is_finished(
    corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = ["--data", str(corpus), *TINY.split(), "--threads", "1", "--out", str(run)]
    # A rate of next to nothing: no validation is better than the first by more than rounding.
    assert lm.train.main([*arguments, "--patience", "1", "--epochs", "9", "--lr", "1e-30"]) == 0
    output = capfd.readouterr().out
    assert "test perplexity" in output
    assert "interrupted" not in output
    assert output.count("\nepoch ") == 2
    assert lm.train.main(["--resume", str(run)]) == 0
    assert "it is finished: 2 epochs" in capfd.readouterr().out
    assert lm.train.main(["--resume", str(run), "--epochs", "20"]) == 0
    output = capfd.readouterr().out
    assert "more epochs are not begun: it ended after 2, by its recipe\n" in output
    assert "extended" not in output
    standing = standing_of(run, epochs=9)  # as a sweep sees it
    assert standing.finished
    assert standing.test is not None
    assert standing.epochs == 2


# ---- what is refused ---------------------------------------------------------------------------

REFUSED = {
    "--recipe compact --size large": "compact has the sizes small, medium, got: large",
    "--cell gru --forget-bias 1": "--forget-bias is for --cell lstm, got: --cell gru",
    "--accumulate 3": "--accumulate 3 should divide the batch, got: --batch-size 20",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_refused(arguments: str) -> None:
    with pytest.raises(UserError, match=REFUSED[arguments]):
        config_of(*arguments.split())
