"""CIFAR's binary files: official layout, few records, written here; and what is wrong with some."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from symrnn.files import UserError
from symrnn.vision.datasets import open_dataset
from symrnn.vision.datasets.cifar import LAYOUTS, obtain_cifar

TRAIN, VAL = 12, 6


@pytest.fixture(autouse=True)
def few_records(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, layout in LAYOUTS.items():
        monkeypatch.setitem(LAYOUTS, name, dataclasses.replace(layout, records=(TRAIN, VAL)))


def records(name: str, count: int, seed: int) -> np.ndarray:
    """Bytes of pictures, with labels in order."""
    pixels = np.random.default_rng(seed).integers(256, size=(count, 3072), dtype=np.uint8)
    labels = [np.arange(count) % classes for classes in LAYOUTS[name].labels]
    return np.concatenate([*(column[:, None] for column in labels), pixels], 1).astype(np.uint8)


def write_cifar(parent: Path, name: str = "cifar10") -> Path:
    layout = LAYOUTS[name]
    folder = parent / layout.folder
    folder.mkdir(parents=True)
    for seed, file in enumerate(layout.train):
        records(name, TRAIN, seed).tofile(folder / file)
    records(name, VAL, 99).tofile(folder / layout.val)
    names = [f"class {label}" for label in range(layout.labels[-1])]
    (folder / layout.names).write_text("\n".join(names) + "\n\n")
    return folder


@pytest.mark.parametrize(("name", "train_size"), [("cifar10", 5 * TRAIN), ("cifar100", TRAIN)])
def test_pictures_labels_and_names(tmp_path: Path, name: str, train_size: int) -> None:
    dataset = open_dataset(write_cifar(tmp_path, name))
    assert dataset.name == name
    assert (dataset.train_size, dataset.val_size, dataset.image_size) == (train_size, VAL, 32)
    assert dataset.classes[3] == "class 3"
    assert len(dataset.classes) == LAYOUTS[name].labels[-1]
    ((images, labels),) = dataset.val_batches(10)
    rows = records(name, VAL, 99)
    # One byte after another: the rows of red from the top, then those of green, then of blue.
    expected = np.empty((VAL, 3, 32, 32))
    for channel in range(3):
        for y in range(32):
            for x in range(32):
                place = len(LAYOUTS[name].labels) + 1024 * channel + 32 * y + x
                expected[:, channel, y, x] = rows[:, place] / 255
    mean, std = (np.array(values)[:, None, None] for values in (dataset.mean, dataset.std))
    np.testing.assert_allclose(images.numpy(), (expected - mean) / std, atol=1e-6)
    assert labels.tolist() == [label % len(dataset.classes) for label in range(VAL)]


def test_the_folder_around_it_does_too(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path)
    inside, outside = open_dataset(folder), open_dataset(str(tmp_path))
    assert inside.fingerprint == outside.fingerprint
    ((first, _),) = inside.train_batches(0, 60, seed=0)
    ((second, _),) = outside.train_batches(0, 60, seed=0)
    assert torch.equal(first, second)


def test_without_names_classes_are_numbers(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path)
    (folder / "batches.meta.txt").unlink()
    assert open_dataset(folder).classes == tuple("0123456789")


def cut(folder: Path) -> None:
    path = folder / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-100])


def cut_by_a_record(folder: Path) -> None:
    path = folder / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-3073])


def empty(folder: Path) -> None:
    (folder / "test_batch.bin").write_bytes(b"")


def mislabel(folder: Path) -> None:
    rows = records("cifar10", TRAIN, 0)
    rows[7, 0], rows[9, 0] = 10, 255
    rows.tofile(folder / "data_batch_4.bin")


def lose(folder: Path) -> None:
    (folder / "data_batch_3.bin").unlink()
    (folder / "test_batch.bin").unlink()


def misname(folder: Path) -> None:
    (folder / "batches.meta.txt").write_text("one\ntwo\n")


def other_set(folder: Path) -> None:
    write_cifar(folder.parent / "other", "cifar100").rename(folder.parent / "cifar-100-binary")


def keep_pickles(folder: Path) -> None:
    pickles = folder.rename(folder.parent / "cifar-10-batches-py")
    for path in pickles.glob("*.bin"):
        path.rename(path.with_suffix(""))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            cut,
            r"'.*/data_batch_2\.bin' has 36,776 bytes; its 12 records of 3,073 bytes make 36,876",
        ),
        (cut_by_a_record, r"'.*/data_batch_2\.bin' has 33,803 bytes; its 12 records .*"),
        (empty, r"'.*/test_batch\.bin' has 0 bytes; its 6 records of 3,073 bytes make 18,438"),
        (
            mislabel,
            r"'.*/data_batch_4\.bin', record 7: label 10 is not from 0 to 9; 2 of 12 are not",
        ),
        (lose, r"data '.*' lacks data_batch_3\.bin, test_batch\.bin"),
        (misname, r"'.*/batches\.meta\.txt' names 2 classes; the set has 10"),
        (other_set, r"data '.*' holds more than one set; name one: .*-bin and .*-binary"),
        (keep_pickles, r"data '.*' holds CIFAR's Python version, pickles, .* the binary version"),
    ],
)
def test_damage(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(write_cifar(tmp_path))
    with pytest.raises(UserError, match=f"^{message}$"):
        open_dataset(tmp_path)


def test_a_coarse_label_out_of_range(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path, "cifar100")
    rows = records("cifar100", VAL, 0)
    rows[2, 0] = 20
    rows.tofile(folder / "test.bin")
    with pytest.raises(UserError, match=r"test\.bin', record 2: label 20 is not from 0 to 19"):
        open_dataset(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "cifar1O",
            r"data should be one of shapes, cifar10, cifar100, or a folder, got: 'cifar1O' "
            r"\(no such folder\); did you mean cifar10\?",
        ),
        ("nothing/here", r"data should be one of .*, got: 'nothing/here' \(no such folder\)"),
        ("file", r".*, got: '.*file' \(not a folder\)"),
        ("", r".*, got: '' \(no such folder\)"),
        ("a" * 300, r".*, got: 'a*' \(the name is too long\)"),
        ("empty", r"data '.*empty' holds neither the folders train and val .* CIFAR's .*"),
    ],
)
def test_no_set_there(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    source = tmp_path / name if name in ("empty", "file") else name
    with pytest.raises(UserError, match=f"^{message}$"):
        open_dataset(source)


@pytest.mark.parametrize("name", ["shapes", "cifar10"])
def test_the_size_of_its_pictures_is_fixed(name: str) -> None:
    with pytest.raises(UserError, match=f"^image_size of {name} is 32, got: 64$"):
        open_dataset(name, image_size=64)


# ---- by name: from the cache ---------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SYMRNN_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vision"


def test_a_name_opens_what_the_cache_holds(cache: Path) -> None:
    folder = write_cifar(cache)
    assert open_dataset("cifar10").fingerprint == open_dataset(folder).fingerprint


def test_no_download_unless_wanted(cache: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"^'.*/vision/cifar-100-binary' is not there, and downloads are off; "
        r"https://www\.cs\.toronto\.edu/~kriz/cifar-100-binary\.tar\.gz can be unpacked by hand",
    ):
        open_dataset("cifar100", download=False)
    assert not cache.exists()


@pytest.fixture
def served(tmp_path: Path, web: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of CIFAR-10, which a server on this machine has as an archive."""
    folder = write_cifar(tmp_path)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    web.answers["set.tar.gz"] = content = packed.getvalue()
    layout = dataclasses.replace(
        LAYOUTS["cifar10"],
        address=web.address("set.tar.gz"),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    monkeypatch.setitem(LAYOUTS, "cifar10", layout)
    return folder


def test_a_name_is_downloaded_once(served: Path, cache: Path, web: Any) -> None:
    assert open_dataset("cifar10").fingerprint == open_dataset(served).fingerprint
    open_dataset("cifar10")
    assert web.asked == ["set.tar.gz"]
    assert [path.name for path in cache.iterdir()] == [served.name]


def test_what_is_there_is_taken_as_it_is(served: Path, cache: Path, web: Any) -> None:
    (cache / served.name).mkdir(parents=True)
    with pytest.raises(UserError, match="lacks data_batch_1"):
        open_dataset("cifar10")
    assert web.asked == []


def test_several_at_once_download_once(served: Path, cache: Path, web: Any) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: obtain_cifar(LAYOUTS["cifar10"], cache), range(4)))
    assert set(found) == {cache / served.name}
    assert web.asked == ["set.tar.gz"]


def test_another_process_may_be_first_where_there_are_no_locks(
    served: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rename(_: Path, target: Path) -> None:
        shutil.copytree(served, target)
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(os, "rename", rename)
    assert obtain_cifar(LAYOUTS["cifar10"], cache) == cache / served.name


@pytest.mark.parametrize("content", [b"nonsense", None])
def test_a_download_that_fails(served: Path, cache: Path, web: Any, content: bytes | None) -> None:
    web.answers["set.tar.gz"] = content
    with pytest.raises(
        UserError,
        match=r"^set\.tar\.gz cannot be downloaded: (http\S+/set\.tar\.gz): .*; "
        r"\1 can be unpacked by hand to '.*/cifar-10-batches-bin'$",
    ):
        open_dataset("cifar10")
    assert list(cache.iterdir()) == []


def test_an_archive_that_lacks_a_file(served: Path, cache: Path) -> None:
    layout = dataclasses.replace(LAYOUTS["cifar10"], val="absent.bin")
    with pytest.raises(UserError, match=r"not the archive that it should be: .*absent"):
        obtain_cifar(layout, cache)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_written(served: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file' cannot be written: .*\$SYMRNN_DATA"):
        obtain_cifar(LAYOUTS["cifar10"], tmp_path / "file")


def test_a_home_that_is_not_ours(
    served: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Or does not exist, or has no place in the file system at all."""
    monkeypatch.delenv("SYMRNN_DATA")
    for home, why in (("/proc/nobody", "No such file or directory"), ("/" + "h" * 300, "the name")):
        monkeypatch.setenv("HOME", home)
        words = f"^'{home}/.cache/symrnn/vision' cannot be written: {why}.*; another folder can be "
        with pytest.raises(UserError, match=words):
            open_dataset("cifar10")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2**31)
    with pytest.raises(UserError, match=r"^there is no home folder to cache files in; "):
        open_dataset("cifar10")


def test_a_folder_that_may_not_be_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(UserError, match=rf"^data: {tmp_path}/.*: permission denied$"):
        open_dataset(tmp_path)


def test_a_full_disk(served: Path, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(900_000))
    with pytest.raises(UserError, match="cannot be written: the disk is full"):
        obtain_cifar(LAYOUTS["cifar10"], small_disk)
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]
