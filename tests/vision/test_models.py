"""Every network by its name: it builds, trains a step, is made again from its options."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from symrnn import list_symmetries
from symrnn.vision import create_model, list_models

ISSUE = [
    "wrn-16-1-basic",
    "wrn-16-1-bottleneck",
    "wrn-18-2.0",
    "wrn-50-2",
    *[f"resnet-{depth}" for depth in (18, 34, 50, 101, 152, 164)],
    "resnext-16-2-4",
    "mobilenet",
    "mobilenet-imagenet",
    *[f"vgg-{depth}" for depth in (11, 13, 16, 19)],
    "nin",
    "nin-bn",
    "diracnet-28-10",
    "diracnet-18",
    "diracnet-34",
]

# Those that train a step here for real; the large ones do without storage, by shapes alone.
SMALL = [
    "wrn-10-1-bottleneck",
    "wrn-16-1-basic",
    "wrn-18-0.25",
    "wrn-50-0.25",
    "resnet-29",
    "resnext-16-2-4",
    "resnext-11-4x8d",
    "resnext-50-2x4d",
    "mobilenet-0.5",
    "mobilenet-0.25-imagenet",
    "vgg-11",
    "nin",
    "nin-bn",
    "diracnet-10-1",
]


def pictures(model: nn.Module, batch: int = 4) -> Tensor:
    """As small as leaves the last stage more than a point."""
    size = 32 if model.image_size == 32 else 64
    return torch.randn(batch, 3, size, size)


def test_the_list_has_every_name_once() -> None:
    assert len(list_models()) == len(set(list_models()))
    assert set(ISSUE) <= set(list_models())


# As another of the list, but deeper or wider: nothing new for a gradient to pass.
LIKE_OTHERS = [
    *("wrn-16-1-bottleneck", "wrn-16-4-bottleneck", "wrn-40-4-basic", "wrn-28-10-basic"),
    *("wrn-34-2.0", "resnet-34", "resnet-101", "resnet-152", "resnet-164", "mobilenet"),
    *("vgg-13", "vgg-16", "vgg-19", "diracnet-28-5", "diracnet-28-10", "diracnet-34"),
]


@pytest.mark.parametrize("name", list_models())
def test_every_name_builds_and_passes_a_gradient_everywhere(name: str) -> None:
    deeper = name in LIKE_OTHERS
    with torch.device("meta"), torch.set_grad_enabled(not deeper):
        model = create_model(name, symm="tri")
        imagenet = model.image_size == 224
        output = model(torch.randn(2, 3, model.image_size, model.image_size))
        assert output.shape == (2, 1000 if imagenet else 10)
        if not deeper:
            output.sum().backward()
    assert model.name == name
    assert model.num_classes == output.size(1)
    assert deeper or all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "symm"),
    [*((name, "tri") for name in SMALL), ("wrn-10-1-bottleneck", "none"), ("nin", "none")],
)
def test_one_step_of_training(name: str, symm: str) -> None:
    model = create_model(name, symm=symm, num_classes=7)
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    x, y = pictures(model), torch.tensor([0, 3, 6, 3])
    output = model(x)
    assert output.shape == (4, 7)
    assert output.abs().max() < 100  # He's starting values keep the scale
    nn.functional.cross_entropy(output, y).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    for key, parameter in model.named_parameters():
        assert not torch.equal(parameter, before[key]), key


@pytest.mark.parametrize("name", ["wrn-10-1-bottleneck", "nin", "nin-bn", "diracnet-10-1"])
def test_a_few_steps_lower_the_loss(name: str) -> None:
    model = create_model(name, symm="avg")
    x, y = torch.randn(8, 3, 16, 16), torch.arange(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses = []
    for _ in range(6):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


MADE: list[tuple[str, dict[str, Any]]] = [
    ("wrn-10-2-basic", {"symm": "tri8", "dropout": 0.3, "num_classes": 100}),
    ("wrn-16-1-bottleneck", {"symm": "avg", "share": "stage", "axes": "both"}),
    ("resnet-29", {"share": "sharesnet"}),
    ("resnext-16-2-4", {"symm": "block4"}),
    ("mobilenet-0.5", {"symm": "tri", "where": ["blocks.2.pointwise", "blocks.4.pointwise"]}),
    ("wrn-10-1-bottleneck", {"symm": "ldl"}),
    ("nin-bn", {"dropout": 0.5, "symm": "eigen:2"}),
    ("diracnet-10-1", {"symm": "avg4"}),
]


@pytest.mark.parametrize(("name", "options"), MADE, ids=lambda v: v if isinstance(v, str) else "")
def test_a_network_is_made_again_from_its_name_and_options(
    name: str, options: dict[str, Any]
) -> None:
    model = create_model(name, **options)
    assert options.items() <= model.options.items()
    again = create_model(model.name, **json.loads(json.dumps(model.options)))
    assert again.options == model.options
    again.load_state_dict(model.state_dict())
    twin = copy.deepcopy(model)
    x = pictures(model, 2)
    for made in (model, again, twin):
        made.eval()
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(again(x), expected)
        assert torch.equal(twin(x), expected)
        # A copy is a copy.
        next(twin.parameters()).add_(1)
        assert torch.equal(model(x), expected)


def test_a_seed_fixes_the_starting_values() -> None:
    def values() -> dict[str, Tensor]:
        torch.manual_seed(3)
        return create_model("wrn-16-1-bottleneck", symm="avg", share="stage").state_dict()

    first, second = values(), values()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("name", ["wrn-10-1-basic", "resnet-18", "mobilenet", "vgg-11", "nin"])
def test_pictures_of_other_sizes(name: str) -> None:
    model = create_model(name).eval()
    with torch.no_grad():
        for size in ((40, 40), (33, 48)):
            assert model(torch.randn(1, 3, *size)).shape == (1, model.num_classes)


# ---- the networks themselves -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "inner", "outputs"),
    [
        ("wrn-16-1-bottleneck", [16, 32, 64], [64, 128, 256]),
        ("wrn-10-4-basic", [64, 128, 256], [64, 128, 256]),
        ("wrn-10-1.3-basic", [20, 41, 83], [20, 41, 83]),
        ("resnext-16-2-4", [32, 64, 128], [128, 256, 512]),
        ("resnet-50", [64, 128, 256, 512], [256, 512, 1024, 2048]),
        ("wrn-50-2", [128, 256, 512, 1024], [256, 512, 1024, 2048]),
        ("wrn-18-2.0", [128, 256, 512, 1024], [128, 256, 512, 1024]),
        ("resnext-50-32x4d", [128, 256, 512, 1024], [256, 512, 1024, 2048]),
    ],
)
def test_channels_and_sizes_of_stages(name: str, inner: list[int], outputs: list[int]) -> None:
    with torch.device("meta"):
        model = create_model(name)
        x = model.stem(torch.randn(1, 3, model.image_size, model.image_size))
        size = 32 if model.image_size == 32 else 56
        for stage, width, channels in zip(model.stages, inner, outputs, strict=True):
            assert {block.conv2.out_channels for block in stage} == {width}
            x = stage(x)
            assert x.shape == (1, channels, size, size)
            size //= 2


def test_a_bottleneck_strides_in_its_3x3() -> None:
    for name in ("wrn-16-1-bottleneck", "resnet-50"):
        with torch.device("meta"):
            first = create_model(name).stages[1][0]
        assert (first.conv1.stride, first.conv2.stride, first.conv3.stride) == (
            (1, 1),
            (2, 2),
            (1, 1),
        )


def test_a_preactivation_resnet_strides_in_the_first_1x1() -> None:
    """As its authors' definition (resnet-pre-act.lua) does, and ShaResNet's after it."""
    with torch.device("meta"):
        model = create_model("resnet-29")
    strides = [(b.conv1.stride[0], b.conv2.stride[0]) for stage in model.stages for b in stage]
    assert strides == [(1, 1)] * 3 + [(2, 1), (1, 1), (1, 1)] * 2


def test_a_preactivation_block_is_its_formula() -> None:
    """x + conv2(relu(norm2(conv1(relu(norm1(x)))))), for a block in evaluation mode."""
    block = create_model("wrn-16-1-basic").stages[0][1].eval().double()
    with torch.no_grad():
        for norm in (block.norm1, block.norm2):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.weight.normal_()
            norm.bias.normal_()
    x = torch.randn(2, 16, 5, 5, dtype=torch.float64)

    def normed(norm: nn.BatchNorm2d, y: Tensor) -> Tensor:
        columns = (-1, 1, 1)
        scaled = (y - norm.running_mean.view(columns)) / (norm.running_var + norm.eps).sqrt().view(
            columns
        )
        return (scaled * norm.weight.view(columns) + norm.bias.view(columns)).clamp_min(0)

    with torch.no_grad():
        y = nn.functional.conv2d(normed(block.norm1, x), block.conv1.weight, padding=1)
        y = nn.functional.conv2d(normed(block.norm2, y), block.conv2.weight, padding=1)
        torch.testing.assert_close(block(x), x + y)


def test_dropout_lies_between_the_convolutions_of_a_block() -> None:
    model = create_model("wrn-10-1-basic", dropout=0.9).train()
    block = model.stages[0][0]
    seen: list[Tensor] = []
    block.conv2.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(torch.randn(4, 3, 16, 16))
    assert (seen[0] == 0).float().mean() > 0.85


# ---- mistakes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [
        ("wrn-16-1-botleneck", "wrn-16-1-bottleneck"),
        ("wrn-22-8-bottlneck", "wrn-22-8-bottleneck"),
        ("WRN-28-10-basic", "wrn-28-10-basic"),
        ("rensnet-50", "resnet-50"),
        ("resnet50", "resnet-50"),
        ("mobilnet", "mobilenet"),
        ("mobilenet-0.3-imagnet", "mobilenet-0.3-imagenet"),
        ("vgg-18", "vgg-1"),
        ("diracnet-20", "diracnet-"),
        ("nin_bn", "nin-bn"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name: str, suggestion: str) -> None:
    with pytest.raises(ValueError, match=rf"'{name}'. Did you mean '{suggestion}"):
        create_model(name)


def test_a_name_like_no_other_lists_the_families() -> None:
    with pytest.raises(ValueError, match=r"^there is no model 'zzz'. Names are: wrn-D-K-basic"):
        create_model("zzz")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrn-17-1-basic", "should be 6n+4 with n ≥ 1, got: 17; the nearest is 16 or 22"),
        (f"wrn-{10**20}-1-basic", f"should be at most 10000, got: {10**20}"),
        ("wrn-4-1-bottleneck", "should be 6n+4 with n ≥ 1, got: 4; the nearest is 10"),
        ("wrn-18-1-bottleneck", "should be 6n+4 with n ≥ 1, got: 18; the nearest is 16 or 22"),
        ("resnext-15-2-4", "should be 6n+4 with n ≥ 1, got: 15; the nearest is 10 or 16"),
        ("resnext-30-8x64d", "should be 9n+2 with n ≥ 1, got: 30; the nearest is 29 or 38"),
        ("resnet-163", "should be 9n+2 with n ≥ 1, got: 163; the nearest is 155 or 164"),
        ("diracnet-27-5", "should be 6n+4"),
    ],
)
def test_depths_that_a_family_does_not_have(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: depth ") as caught:
        create_model(name)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wrn-10-0.01-basic", {}, "width should leave at least one of 16 channels, got: 0.01"),
        ("mobilenet-0", {}, "width should leave at least one of 32 channels, got: 0.0"),
        ("resnext-16-2-5", {}, "cardinality should divide the 32 channels .*, got: 5"),
        # 16, 33 and 67 channels: the first stage's can be divided.
        ("resnext-16-1.05-16", {}, "cardinality should divide the 33 channels of stage 2's 3×3"),
        ("resnext-16-2-0", {}, "cardinality should divide the 32 channels .*, got: 0"),
        ("resnext-29-0x64d", {}, "cardinality should divide the 0 channels .*, got: 0"),
        ("resnext-50-8x0d", {}, "cardinality should divide the 0 channels .*, got: 8"),
        ("wrn-10-1-basic", {"num_classes": 0}, "num_classes should be .* at least 1, got: 0"),
        ("wrn-10-1-basic", {"num_classes": 2.5}, "num_classes should be an int .* got: 2.5"),
        ("wrn-10-1-basic", {"num_classes": True}, "num_classes should be an int .* got: True"),
        ("wrn-10-1-basic", {"dropout": 1.0}, "dropout should be .* below 1, got: 1.0"),
        ("wrn-10-1-basic", {"dropout": "0.3"}, "dropout should be .* below 1, got: '0.3'"),
        ("wrn-10-1-basic", {"symm": "triangle"}, "symm should be one of none, tri, .*'triangle'"),
        ("wrn-10-1-basic", {"axes": "time"}, "axes should be one of channel, space, both"),
        ("wrn-10-1-basic", {"where": "stem"}, "where='stem' says where .* wants a symm"),
        # What cannot be symmetric is named with its shape.
        (
            "wrn-10-1-bottleneck",
            {"symm": "tri", "where": "stages.0.0.conv3"},
            r"stages.0.0.conv3.weight of shape \[64, 16, 1, 1\] cannot be symmetric",
        ),
        ("vgg-11", {"symm": "tri", "where": "0"}, r"0.weight of shape \[64, 3, 3, 3\] cannot be"),
        ("wrn-10-1-basic", {"symm": "tri", "where": "stagse.*"}, "names no weight that could"),
        ("wrn-10-1-basic", {"symm": "eigen:17"}, r"stages.0.0.conv2.weight .* cannot be eigen:17"),
        ("wrn-10-1-basic", {"symm": "ldl", "axes": "both"}, "wants a linear form"),
    ],
)
def test_mistakes_are_named(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, **options)


def test_an_unknown_option_is_named_with_those_there_are() -> None:
    with pytest.raises(TypeError, match=r"^wrn-10-1-basic has no option 'drop'; it has: dropout$"):
        create_model("wrn-10-1-basic", drop=0.1)
    with pytest.raises(TypeError, match=r"^vgg-11 has no option 'dropout'; it has: none$"):
        create_model("vgg-11", dropout=0.1)


def test_every_symmetry_has_its_name_in_the_error() -> None:
    with pytest.raises(ValueError, match="symm should be") as caught:
        create_model("nin", symm="no")
    assert all(name in str(caught.value) for name in list_symmetries())
