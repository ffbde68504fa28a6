"""CIFAR-10 and CIFAR-100 of Krizhevsky 2009, from the official binary files.

A file is a row of records without any header: one byte with the label (CIFAR-100: the coarse label
first, one of 20, which is not used, then the fine one), then the 32 × 32 bytes of the picture's
red, green and blue, each row by row.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from symrnn.files import UserError
from symrnn.files.download import fetch, fetching_into, unpack
from symrnn.files.errors import describe_os_error
from symrnn.vision.datasets.resident import Part

SHAPE = (3, 32, 32)
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """Where one of the two sets is to be had, and how it lies in its folder.

    address, sha256: of the archive, a tar packed with gzip.
    folder: what it is called in the archive, and here.
    train, val: names of the files.
    records: in each of the train files, and in the val file.
    labels: for each byte before a picture, how many labels there are; the last one is used.
    names: the file with the names of the classes, a line each; where there is none they are
        numbers.
    """

    address: str
    sha256: str
    folder: str
    train: tuple[str, ...]
    val: str
    records: tuple[int, int]
    labels: tuple[int, ...]
    names: str


LAYOUTS: dict[str, Layout] = {
    "cifar10": Layout(
        address="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        val="test_batch.bin",
        records=(10_000, 10_000),
        labels=(10,),
        names="batches.meta.txt",
    ),
    "cifar100": Layout(
        address="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        folder="cifar-100-binary",
        train=("train.bin",),
        val="test.bin",
        records=(50_000, 10_000),
        labels=(20, 100),
        names="fine_label_names.txt",
    ),
}


def obtain_cifar(layout: Layout, cache: Path, *, download: bool = True) -> Path:
    """The folder of a set inside ``cache``, complete; what is there is taken as it is.

    download: whether to fetch it if it is not there. Of processes that want it one does, and the
        others wait.

    Raises UserError if it may not be or cannot be fetched, and says what to do by hand.
    """
    target = cache / layout.folder
    by_hand = f"{layout.address} can be unpacked by hand to {str(target)!r}"
    if os.path.isdir(target):  # no error where the folder of another user may not be looked into
        return target
    if not download:
        raise UserError(f"{str(target)!r} is not there, and downloads are off; {by_hand}")
    members = (*layout.train, layout.val, layout.names)
    try:
        with fetching_into(cache) as aside:
            if not target.is_dir():
                packed, folder = aside / layout.address.rpartition("/")[2], aside / layout.folder
                fetch([layout.address], layout.sha256, packed)
                unpack(packed, {f"{layout.folder}/{name}": name for name in members}, folder)
                os.rename(folder, target)
    except UserError as error:
        raise UserError(f"{error}; {by_hand}") from error
    except OSError as error:
        if not os.path.isdir(target):  # else another process was first
            raise UserError(
                f"{str(cache)!r} cannot be written: {describe_os_error(error)}; another folder can "
                "be given in $SYMRNN_DATA"
            ) from error
    return target


def find_cifar(folder: Path) -> tuple[str, Path] | None:
    """Which of the sets lies in a folder, or in the official folder inside it; and where.

    Raises UserError if both do, or if only the pickled files of the Python version are there.
    """
    found = [
        (name, place)
        for name, layout in LAYOUTS.items()
        for place in (folder, folder / layout.folder)
        if any((place / file).is_file() for file in (*layout.train, layout.val))
    ]
    if len(found) > 1:
        places = " and ".join(str(place) for _, place in found)
        raise UserError(f"data {str(folder)!r} holds more than one set; name one: {places}")
    if found:
        return found[0]
    if any((folder / sub / "test_batch").is_file() for sub in (".", "cifar-10-batches-py")) or any(
        (folder / sub / "fine_label_names").is_file() for sub in (".", "cifar-100-python")
    ):
        raise UserError(
            f"data {str(folder)!r} holds CIFAR's Python version, pickles, which are not read; "
            "wanted is the binary version"
        )
    return None


def read_cifar(folder: Path, layout: Layout) -> tuple[tuple[str, ...], Part, Part]:
    """The classes and the two parts.

    Raises UserError, which names the file, for one that is missing, of another size than its
    number of records has, or with a label out of range.
    """
    missing = [name for name in (*layout.train, layout.val) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"data {str(folder)!r} lacks {', '.join(missing)}")
    try:
        classes = _class_names(folder / layout.names, layout.labels[-1])
        train, val = (
            _read(folder, names, records, layout.labels)
            for names, records in zip((layout.train, (layout.val,)), layout.records, strict=True)
        )
    except OSError as error:
        raise UserError(f"{error.filename}: {describe_os_error(error)}") from error
    return classes, train, val


def _read(folder: Path, names: Sequence[str], records: int, labels: Sequence[int]) -> Part:
    images = np.empty((len(names) * records, *SHAPE), dtype=np.uint8)
    targets = np.empty(len(images), dtype=np.uint8)
    for place, name in enumerate(names):
        rows = _records(folder / name, records, labels)
        part = slice(place * records, (place + 1) * records)
        targets[part] = rows[:, len(labels) - 1]
        images[part] = rows[:, len(labels) :].reshape(-1, *SHAPE)
    return images, targets


def _records(path: Path, records: int, labels: Sequence[int]) -> NDArray[np.uint8]:
    """The bytes (records, labels and pixels) of a file."""
    length = len(labels) + PIXELS
    size = path.stat().st_size
    if size != records * length:
        raise UserError(
            f"{str(path)!r} has {size:,} bytes; its {records:,} records of {length:,} bytes make "
            f"{records * length:,}"
        )
    rows = np.fromfile(path, dtype=np.uint8).reshape(records, length)
    for column, count in enumerate(labels):
        wrong = np.flatnonzero(rows[:, column] >= count)
        if len(wrong):
            raise UserError(
                f"{str(path)!r}, record {wrong[0]}: label {rows[wrong[0], column]} is not from 0 "
                f"to {count - 1}; {len(wrong):,} of {records:,} are not"
            )
    return rows


def _class_names(path: Path, count: int) -> tuple[str, ...]:
    if not path.is_file():
        return tuple(str(label) for label in range(count))
    text = path.read_text(encoding="utf-8", errors="replace")
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) != count:
        raise UserError(f"{str(path)!r} names {len(names)} classes; the set has {count}")
    return names
