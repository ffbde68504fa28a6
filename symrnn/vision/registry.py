"""The names of the networks, and the one function that turns a name into a network."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from symrnn.surgery import Where, symmetrize
from symrnn.symmetry import check_symmetry_name
from symrnn.symmetry.tensor import check_axes
from symrnn.vision import placement
from symrnn.vision.initialization import initialize
from symrnn.vision.models.diracnet import diracnet, diracnet_imagenet
from symrnn.vision.models.mobilenet import mobilenet, mobilenet_imagenet
from symrnn.vision.models.network import Network
from symrnn.vision.models.nin import nin
from symrnn.vision.models.resnet import resnet
from symrnn.vision.models.resnext import resnext, resnext_cifar, resnext_imagenet
from symrnn.vision.models.vgg import vgg, vgg_imagenet
from symrnn.vision.models.wrn import preactivation_resnet, wide_resnet
from symrnn.vision.sharing import check_share, share_convolutions

_CIFAR, _IMAGENET = 32, 224


@dataclass(frozen=True)
class Family:
    """Networks of one kind.

    title: what their names look like, for people.
    pattern: and for programs; a group is an argument of ``build`` of the same name.
    build: makes one of those, ``num_classes`` and its keyword-only options.
    image_size: height and width of the pictures that it is meant for.
    examples: names, all of which can be built.
    residual: whether it consists of blocks; else it is a plain chain.
    fan: of its starting values, see :func:`symrnn.vision.initialization.initialize`.
    """

    title: str
    pattern: str
    build: Callable[..., Network]
    image_size: int
    examples: str
    residual: bool = False
    fan: str = "in"

    @property
    def num_classes(self) -> int:
        """How many classes there are if nothing else is said."""
        return 10 if self.image_size == _CIFAR else 1000

    @property
    def options(self) -> list[str]:
        """The names of the options that ``build`` takes."""
        parameters = inspect.signature(self.build).parameters.values()
        return [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]

    def where(self, axes: str) -> Where:
        """Which weights are symmetric if nothing else is said."""
        return placement.BLOCKS if self.residual else placement.every_square_convolution(axes)


# What the groups of the patterns below stand for.
_ARGUMENTS: dict[str, Callable[[str | None], Any]] = {
    "depth": lambda text: int(text or 0),
    "width": lambda text: float(text or 1),
    "cardinality": lambda text: int(text or 0),
    "group_width": lambda text: int(text or 0),
    "block": str,
    "norm": bool,
}

_WIDTH = r"(?P<width>\d+(?:\.\d+)?)"

# In this order: a name belongs to the first whose pattern it fits.
FAMILIES = (
    Family(
        "wrn-D-K-basic, wrn-D-K-bottleneck (D = 6n+4)",
        rf"wrn-(?P<depth>(?!(?:50|101|152)-)\d+)-{_WIDTH}-(?P<block>basic|bottleneck)",
        wide_resnet,
        _CIFAR,
        "wrn-10-1-bottleneck wrn-16-1-bottleneck wrn-16-2-bottleneck wrn-16-4-bottleneck "
        "wrn-16-1-basic wrn-40-4-basic wrn-28-10-basic",
        residual=True,
    ),
    Family(
        "wrn-D-K for ImageNet (D = 18, 34, 50, 101, 152)",
        rf"wrn-(?P<depth>(?:18|34)(?!.*bottleneck)|50|101|152)-{_WIDTH}(?:-bottleneck)?",
        resnet,
        _IMAGENET,
        "wrn-18-2.0 wrn-34-2.0 wrn-50-2",
        residual=True,
        fan="out",
    ),
    Family(
        "resnet-D (D = 18, 34, 50, 101, 152) for ImageNet",
        r"resnet-(?P<depth>18|34|50|101|152)",
        resnet,
        _IMAGENET,
        "resnet-18 resnet-34 resnet-50 resnet-101 resnet-152",
        residual=True,
        fan="out",
    ),
    Family(
        "resnet-D (D = 9n+2, pre-activation bottlenecks) for CIFAR",
        r"resnet-(?P<depth>\d+)",
        preactivation_resnet,
        _CIFAR,
        "resnet-29 resnet-164",
        residual=True,
    ),
    Family(
        "resnext-D-K-C (D = 6n+4, cardinality C)",
        rf"resnext-(?P<depth>\d+)-{_WIDTH}-(?P<cardinality>\d+)",
        resnext,
        _CIFAR,
        "resnext-16-2-4",
        residual=True,
    ),
    Family(
        "resnext-D-CxWd (D = 50, 101, 152) for ImageNet",
        r"resnext-(?P<depth>50|101|152)-(?P<cardinality>\d+)x(?P<group_width>\d+)d",
        resnext_imagenet,
        _IMAGENET,
        "resnext-50-32x4d",
        residual=True,
        fan="out",
    ),
    Family(
        "resnext-D-CxWd (D = 9n+2) for CIFAR",
        r"resnext-(?P<depth>\d+)-(?P<cardinality>\d+)x(?P<group_width>\d+)d",
        resnext_cifar,
        _CIFAR,
        "resnext-29-8x64d",
        residual=True,
    ),
    Family(
        "mobilenet, mobilenet-K",
        rf"mobilenet(?:-{_WIDTH})?",
        mobilenet,
        _CIFAR,
        "mobilenet mobilenet-0.5",
    ),
    Family(
        "mobilenet-imagenet, mobilenet-K-imagenet",
        rf"mobilenet(?:-{_WIDTH})?-imagenet",
        mobilenet_imagenet,
        _IMAGENET,
        "mobilenet-imagenet",
        fan="out",
    ),
    Family(
        "vgg-D (D = 11, 13, 16, 19)",
        r"vgg-(?P<depth>11|13|16|19)",
        vgg,
        _CIFAR,
        "vgg-11 vgg-13 vgg-16 vgg-19",
    ),
    Family(
        "vgg-D-imagenet",
        r"vgg-(?P<depth>11|13|16|19)-imagenet",
        vgg_imagenet,
        _IMAGENET,
        "vgg-16-imagenet",
        fan="out",
    ),
    Family("nin, nin-bn", r"nin(?P<norm>-bn)?", nin, _CIFAR, "nin nin-bn"),
    Family(
        "diracnet-D-K (D = 6n+4)",
        rf"diracnet-(?P<depth>\d+)-{_WIDTH}",
        diracnet,
        _CIFAR,
        "diracnet-10-1 diracnet-28-5 diracnet-28-10",
    ),
    Family(
        "diracnet-18, diracnet-34 for ImageNet",
        r"diracnet-(?P<depth>18|34)",
        diracnet_imagenet,
        _IMAGENET,
        "diracnet-18 diracnet-34",
    ),
)


def list_models() -> list[str]:
    """Names of networks that :func:`create_model` knows, some of every family.

    >>> list_models()[:3]
    ['wrn-10-1-bottleneck', 'wrn-16-1-bottleneck', 'wrn-16-2-bottleneck']
    """
    return [name for family in FAMILIES for name in family.examples.split()]


def create_model(
    name: str,
    symm: str = "none",
    share: str = "none",
    num_classes: int | None = None,
    *,
    axes: str = "channel",
    where: Where | None = None,
    **options: Any,
) -> Network:
    """A network with fresh weights, from pictures (B, 3, h, w) to logits (B, num_classes).

    name: one of :func:`list_models`, or any that follows these patterns; D is a depth, K a factor
        that widens and may have a decimal point.

        ==============================================  ====================================
        CIFAR, pictures of 32×32, 10 classes            paper
        ==============================================  ====================================
        wrn-D-K-basic, wrn-D-K-bottleneck, D = 6n+4     Wide ResNets, arXiv 1605.07146
        resnet-D, D = 9n+2 (and none of those below)    pre-activation, arXiv 1603.05027
        resnext-D-K-C, D = 6n+4, C groups               ResNeXt as in arXiv 1812.11027
        resnext-D-CxWd, D = 9n+2, groups of W channels  ResNeXt, arXiv 1611.05431
        mobilenet, mobilenet-K                          MobileNet, arXiv 1704.04861
        vgg-D, D = 11, 13, 16, 19, with batch norm      VGG, arXiv 1409.1556
        nin, nin-bn                                     Network in Network, arXiv 1312.4400
        diracnet-D-K, D = 6n+4                          DiracNets, arXiv 1706.00388
        ==============================================  ====================================

        ==============================================  ====================================
        ImageNet, pictures of 224×224, 1000 classes     paper
        ==============================================  ====================================
        resnet-D, D = 18, 34, 50, 101, 152              ResNet, arXiv 1512.03385
        wrn-D-K, the same D (and wrn-50-K-bottleneck)   Wide ResNets
        resnext-D-CxWd, D = 50, 101, 152                ResNeXt
        mobilenet-imagenet, mobilenet-K-imagenet        MobileNet
        vgg-D-imagenet                                  VGG
        diracnet-18, diracnet-34                        DiracNets
        ==============================================  ====================================

    symm: a name of :func:`symrnn.list_symmetries`, or "none".
    share: "none", "stage" or "sharesnet", of residual networks: see
        :func:`symrnn.vision.sharing.share_convolutions`.
    num_classes: at least 1; the family's usual if not given.
    axes: over which symmetry is: "channel" (in each group of a grouped convolution), "space" or
        "both".
    where: which weights are symmetric, as of :func:`symrnn.symmetrize`, whose first argument is
        this network with sharing already done. By default where the symmetry paper puts it: in
        residual networks the second convolution of each block, which is the 3×3 of a bottleneck;
        in others every square convolution (see :mod:`symrnn.vision.placement`).
    options: of the family: ``dropout`` of wrn-D-K-basic and -bottleneck, nin and vgg-D-imagenet.

    Pictures of other sizes are taken too, unless they are too small to be pooled.

    The network has the attributes ``name``, ``num_classes``, ``image_size`` (32 or 224) and
    ``options``, which are JSON: ``create_model(model.name, **model.options)`` makes one of the same
    shape. Its ``save_pretrained`` and its kin are those of :class:`symrnn.hub.HubMixin`.

    Raises ValueError for a name that is none (and suggests the nearest), a depth that the family
    does not have, anything else above that is not allowed, and what cannot be symmetric, naming the
    tensor; TypeError for an option that the family does not have, naming those it has.

    >>> model = create_model("wrn-16-1-bottleneck", symm="tri", share="stage")
    >>> sum(p.numel() for p in model.parameters())
    147410
    """
    family, arguments = _parse(name)
    check_symmetry_name("symm", symm, "none")
    check_share(share)
    check_axes(axes)
    if symm == "none" and where is not None:
        raise ValueError(f"where={where!r} says where symmetry is; it wants a symm, got: 'none'")
    classes = family.num_classes if num_classes is None else _checked_classes(num_classes)
    model = _build(name, family, {**arguments, "num_classes": classes}, options)
    share_convolutions(model, share, family.image_size)
    if symm != "none":
        report = symmetrize(model, symm, family.where(axes) if where is None else where, axes)
        if where is not None and not _is_json(where):
            where = [change.name for change in report]
    initialize(model, family.fan)
    model.name = name
    model.num_classes = classes
    model.image_size = family.image_size
    model.options = {
        "symm": symm,
        "share": share,
        "num_classes": classes,
        "axes": axes,
        "where": where,
        **options,
    }
    return model


def default_where(model: nn.Module, axes: str = "channel") -> Where:
    """Where symmetry lands by default in a network of :func:`create_model`.

    For what acts on a network that is plain, such as :func:`symrnn.soft_symmetry_penalty` and
    :func:`symrnn.harden`.
    """
    return _parse(str(model.name))[0].where(axes)


def depth_of(name: str) -> int:
    """The depth that the name of a network says; 0 where it says none. ValueError for no name."""
    depth: int = _parse(name)[1].get("depth", 0)
    return depth


def _parse(name: str) -> tuple[Family, dict[str, Any]]:
    """The family and the arguments that a name stands for; ValueError for none."""
    for family in FAMILIES:
        match = re.fullmatch(family.pattern, name, re.ASCII)
        if match:
            return family, {k: _ARGUMENTS[k](text) for k, text in match.groupdict().items()}
    nearest = _nearest(name)
    hint = f"Did you mean {nearest!r}? " if nearest else ""
    known = "; ".join(family.title for family in FAMILIES)
    raise ValueError(f"there is no model {name!r}. {hint}Names are: {known}")


def _nearest(name: str) -> str | None:
    """The name that was probably meant."""
    # First with the numbers as given: "wrn-22-8-botleneck" is no "wrn-22-8-basic".
    words = {word for known in list_models() for word in re.findall(r"[a-z]+", known)}

    def mend(word: re.Match[str]) -> str:
        return next(iter(difflib.get_close_matches(word[0], words, 1)), word[0])

    mended = re.sub(r"[a-z]{2,}", mend, name.lower())
    if any(re.fullmatch(family.pattern, mended, re.ASCII) for family in FAMILIES):
        return mended
    return next(iter(difflib.get_close_matches(mended, list_models(), 1)), None)


def _build(
    name: str, family: Family, arguments: dict[str, Any], options: dict[str, Any]
) -> Network:
    for option, value in options.items():
        if option not in family.options:
            allowed = ", ".join(family.options) or "none"
            raise TypeError(f"{name} has no option {option!r}; it has: {allowed}")
        if option == "dropout" and not (isinstance(value, int | float) and 0 <= value < 1):
            raise ValueError(f"dropout should be at least 0 and below 1, got: {value!r}")
    try:
        return family.build(**arguments, **options)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _checked_classes(num_classes: int) -> int:
    if not isinstance(num_classes, int) or isinstance(num_classes, bool) or num_classes < 1:
        raise ValueError(f"num_classes should be an int of at least 1, got: {num_classes!r}")
    return num_classes


def _is_json(where: Where) -> bool:
    try:
        json.dumps(where)
    except TypeError:
        return False
    return True
