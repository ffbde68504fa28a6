"""Crops and flips against a loop over the pictures; boxes against what they should be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from symrnn.vision.datasets.augment import Normalise, central_box, flip_and_crop, random_box
from symrnn.vision.datasets.dataset import random_numbers
from symrnn.vision.datasets.resident import PAD, ResidentDataset, channel_statistics


def reference(
    image: NDArray[np.uint8], flip: bool, top: int, left: int, pad: int
) -> NDArray[np.uint8]:
    """One picture (C, H, W): padded, cut, flipped."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (pad, pad), (pad, pad)), mode="reflect")
    cut = padded[:, top : top + height, left : left + width]
    return np.flip(cut, axis=2) if flip else cut


@pytest.mark.parametrize(("height", "width", "pad"), [(32, 32, 4), (5, 9, 4), (6, 3, 2), (4, 4, 0)])
def test_crops_and_flips_of_a_batch(height: int, width: int, pad: int) -> None:
    """Every shift with and without a flip."""
    random = np.random.default_rng(0)
    images = random.integers(256, size=(7, 3, height, width), dtype=np.uint8)
    shifts = range(2 * pad + 1)
    drawn = np.array([(f, t, s) for f in (0, 1) for t in shifts for s in shifts])
    chosen = random.integers(7, size=len(drawn))
    found = flip_and_crop(
        torch.from_numpy(images),
        torch.from_numpy(chosen),
        *torch.from_numpy(drawn.T.copy()),
        pad,
    )
    expected = [
        reference(images[i], bool(f), t, s, pad) for i, (f, t, s) in zip(chosen, drawn, strict=True)
    ]
    np.testing.assert_array_equal(found.numpy(), np.stack(expected))


def test_the_batches_of_a_set() -> None:
    """Each picture of a batch is some crop and flip of the one it should be, and all occur."""
    random = np.random.default_rng(0)
    images = random.integers(256, size=(64, 3, 12, 12), dtype=np.uint8)
    part = images, np.arange(64, dtype=np.uint8)  # every picture a class of its own
    dataset = ResidentDataset("noise", [""] * 64, part, part, torch.device("cpu"))
    mean, std = (np.float32(values)[:, None, None] for values in (dataset.mean, dataset.std))
    ways = [(f, t, s) for f in (False, True) for t in range(9) for s in range(9)]
    crops = {
        i: np.stack([reference(images[i], *way, PAD) for way in ways]).astype(np.float32)
        for i in range(64)
    }
    seen: list[tuple[int, int, int]] = []
    for epoch in range(12):
        for batch, labels in dataset.train_batches(epoch, 64, seed=3):
            for picture, label in zip(batch.numpy(), labels.tolist(), strict=True):
                distances = np.abs((crops[label] / 255 - mean) / std - picture).max((1, 2, 3))
                assert distances.min() <= 1e-6
                seen.append(ways[int(distances.argmin())])
    flips, tops, lefts = np.array(seen).T
    # Of 768 draws half are flips, and a ninth has each shift, within five standard deviations.
    assert abs(flips.sum() - 384) < 70
    for shifts in (tops, lefts):
        counts = np.bincount(shifts, minlength=9)
        assert np.abs(counts - 768 / 9).max() < 5 * math.sqrt(768 / 9)


@pytest.mark.gpu
def test_the_batches_of_a_set_on_a_gpu() -> None:
    images = np.random.default_rng(0).integers(256, size=(64, 3, 12, 12), dtype=np.uint8)
    part = images, np.arange(64, dtype=np.uint8)
    sets = [ResidentDataset("", [""] * 64, part, part, torch.device(d)) for d in ("cpu", "cuda")]
    for expected, found in zip(*(s.train_batches(0, 16, seed=0) for s in sets), strict=True):
        torch.testing.assert_close(found[0], expected[0].cuda(), rtol=0, atol=1e-6)
        assert torch.equal(found[1], expected[1].cuda())


def test_validation_pictures_are_the_set_normalised() -> None:
    images = np.random.default_rng(0).integers(256, size=(10, 3, 8, 8), dtype=np.uint8)
    labels = np.arange(10, dtype=np.uint8)
    dataset = ResidentDataset(
        "noise", "0123456789", (images, labels), (images, labels), torch.device("cpu")
    )
    found = torch.cat([batch for batch, _ in dataset.val_batches(4)])
    pixels = images.astype(np.float64) / 255
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    np.testing.assert_allclose(dataset.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(dataset.std, std, rtol=1e-14)
    expected = (pixels - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(found.mean((0, 2, 3)), 0, atol=1e-6)


def test_statistics_of_more_pictures_than_are_added_at_once() -> None:
    images = np.random.default_rng(0).integers(256, size=(1203, 2, 3, 3), dtype=np.uint8)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, images.mean((0, 2, 3)) / 255, rtol=1e-13)
    np.testing.assert_allclose(std, images.std((0, 2, 3)) / 255, rtol=1e-13)


def test_a_constant_channel_stays_finite() -> None:
    mean, std = channel_statistics(np.full((3, 3, 4, 4), 51, dtype=np.uint8))
    assert mean == (0.2, 0.2, 0.2)
    assert std == (1, 1, 1)


def test_normalise_keeps_the_bytes() -> None:
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    before = images.clone()
    found = Normalise([0.25], [0.5], torch.device("cpu"))(images)
    torch.testing.assert_close(found, (images.double() / 255 * 2 - 0.5).float())
    assert torch.equal(images, before)


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (64, 64), (300, 100)])
def test_random_boxes(width: int, height: int) -> None:
    areas, ratios, lefts = [], [], []
    for number in range(400):
        left, upper, right, lower = random_box(width, height, random_numbers(0, number))
        assert 0 <= left < right <= width
        assert 0 <= upper < lower <= height
        w, h = right - left, lower - upper
        areas.append(w * h / (width * height))
        ratios.append(w / h)
        lefts.append(left / max(width - w, 1))
    # A side is rounded by half a pixel at most.
    slack = 1 + 1 / (0.2 * min(width, height))
    assert 0.08 / slack <= min(areas) < 0.12
    assert min(ratios) >= 3 / 4 / slack
    assert max(ratios) <= 4 / 3 * slack
    assert abs(np.mean(lefts) - 0.5) < 0.1
    if width == height:  # where nearly all boxes fit
        assert 0.4 < np.mean(areas) < 0.56
        assert abs(np.mean(np.log(ratios))) < 0.03


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        (1000, 10, (493, 0, 506, 10)),  # 4/3 as wide as high
        (10, 1000, (0, 493, 10, 506)),
        (1, 1, (0, 0, 1, 1)),
    ],
)
def test_random_boxes_of_narrow_pictures(
    width: int, height: int, expected: tuple[int, ...]
) -> None:
    assert random_box(width, height, random_numbers(0)) == expected


def test_the_central_box() -> None:
    # The shorter side to 256, of which 224: by 500/256 back to pixels of the picture.
    left, upper, right, lower = central_box(600, 500, 224)
    assert (right - left, lower - upper) == pytest.approx((437.5, 437.5))
    assert (left + right, upper + lower) == pytest.approx((600, 500))
    assert central_box(64, 64, 56) == pytest.approx((4, 4, 60, 60))
