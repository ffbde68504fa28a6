"""Where symmetry lands in each family, and what it does to the layers there."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.flop_counter import FlopCounterMode

from symrnn import harden, list_symmetries, soft_symmetry_penalty
from symrnn.layers import FoldedConv2d
from symrnn.vision import create_model, default_where


def make(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **options)


def symmetric(model: nn.Module) -> set[str]:
    """The names of the layers whose weight is symmetric."""
    return {name for name, part in model.named_modules() if is_parametrized(part, "weight")}


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("wrn-16-1-bottleneck", (2, 2, 2)),
        ("wrn-16-1-basic", (2, 2, 2)),
        ("resnet-29", (3, 3, 3)),
        ("resnext-16-2-4", (2, 2, 2)),
        ("resnext-29-8x64d", (3, 3, 3)),
        ("resnet-18", (2, 2, 2, 2)),
        ("resnet-50", (3, 4, 6, 3)),
        ("wrn-18-2.0", (2, 2, 2, 2)),
        ("resnext-50-32x4d", (3, 4, 6, 3)),
    ],
)
@pytest.mark.parametrize("axes", ["channel", "both"])
def test_residual_networks_have_it_on_the_second_convolution(
    name: str, counts: tuple[int, ...], axes: str
) -> None:
    expected = {f"stages.{s}.{b}.conv2" for s, count in enumerate(counts) for b in range(count)}
    assert symmetric(make(name, symm="tri", axes=axes)) == expected


@pytest.mark.parametrize(
    "name",
    ["vgg-11", "vgg-19", "vgg-16-imagenet", "mobilenet", "nin", "nin-bn", "diracnet-10-1"],
)
def test_chains_have_it_on_every_square_convolution(name: str) -> None:
    expected = {
        name
        for name, part in make(name).named_modules()
        if isinstance(part, nn.Conv2d)
        and part.groups == 1
        and part.in_channels == part.out_channels
    }
    assert symmetric(make(name, symm="tri")) == expected
    assert {"mobilenet": 8, "vgg-19": 12, "nin": 5}.get(name, len(expected)) == len(expected)


def test_of_chains_kernels_are_symmetric_wherever_there_is_more_than_a_point() -> None:
    kernels = {
        name
        for name, part in make("mobilenet").named_modules()
        if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3)
    }
    assert "stem.0" in kernels
    assert "blocks.0.depthwise" in kernels
    assert symmetric(make("mobilenet", symm="tri", axes="space")) == kernels


def test_a_classifier_that_is_square_is_no_convolution() -> None:
    assert "classifier" not in symmetric(make("mobilenet", symm="tri", num_classes=1024))


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("stages.2.*.conv2", {"stages.2.0.conv2", "stages.2.1.conv2"}),
        (["stages.0.1.conv2", "stages.1.1.conv2"], {"stages.0.1.conv2", "stages.1.1.conv2"}),
        (lambda name, module: name == "stages.0.0.conv1.weight", {"stages.0.0.conv1"}),
    ],
)
def test_where_overrides_and_is_kept(where: Any, expected: set[str]) -> None:
    model = create_model("wrn-16-1-bottleneck", symm="tri", where=where)
    assert symmetric(model) == expected
    again = create_model(model.name, **model.options)
    assert symmetric(again) == expected


def test_groups_are_symmetric_each_by_itself() -> None:
    conv = create_model("resnext-16-2-4", symm="avg").stages[1][0].conv2
    blocks = conv.weight.unflatten(0, (4, 16))
    torch.testing.assert_close(blocks, blocks.transpose(1, 2), rtol=0, atol=0)


@pytest.mark.parametrize("symm", [*list_symmetries(), "eigen:3"])
def test_every_form_lands_and_runs(symm: str) -> None:
    model = create_model("wrn-10-1-bottleneck", symm=symm)
    assert len(symmetric(model)) == 3
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_convolutions_are_folded_where_that_pays() -> None:
    """The second 3×3 of a block4 network costs a quarter in multiplications, the others all."""

    def flops(symm: str) -> int:
        model = create_model("wrn-10-4-basic", symm=symm).eval()
        assert all(
            isinstance(stage[0].conv2, FoldedConv2d) == (symm != "none") for stage in model.stages
        )
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.randn(1, 3, 16, 16))
        return int(counter.get_total_flops())

    second = sum(2 * 9 * channels**2 * size**2 for channels, size in ((64, 16), (128, 8), (256, 4)))
    assert flops("none") - flops("block4") == second * 3 // 4


def test_the_default_serves_the_soft_penalty_too() -> None:
    model = create_model("wrn-10-1-bottleneck")
    where = default_where(model)
    assert soft_symmetry_penalty(model, where=where) > 0
    assert [c.name for c in harden(model, where)] == [
        f"stages.{s}.0.conv2.weight" for s in range(3)
    ]
    assert soft_symmetry_penalty(model, where=where) == 0


# ---- starting values ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fan", "symm", "shrink"),
    [
        ("wrn-10-4-basic", 9 * 256, "none", 1.0),
        ("wrn-10-4-basic", 9 * 256, "tri", 1.0),
        ("wrn-10-4-basic", 9 * 256, "avg", 0.5**0.5),
        ("wrn-10-4-basic", 9 * 256, "avg:full", 0.5**0.5),
        ("resnet-18", 9 * 512, "avg", 0.5**0.5),
        ("diracnet-10-4", 9 * 256, "tri", 1.0),
        ("diracnet-10-4", 9 * 256, "avg", 0.5**0.5),
    ],
)
def test_symmetric_weights_start_as_large_as_their_form_is(
    name: str, fan: int, symm: str, shrink: float
) -> None:
    """He normal; off the diagonal a mean of two is smaller by √2."""
    model = create_model(name, symm=symm)
    conv = model.stage3[-1].conv if "dirac" in name else model.stages[-1][-1].conv2
    weight = conv.weight.detach()[:, :, 0, 0]
    off = weight[~torch.eye(len(weight), dtype=torch.bool)]
    assert off.std().item() == pytest.approx(shrink * math.sqrt(2 / fan), rel=0.03)
    assert weight.diagonal().std().item() == pytest.approx(math.sqrt(2 / fan), rel=0.3)


def test_plain_weights_biases_and_norms_start_as_the_papers_have_them() -> None:
    model = create_model("mobilenet-imagenet")  # He normal over what an input goes into
    assert model.stem[0].weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 32)), rel=0.1)
    depthwise = model.blocks[-1].depthwise.weight
    assert depthwise.std().item() == pytest.approx(math.sqrt(2 / 9), rel=0.05)
    assert model.classifier.weight.abs().max() <= 1024**-0.5
    model = create_model("nin-bn")  # and over what goes into an output
    assert model[0].weight.std().item() == pytest.approx(math.sqrt(2 / 75), rel=0.03)
    assert model[-1].weight.std().item() == pytest.approx(math.sqrt(2 / 192), rel=0.05)
    for part in model.modules():
        if isinstance(part, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            assert part.bias.count_nonzero() == 0
        if isinstance(part, nn.BatchNorm2d):
            assert (part.weight == 1).all()
