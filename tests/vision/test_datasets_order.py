"""Which pictures are in which batch, for every set alike: here a small one in memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from symrnn.files import UserError
from symrnn.vision.datasets.resident import ResidentDataset

SIZE, VAL = 50, 23


@pytest.fixture(scope="module")
def dataset() -> ResidentDataset:
    """Pictures of one even colour, which tells them apart however they are cropped."""
    values = np.arange(SIZE, dtype=np.uint8)
    train = np.broadcast_to(values[:, None, None, None] * 5, (SIZE, 3, 8, 8)).copy()
    return ResidentDataset(
        "even", "abcde", (train, values % 5), (train[:VAL], values[:VAL] % 5), torch.device("cpu")
    )


def numbers(dataset: ResidentDataset, images: torch.Tensor) -> list[int]:
    """Which pictures these are."""
    mean, std = dataset.mean[0], dataset.std[0]
    return ((images[:, 0, 3, 3] * std + mean) * 51).round().int().tolist()


def batches(dataset: ResidentDataset, epoch: int = 0, size: int = 8, **options: Any) -> Any:
    return list(dataset.train_batches(epoch, size, **{"seed": 1, **options}))


def test_an_epoch_sees_each_picture_once_and_drops_the_incomplete_batch(
    dataset: ResidentDataset,
) -> None:
    found = batches(dataset)
    assert len(found) == dataset.num_batches(8) == 6
    seen = [number for images, _ in found for number in numbers(dataset, images)]
    assert len(set(seen)) == len(seen) == 48
    assert seen != sorted(seen)
    for images, labels in found:
        assert images.shape == (8, 3, 8, 8)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert [number % 5 for number in numbers(dataset, images)] == labels.tolist()


def test_the_order_is_a_function_of_seed_and_epoch(dataset: ResidentDataset) -> None:
    def order(**options: Any) -> list[int]:
        return [n for images, _ in batches(dataset, **options) for n in numbers(dataset, images)]

    torch.manual_seed(5)
    first = order()
    torch.manual_seed(6)
    np.random.seed(6)
    assert order() == first
    orders = [first, order(epoch=1), order(seed=2), order(seed=0, epoch=1), order(seed=2**32)]
    assert len({tuple(order) for order in orders}) == 5


def test_the_programs_own_random_numbers_stay_untouched(dataset: ResidentDataset) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    batches(dataset)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # type: ignore[index]


def test_going_on_in_the_middle_of_an_epoch(dataset: ResidentDataset) -> None:
    whole = batches(dataset, epoch=3)
    for start in (0, 1, 4, 6):
        rest = batches(dataset, epoch=3, start=start)
        assert len(rest) == 6 - start
        for expected, found in zip(whole[start:], rest, strict=True):
            assert torch.equal(expected[0], found[0])
            assert torch.equal(expected[1], found[1])


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_processes_share_the_batches_of_one(dataset: ResidentDataset, world_size: int) -> None:
    whole = batches(dataset, epoch=2)
    shares = [
        batches(dataset, epoch=2, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    for number, (images, labels) in enumerate(whole):
        assert torch.equal(images, torch.cat([share[number][0] for share in shares]))
        assert torch.equal(labels, torch.cat([share[number][1] for share in shares]))


@pytest.mark.parametrize("world_size", [1, 2, 3, 30])
def test_validation_sees_each_picture_once(dataset: ResidentDataset, world_size: int) -> None:
    seen, sizes = [], []
    for rank in range(world_size):
        share = list(dataset.val_batches(4, rank=rank, world_size=world_size))
        assert all(1 <= len(labels) <= 4 for _, labels in share)
        sizes.append(sum(len(labels) for _, labels in share))
        for images, labels in share:
            found = numbers(dataset, images)
            assert [number % 5 for number in found] == labels.tolist()
            seen += found
    assert seen == list(range(VAL))
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "batch_size should be an integer at least 1, got: 0"),
        ({"size": 51}, "batch_size should be at most the 50 training pictures of even, got: 51"),
        ({"size": 8.0}, "batch_size should be an integer at least 1, got: 8.0"),
        ({"epoch": -1}, "epoch should be an integer at least 0, got: -1"),
        ({"seed": -1}, "seed should be an integer at least 0, got: -1"),
        ({"start": 7}, "start should be an integer from 0 to 6, got: 7"),
        ({"world_size": 3}, "batch_size should be a multiple of the 3 processes, got: 8"),
        ({"world_size": 2, "rank": 2}, "rank should be an integer from 0 to 1, got: 2"),
    ],
)
def test_bad_arguments(dataset: ResidentDataset, options: dict[str, Any], message: str) -> None:
    options = {"epoch": 0, "size": 8, "seed": 1, **options}
    with pytest.raises(UserError) as error:  # at once, not with the first batch
        dataset.train_batches(options.pop("epoch"), options.pop("size"), **options)
    assert str(error.value) == message


def test_the_fingerprint_tells_contents_apart() -> None:
    def fingerprint(seed: int = 0, classes: str = "ab", label: int = 0) -> str:
        images = np.random.default_rng(seed).integers(256, size=(4, 3, 8, 8), dtype=np.uint8)
        part = images, np.array([0, 1, 1, label], dtype=np.uint8)
        return ResidentDataset("some", classes, part, part, torch.device("cpu")).fingerprint

    prints = [fingerprint(), fingerprint(seed=1), fingerprint(classes="ac"), fingerprint(label=1)]
    assert fingerprint() == prints[0]
    assert len(set(prints)) == 4
