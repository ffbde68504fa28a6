"""Folding for inference: equal outputs, plain layers, and nothing folded that is not proven."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from symrnn import SymLSTM, count_parameters, harden, soft_symmetry_penalty, symmetrize
from symrnn.layers import FoldedConv2d, FoldedLinear
from symrnn.vision import create_model
from symrnn.vision.dirac import DiracConv2d
from symrnn.vision.inference import fold_for_inference
from symrnn.vision.models.diracnet import diracnet
from symrnn.vision.registry import FAMILIES

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def trained(model: nn.Module) -> nn.Module:
    """The model with statistics, scales and shifts as training leaves them, in float64."""
    generator = torch.Generator().manual_seed(1)
    for part in model.modules():
        if isinstance(part, NORMS):
            for name, value in (*part.named_parameters(), *part.named_buffers()):
                if value.is_floating_point():
                    low, high = (-0.5, 0.5) if name in ("bias", "running_mean") else (0.5, 1.5)
                    value.data.uniform_(low, high, generator=generator)
    return model.double()


def pictures(channels: int = 3, side: int = 8, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, channels, side, side, generator=generator, dtype=torch.float64)


def norms(model: nn.Module) -> int:
    return sum(isinstance(part, NORMS) for part in model.modules())


def leaves(model: nn.Module) -> list[type]:
    """The types of the layers, without what does nothing."""
    types = [type(part) for part in model.modules() if not list(part.children())]
    return [kind for kind in types if kind is not nn.Identity]


def check(model: nn.Module, left: int, x: Tensor | None = None) -> nn.Module:
    """The folded model, which gives the outputs of the model and has ``left`` batch norms."""
    x = pictures() if x is None else x
    before = copy.deepcopy(model.state_dict())
    modes = [part.training for part in model.modules()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folded = fold_for_inference(model)
    assert [part.training for part in model.modules()] == modes
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not any(part.training for part in folded.modules())
    assert type(folded) is type(model)
    expected = copy.deepcopy(model).eval()(x)
    torch.testing.assert_close(folded(x), expected, rtol=0, atol=1e-10)
    assert norms(folded) == left
    mine = {p.data_ptr() for p in model.parameters()}
    assert not any(p.data_ptr() in mine for p in folded.parameters())
    return folded


# ---- convolution and batch norm ----------------------------------------------------------------

CONVOLUTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False},
    {"stride": 2, "padding": 1},
    {"padding": 2, "padding_mode": "reflect"},
    {"groups": 3},
    {"groups": 3, "bias": False},
    {"dilation": 2},
]


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_a_norm_goes_into_the_convolution_before_it(options: dict[str, Any], affine: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, **options), nn.BatchNorm2d(6, affine=affine))
    folded = check(trained(model), left=0)
    assert leaves(folded) == [nn.Conv2d]
    assert isinstance(folded[1], nn.Identity)
    s = 1 / (model[1].running_var + 1e-5).sqrt()
    s = s * model[1].weight if affine else s
    torch.testing.assert_close(folded[0].weight, s.view(-1, 1, 1, 1) * model[0].weight)
    fold_again = check(folded, left=0)
    assert all(
        torch.equal(a, b) for a, b in zip(fold_again.parameters(), folded.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("convolution", "norm", "shape"),
    [
        (nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), (2, 3, 9)),
        (nn.Conv3d(3, 6, 3), nn.BatchNorm3d(6, momentum=None), (2, 3, 4, 5, 6)),
        (nn.Conv2d(3, 6, 3), nn.SyncBatchNorm(6), (2, 3, 5, 6)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_dimensions(convolution: nn.Module, norm: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    check(trained(nn.Sequential(convolution, norm)), left=0, x=x)


@pytest.mark.parametrize(
    ("dtype", "atol"), [(torch.float32, 2e-6), (torch.bfloat16, 0.06), (torch.float16, 0.008)]
)
def test_lower_precision(dtype: torch.dtype, atol: float) -> None:
    """Outputs up to 4 agree to some units in the last place: weights are rounded once more."""
    torch.manual_seed(0)
    model = trained(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU()))
    model.to(dtype, memory_format=torch.channels_last)
    folded = fold_for_inference(model)
    assert {p.dtype for p in folded.parameters()} == {dtype}
    assert folded[0].weight.is_contiguous(memory_format=torch.channels_last)
    x = pictures().to(dtype)
    found, expected = folded(x), model.eval()(x)
    assert found.dtype == expected.dtype == dtype
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=atol)


def test_numbers_that_the_type_cannot_hold_are_not_folded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)).half()
    model[0].weight.data.fill_(1e3)
    model[1].weight.data.fill_(1e3)
    assert norms(fold_for_inference(model)) == 1


def test_frozen_parameters_stay_frozen_and_meta_stays_meta() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, device="meta"), nn.BatchNorm2d(6, device="meta"))
    model.requires_grad_(False)
    folded = fold_for_inference(model)
    assert norms(folded) == 0
    assert all(p.is_meta and not p.requires_grad for p in folded.parameters())


def test_two_norms_in_a_row() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6))
    check(trained(model), left=0)


# ---- what is left alone ------------------------------------------------------------------------


class Net(nn.Module):
    """A convolution and a norm, and a way to use them."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3, **options)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


USES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "norm first": lambda net, x: net.conv(net.bn(x)),
    "ReLU between": lambda net, x: net.bn(F.relu(net.conv(x))),
    "in-place ReLU between": lambda net, x: net.bn(net.conv(x).relu_()),
    "output used twice": lambda net, x: (lambda y: y + net.bn(y))(net.conv(x)),
    "output changed in place": lambda net, x: (lambda y: (y.add_(1), net.bn(y))[1])(net.conv(x)),
    "convolution used twice": lambda net, x: net.conv(net.bn(net.conv(x))),
    "norm used twice": lambda net, x: net.bn(x) + net.bn(net.conv(x)),
    "weight used by hand": lambda net, x: net.bn(net.conv(x)) * net.conv.weight.norm(),
    "scale used by hand": lambda net, x: net.bn(net.conv(x)) + net.bn.bias.sum(),
    "weight of the call": lambda net, x: net.bn(F.conv2d(x, net.conv.weight, padding=1)),
    "buffer used by hand": lambda net, x: net.bn(net.conv(x)) * (1 + net.bn.running_var.mean()),
    "weights of parameters()": lambda net, x: (
        net.bn(net.conv(x)) * sum(p.norm() for p in net.conv.parameters())
    ),
    "weight of state_dict()": lambda net, x: (
        net.bn(net.conv(x)) + net.conv.state_dict()["weight"].sum()
    ),
    "buffers of buffers()": lambda net, x: net.bn(net.conv(x)) * next(net.bn.buffers()).norm(),
    "forward by hand": lambda net, x: net.bn(net.conv.forward(x)),
}


@pytest.mark.parametrize("use", USES)
def test_uses_that_cannot_be_folded(use: str) -> None:
    torch.manual_seed(0)
    check(trained(Net(USES[use])), left=1)


def test_called_twice_one_after_the_other_each_time() -> None:
    net = Net(lambda net, x: net.bn(net.conv(F.relu(net.bn(net.conv(x))))))
    check(trained(net), left=0)


def test_a_norm_of_the_batch_itself() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False))
    check(trained(model), left=1)


def test_other_layers_before_a_norm() -> None:
    class Shifted(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) ** 2

    class Scaled(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * F.batch_norm(x, self.running_mean, self.running_var, self.weight)

    check(trained(nn.Sequential(Shifted(3, 6, 3), nn.BatchNorm2d(6))), left=1)
    check(trained(nn.Sequential(nn.Conv2d(3, 6, 3), Scaled(6))), left=1)
    check(trained(nn.Sequential(nn.ConvTranspose2d(3, 6, 3), nn.BatchNorm2d(6))), left=1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.BatchNorm1d(6))
    check(trained(model), left=1)
    check(trained(nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6))), left=0)


def test_hooks_and_computed_weights() -> None:
    def model() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))

    hooked = model()
    hooked[0].register_forward_hook(lambda module, args, output: 2 * output)
    check(trained(hooked), left=1)
    hooked = model()
    hooked[1].register_forward_pre_hook(lambda module, args: (2 * args[0],))
    check(trained(hooked), left=1)
    normalized = model()
    parametrizations.weight_norm(normalized[0])
    check(trained(normalized), left=1)


def test_tied_weights() -> None:
    """A weight that another convolution shares: each its own afterwards, if a norm follows."""
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 3))
    model[3].weight = model[0].weight
    folded = check(trained(model), left=0)
    assert torch.equal(folded[3].weight, model[3].weight)


def test_functional_batch_norm_stays() -> None:
    net = Net(lambda net, x: F.batch_norm(net.conv(x), net.bn.running_mean, net.bn.running_var))
    check(trained(net), left=1)


# ---- graphs ------------------------------------------------------------------------------------


def test_branches_and_control_flow_that_does_not_depend_on_values() -> None:
    class Block(nn.Module):
        def __init__(self, shortcut: bool) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1) if shortcut else None
            self.bn, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.last: Any = None

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn(self.left(x))
            if self.training:
                y = y + torch.randn_like(y)
            x = x if self.right is None else self.bn2(self.right(x))
            self.last = y  # a note of the call
            return torch.cat([y, x], 1).view(x.size(0), -1)

    folded = check(trained(Block(True)), left=0)
    assert isinstance(folded.last, Tensor)
    folded = check(trained(Block(False)), left=1)
    assert folded.right is None


class Untraceable(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


class Optional(nn.Sequential):
    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        y = self[0](x) if skip is None else self[0](x) + skip
        return self[1](y)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Untraceable, "symbolically traced variables"),
        (Optional, "its forward has the optional argument 'skip'"),
    ],
)
def test_models_that_cannot_be_traced_keep_their_norms(kind: Any, reason: str) -> None:
    torch.manual_seed(0)
    model = trained(kind(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)))
    symmetrize(model, "tri")
    with pytest.warns(UserWarning, match=f"not folded: {kind.__name__} cannot.*{reason}") as caught:
        folded = fold_for_inference(model)
    assert caught[0].filename == __file__
    assert leaves(folded) == [nn.Conv2d, nn.BatchNorm2d]
    x = pictures()
    torch.testing.assert_close(folded(x), model.eval()(x), rtol=0, atol=1e-12)


def test_a_forward_of_its_own_and_a_wrapper_are_not_traced() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)))
    model[0].forward = lambda x: 0 * x
    with pytest.warns(UserWarning, match=r"0 has a forward of its own"):
        assert norms(fold_for_inference(model)) == 1
    with pytest.warns(UserWarning, match=r"optional argument 'inputs'"):
        fold_for_inference(nn.DataParallel(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3))))


def test_without_batch_norm_nothing_need_be_traced() -> None:
    check(Untraceable(nn.Conv2d(3, 3, 3)).double(), left=0)


# ---- sharing -----------------------------------------------------------------------------------


def test_a_shared_convolution_before_different_norms() -> None:
    """Becomes as many convolutions, as in a plain network."""
    torch.manual_seed(0)
    shared = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    blocks = [nn.Sequential(shared, nn.BatchNorm2d(3), nn.ReLU()) for _ in range(3)]
    model = trained(nn.Sequential(*blocks))
    folded = check(model, left=0)
    assert count_parameters(model).training == 81 + 3 * 6
    assert count_parameters(folded).training == 3 * (81 + 3)


def test_a_shared_block() -> None:
    shared = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
    check(trained(nn.Sequential(shared, nn.ReLU(), shared)), left=0)


def test_a_shared_convolution_that_is_not_folded_stays_shared() -> None:
    shared = nn.Conv2d(3, 3, 3, padding=1)
    model = trained(nn.Sequential(nn.BatchNorm2d(3), shared, nn.ReLU(), shared))
    folded = check(model, left=1)
    assert folded[1].weight is folded[3].weight
    assert count_parameters(folded).training == count_parameters(model).training


def test_a_shared_convolution_that_only_one_norm_follows() -> None:
    shared = nn.Conv2d(3, 3, 3, padding=1)
    folded = check(trained(nn.Sequential(shared, nn.BatchNorm2d(3), shared, nn.ReLU())), left=0)
    assert not torch.equal(folded[0].weight, folded[2].weight)


def test_a_shared_convolution_with_a_further_parametrization() -> None:
    shared = parametrizations.weight_norm(nn.Conv2d(3, 3, 3, padding=1))
    check(trained(nn.Sequential(shared, nn.BatchNorm2d(3), shared, nn.ReLU())), left=1)


def test_a_shared_symmetric_convolution() -> None:
    shared = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    symmetrize(shared, "block4")
    blocks = [nn.Sequential(shared, nn.BatchNorm2d(4)) for _ in range(2)]
    folded = check(trained(nn.Sequential(*blocks)), left=0, x=pictures(4))
    assert leaves(folded) == [nn.Conv2d, nn.Conv2d]


# ---- symmetric layers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("symm", "axes"),
    [
        *(("tri8", axes) for axes in ("channel", "space", "both")),
        *((symm, "channel") for symm in ("tri", "avg", "avg:full", "block4", "chunk2")),
    ],
)
def test_symmetric_convolutions(symm: str, axes: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(8),
    )  # fmt: skip
    plain = fold_for_inference(model)
    symmetrize(model, symm, "3", axes)
    assert isinstance(model[3], FoldedConv2d)
    folded = check(trained(model), left=0)
    assert type(folded[3]) is nn.Conv2d
    assert not any(parametrize.is_parametrized(part) for part in folded.modules())
    assert count_parameters(folded) == count_parameters(plain)
    assert list(folded.state_dict()) == list(plain.state_dict())


def test_symmetric_linear_and_recurrent_layers() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.rnn, self.fc = SymLSTM(8, 8, symm="tri", batch_first=True), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.bn(self.conv(x)).flatten(2).transpose(1, 2)
            return self.fc(self.rnn(y)[0])

    model = Net()
    symmetrize(model, "chunk2", "fc")
    assert isinstance(model.fc, FoldedLinear)
    folded = check(trained(model), left=0)
    assert type(folded.fc) is nn.Linear
    assert type(folded.rnn) is nn.LSTM


def test_soft_symmetry_stays_soft_until_it_is_hardened() -> None:
    model = trained(nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3)))
    assert soft_symmetry_penalty(model) > 0
    check(model, left=0)
    harden(model)
    check(model, left=0)


def test_further_parametrizations_of_a_symmetric_weight() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 3))
    symmetrize(model, "tri")
    parametrize.register_parametrization(model[0], "weight", nn.Tanh())
    with pytest.raises(ValueError, match=r"^0\.weight has 2 parametrizations"):
        fold_for_inference(model)


# ---- Dirac networks ----------------------------------------------------------------------------


@pytest.mark.parametrize(("symm", "training"), [("none", False), ("tri", True), ("avg8", False)])
def test_a_diracnet_becomes_a_chain_of_convolutions_and_relus(symm: str, training: bool) -> None:
    torch.manual_seed(0)
    model = diracnet(10, 1)
    plain = 27 * 16 + 16 + 64 * 10 + 10
    for inputs, outputs in [(16, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64)]:
        plain += 9 * inputs * outputs + outputs
    if symm != "none":
        symmetrize(model, symm)
    folded = check(trained(model).train(training), left=0, x=pictures(3, 32))
    stage = [nn.ReLU, nn.Conv2d] * 2
    assert leaves(folded) == [
        nn.Conv2d, *stage, nn.MaxPool2d, *stage, nn.MaxPool2d, *stage,
        nn.ReLU, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Linear,
    ]  # fmt: skip
    assert not any(isinstance(part, DiracConv2d) for part in folded.modules())
    assert not any(parametrize.is_parametrized(part) for part in folded.modules())
    assert count_parameters(folded).training == plain
    single, x = copy.deepcopy(model).float().eval(), pictures(3, 32).float()
    # Logits up to 10 after 7 convolutions.
    torch.testing.assert_close(fold_for_inference(single)(x), single(x), rtol=0, atol=2e-5)


def test_one_dirac_convolution() -> None:
    layer = DiracConv2d(4, 4, 3, padding=1, groups=2).double()
    folded = fold_for_inference(layer)
    assert type(folded) is nn.Conv2d
    assert set(folded.state_dict()) == {"weight", "bias"}
    assert torch.equal(folded(pictures(4)), layer(pictures(4)))


def test_a_shared_dirac_convolution() -> None:
    shared = DiracConv2d(4, 4, 3, padding=1, bias=False)
    blocks = [nn.Sequential(shared, nn.BatchNorm2d(4)) for _ in range(2)]
    folded = check(trained(nn.Sequential(*blocks)), left=0, x=pictures(4))
    assert leaves(folded) == [nn.Conv2d, nn.Conv2d]


def test_a_folded_model_exports_compiles_and_trains_on() -> None:
    folded = fold_for_inference(trained(diracnet(10, 0.25)))
    x = pictures(3, 32)
    program = torch.export.export(folded, (x,)).module()
    torch.testing.assert_close(program(x), folded(x), rtol=0, atol=1e-12)
    folded(x).sum().backward()
    assert all(p.grad is not None for p in folded.parameters())


# ---- every network -----------------------------------------------------------------------------

# Of each family the first example, and what is built otherwise than that.
SOME = [family.examples.split()[0] for family in FAMILIES]
SOME += ["wrn-16-1-basic", "resnet-50", "nin-bn"]
LARGE = {"resnet-50": "tri", "diracnet-18": "tri", "vgg-16-imagenet": "none"}
# Narrower ones of the same families; of resnet-18's too.
NARROW = {
    "wrn-18-2.0": "wrn-18-0.25",
    "resnet-18": "wrn-18-0.25",
    "mobilenet": "mobilenet-0.25",
    "mobilenet-imagenet": "mobilenet-0.25-imagenet",
    "resnext-29-8x64d": "resnext-11-4x8d",
    "resnext-50-32x4d": "resnext-50-2x4d",
}

# Norms that stay: of each pre-activation block the first, behind an addition (that behind the stem
# folds if the stem's output goes nowhere else), and the one before the classifier.
LEFT = {
    "wrn-10-1-bottleneck": 3,
    "wrn-16-1-basic": 7,
    "resnet-29": 9,
    "resnext-16-2-4": 6,
}


def network(name: str, **options: Any) -> tuple[nn.Module, Tensor]:
    """The network as if trained, and a picture of the size of CIFAR's."""
    torch.manual_seed(0)
    return trained(create_model(name, num_classes=10, **options)), pictures(3, 32, 1)


@pytest.mark.parametrize(
    "name", dict.fromkeys(NARROW.get(name, name) for name in SOME if name not in LARGE)
)
def test_every_family_of_networks(name: str) -> None:
    model, x = network(name, symm="tri")
    folded = check(model, LEFT.get(name, 0), x)
    assert not any(parametrize.is_parametrized(part) for part in folded.modules())
    kinds = {type(part) for part in folded.modules() if part._parameters}
    assert kinds <= {nn.Conv2d, nn.Linear, nn.BatchNorm2d}
    single, x = model.float().eval(), x.float()
    expected = single(x)
    # Rounding, from layer to layer: some units in 1e-7 for each of up to 50 of them.
    atol = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(fold_for_inference(single)(x), expected, rtol=0, atol=atol)


@pytest.mark.parametrize(("name", "symm"), LARGE.items())
def test_large_networks_in_single_precision(name: str, symm: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, symm, num_classes=10).eval()
    x = pictures(3, 32, 1).float()
    folded = fold_for_inference(model)
    assert norms(folded) == 0
    expected = model(x)
    atol = 1e-5 * expected.abs().max().item()
    torch.testing.assert_close(folded(x), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("name", SOME)
def test_networks_have_the_numbers_of_plain_ones_afterwards(name: str) -> None:
    with torch.device("meta"):
        plain, symmetric = create_model(name), create_model(name, "tri")
    folded = fold_for_inference(symmetric)
    assert not any(isinstance(part, DiracConv2d | FoldedConv2d) for part in folded.modules())
    assert count_parameters(folded) == count_parameters(fold_for_inference(plain))


@pytest.mark.parametrize(
    ("name", "share", "symm"),
    [
        ("wrn-16-1-bottleneck", "stage", "none"),
        ("wrn-16-1-bottleneck", "stage", "block4"),
        ("resnext-16-2-4", "stage", "block4"),
        ("wrn-18-0.25", "sharesnet", "none"),
    ],
)
def test_shared_convolutions_of_networks_become_separate(name: str, share: str, symm: str) -> None:
    model, x = network(name, symm=symm, share=share)
    folded = check(model, 0 if name == "wrn-18-0.25" else 6, x)
    with torch.device("meta"):
        plain = fold_for_inference(create_model(name, num_classes=10))
    assert count_parameters(folded) == count_parameters(plain)


def test_shared_convolutions_that_no_norm_follows_stay_shared() -> None:
    """The second one of a pre-activation block."""
    model, x = network("wrn-16-1-basic", symm="tri", share="stage")
    folded = check(model, 7, x)
    for stage in folded.stages:
        assert stage[0].conv2.weight is stage[1].conv2.weight


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    model, x = network("diracnet-10-1", symm="tri")
    folded = check(model.cuda(), 0, x.cuda())
    assert all(p.is_cuda for p in folded.parameters())


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: create_model("wrn-10-1-bottleneck", symm="tri"), "no parametrized weights"),
        (lambda: diracnet(10, 1, 10), "no Dirac convolutions"),
    ],
)
def test_torchscript_takes_the_folded_network(model: Callable[[], nn.Module], words: str) -> None:
    network = model().eval()
    with pytest.raises(RuntimeError, match=rf"{words}: script .*fold_for_inference\(model\)"):
        torch.jit.script(network)
    x = torch.randn(2, 3, 32, 32)
    scripted = torch.jit.script(fold_for_inference(network))
    torch.testing.assert_close(scripted(x), network(x))
