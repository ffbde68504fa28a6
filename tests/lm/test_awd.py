"""The recipe awd and what it is made of: each part against a hand-made one."""

from __future__ import annotations

import math
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
import pytest
import torch
from resumed import KilledError, assert_same_run, dying_after, lines_of
from torch import Tensor, nn
from torch.nn import functional as F
from worlds import ended, program

import lm.evaluate
import lm.export
import lm.generate
import lm.hub
import lm.train
from data import DataError, RandomBatches
from lm.learner import LanguageLearner, activation_penalty
from lm.model import LanguageModel
from lm.options import make_parser, resolve
from lm.recipes import recipe_of
from lm.saved import build_model, load_saved
from lm.stack import FixedDropout, RecurrentStack
from symrnn import count_parameters, native
from symrnn.export import KINDS
from symrnn.files import UserError
from symrnn.training import Tracker, World, load_checkpoint, seed_step
from symrnn.training.command_line import given


def config_of(*arguments: str) -> dict[str, Any]:
    return resolve(given(make_parser().parse_args(arguments)))


def learner_of(*arguments: str, vocabulary: int = 12) -> LanguageLearner:
    """Of three layers of 6, 6 and 4."""
    sizes = "--hidden-size 6 --embedding-size 4 --last-hidden-size 4 --layers 3 --tied"
    config = config_of(*sizes.split(), "--batch-size", "4", "--steps", "5", *arguments)
    torch.manual_seed(1)
    model = build_model(config, vocabulary)
    model.initialize(0.3)
    with World() as world:
        return LanguageLearner(model, {**config, "device": "cpu"}, world)


def batch_of(seed: int, vocabulary: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary, (6, 4), generator=generator)
    return ids[:-1], ids[1:]


# ---- the table -----------------------------------------------------------------------------------


def test_the_numbers_are_the_published_ones() -> None:
    """The defaults of main.py, with what the command for the Penn Treebank says."""
    recipe = recipe_of("small", "awd")
    sizes = recipe.embedding_size, recipe.hidden_size, recipe.last_hidden_size, recipe.num_layers
    assert sizes == (400, 1150, 400, 3)
    assert (recipe.optimizer, recipe.lr, recipe.clip, recipe.loss) == ("sgd", 30, 0.25, "mean")
    assert (recipe.batch_size, recipe.steps, recipe.epochs) == (20, 70, 500)
    dropouts = recipe.output_dropout, recipe.dropout, recipe.input_dropout
    assert (*dropouts, recipe.embedding_dropout) == (0.4, 0.25, 0.4, 0.1)
    assert (recipe.weight_dropout, recipe.state_dropout) == (0.5, 0.0)
    assert (recipe.activation_penalty, recipe.temporal_penalty) == (2, 1)
    assert (recipe.weight_decay, recipe.non_monotone, recipe.averaging) == (1.2e-6, 5, None)
    assert recipe.tied
    assert recipe.fixed_masks
    assert recipe.random_steps


def test_the_published_size() -> None:
    """24.2 million weights for 10,000 words; symmetric hidden ones have 5.6 million fewer."""
    words = 10_000 * 400 + 10_000
    for symm, square in (("none", lambda n: n * n), ("avg", lambda n: n * (n + 1) // 2)):
        with torch.device("meta"):
            model = build_model(config_of("--recipe", "awd", "--symm", symm), 10_000)
        layers = 0
        for below, size in ((400, 1150), (1150, 1150), (1150, 400)):
            layers += 4 * (size * below + square(size)) + 2 * 4 * size
        assert count_parameters(model).training == words + layers
        assert words + layers == {"none": 24_221_600, "avg": 18_617_000}[symm]
        assert isinstance(model.projection, nn.Identity)


def test_the_start_is_the_published_one() -> None:
    model = build_model(config_of("--recipe", "awd", "--symm", "none", "--hidden-size", "50"), 30)
    model.initialize(0.1, None, "torch")
    assert model.encoder.weight.abs().max().item() == pytest.approx(0.1, rel=0.01)
    assert not model.decoder.bias.any()
    for layer, size in zip(model.layers, (50, 50, 400), strict=True):
        for parameter in layer.parameters():
            assert parameter.abs().max().item() == pytest.approx(1 / math.sqrt(size), rel=0.05)


# ---- layers of their own sizes -------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("symm", ["none", "avg", "tri8"])
def test_a_stack_is_its_layers_one_after_the_other(cell: str, symm: str) -> None:
    torch.manual_seed(1)
    model = LanguageModel(11, 4, 6, 3, tied=True, last_hidden_size=4, cell=cell, symm=symm).eval()
    model.initialize(0.4)
    ids = torch.randint(11, (5, 2))
    x = F.embedding(ids, model.encoder.weight)
    last: list[Tensor] = []
    for layer, sizes in zip(model.layers, ((4, 6), (6, 6), (6, 4)), strict=True):
        assert (layer.input_size, layer.hidden_size) == sizes
        x, hx = layer.to_plain()(x)
        last += hx if cell == "lstm" else [hx]
    expected = x @ model.encoder.weight.T + model.decoder.bias
    logits, state = model(ids)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(state, tuple(last))
    first, state = model(ids[:3])
    torch.testing.assert_close(torch.cat([first, model(ids[3:], state)[0]]), expected)
    forms = ["plain"] + ["packed"] * native.available()
    for deployed in (model.deployed(), *(model.deployed(form) for form in forms)):
        torch.testing.assert_close(deployed(ids)[0], expected)
        stream = deployed.stream(2)
        torch.testing.assert_close(torch.cat([stream(ids[:2]), stream(ids[2:])]), expected)


def test_a_stack_of_one_size_is_the_module_of_several_layers() -> None:
    one = LanguageModel(11, 6, 6, 2, symm="avg").eval()
    stack = LanguageModel(11, 6, 6, 2, symm="avg", fixed_masks=True).eval()
    assert isinstance(stack.rnn, RecurrentStack)
    stack.encoder.load_state_dict(one.encoder.state_dict())
    stack.decoder.load_state_dict(one.decoder.state_dict())
    for k, layer in enumerate(stack.layers):
        for name, parameter in layer.named_parameters():
            parameter.data.copy_(getattr(one.rnn, name.replace("l0", f"l{k}")))
    ids = torch.randint(11, (5, 2))
    torch.testing.assert_close(stack(ids)[0], one(ids)[0])


# ---- masks ---------------------------------------------------------------------------------------


def test_a_fixed_mask_is_the_same_at_every_step() -> None:
    drop = FixedDropout(0.3)
    x = drop(torch.ones(7, 50, 80))
    assert torch.equal(x, x[:1].expand_as(x))
    assert x.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    # 4,000 entries: a standard deviation of 0.0104 of the mean.
    assert abs(x.mean().item() - 1) < 0.03
    assert not torch.equal(drop(torch.ones(7, 50, 80)), x)
    assert torch.equal(drop.eval()(torch.ones(7, 50, 80)), torch.ones(7, 50, 80))


def test_masks_stand_after_the_embedding_between_layers_and_before_the_decoder() -> None:
    torch.manual_seed(1)
    model = LanguageModel(
        11, 6, 6, 3, 0.5, input_dropout=0.2, output_dropout=0.3, fixed_masks=True, symm="none"
    )
    ids = torch.randint(11, (7, 3))
    torch.manual_seed(3)
    logits, _ = model(ids)
    torch.manual_seed(3)
    x = model.encoder(ids)
    for layer, p in zip((*model.layers, model.decoder), (0.2, 0.5, 0.5, 0.3), strict=True):
        x = x * F.dropout(torch.ones(1, 3, 6), p)
        x = layer(x) if layer is model.decoder else layer(x)[0]
    torch.testing.assert_close(logits, x)
    still = model.without_dropout()
    assert torch.equal(still(ids)[0], model.eval()(ids)[0])


def test_the_embedding_loses_whole_types() -> None:
    torch.manual_seed(1)
    model = LanguageModel(1000, 5, 5, 1, embedding_dropout=0.2, tied=True)
    seen: list[Tensor] = []
    model.input_drop.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    ids = torch.arange(1000).repeat(2, 3).view(-1, 3)[:500]  # each several times
    output, _ = model.outputs(ids)
    ratio = seen[0] / model.encoder.weight[ids]
    assert ratio.round(decimals=4).unique().tolist() == [0.0, 1.25]
    assert torch.allclose(ratio, ratio[..., :1])  # all of a word's numbers
    kept = torch.full((1000,), -1.0)
    kept[ids.flatten()] = ratio[..., 0].flatten().detach()
    assert torch.allclose(kept[ids], ratio[..., 0])  # and wherever it stands
    # 1,000 types: a standard deviation of 0.013 of the share.
    assert abs((kept[ids.unique()] == 0).float().mean().item() - 0.2) < 0.04
    # The decoder, which has the same weight, loses nothing.
    expected = output @ model.encoder.weight.T + model.decoder.bias
    torch.testing.assert_close(model.decoder(output), expected)
    model.eval().outputs(ids)
    assert torch.equal(seen[-1], model.encoder(ids))


def test_the_hidden_weights_lose_others_in_each_window_and_stay_symmetric() -> None:
    torch.manual_seed(1)
    model = build_model(config_of("--recipe", "awd", "--hidden-size", "6"), 12)
    for layer in model.layers:
        masks = []
        for _ in range(2):
            (weights,) = [
                w.dropped(torch.zeros(1, 1), 0.0, layer.weight_dropout)
                for w in layer.layer_weights()
            ]
            blocks = weights.hh.dense().detach().chunk(4)
            assert all(torch.equal(block, block.T) for block in blocks)
            masks.append(torch.cat(blocks) == 0)
            torch.testing.assert_close(
                torch.cat(blocks)[~masks[-1]], 2 * layer.weight_hh_l0.detach()[~masks[-1]]
            )
            assert 0.2 < masks[-1].float().mean() < 0.8
        assert not torch.equal(*masks)


# ---- penalties -----------------------------------------------------------------------------------


def test_the_penalties_by_hand() -> None:
    """AR of the dropped outputs, TAR of those before the dropout."""
    output = torch.tensor([[[1.0, 2.0]], [[3.0, 5.0]], [[0.0, 5.0]]])
    dropped = torch.tensor([[[2.0, 0.0]], [[6.0, 0.0]], [[0.0, 0.0]]])
    activation = (4 + 36) / 6
    temporal = (2**2 + 3**2 + 3**2 + 0) / 4
    for alpha, beta in ((2.0, 0.0), (0.0, 1.0), (2.0, 1.0), (0.0, 0.0)):
        found = activation_penalty(output, dropped, alpha, beta).item()
        assert found == pytest.approx(alpha * activation + beta * temporal)
    # A last window may have one step, in which nothing changes.
    assert activation_penalty(output[:1], dropped[:1], 0.0, 1.0).item() == 0.0
    low = activation_penalty(output.bfloat16(), dropped.bfloat16(), 2.0, 1.0)
    assert low.dtype == torch.float32


def test_a_step_with_penalties_is_one_down_the_gradient_of_loss_and_penalties() -> None:
    options = "--output-dropout 0.5 --fixed-masks --lr 0.1 --loss mean --clip 100"
    penalties = "--activation-penalty 2 --temporal-penalty 1"
    learner = learner_of(*options.split(), *penalties.split())
    plain = learner_of(*options.split())
    model = plain.model
    inputs, targets = batch_of(0)
    seed_step(learner.config["seed"], 0, 1)  # as the step does
    output, _ = model.outputs(inputs)
    dropped = output * F.dropout(torch.ones(1, 4, 4), 0.5)
    losses = F.cross_entropy(model.decoder(dropped).flatten(0, 1), targets.flatten())
    change = output[1:] - output[:-1]
    (losses + 2 * (dropped**2).mean() + (change**2).mean()).backward()
    value, _ = learner.step(inputs, targets)
    assert value == pytest.approx(losses.item(), rel=1e-5)  # the perplexity has no penalty in it
    for parameter, own in zip(model.parameters(), learner.model.parameters(), strict=True):
        torch.testing.assert_close(parameter - 0.1 * parameter.grad, own)


def test_penalties_of_parts_of_a_batch_are_those_of_the_whole() -> None:
    options = ["--activation-penalty", "2", "--temporal-penalty", "1", "--lr", "0.1"]
    whole, parts = learner_of(*options), learner_of(*options, "--accumulate", "2")
    for seed in range(3):
        values = [learner.step(*batch_of(seed)) for learner in (whole, parts)]
        assert values[0] == pytest.approx(values[1], rel=1e-5)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


# ---- averaging -----------------------------------------------------------------------------------


def test_the_mean_is_taken_once_a_validation_is_worse_than_long_before() -> None:
    """As the published program decides: val > min(vals[:-nonmono])."""
    generator = np.random.default_rng(1)
    begun = []
    for _ in range(20):
        learner = learner_of("--non-monotone", "3")
        vals: list[float] = []
        for epoch, val in enumerate(generator.normal(size=30) - 0.1 * np.arange(30)):
            switches = len(vals) > 3 and val > min(vals[:-3])
            vals.append(val)
            learner.progress.validations.append(float(val))
            learner.judge(False)
            assert (learner.average is not None) == switches
            if switches:
                begun.append(epoch)
                break
    assert len({*begun}) > 3


def test_the_mean_is_that_of_the_weights_after_each_step_of_each_layer() -> None:
    learner = learner_of("--non-monotone", "1", "--lr", "0.1")
    learner.progress.validations += [1.0, 3.0, 2.0]
    learner.judge(False)
    seen: list[list[Tensor]] = []
    for seed in range(3):
        learner.step(*batch_of(seed))
        seen.append([p.detach().clone() for p in learner.model.parameters()])
    for mean, *each in zip(learner.final().parameters(), *seen, strict=True):
        torch.testing.assert_close(mean.detach(), torch.stack(each).mean(0))


# ---- windows of random length --------------------------------------------------------------------


def test_random_windows_cover_the_streams_once() -> None:
    """Each place of a stream but its last is an input, and the next one its target."""
    streams = np.arange(4 * 1000).reshape(4, 1000)
    for epoch in (1, 2):
        windows = list(RandomBatches(np.arange(4003), 4, 10, seed=3, epoch=epoch))
        inputs, targets = (torch.cat(parts) for parts in zip(*windows, strict=True))
        assert torch.equal(inputs, torch.from_numpy(streams[:, :-1].T))
        assert torch.equal(targets, torch.from_numpy(streams[:, 1:].T))


def test_the_lengths_have_the_published_distribution() -> None:
    """max(5, int(N(base, 5))), where base is T, and with a probability of 0.05 T / 2."""
    bounds = RandomBatches(np.zeros(5 * 10**6, np.uint16), 1, 70, seed=1, epoch=1).bounds
    lengths = np.diff(bounds)[:-1]
    assert len(lengths) > 70_000
    halved = lengths < 52  # four deviations from either base
    # Of so many lengths the share deviates by 0.0008, the means by 0.08 and 0.02.
    assert abs(halved.mean() - 0.05) < 0.003
    assert abs(lengths[halved].mean() - (35 - 0.5)) < 0.3  # int() cuts half a step on average
    assert abs(lengths[~halved].mean() - (70 - 0.5)) < 0.07
    assert abs(lengths[~halved].std() - math.sqrt(25 + 1 / 12)) < 0.05
    short = np.diff(RandomBatches(np.zeros(10**6, np.uint16), 1, 8, seed=1, epoch=1).bounds)
    assert short[:-1].min() == 5
    # Below 6 a normal number gives 5: of N(8, 5) 34.5 %, of N(4, 5) 65.5 %.
    assert abs((short == 5).mean() - (0.95 * 0.3446 + 0.05 * 0.6554)) < 0.005


def test_the_lengths_depend_on_seed_and_epoch() -> None:
    def lengths(seed: int, epoch: int) -> list[int]:
        return list(RandomBatches(np.zeros(9000, np.uint16), 2, 20, seed=seed, epoch=epoch).bounds)

    assert lengths(1, 1) == lengths(1, 1)
    assert len({tuple(lengths(*which)) for which in ((1, 1), (1, 2), (2, 1))}) == 3
    # These numbers are those of every version of NumPy: a run is continued on another one too.
    assert lengths(1, 1)[:5] == [0, 21, 43, 70, 88]
    with pytest.raises(DataError, match="steps must be at least 5, got 4"):
        RandomBatches(np.zeros(9000, np.uint16), 2, 4, seed=1, epoch=1)


def test_the_rate_is_in_proportion_to_the_length(
    train: Callable[..., int], corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, float]] = []
    step = lm.train.LanguageLearner.step

    def watched(learner: Any, inputs: torch.Tensor, targets: torch.Tensor) -> tuple[float, float]:
        (rate,) = {group["lr"] for group in learner.optimizer.param_groups}
        seen.append((len(inputs), rate))
        return step(learner, inputs, targets)

    monkeypatch.setattr(lm.train.LanguageLearner, "step", watched)
    options = "--random-steps --steps 10 --lr 0.5 --log-every 1 --epochs 2"
    assert train(*options.split(), "--out", tmp_path / "run") == 0
    assert len({length for length, _ in seen}) > 5
    assert [rate for _, rate in seen] == pytest.approx([0.05 * length for length, _ in seen])
    # The perplexity of an epoch is that of its tokens, however they are divided.
    lengths = iter(length for length, _ in seen)
    nats, places, epochs = 0.0, 0, 0
    for line in lines_of(tmp_path / "run"):
        if "train/loss" in line:
            length = next(lengths)
            nats, places = nats + length * line["train/loss"], places + length
        if "train/epoch_perplexity" in line:
            assert line["train/epoch_perplexity"] == pytest.approx(math.exp(nats / places))
            nats, places, epochs = 0.0, 0, epochs + 1
    assert epochs == 2


AWD = "--recipe awd --hidden-size 8 --embedding-size 6 --batch-size 4 --steps 10 --threads 1"
SHORT = f"{AWD} --lr 3 --epochs 3 --save-every 3 --log-every 1 --non-monotone 1"


def test_killed_and_resumed(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends as the run that nothing stopped, in whatever window it was."""
    monkeypatch.setattr(Tracker, "hparams", lambda *_: None)
    arguments = ["--data", str(corpus), *SHORT.split(), "--out"]
    assert lm.train.main([*arguments, str(tmp_path / "straight")]) == 0
    original = Tracker.scalars
    for calls in (7, 25):
        run = tmp_path / str(calls)
        monkeypatch.setattr(Tracker, "scalars", dying_after(calls, original))
        with pytest.raises(KilledError):
            lm.train.main([*arguments, str(run)])
        monkeypatch.setattr(Tracker, "scalars", original)
        assert lm.train.main(["--resume", str(run)]) == 0
        assert_same_run(tmp_path / "straight", run)
    model = load_saved(run, torch.device("cpu")).model
    assert [layer.hidden_size for layer in model.layers] == [8, 8, 6]
    assert model.configuration()["last_hidden_size"] == 6


def test_a_cosine_ends_with_the_last_window_of_random_length(
    train: Callable[..., int], tmp_path: Path
) -> None:
    options = "--random-steps --steps 10 --lr 0.5 --schedule cosine --log-every 1 --epochs 2"
    assert train(*options.split(), "--out", tmp_path / "run") == 0
    lines = lines_of(tmp_path / "run")
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    cosine = [0.25 * (1 + math.cos(math.pi * k / len(rates))) for k in range(len(rates))]
    assert rates == pytest.approx(cosine)


def test_two_processes_are_one_with_the_whole_batch(
    together: Callable[..., list[BaseProcess]], corpus: Path, tmp_path: Path
) -> None:
    """What is dropped, the windows, the penalties, the mean and the stack's state."""
    arguments = ["--data", str(corpus), *SHORT.split(), "--out"]
    assert ended(together(program, *arguments, tmp_path / "two")) == [0, 0]
    assert lm.train.main([*arguments, str(tmp_path / "one")]) == 0
    one, two = (lines_of(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) > 20
    for line, other in zip(one, two, strict=True):
        assert other == pytest.approx(line, rel=1e-4)
    first, second = (
        load_checkpoint(tmp_path / name / "last.safetensors").tensors for name in ("one", "two")
    )
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-4, atol=1e-4)


# ---- the programs --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def awd_run(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    folder = tmp_path_factory.mktemp("awd") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lm.train.spectrum_figure", lambda *_: matplotlib.figure.Figure((1, 1)))
        command = ["--data", str(corpus), *AWD.split(), "--epochs", "1", "--out", str(folder)]
        assert lm.train.main(command) == 0
    return folder


def test_the_programs_take_a_model_of_unequal_layers(
    awd_run: Path, corpus: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert lm.evaluate.main([str(awd_run), "--cache", "20", "--dynamic", "--threads", "1"]) == 0
    said = capfd.readouterr().out
    for name in ("perplexity per token", "cache per token", "dynamic per token"):
        assert name in said
    assert lm.generate.main([str(awd_run), "--tokens", "5", "--threads", "1"]) == 0
    plain = tmp_path / "plain.safetensors"
    assert lm.export.main([str(awd_run), "--to", "plain", "--out", str(plain)]) == 0
    assert lm.hub.main([str(awd_run), "--out", str(tmp_path / "hub")]) == 0
    assert "3 of lstm, 8 units, the last 6" in (tmp_path / "hub" / "README.md").read_text()
    again = LanguageModel.from_pretrained(tmp_path / "hub")
    own = load_saved(awd_run, torch.device("cpu")).model
    ids = torch.randint(20, (5, 2))
    torch.testing.assert_close(again(ids), own(ids))
    assert (again.fixed_masks, again.embedding_dropout) == (True, 0.1)
    arguments = [*AWD.split(), "--symm", "tri", "--init-from", str(awd_run), "--dry-run"]
    capfd.readouterr()
    assert lm.train.main(["--data", str(corpus), *arguments]) == 0
    assert "recurrent weights moved by 0.00% of their norm" in capfd.readouterr().out


@pytest.mark.parametrize("kind", ["pt2", "onnx", "runtime"])
def test_what_takes_one_module_refuses_a_stack(
    refused: Callable[..., str], awd_run: Path, tmp_path: Path, kind: str
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnx")
    if kind == "runtime" and not native.available():
        pytest.skip(native.why_not())
    message = refused("export", awd_run, "--to", kind, "--out", tmp_path / f"model{KINDS[kind]}")
    assert message.startswith(f"--to {kind} takes recurrent layers of one module")


REFUSED = {
    "--recipe awd --size large": "the recipe awd has the one size small, got: large",
    "--recipe awd --layers 1": "--last-hidden-size 400 is that of the highest of several layers, "
    "got: --layers 1 of --hidden-size 1150",
    "--random-steps --steps 4": "--random-steps makes windows of 5 steps and more, got: --steps 4",
    "--recipe awd --cell gru --forget-bias 1": "--forget-bias is for --cell lstm, got: --cell gru",
    "--recipe awd --symm-ih ifgo": "symm_ih='ifgo' wants square input weights, but the layers go "
    "from 400 to 1150 to 1150 to 400",
    "--recipe awd --adaptive-softmax 5": "tied wants a decoder that is one matrix",
    "--recipe awd --symm none --backend folded": 'backend="folded" wants hidden weights of all ',
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_refused(arguments: str) -> None:
    with pytest.raises(UserError) as error, torch.device("meta"):
        build_model(config_of(*arguments.split()), 20)
    assert REFUSED[arguments] in str(error.value)


def test_the_last_layer_is_as_wide_as_the_embedding_that_is_given() -> None:
    made = config_of("--recipe", "awd", "--embedding-size", "300")
    assert (made["hidden_size"], made["last_hidden_size"]) == (1150, 300)
    made = config_of("--recipe", "awd", "--embedding-size", "300", "--last-hidden-size", "500")
    with torch.device("meta"):
        assert build_model(made, 20).projection.weight.shape == (300, 500)  # type: ignore[union-attr]
