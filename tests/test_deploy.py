"""Deployed models: PyTorch's layers with constant weights, and the numbers of the model."""

from __future__ import annotations

import copy
import io
import pickle
import pickletools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from symrnn import (
    SymGRU,
    SymGRUCell,
    SymLSTM,
    SymLSTMCell,
    SymRNN,
    SymRNNCell,
    deploy,
    get_symmetry,
    native,
    symmetrize,
    unsymmetrize,
)
from symrnn.layers import FoldedLinear
from symrnn.symmetry import onnx
from symrnn.vision import create_model
from symrnn.vision.batch_norm import JointBatchNorm2d

FORMS = ["none", "tri", "avg", "avg:full", "avg:diag4", "avg:skew2", "tri8", "block4", "chunk4"]
FORMS += ["eigen:3", "ldl"]

PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    SymLSTM: nn.LSTM,
    SymGRU: nn.GRU,
    SymRNN: nn.RNN,
    SymLSTMCell: nn.LSTMCell,
    SymGRUCell: nn.GRUCell,
    SymRNNCell: nn.RNNCell,
}
H = 8


def assert_same(found: Any, expected: Any, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def classes_in(model: nn.Module) -> set[str]:
    """The top-level packages of the classes that a pickle of the model names."""
    file = pickle.dumps(model)
    names = [arg for _, arg, _ in pickletools.genops(file) if isinstance(arg, str)]
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("symm", FORMS)
@pytest.mark.parametrize("make", PLAIN)
def test_recurrent_modules_of_every_form_become_those_of_pytorch(
    make: Callable[..., Any], symm: str
) -> None:
    module = make(H, H, symm=symm, symm_ih=make.GATES, dtype=torch.float64)  # type: ignore[attr-defined]
    found = deploy(module, "plain")
    assert type(found) is PLAIN[type(module)]
    assert found.state_dict().keys() == PLAIN[type(module)](H, H).state_dict().keys()
    for batch in (1, 3):
        x = torch.randn((batch, H) if module.IS_CELL else (5, batch, H), dtype=torch.float64)
        assert_same(found(x), module(x))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (SymLSTM, {"symm_hh": "fo"}),
        (SymLSTM, {"symm_hh": "", "symm_ih": "ig"}),
        (SymLSTM, {"symm_hh": "", "symm": "avg", "proj_size": 3}),
        (SymLSTM, {"num_layers": 2, "bidirectional": True, "batch_first": True, "dropout": 0.5}),
        (SymGRU, {"num_layers": 3, "bias": False, "symm_hh": "n", "dropout": 0.5}),
        (SymRNN, {"num_layers": 2, "nonlinearity": "relu", "bidirectional": True}),
        (SymLSTM, {"backend": "reference"}),
    ],
    ids=str,
)
def test_recurrent_layers_with_every_option(
    make: Callable[..., Any], options: dict[str, Any]
) -> None:
    layer = make(H, H, dtype=torch.float64, **options)
    found = deploy(layer, "plain")
    assert layer.training
    assert not found.training
    layer.eval()
    for shape in ((4, 2, H), (1, 7, H)):
        x = torch.randn(shape, dtype=torch.float64)
        output, state = layer(x)
        assert_same(found(x), (output, state))
        assert_same(found(x, state), layer(x, state))


@pytest.mark.parametrize(
    ("symm", "axes"), [("avg", "channel"), ("block4", "both"), ("tri", "space")]
)
def test_linear_layers_convolutions_and_attention_get_plain_weights(symm: str, axes: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(8, 8, 3, groups=2))
            self.linear = nn.Linear(4, 4)
            self.attention = nn.MultiheadAttention(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv[1](torch.cat([self.conv[0](x)] * 2, 1)).mean((2, 3)).view(-1, 2, 4)
            return self.attention(y, self.linear(y), y)[0]

    model = Model().double()
    names = model.state_dict().keys()
    symmetrize(model, symm, axes=axes)
    assert model.state_dict().keys() != names
    found = deploy(model, "plain")
    assert found.state_dict().keys() == names
    kinds = {
        "Sequential",
        "Conv2d",
        "Linear",
        "MultiheadAttention",
        "NonDynamicallyQuantizableLinear",
    }
    assert {type(part).__name__ for part in found.modules()} == {"Model", *kinds}
    for batch in (1, 3):
        x = torch.randn(batch, 4, 9, 9, dtype=torch.float64)
        assert_same(found(x), model(x))


def test_a_deployed_model_is_constant_and_the_given_one_is_as_it_was() -> None:
    model = nn.ModuleDict({"rnn": SymLSTM(H, H), "linear": nn.Linear(H, H), "drop": nn.Dropout()})
    symmetrize(model, "tri", "linear")
    before = copy.deepcopy(model.state_dict())
    found = deploy(model, "plain")
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert not any(part.training for part in found.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(part.training for part in model.modules())
    assert type(model["rnn"]) is SymLSTM
    assert_same(dict(model.state_dict()), dict(before), atol=0)
    for parameter in found.parameters():
        parameter.data.zero_()
    assert_same(dict(model.state_dict()), dict(before), atol=0)


def test_deploying_twice_changes_nothing() -> None:
    model = nn.Sequential(SymLSTM(H, H, 2), FoldedLinear(H, H))
    once = deploy(model, "plain")
    twice = deploy(once, "plain")
    assert [type(part) for part in twice.modules()] == [type(part) for part in once.modules()]
    assert_same(dict(twice.state_dict()), dict(once.state_dict()), atol=0)


def test_shared_modules_stay_shared_and_tied_weights_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Embedding(11, H), nn.Linear(H, 11)
            self.decoder.weight = self.encoder.weight
            self.first = self.second = SymGRU(H, H)
            self.cells = nn.ModuleList([SymGRUCell(H, H)] * 2)

    found = deploy(Tied(), "plain", dtype=torch.float64)
    assert found.decoder.weight is found.encoder.weight
    assert found.first is found.second
    assert found.cells[0] is found.cells[1]
    assert type(found.first) is nn.GRU


@pytest.mark.parametrize("name", ["wrn-16-0.5-bottleneck", "diracnet-10-0.25"])
def test_networks_for_images_get_convolutions_of_pytorch(name: str) -> None:
    share = "none" if name.startswith("dirac") else "stage"
    model = create_model(name, symm="tri", share=share, num_classes=5).double().eval()
    found = deploy(model, "plain")
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert_same(found(x), model(x))
    ours = {type(part).__name__ for part in found.modules() if type(part).__module__[:5] != "torch"}
    layers = {"Strided", "DiracConv2d", "FoldedConv2d", "ParametrizedFoldedConv2d"}
    assert not ours & layers
    if share == "stage":  # a strided use of the shared convolution holds the same weight
        first, second = found.stages[1]
        assert first.conv2.weight is second.conv2.weight
        assert first.conv2.stride != second.conv2.stride


def test_batch_norm_of_a_joint_batch_becomes_that_of_pytorch() -> None:
    assert type(deploy(nn.Sequential(JointBatchNorm2d(3)), "plain")[0]) is nn.BatchNorm2d


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_floating_parameter_gets_the_type(dtype: torch.dtype) -> None:
    model = nn.ModuleList([SymLSTM(H, H), nn.Linear(H, H), nn.BatchNorm1d(H)])
    found = deploy(model, "plain", dtype=dtype)
    tensors = found.state_dict()
    counter = tensors.pop("2.num_batches_tracked")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    assert counter.dtype == torch.int64
    x = torch.randn(5, 3, H)
    eps = torch.finfo(dtype).eps
    assert_same(found[0](x.to(dtype))[0].float(), model[0](x)[0], atol=4 * eps + 1e-6)


def test_a_pickle_names_no_class_of_ours() -> None:
    model = nn.Sequential(nn.Linear(H, H), SymLSTM(H, H, backend="reference"))
    symmetrize(model, "block4", "0")
    model[1].backend = "auto"
    model[1].inference_dtype = torch.bfloat16
    assert "symrnn" in classes_in(model[1])
    found = deploy(model, "plain")
    assert "symrnn" not in classes_in(found)
    assert [type(part) for part in found] == [nn.Linear, nn.LSTM]
    assert not [name for name in vars(found[1]) if name not in vars(nn.LSTM(H, H))]
    file = io.BytesIO()
    torch.save(found, file)
    file.seek(0)
    x = torch.randn(4, 2, H)
    assert_same(torch.load(file, weights_only=False)(x), model.eval()(x), atol=1e-2)
    assert_same(torch.load(io.BytesIO(file.getvalue()), weights_only=False)(x), found(x), atol=0)


def test_parametrizations_of_others_stay() -> None:
    model = nn.Sequential(nn.Linear(H, H), nn.Linear(H, H))
    parametrizations.weight_norm(model[0])
    nn.utils.parametrize.register_parametrization(model[1], "weight", get_symmetry("avg", H))
    found = deploy(model, "plain")
    assert nn.utils.parametrize.is_parametrized(found[0])
    assert type(found[1]) is nn.Linear
    x = torch.randn(2, H)
    assert_same(found(x), model(x), atol=1e-6)


def pruned(module: nn.Module, name: str) -> nn.Module:
    return prune.l1_unstructured(module, name, 0.3)


def scaled(module: nn.Module, name: str) -> nn.Module:
    """By PyTorch's parametrizations, which are of plain weights here."""
    return parametrizations.weight_norm(module, name.replace("hh", "ih").removesuffix("_tri"))


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("make", [SymLSTM, SymGRUCell])
@pytest.mark.parametrize("take", [pruned, nn.utils.weight_norm, nn.utils.spectral_norm, scaled])
def test_what_is_computed_of_recurrent_weights_is_baked_in(take: Any, make: Any) -> None:
    module = make(H, H, symm="tri", dtype=torch.float64)
    model = take(module, "weight_hh_tri" if make.IS_CELL else "weight_hh_l0_tri").eval()
    x = torch.randn((3, H) if make.IS_CELL else (5, 3, H), dtype=torch.float64)
    model(x)
    with torch.no_grad():  # what was computed for that call is not what the next one computes
        for parameter in model.parameters():
            parameter.mul_(1.1)
    for form in ("packed", "plain") if native.available() else ("plain",):
        found = deploy(model, form)
        with torch.no_grad():
            assert_same(found(x), model(x))
    assert found.state_dict().keys() == PLAIN[make](H, H).state_dict().keys()
    unsymmetrize(model)
    assert_same(model(x), found(x))
    assert [*model.state_dict()] == [*PLAIN[make](H, H).state_dict()]


def test_a_pruned_bias_of_a_packed_linear_layer_is_baked_in() -> None:
    if not native.available():
        pytest.skip(native.why_not())
    model = nn.Sequential(nn.Linear(H, H)).eval()
    symmetrize(model, "avg")
    prune.l1_unstructured(model[0], "bias", 0.3)
    found, x = deploy(model), torch.randn(3, H)
    with torch.no_grad():
        assert_same(found(x), model(x), atol=1e-6)
        state = {name: 2 * tensor for name, tensor in found.state_dict().items()}
        found.load_state_dict(state)
        assert_same(found(x), 2 * model(x), atol=1e-6)


@pytest.mark.parametrize("make", [nn.LSTM, nn.LSTMCell])
def test_what_users_put_on_a_recurrent_module_stays(make: Callable[..., nn.Module]) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn: Any = make(H, H)
            self.rnn.scale = nn.Parameter(torch.ones(2))
            self.rnn.register_buffer("mean", torch.zeros(3))
            self.rnn.register_buffer("cache", None, persistent=False)
            self.rnn.register_buffer("seen", torch.zeros(1), persistent=False)
            self.rnn.inner = nn.ModuleList([SymGRU(H, H)])

    model = Other()
    symmetrize(model, "tri", "rnn")
    found = [deploy(model, "plain")]
    if native.available():
        found.append(deploy(model))
        found[1].load_state_dict(found[1].state_dict())
        x = torch.randn(2, H)
        assert_same(found[1].rnn(x), found[0].rnn(x), atol=1e-6)
    for other in found:
        names = {"rnn.scale", "rnn.mean", "rnn.inner.0.weight_hh_l0"}
        assert names <= other.state_dict().keys()
        assert not {"rnn.seen", "rnn.cache"} & other.state_dict().keys()
        assert (other.rnn.seen, other.rnn.cache) == (torch.zeros(1), None)
        assert not {"symmetry", "parametrizations"} & {*dict(other.rnn.named_children())}


def test_a_model_deployed_in_inference_mode_can_be_loaded_into() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(H, H), SymLSTM(H, H))
        symmetrize(model, "tri", "0")
        found = [deploy(model, "plain"), model[1].to_lstm(), SymLSTM.from_lstm(nn.LSTM(H, H))]
        if native.available():
            found.append(deploy(model))
        symmetrize(model[1].to_lstm(), "tri")
        unsymmetrize(model)
    assert not model[0].weight.is_inference()
    for other in found:
        other.load_state_dict(copy.deepcopy(other.state_dict()))
        assert not any(tensor.is_inference() for tensor in other.state_dict().values())


# ---- ONNX ----------------------------------------------------------------------------------------


def linear(symm: str) -> nn.Module:
    model = nn.Linear(H, H)
    if symm != "none":
        symmetrize(model, symm)
    return model


@pytest.mark.parametrize(
    ("make", "symm"), [(SymLSTM, "avg"), (SymGRUCell, "tri8"), (linear, "avg"), (linear, "block4")]
)
def test_an_onnx_file_of_symmetric_weights_is_warned_of_once(
    make: Callable[..., nn.Module], symm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch.export, as PyTorch's newer exporter has it; without the packages that it wants."""
    monkeypatch.setattr(onnx, "_said", False)
    model = make(symm=symm) if make is linear else make(H, H, symm=symm)
    plain = deploy(model, "plain"), linear("none") if make is linear else make(H, H, symm="none")
    x = torch.randn((5, 2, H) if make is SymLSTM else (2, H))

    def said(model: nn.Module) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.export.export(model, (x,), strict=False)
        return [str(w.message) for w in caught if "symrnn" in str(w.message)]

    assert said(model) == []
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    assert [said(other) for other in plain] == [[], []]
    (message,) = said(model)
    assert 'symrnn.deploy(model, form="plain")' in message
    assert said(model) == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:Exporting a model to ONNX with a batch_size:UserWarning")
def test_the_older_exporter_warns_too(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    pytest.importorskip("onnx")
    monkeypatch.setattr(onnx, "_said", False)
    model, x = nn.Sequential(SymLSTM(H, H, symm="avg")), torch.randn(5, 2, H)
    torch.onnx.export(deploy(model, "plain"), (x,), io.BytesIO(), dynamo=False)
    assert not [w for w in recwarn if "symrnn.deploy" in str(w.message)]
    with pytest.warns(UserWarning, match=r"export symrnn\.deploy\(model"):
        torch.onnx.export(model.eval(), (x,), io.BytesIO(), dynamo=False)


# ---- what is refused -----------------------------------------------------------------------------


def test_another_form_or_type_is_an_error() -> None:
    layer = SymLSTM(H, H)
    with pytest.raises(ValueError, match=r"form should be one of packed, plain, got: 'onnx'"):
        deploy(layer, "onnx")
    allowed = "torch.float64, torch.float32, torch.float16, torch.bfloat16"
    for dtype in (torch.int8, torch.complex64, "float16"):
        with pytest.raises(
            ValueError, match=rf"dtype of form='plain' should be .* {allowed}, got: "
        ):
            deploy(layer, "plain", dtype=dtype)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model should be an nn\.Module, got: OrderedDict"):
        deploy(layer.state_dict(), "plain")  # type: ignore[arg-type]


def test_a_weight_with_further_parametrizations_is_an_error() -> None:
    model = nn.Sequential(nn.Linear(H, H))
    symmetrize(model, "avg")
    nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Tanh())
    with pytest.raises(ValueError, match=r"0\.weight has 2 parametrizations"):
        deploy(model, "plain")


def test_a_class_derived_from_a_layer_is_an_error() -> None:
    class Doubled(SymLSTM):
        def forward(self, *arguments: Any) -> Any:
            return super().forward(*arguments)[0] * 2

    message = "1 is a Doubled, a class derived from SymLSTM: put SymLSTM itself in its place"
    with pytest.raises(ValueError, match=message):
        deploy(nn.Sequential(nn.Linear(H, H), Doubled(H, H)), "plain")
    with pytest.raises(ValueError, match=message):
        unsymmetrize(nn.Sequential(nn.Linear(H, H), Doubled(H, H)))
