"""Convolutions that blocks of a stage share: which ones, what they compute, their gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from symrnn import count_parameters, deploy, parameter_groups, soft_symmetry_penalty, symmetrize
from symrnn.vision import create_model, fold_for_inference
from symrnn.vision.sharing import Strided


def make(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **options)


def groups(model: nn.Module) -> list[list[int]]:
    """Of each stage, for each block the first block with the same convolution."""
    found = []
    for stage in model.stages:
        convs = [b.conv2.conv if isinstance(b.conv2, Strided) else b.conv2 for b in stage]
        found.append([convs.index(conv) for conv in convs])
    return found


@pytest.mark.parametrize(
    ("name", "share", "expected"),
    [
        ("wrn-22-1-basic", "none", [[0, 1, 2]] * 3),
        # All of a stage.
        ("wrn-22-1-basic", "stage", [[0, 0, 0]] * 3),
        ("wrn-22-1-bottleneck", "stage", [[0, 0, 0]] * 3),
        ("resnet-50", "stage", [[0] * 3, [0] * 4, [0] * 6, [0] * 3]),
        # For CIFAR: all but the first.
        ("wrn-22-1-basic", "sharesnet", [[0, 1, 1]] * 3),
        ("resnet-29", "sharesnet", [[0, 1, 1]] * 3),
        ("wrn-10-1-bottleneck", "sharesnet", [[0]] * 3),
        # For ImageNet: all basic blocks, and bottlenecks without a stride.
        ("resnet-18", "sharesnet", [[0, 0]] * 4),
        ("resnet-50", "sharesnet", [[0] * 3, [0] + [1] * 3, [0] + [1] * 5, [0, 1, 1]]),
        ("resnext-50-32x4d", "sharesnet", [[0] * 3, [0] + [1] * 3, [0] + [1] * 5, [0, 1, 1]]),
    ],
)
def test_which_blocks_share(name: str, share: str, expected: list[list[int]]) -> None:
    model = make(name, share=share)
    assert groups(model) == expected
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    plain = [part for part in make(name).modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(norms) == len(plain)


CASES: list[tuple[str, dict[str, Any]]] = [
    ("wrn-16-1-bottleneck", {"share": "stage"}),
    ("wrn-16-1-bottleneck", {"share": "stage", "symm": "tri"}),
    ("wrn-16-1-bottleneck", {"share": "stage", "symm": "block4"}),
    ("wrn-22-1-basic", {"share": "sharesnet", "symm": "avg"}),
    ("wrn-18-0.25", {"share": "sharesnet", "symm": "tri4"}),
]
cases = pytest.mark.parametrize(("name", "options"), CASES, ids=lambda case: str(case))


def unshared(name: str, model: nn.Module) -> nn.Module:
    """A plain network that computes the same: each block's own copy of the expanded weight."""
    plain = create_model(name).to(next(model.parameters()).dtype)
    state = {}
    for key in plain.state_dict():
        path, _, leaf = key.rpartition(".")
        part = model.get_submodule(path)
        state[key] = getattr(part.conv if isinstance(part, Strided) else part, leaf).detach()
    plain.load_state_dict(state)
    return plain


@pytest.mark.parametrize(
    ("name", "options", "fold_always"),
    [*((*case, False) for case in CASES[:2]), *((*case, True) for case in CASES[1:])],
    ids=str,
)
def test_outputs_and_gradients_are_those_of_a_network_with_copies(
    name: str, options: dict[str, Any], fold_always: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fold_always:
        monkeypatch.setattr("symrnn.layers.PAYS", 0)
    model = create_model(name, **options).double()
    plain = unshared(name, model)
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-9, atol=1e-9)
    model.zero_grad()
    model(x).square().sum().backward()
    plain(x).square().sum().backward()
    # The shared weight's gradient is the sum over the blocks, then the form's adjoint.
    for stage, plain_stage in zip(model.stages, plain.stages, strict=True):
        blocks = [
            (b.conv2.conv if isinstance(b.conv2, Strided) else b.conv2, p.conv2.weight.grad)
            for b, p in zip(stage, plain_stage, strict=True)
        ]
        for conv in {conv for conv, _ in blocks}:
            total = sum(grad for other, grad in blocks if other is conv)
            if "symm" not in options:
                found, expected = conv.weight.grad, total
            else:
                form = conv.parametrizations.weight
                found = form.original.grad
                (expected,) = torch.autograd.grad(form[0](form.original), form.original, total)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@cases
def test_a_shared_convolution_is_one_everywhere(name: str, options: dict[str, Any]) -> None:
    model = create_model(name, **options)
    parameters = list(model.parameters())
    grouped = [p for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert len(grouped) == len({id(p) for p in grouped}) == len(parameters)
    assert count_parameters(model).training == sum(p.numel() for p in parameters)
    # A copy and a state keep it so.
    made = copy.deepcopy(model)
    assert groups(made) == groups(model)
    assert count_parameters(made) == count_parameters(model)
    fresh = create_model(model.name, **model.options)
    fresh.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    model.eval(), made.eval(), fresh.eval()
    with torch.no_grad():
        assert torch.equal(made(x), model(x))
        assert torch.equal(fresh(x), model(x))


def test_symmetry_names_and_counts_a_shared_convolution_once() -> None:
    model = create_model("wrn-16-1-bottleneck", share="stage")
    before = soft_symmetry_penalty(model, where="stages.*.conv2")
    report = symmetrize(model, "tri", "stages.*.conv2")
    # The strided block stands first in its stage and holds the convolution of the other. Either
    # name is meant by a pattern; the first is the one that is told.
    assert [change.name for change in report] == [
        "stages.0.0.conv2.weight",
        "stages.1.0.conv2.conv.weight",
        "stages.2.0.conv2.conv.weight",
    ]
    assert [change.before for change in report] == [9 * n**2 for n in (16, 32, 64)]
    assert [change.after for change in report] == [9 * n * (n + 1) // 2 for n in (16, 32, 64)]
    assert groups(model) == [[0, 0]] * 3
    for stage in model.stages:
        assert torch.equal(stage[1].conv2.weight, stage[1].conv2.weight.transpose(0, 1))
    assert before > 0


def test_a_strided_use_of_a_convolution_is_that_convolution_with_a_stride() -> None:
    conv = nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2)
    strided = Strided(conv, (2, 2))
    own = deploy(strided, "plain")
    x = torch.randn(2, 4, 9, 9)
    torch.testing.assert_close(strided(x), conv(x)[:, :, ::2, ::2])
    torch.testing.assert_close(strided(x), own(x))
    assert isinstance(own, nn.Conv2d)
    assert (type(own), own.stride, conv.stride) == (nn.Conv2d, (2, 2), (1, 1))
    assert "stride=(2, 2)" in repr(strided)


@cases
def test_shared_networks_fold_for_inference(name: str, options: dict[str, Any]) -> None:
    model = create_model(name, **options).double()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 1.5)
    model.eval()
    folded = fold_for_inference(model)
    assert not any(isinstance(part, Strided) for part in folded.modules())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)


def test_a_shared_network_learns() -> None:
    model = create_model("wrn-16-1-bottleneck", symm="tri", share="stage")
    optimizer = torch.optim.SGD(parameter_groups(model, 0.05), lr=0.05, momentum=0.9)
    x, y = torch.randn(16, 3, 16, 16), torch.arange(16) % 10
    losses = []
    for _ in range(15):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


@pytest.mark.parametrize("name", ["vgg-11", "nin", "mobilenet", "diracnet-10-1"])
@pytest.mark.parametrize("share", ["stage", "sharesnet"])
def test_networks_without_blocks_cannot_share(name: str, share: str) -> None:
    with pytest.raises(ValueError, match=rf"^share='{share}' wants a residual network"):
        make(name, share=share)


def test_an_unknown_share_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^share should be one of none, stage, sharesnet, got: 'all'$"
    ):
        make("wrn-10-1-basic", share="all")
