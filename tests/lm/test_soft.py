"""Soft symmetry: its gradient, and the symmetric model that is measured and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lm.evaluate
from data import TrainBatches, open_corpus
from lm.model import CELLS, LanguageModel
from lm.perplexity import measure
from lm.saved import build_model, load_saved
from symrnn import count_parameters, open_packed
from symrnn.training import autocast, load_checkpoint

ONE_STEP = "--steps 100 --epochs 1 --precision fp64 --lr 0.3 --init-range 0.2"

cells = pytest.mark.parametrize("cell", list(CELLS))


def hidden_blocks(weights: dict[str, Tensor], prefix: str = "") -> Tensor:
    """The hidden matrices of all layers and gates, (L·G, H, H), of names as PyTorch has them."""
    names = [f"{prefix}rnn.weight_hh_l{layer}" for layer in (0, 1)]
    return torch.cat([weights[name] for name in names]).view(-1, 8, 8)


def one_plain_step(corpus: Path, cell: str) -> tuple[LanguageModel, dict[str, Tensor]]:
    """A model as a run starts with it, and its loss's gradient in the first window."""
    ids = open_corpus(corpus).train.ids
    batches = TrainBatches(ids, 4, 100)
    assert len(batches) == 1
    inputs, targets = batches[0]
    torch.manual_seed(1)
    model = LanguageModel(21, 8, 8, cell=cell, symm="none").double()
    model.initialize(0.2)
    log_p = model(inputs)[0].log_softmax(2)
    loss: Tensor = -log_p.gather(2, targets[..., None]).sum() / 4  # over steps, mean of the batch
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()))
    return model, dict(zip(parameters, gradients, strict=True))


@cells
@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("clip", [1000.0, 1.0])
def test_the_penalty_is_in_the_gradient(
    train: Callable[..., int], corpus: Path, tmp_path: Path, cell: str, p: int, clip: float
) -> None:
    """A step of training, against the gradient of ‖W − Wᵀ‖ written out for each gate."""
    rho, lr = 0.7, 0.3
    options = f"{ONE_STEP} --cell {cell} --soft-symmetry {rho} --soft-norm {p} --clip {clip}"
    train("--out", tmp_path / "run", *options.split())
    trained = load_checkpoint(tmp_path / "run" / "last.safetensors").tensors

    model, gradients = one_plain_step(corpus, cell)
    for name in ("rnn.weight_hh_l0", "rnn.weight_hh_l1"):
        for w, gradient in zip(
            model.state_dict()[name].split(8), gradients[name].split(8), strict=True
        ):
            difference = w - w.T
            norm = difference.square().sum().sqrt()
            # Each entry stands in W − Wᵀ twice, once with a minus.
            gradient += rho * 2 * (difference.sign() if p == 1 else difference / norm)
    norm = torch.cat([gradient.flatten() for gradient in gradients.values()]).norm()
    assert (norm > clip) == (clip == 1.0)
    for name, start in model.state_dict().items():
        wanted = start - lr * gradients[name] * min(1.0, clip / float(norm))
        # clip_grad_norm_ divides by the norm + 1e-6.
        torch.testing.assert_close(trained[f"model/{name}"], wanted, rtol=0, atol=1e-6)


def test_the_euclidean_norm_unless_another_is_named(
    train: Callable[..., int], tmp_path: Path
) -> None:
    runs = {"default": "", "two": "--soft-norm 2", "one": "--soft-norm 1"}
    weights = {}
    for name, norm in runs.items():
        train("--out", tmp_path / name, *ONE_STEP.split(), "--soft-symmetry", 0.7, *norm.split())
        weights[name] = hidden_blocks(
            load_checkpoint(tmp_path / name / "last.safetensors").tensors, "model/"
        )
    assert torch.equal(weights["default"], weights["two"])
    assert not torch.allclose(weights["default"], weights["one"])


@cells
def test_the_model_that_is_kept_has_the_upper_triangles(
    train: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    cell: str,
) -> None:
    run = tmp_path / "run"
    options = f"--cell {cell} --soft-symmetry 0.01 --epochs 1 --lr 0.3 --init-range 0.3"
    train("--out", run, *options.split())
    capsys.readouterr()
    gates = CELLS[cell].GATES
    full = hidden_blocks(load_checkpoint(run / "last.safetensors").tensors, "model/")
    kept = load_saved(run, torch.device("cpu"))
    assert (kept.model.rnn.symm, kept.model.rnn.symm_hh) == ("tri", gates)
    assert kept.meta["config"]["symm"] == "tri"
    assert kept.meta["config"]["symm_hh"] == gates
    assert kept.meta["config"]["soft_symmetry"] == 0.01
    assert count_parameters(kept.model).recurrent == 2 * len(gates) * 36

    expanded = {name: getattr(kept.model.rnn, name[4:]) for name in hidden_names()}
    blocks = hidden_blocks(expanded)
    assert not torch.allclose(full, full.mT)
    assert torch.equal(blocks, blocks.mT)
    assert torch.equal(blocks.triu(), full.triu())
    for name, tensor in load_checkpoint(run / "last.safetensors").tensors.items():
        if name.startswith("model/") and name[6:] not in expanded:
            assert torch.equal(dict(kept.model.named_parameters())[name[6:]], tensor)

    # What was measured is what was kept, not the model that is trained.
    corpus = open_corpus(kept.config["data"])
    precision = autocast(kept.config["precision"], torch.device("cpu"))
    score = measure(kept.model, corpus.valid, corpus.codec.eos_id, precision=precision)
    assert score.perplexity == kept.meta["valid_perplexity"]
    trained = load_saved(run / "last.safetensors", torch.device("cpu")).model
    assert trained.rnn.symm == "none"
    other = measure(trained, corpus.valid, corpus.codec.eos_id, precision=precision)
    assert other.perplexity != pytest.approx(score.perplexity, rel=1e-5)
    lm.evaluate.main([str(run), "--split", "valid", "--threads", "1"])
    line = capsys.readouterr().out.split("perplexity per token  ")[1].split()[0]
    assert float(line) == pytest.approx(score.perplexity, abs=1e-4)


def hidden_names() -> list[str]:
    return [f"rnn.weight_hh_l{layer}" for layer in (0, 1)]


def test_a_hardened_model_is_a_copy() -> None:
    model = LanguageModel(21, 8, 8, 2, 0.5, tied=True, symm="none", backend="reference")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = model.hardened()
    assert made.training
    assert made.rnn.dropout == 0.5
    assert made.rnn.backend == "reference"
    assert made.decoder.weight is made.encoder.weight
    assert made.encoder.weight is not model.encoder.weight
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(("cell", "p"), [("lstm", 1), ("lstm", 2), ("gru", 1), ("rnn", 2)])
def test_a_large_penalty_draws_the_weights_to_symmetric_ones(
    train: Callable[..., int], tmp_path: Path, cell: str, p: int
) -> None:
    asymmetry = {}
    for rho in (1e-9, 1.0):
        run = tmp_path / f"{rho}"
        soft = f"--soft-symmetry {rho} --soft-norm {p} --precision fp64"
        # The gradient of a norm does not vanish where the norm does: the rate has to.
        options = f"--cell {cell} {soft} --init-range 0.3 --lr 0.02 --lr-after 2 --epochs 8"
        train("--out", run, *options.split(), "--clip", 1000)
        w = hidden_blocks(load_checkpoint(run / "last.safetensors").tensors, "model/")
        asymmetry[rho] = float((w - w.mT).norm() / w.norm())
    assert asymmetry[1e-9] > 0.5
    assert asymmetry[1.0] < 0.01


def test_the_configuration_of_a_soft_run(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("--soft-symmetry", 0.01, "--dry-run")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["soft_symmetry", "0.01"] in lines
    assert ["soft_norm", "2"] in lines
    assert ["symm", "none"] in lines
    assert ["parameters,", "training", "1,509"] in lines
    assert train("--soft-symmetry", 0.01, "--symm", "none", "--dry-run") == 0
    # The same in what is kept of a run, where the model that is trained is full.
    run = tmp_path / "run"
    train("--out", run, "--soft-symmetry", 0.01, "--epochs", 1)
    config = load_checkpoint(run / "last.safetensors").meta["config"]
    assert config["symm"] == "none"
    assert {**open_packed(run / "best.safetensors").meta["config"], **config} == config
    assert count_parameters(build_model(config, 21)).training == 1509
