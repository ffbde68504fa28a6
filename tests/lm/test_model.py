"""The model and its training step, against plain PyTorch written out here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from data import open_corpus
from lm.model import LanguageModel
from symrnn import native
from symrnn.training import load_checkpoint


def plain_copy(
    model: LanguageModel, dropout: float = 0.0
) -> tuple[nn.Embedding, nn.RNNBase, nn.Linear]:
    """The model's parts as torch has them, with the same weights."""
    encoder = nn.Embedding.from_pretrained(model.encoder.weight.detach().clone(), freeze=False)
    lstm = model.rnn.to_plain()
    lstm.dropout = dropout
    decoder = nn.Linear(model.decoder.in_features, model.decoder.out_features)
    decoder.to(model.decoder.weight.dtype).load_state_dict(model.decoder.state_dict())
    return encoder, lstm, decoder


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_dropout_on_the_non_recurrent_connections_alone(layers: int) -> None:
    model = LanguageModel(11, 6, 6, layers, 0.5, symm="none", backend="vendor")
    encoder, lstm, decoder = plain_copy(model, 0.5 if layers > 1 else 0.0)
    drop = nn.Dropout(0.5)
    ids = torch.randint(11, (7, 3))
    torch.manual_seed(3)
    logits, _ = model(ids)
    torch.manual_seed(3)
    # Zaremba's dashed arrows: after the embedding, between layers (nn.LSTM's), before the decoder.
    wanted = decoder(drop(lstm(drop(encoder(ids)))[0]))
    torch.testing.assert_close(logits, wanted)
    # Other draws give other logits, so that the above has compared something.
    assert not torch.allclose(model(ids)[0], wanted)
    model.eval()
    lstm.eval()
    torch.testing.assert_close(model(ids)[0], decoder(lstm(encoder(ids))[0]))


@pytest.mark.parametrize(
    ("cell", "symm"),
    [("lstm", "none"), ("lstm", "avg"), ("lstm", "tri"), ("gru", "avg"), ("rnn", "avg")],
)
def test_the_deployed_model_gives_the_same_numbers(cell: str, symm: str) -> None:
    model = LanguageModel(11, 6, 6, cell=cell, symm=symm, tied=True).double()
    model.initialize(0.5)
    ids = torch.randint(11, (7, 3))
    deployed = model.deployed()
    assert not deployed.training
    assert model.training
    assert deployed.rnn.symm == "none"
    torch.testing.assert_close(deployed(ids), model.eval()(ids))
    assert deployed.decoder.weight is deployed.encoder.weight


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_model_deployed_as_plain_has_the_layers_of_pytorch(cell: str) -> None:
    model = LanguageModel(11, 6, 6, cell=cell, symm="block4", tied=True, dropout=0.5).double()
    ids = torch.randint(11, (7, 3))
    plain = model.deployed("plain")
    assert type(plain.rnn) is model.rnn.PLAIN
    assert plain.decoder.weight is plain.encoder.weight
    logits, state = model.eval()(ids)
    torch.testing.assert_close(plain(ids), (logits, state))
    torch.testing.assert_close(plain(ids, state), model(ids, state))
    torch.testing.assert_close(torch.jit.script(plain)(ids), (logits, state))
    # And it does what the model does, deployed again or step by step.
    torch.testing.assert_close(plain.deployed()(ids), (logits, state))
    stream = plain.stream(batch=3)
    torch.testing.assert_close(torch.cat([stream(ids[:3]), stream(ids[3:])]), logits)
    with pytest.raises(ValueError, match="form should be one of packed, plain, got: 'onnx'"):
        model.deployed("onnx")


@pytest.mark.skipif(not native.available(), reason=native.why_not())
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_model_deployed_as_packed_gives_the_numbers_of_the_kernels(cell: str) -> None:
    model = LanguageModel(11, 6, 6, cell=cell, symm="block4", tied=True, backend="fused").eval()
    ids = torch.randint(11, (7, 3))
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        model.rnn.inference_dtype = None if dtype == torch.float32 else dtype
        packed = model.deployed("packed", dtype=dtype)
        assert packed.rnn.packed_dtype == dtype
        assert packed.decoder.weight is packed.encoder.weight
        with torch.no_grad():
            logits, state = model(ids)
            torch.testing.assert_close(packed(ids), (logits, state), rtol=0, atol=0)
            torch.testing.assert_close(packed(ids, state), model(ids, state), rtol=0, atol=0)
            # And it does what the model does, deployed again or step by step.
            torch.testing.assert_close(packed.deployed()(ids), (logits, state), rtol=0, atol=0)
            stream = packed.stream(batch=3)
            found = torch.cat([stream(ids[:3]), stream(ids[3:])])
        torch.testing.assert_close(found, logits)


@pytest.mark.skipif(not native.available(), reason=native.why_not())
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_deployed_model_caches_what_is_packed_once(cell: str) -> None:
    model = LanguageModel(11, 6, 6, cell=cell, symm="avg")
    model.initialize(0.5)
    ids = torch.randint(11, (7, 3))
    wanted = model.eval()(ids)[0]
    for backend in ("auto", "fused"):
        model.rnn.backend = backend
        deployed = model.deployed()
        assert deployed.rnn.symm == "avg"
        with torch.inference_mode():
            torch.testing.assert_close(deployed(ids)[0], wanted)
            packed = deployed.rnn._cache.entry
            assert packed is not None
            deployed(ids)
        assert deployed.rnn._cache.entry is packed
        assert model.rnn._cache.entry is None
    model.rnn.backend = "auto"
    assert model.deployed(autocast=True).rnn.symm == "none"  # which the kernels leave to PyTorch
    model.rnn.inference_dtype = torch.bfloat16
    for copied in (model.deployed(), model.deployed(autocast=True), model.hardened()):
        assert copied.rnn.inference_dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("cell", "plain", "gates", "parts"),
    [("lstm", nn.LSTM, "ifgo", 2), ("gru", nn.GRU, "rzn", 1), ("rnn", nn.RNN, "h", 1)],
)
def test_each_cell_carries_its_state_as_a_tuple(
    cell: str, plain: type[nn.RNNBase], gates: str, parts: int
) -> None:
    model = LanguageModel(11, 6, 6, cell=cell, symm="avg").double()
    assert model.rnn.symm_hh == gates
    encoder, layers, decoder = plain_copy(model)
    assert type(layers) is plain
    ids = torch.randint(11, (7, 3))
    logits, state = model(ids)
    torch.testing.assert_close(logits, decoder(layers(encoder(ids))[0]))
    assert [part.shape for part in state] == [(2, 3, 6)] * parts
    # Window by window, the state handed on, it is the same text.
    first, state = model(ids[:4])
    second, _ = model(ids[4:], state)
    torch.testing.assert_close(torch.cat([first, second]), logits)


def test_an_unknown_cell_is_an_error() -> None:
    with pytest.raises(ValueError, match="cell should be one of lstm, gru, rnn, got: 'elman'"):
        LanguageModel(11, 6, 6, cell="elman")


def test_every_weight_starts_within_the_range() -> None:
    model = LanguageModel(50, 20, 20, symm="none")
    model.initialize(0.04)
    for name, parameter in model.named_parameters():
        assert 0.03 < parameter.abs().max() <= 0.04, name


@pytest.mark.parametrize(("loss", "clip"), [("sum", 1.0), ("mean", 0.2)])
def test_training_equals_a_loop_over_plain_pytorch(
    train: Callable[..., int], corpus: Path, tmp_path: Path, loss: str, clip: float
) -> None:
    """Streams, carried state, loss, clipping and update, each written out."""
    arguments = ["--symm", "none", "--precision", "fp64", "--loss", loss, "--clip", str(clip)]
    arguments += ["--lr", "2", "--init-range", "0.3", "--epochs", "2", "--lr-after", "1"]
    assert train("--out", tmp_path / "run", *arguments) == 0
    trained = load_checkpoint(tmp_path / "run" / "last.safetensors").tensors

    ids = torch.tensor(open_corpus(corpus).train.ids.astype("int64"))
    torch.manual_seed(1)
    model = LanguageModel(int(ids.max()) + 1, 8, 8, symm="none").double()
    model.initialize(0.3)
    encoder, lstm, decoder = plain_copy(model)
    parameters = [*encoder.parameters(), *lstm.parameters(), *decoder.parameters()]
    batch, steps = 4, 5
    length = len(ids) // batch
    streams = [ids[b * length : (b + 1) * length] for b in range(batch)]
    clipped: list[bool] = []
    for rate in (2.0, 1.0):
        h = c = torch.zeros(2, batch, 8, dtype=torch.float64)
        for start in range(0, length - steps, steps):
            inputs = torch.stack([s[start : start + steps] for s in streams], 1)
            targets = torch.stack([s[start + 1 : start + steps + 1] for s in streams], 1)
            output, (h, c) = lstm(encoder(inputs), (h.detach(), c.detach()))
            log_p = decoder(output).log_softmax(2)
            total: torch.Tensor = -log_p.gather(2, targets[..., None]).sum()
            total = total / batch if loss == "sum" else total / (batch * steps)
            gradients = torch.autograd.grad(total, parameters)
            norm = torch.cat([g.flatten() for g in gradients]).norm()
            clipped.append(bool(norm > clip))
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.sub_(rate * gradient * min(1.0, clip / float(norm)))
    # clip_grad_norm_ divides by the norm + 1e-6, so that the two part by as much.
    assert 0 < sum(clipped) < len(clipped)  # both kinds of step occurred
    torch.testing.assert_close(
        trained["model/encoder.weight"], encoder.weight.detach(), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        trained["model/decoder.bias"], decoder.bias.detach(), rtol=0, atol=1e-5
    )
    for name, weight in lstm.named_parameters():
        torch.testing.assert_close(trained[f"model/rnn.{name}"], weight.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("width", [5, 6])
def test_tied_weights_are_one_tensor(width: int) -> None:
    model = LanguageModel(11, width, 6, tied=True)
    assert model.decoder.weight is model.encoder.weight


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_a_scripted_model_gives_the_same_numbers(cell: str) -> None:
    model = LanguageModel(11, 6, 6, cell=cell, tied=True, dropout=0.5).eval()
    scripted = torch.jit.script(model)
    ids = torch.randint(11, (7, 3))
    found, state = scripted(ids)
    expected, expected_state = model(ids)
    torch.testing.assert_close(found, expected)
    assert isinstance(state, tuple)
    torch.testing.assert_close(state, expected_state)
    torch.testing.assert_close(scripted(ids, state)[0], model(ids, expected_state)[0])
    assert scripted.decoder.weight.data_ptr() == model.encoder.weight.data_ptr()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_symbolic_trace_of_a_model_gives_the_same_numbers(cell: str) -> None:
    model = LanguageModel(11, 6, 6, cell=cell)
    traced = torch.fx.symbolic_trace(model, concrete_args={"state": None})
    ids = torch.randint(11, (7, 3))
    torch.testing.assert_close(traced(ids, None), model(ids), rtol=0, atol=0)
