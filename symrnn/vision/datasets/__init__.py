"""Pictures to train on: a built-in set, CIFAR, and folders of class folders such as ImageNet.

dataset = open_dataset("shapes", device="cpu")
for epoch in range(epochs):
    for images, labels in dataset.train_batches(epoch, 128, seed=1):
        ...
    for images, labels in dataset.val_batches(500):
        ...
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path

import torch

from symrnn.files import UserError, cache_folder
from symrnn.files.errors import describe_os_error
from symrnn.vision.datasets.cifar import LAYOUTS, find_cifar, obtain_cifar, read_cifar
from symrnn.vision.datasets.dataset import Batch, Dataset
from symrnn.vision.datasets.folder import FolderDataset
from symrnn.vision.datasets.generated import CLASSES, SIDE, generate_shapes
from symrnn.vision.datasets.resident import ResidentDataset

__all__ = ["Batch", "Dataset", "list_datasets", "open_dataset"]


def list_datasets() -> list[str]:
    """The names that :func:`open_dataset` knows: "shapes", and those that it downloads."""
    return ["shapes", *LAYOUTS]


def open_dataset(
    name_or_folder: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    image_size: int | None = None,
    workers: int | None = None,
    download: bool = True,
) -> Dataset:
    """A set of labelled pictures.

    name_or_folder: "shapes", built in; "cifar10" or "cifar100"; a folder with the binary files of
        one of those, or with the official folder of them, whose contents may be others as long as
        they are as many; or a folder with class folders in ``train`` and ``val``. A name goes
        before a folder of that name: write ./shapes for the folder.
    device: where batches lie; the first three are stored there whole.
    image_size: of class folders, the side to scale to in pixels (224); the others have 32.
    workers: of class folders, the processes that decode (None: one for each processor, at most
        16); the others need none.
    download: whether "cifar10" and "cifar100" are fetched (about 170 MB each) if they are not yet
        in the cache folder, $SYMRNN_DATA or ~/.cache/symrnn.

    Raises UserError for anything wrong with the arguments, the files or the network.
    """
    try:
        return _open(os.fspath(name_or_folder), torch.device(device), image_size, workers, download)
    except OSError as error:  # a folder of another user, a name too long, too few descriptors
        place = error.filename or os.fspath(name_or_folder)
        raise UserError(f"data: {place}: {describe_os_error(error)}") from error


def _open(
    name: str, device: torch.device, image_size: int | None, workers: int | None, download: bool
) -> Dataset:
    place = None
    if name not in list_datasets():
        _require_folder(name)
        folder = Path(name)
        found = find_cifar(folder)
        if found is None:
            _require_parts(folder)
            return FolderDataset(folder, device, 224 if image_size is None else image_size, workers)
        name, place = found
    if image_size not in (None, SIDE):
        raise UserError(f"image_size of {name} is {SIDE}, got: {image_size!r}")
    if name == "shapes":
        return ResidentDataset(name, list(CLASSES), *generate_shapes(), device)
    if place is None:
        cache = cache_folder("SYMRNN_DATA") / "vision"
        place = obtain_cifar(LAYOUTS[name], cache, download=download)
    return ResidentDataset(name, *read_cifar(place, LAYOUTS[name]), device)


def _require_folder(name: str) -> None:
    try:
        if name and Path(name).is_dir():  # nothing is not the folder that one is in
            return
        what = "not a folder" if name and Path(name).exists() else "no such folder"
    except OSError as error:
        what = describe_os_error(error)
    near = difflib.get_close_matches(name, list_datasets(), n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise UserError(
        f"data should be one of {', '.join(list_datasets())}, or a folder, got: {name!r} "
        f"({what}){hint}"
    )


def _require_parts(folder: Path) -> None:
    if not (folder / "train").is_dir() and not (folder / "val").is_dir():
        files = ", ".join(LAYOUTS["cifar10"].train[:1] + LAYOUTS["cifar100"].train)
        raise UserError(
            f"data {str(folder)!r} holds neither the folders train and val with class folders, nor "
            f"CIFAR's binary files ({files}, ...)"
        )
