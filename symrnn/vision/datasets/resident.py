"""Sets small enough to lie on the device as one tensor: no files, no loader, no other process."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from symrnn.vision.datasets.augment import Normalise, flip_and_crop
from symrnn.vision.datasets.dataset import Batch, Dataset, random_numbers, shuffled

PAD = 4
"""By how many pixels pictures are shifted at most while training, as for CIFAR everywhere."""

Part = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""Pictures (N, 3, s, s) and labels (N,)."""


class ResidentDataset(Dataset):
    """Pictures of one size, stored on the device as bytes.

    While training each is flipped from left to right or not, and shifted by up to PAD pixels with
    what is missing mirrored at the edge (Zagoruyko and Komodakis 2016, arXiv 1605.07146, section
    3): a few operations on the batch. Channels are normalised by the mean and deviation that all
    pixels of the training pictures have.

    train, val: the two parts.
    """

    def __init__(
        self, name: str, classes: Sequence[str], train: Part, val: Part, device: torch.device
    ) -> None:
        self.name = name
        self.classes = tuple(classes)
        self.image_size = train[0].shape[-1]
        self.train_size, self.val_size = len(train[0]), len(val[0])
        self.device = device
        self.broken = {}
        self.mean, self.std = channel_statistics(train[0])
        self.fingerprint = _fingerprint(self.classes, train, val)
        self._train = tuple(_on(device, part) for part in train)
        self._val = tuple(_on(device, part) for part in val)
        self._normalise = Normalise(self.mean, self.std, device)

    def _train_batches(
        self, key: tuple[int, int], numbers: range, batch_size: int, share: slice
    ) -> Iterator[Batch]:
        images, labels = self._train
        order = shuffled(self.train_size, key)
        for number in numbers:
            random = random_numbers(*key, number)
            drawn = np.empty((4, batch_size), dtype=np.int64)
            drawn[0] = order[number * batch_size : (number + 1) * batch_size]
            drawn[1] = random.integers(2, size=batch_size)
            drawn[2:] = random.integers(2 * PAD + 1, size=(2, batch_size))
            # Drawn for all processes, then cut; one small copy to the device.
            chosen, flip, top, left = torch.from_numpy(drawn[:, share].copy()).to(self.device)
            batch = flip_and_crop(images, chosen, flip, top, left, PAD)
            yield self._normalise(batch), labels[chosen].long()

    def _val_batches(self, batches: list[range]) -> Iterator[Batch]:
        images, labels = self._val
        for places in batches:
            part = slice(places.start, places.stop)
            yield self._normalise(images[part]), labels[part].long()


def channel_statistics(
    images: NDArray[np.uint8],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of (N, C, H, W), for pixels from 0 to 1.

    Of whole numbers, so that they are exact and the same on every machine; a channel that is
    constant has the deviation 1.
    """
    total = np.zeros(images.shape[1], dtype=np.int64)
    squares = np.zeros_like(total)
    for start in range(0, len(images), 500):
        block = images[start : start + 500].astype(np.uint32)
        total += block.sum((0, 2, 3), dtype=np.int64)
        squares += (block * block).sum((0, 2, 3), dtype=np.int64)
    count = images.size // len(total)
    mean, std = [], []
    for t, s in zip(total.tolist(), squares.tolist(), strict=True):
        mean.append(t / count / 255)
        std.append(math.sqrt(count * s - t * t) / count / 255 or 1.0)
    return tuple(mean), tuple(std)


def _on(device: torch.device, array: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(array).to(device)


def _fingerprint(classes: tuple[str, ...], *parts: Part) -> str:
    digest = hashlib.sha256("\n".join(classes).encode())
    for images, labels in parts:
        digest.update(f"\n{images.shape}\n".encode())
        digest.update(np.ascontiguousarray(images).data)
        digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()
