"""Folders of class folders: what is found there, how pictures are read, and what becomes of bad
ones."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from symrnn.files import UserError
from symrnn.vision.datasets import Dataset, open_dataset
from symrnn.vision.datasets.folder import FolderDataset

SIZE = 14  # pictures are evaluated as scaled to 16 pixels, of which 14


def picture(width: int = 24, height: int = 20, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth, as photographs are: (H, W, 3)."""
    random = np.random.default_rng(seed)
    coarse = random.integers(256, size=(4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def save(path: Path, pixels: NDArray[np.uint8], mode: str = "RGB", **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def write_folder(folder: Path, train: int = 8, val: int = 5) -> Path:
    """Two classes with as many pictures each."""
    for part, count in (("train", train), ("val", val)):
        for label, name in enumerate(("ant", "bee")):
            for number in range(count):
                pixels = picture(seed=1000 * (part == "val") + 100 * label + number)
                save(folder / part / name / f"{number}.png", pixels)
    return folder


def open_folder(folder: Path, workers: int = 0, size: int = SIZE) -> FolderDataset:
    dataset = open_dataset(folder, image_size=size, workers=workers)
    assert isinstance(dataset, FolderDataset)
    return dataset


def as_bytes(dataset: Dataset, images: torch.Tensor) -> NDArray[np.float64]:
    """Normalised pictures (B, 3, s, s) as they were, 0 to 255."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (dataset.mean, dataset.std))
    return ((images * std + mean) * 255).double().numpy()


def validated(dataset: Dataset) -> NDArray[np.float64]:
    return np.concatenate([as_bytes(dataset, images) for images, _ in dataset.val_batches(4)])


def train(dataset: Dataset, epoch: int = 0, size: int = 4, **options: Any) -> Any:
    return list(dataset.train_batches(epoch, size, **{"seed": 1, **options}))


def assert_same(first: Any, second: Any) -> None:
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


# ---- what is found -------------------------------------------------------------------------------


def test_classes_labels_and_sizes(tmp_path: Path) -> None:
    dataset = open_folder(write_folder(tmp_path / "insects"))
    assert dataset.name == "insects"
    assert dataset.classes == ("ant", "bee")
    assert (dataset.train_size, dataset.val_size, dataset.image_size) == (16, 10, SIZE)
    assert dataset.num_batches(5) == 3
    found = list(dataset.val_batches(4))
    assert [tuple(images.shape) for images, _ in found] == [
        (4, 3, SIZE, SIZE),
        (4, 3, SIZE, SIZE),
        (2, 3, SIZE, SIZE),
    ]
    assert [label for _, labels in found for label in labels.tolist()] == [0] * 5 + [1] * 5
    assert {images.dtype for images, _ in found} == {torch.float32}
    assert {labels.dtype for _, labels in found} == {torch.int64}
    assert dataset.skipped == 0


def test_folders_in_folders_capitals_and_links(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "set", train=1, val=1)
    ant = folder / "train" / "ant"
    save(ant / "wood" / "red" / "A.JPG", picture(), format="JPEG")
    save(ant / "B.JPeG", picture(), format="JPEG")
    elsewhere = save(tmp_path / "elsewhere" / "c.png", picture())
    (ant / "c.png").symlink_to(elsewhere)
    (ant / "more").symlink_to(elsewhere.parent)
    (ant / "wood" / "round").symlink_to(ant)  # a circle
    (folder / "train" / "bee").rename(tmp_path / "bees")
    (folder / "train" / "bee").symlink_to(tmp_path / "bees")
    dataset = open_folder(folder)
    names = [name.decode() for name in dataset._train.names.tolist()]
    assert names == [
        "ant/0.png",
        "ant/B.JPeG",
        "ant/c.png",
        "ant/more/c.png",
        "ant/wood/red/A.JPG",
        "bee/0.png",
    ]
    assert len(train(dataset, size=6)) == 1
    assert dataset.skipped == 0


def names_of(folder: Path) -> list[str]:
    """The training pictures that are found, each by class and name."""
    return [name.decode() for name in open_folder(folder)._train.names.tolist()]


def test_a_link_gives_no_class_the_pictures_of_another(tmp_path: Path) -> None:
    """Nor those of the validation set; and none of its own a second time."""
    folder = write_folder(tmp_path / "set", train=1, val=1)
    train, ant = folder / "train", folder / "train" / "ant"
    save(tmp_path / "elsewhere" / "deep" / "c.png", picture())
    for bee in ("bee", "set's bee"):
        if bee != "bee":  # a class folder that lies elsewhere
            (train / "bee").rename(tmp_path / bee)
            (train / "bee").symlink_to(tmp_path / bee)
        wanted = names_of(folder)
        assert wanted == ["ant/0.png", "bee/0.png"]
        for number, target in enumerate(
            [
                "..",
                "../bee",
                ".",
                folder,
                tmp_path,
                "/",
                train / "bee",
                train / "bee" / ".." / "ant",
            ]
        ):
            (ant / f"link {number}").symlink_to(target)
        (tmp_path / "elsewhere" / "deep" / "up").symlink_to("..")
        (tmp_path / "elsewhere" / "deep" / "bee").symlink_to(train / "bee")
        (tmp_path / "elsewhere" / "deep" / "again").symlink_to(tmp_path / "elsewhere" / "deep")
        (ant / "first").symlink_to(tmp_path / "elsewhere")
        (ant / "second").symlink_to(tmp_path / "elsewhere" / "deep")
        assert names_of(folder) == ["ant/0.png", "ant/second/c.png", "bee/0.png"]
        for link in (*ant.iterdir(), *(tmp_path / "elsewhere" / "deep").iterdir()):
            if link.is_symlink():
                link.unlink()


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, train=1, val=1)
    train, ant = folder / "train", folder / "train" / "ant"
    for link, target in ((ant / "round", "round"), (ant / "a", "b"), (ant / "b", "a")):
        link.symlink_to(target)
    (train / "round").symlink_to("round")
    (train / "gone").symlink_to("nothing")
    (ant / "round.png").symlink_to("round.png")  # a picture that cannot be read
    (ant / "gone.png").symlink_to("nothing")
    os.mkfifo(ant / "pipe.png")
    (ant / "linked pipe.png").symlink_to("pipe.png")
    assert names_of(folder) == ["ant/0.png", "ant/gone.png", "ant/round.png", "bee/0.png"]


def test_classes_that_hold_each_other(tmp_path: Path) -> None:
    """What their pictures are would be said twice, and differently."""
    folder = write_folder(tmp_path, train=1, val=1)
    for target in ("bee", "bee/wood", ".", ".."):
        (folder / "train" / "bee" / "wood").mkdir(exist_ok=True)
        link = folder / "train" / "cow"
        link.symlink_to(target)
        with pytest.raises(UserError, match=r"^class folder .* holds what '(ant|bee|cow)' holds: "):
            open_folder(folder)
        link.unlink()


def test_hidden_and_other_files_are_ignored(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, train=1, val=1)
    before = open_folder(folder).fingerprint
    for name in (".DS_Store", ".hidden.jpg", "Thumbs.db", "readme.txt", "png", ".folder/a.png"):
        path = folder / "train" / "ant" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("no picture")
    (folder / "val" / ".cache").mkdir()
    (folder / "train" / "list.txt").touch()
    dataset = open_folder(folder)
    assert (dataset.train_size, dataset.skipped) == (2, 0)
    assert dataset.fingerprint == before


def test_names_of_any_bytes(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, train=1, val=1)
    ant = os.fsencode(folder / "train" / "ant")
    for name in (b"na\xc3\xafve 1.png", b"latin-\xe9.png"):
        try:
            os.rename(ant + b"/0.png", ant + b"/" + name)
        except OSError:
            pytest.skip("this file system wants UTF-8")
        assert len(train(open_folder(folder), size=2)) == 1
        os.rename(ant + b"/" + name, ant + b"/0.png")


def test_the_fingerprint_is_of_the_names(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a")
    same = open_folder(write_folder(tmp_path / "b")).fingerprint
    assert open_folder(folder).fingerprint == same
    path = folder / "val" / "bee" / "4.png"
    path = path.rename(path.with_name("5.png"))
    assert open_folder(folder).fingerprint != same
    path.rename(path.with_name("4.png"))
    assert open_folder(folder).fingerprint == same


# ---- how a picture is read -----------------------------------------------------------------------


def test_validation_scales_and_takes_the_middle(tmp_path: Path) -> None:
    """As scaling the whole picture and cutting does, where that has whole pixels."""
    folder = write_folder(tmp_path, train=1, val=1)
    pixels = picture(60, 48)  # by 3 to 20 × 16
    save(folder / "val" / "ant" / "0.png", pixels)
    scaled = Image.fromarray(pixels).resize((20, 16), Image.Resampling.BILINEAR)
    expected = np.asarray(scaled.crop((3, 1, 17, 15))).transpose(2, 0, 1)
    assert np.abs(validated(open_folder(folder))[0] - expected).max() <= 1.01


def test_training_cuts_scales_and_flips(tmp_path: Path) -> None:
    """On a picture whose red and green tell the place where a pixel was taken from."""
    folder = write_folder(tmp_path, train=1, val=1)
    y, x = np.mgrid[0:100, 0:120]
    pixels = np.stack([x * 2, y * 2, 0 * x], 2).astype(np.uint8)
    for name in ("ant", "bee"):
        save(folder / "train" / name / "0.png", pixels)
    dataset = open_folder(folder)
    flips, areas = 0, []
    for epoch in range(60):
        for images, _ in train(dataset, epoch, size=2):
            for red, green, _ in as_bytes(dataset, images) / 2:
                across, along = red.mean(0), green.mean(1)
                # A box scaled evenly: a straight line over the columns, and over the rows.
                inner = slice(1, -1)  # at the picture's edge half a filter is missing
                for line in (across[inner], along[inner]):
                    np.testing.assert_allclose(np.diff(line, 2), 0, atol=1.1)
                assert np.abs(red - across).max() < 1
                steps = abs(across[12] - across[1]) / 11, (along[12] - along[1]) / 11
                assert steps[1] > 0
                flips += across[0] > across[-1]
                areas.append(steps[0] * steps[1] * SIZE**2 / 12000)
                assert 0.6 < steps[0] / steps[1] < 1.6
    assert 30 <= flips <= 90  # of 120
    assert 0.06 < min(areas) < 0.2
    assert 0.8 < max(areas) < 1.1


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        ("RGB", "bmp"),
        ("RGBA", "png"),
        ("L", "jpg"),
        ("LA", "png"),
        ("P", "gif"),
        ("1", "png"),
        ("CMYK", "jpg"),
        ("CMYK", "tiff"),
        ("YCbCr", "jpeg"),
        ("L", "pgm"),
        ("RGB", "webp"),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, ending: str) -> None:
    folder = write_folder(tmp_path, train=1, val=1)
    (folder / "val" / "ant" / "0.png").unlink()
    grey = mode in ("L", "LA", "1")
    colour = (255, 255, 255) if mode == "1" else (204, 204, 204) if grey else (204, 102, 51)
    pixels = np.full((16, 16, 3), colour, dtype=np.uint8)
    save(folder / "val" / "ant" / f"0.{ending}", pixels, mode)
    found = validated(open_folder(folder))[0]
    tolerance = 6 if ending in ("jpg", "jpeg", "webp") else 1
    assert np.abs(found - np.array(colour)[:, None, None]).max() <= tolerance


def test_transparency_keeps_the_colours(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, train=1, val=1)
    path = folder / "val" / "ant" / "0.png"
    pixels = np.full((16, 16, 4), (51, 102, 153, 0), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    expected = np.array([51, 102, 153])[:, None, None]
    assert np.abs(validated(open_folder(folder))[0] - expected).max() < 0.01
    palette = Image.fromarray(pixels[:, :, :3]).convert("P")
    palette.save(path, transparency=bytes(256))
    assert np.abs(validated(open_folder(folder))[0] - expected).max() < 0.01


def test_16_bits_become_8(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, train=1, val=1)
    values = np.full((16, 16), 0x8040, dtype=np.uint16)
    Image.fromarray(values).save(folder / "val" / "ant" / "0.png")
    assert np.abs(validated(open_folder(folder))[0] - 0x80).max() < 0.01
    content = b"P5 16 16 65535\n" + values.astype(">u2").tobytes()
    (folder / "val" / "bee" / "0.png").with_suffix(".pgm").write_bytes(content)
    (folder / "val" / "bee" / "0.png").unlink()
    assert np.abs(validated(open_folder(folder))[1] - 0x80).max() < 0.01


def test_large_jpegs_are_decoded_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path, train=1, val=1)
    path = folder / "val" / "ant" / "0.jpg"
    (folder / "val" / "ant" / "0.png").unlink()
    pixels = picture(333, 275)
    save(path, pixels, quality=95)
    found = validated(open_folder(folder))[0]
    sizes = []
    draft = Image.Image.draft
    with monkeypatch.context() as patch:
        patch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", draft)  # which does nothing
        whole = validated(open_folder(folder))[0]
    assert not np.array_equal(found, whole)
    assert np.abs(found - whole).max() < 6

    def note(image: Image.Image, *arguments: Any, **options: Any) -> Image.Image:
        sizes.append(image.size)
        return resize(image, *arguments, **options)

    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", note)
    open_folder(folder)
    # The box has 240 pixels a side, and an eighth of that is above 14.
    assert (42, 35) in sizes
    open_folder(folder, size=100)
    assert (167, 138) in sizes
    open_folder(folder, size=200)
    assert (333, 275) in sizes


def test_tiny_pictures_are_enlarged(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, train=1, val=1)
    for part in ("train", "val"):
        Image.new("RGB", (1, 1), (7, 8, 9)).save(folder / part / "ant" / "0.png")
        Image.new("RGB", (1, 90), (7, 8, 9)).save(folder / part / "bee" / "0.png")
    dataset = open_folder(folder)
    expected = np.array([7, 8, 9])[:, None, None]
    for images, _ in [*dataset.val_batches(2), *train(dataset, size=2)]:
        assert np.abs(as_bytes(dataset, images) - expected).max() < 0.01
    assert dataset.skipped == 0


# ---- the same batches however they are made ------------------------------------------------------


def test_workers_change_nothing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    spoil(folder)
    alone, helped = open_folder(folder), open_folder(folder, workers=2)
    assert_same(train(alone, epoch=1), train(helped, epoch=1))
    assert_same(list(alone.val_batches(3)), list(helped.val_batches(3)))
    assert alone.broken == helped.broken
    assert alone.skipped > 0


def test_going_on_in_the_middle_and_sharing(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    spoil(folder)
    dataset = open_folder(folder)
    whole = train(dataset, epoch=2)
    assert len(whole) == 4
    assert_same(whole[3:], train(dataset, epoch=2, start=3))
    assert train(dataset, epoch=2, start=4) == []
    shares = [train(dataset, epoch=2, rank=rank, world_size=2) for rank in (0, 1)]
    joint = [
        tuple(torch.cat(parts) for parts in zip(*pair, strict=True))
        for pair in zip(*shares, strict=True)
    ]
    assert_same(whole, joint)
    other = train(dataset, epoch=3)
    assert not torch.equal(whole[0][0], other[0][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_programs_own_random_numbers_stay_untouched(tmp_path: Path, workers: int) -> None:
    dataset = open_folder(write_folder(tmp_path), workers)
    before = torch.get_rng_state()
    train(dataset)
    list(dataset.val_batches(4))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_share_may_be_empty(tmp_path: Path) -> None:
    dataset = open_folder(write_folder(tmp_path, val=1))
    counts = [
        sum(len(labels) for _, labels in dataset.val_batches(4, rank=rank, world_size=5))
        for rank in range(5)
    ]
    assert sum(counts) == 2
    assert min(counts) == 0


@pytest.mark.gpu
def test_batches_on_a_gpu(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    dataset = open_folder(folder)
    other = open_dataset(folder, device="cuda", image_size=SIZE, workers=2)
    for expected, found in (
        (train(dataset), train(other)),
        (list(dataset.val_batches(4)), list(other.val_batches(4))),
    ):
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(b[0], a[0].cuda(), rtol=0, atol=1e-6)
            assert torch.equal(b[1], a[1].cuda())


def test_leaving_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    batches = open_folder(write_folder(tmp_path), workers=2).train_batches(0, 2, seed=0)
    next(batches)
    batches.close()  # type: ignore[attr-defined]


# ---- broken files --------------------------------------------------------------------------------


def spoil(folder: Path) -> dict[str, str]:
    """Break six of the pictures; their paths, and what of the reason is known."""
    train, val = folder / "train", folder / "val"
    reasons = {}
    for path, reason in (
        (train / "ant" / "2.png", "not a picture"),
        (train / "bee" / "5.jpg", "truncated"),
        (train / "bee" / "6.jpg", "not a picture"),
        (val / "ant" / "0.png", "No such file"),
        (val / "bee" / "3.png", ""),
        (val / "bee" / "4.tiff", "mode F"),
    ):
        path.with_suffix(".png").unlink()
        reasons[str(path)] = reason
    (train / "ant" / "2.png").touch()
    jpeg = save(train / "bee" / "5.jpg", picture(200, 200)).read_bytes()
    (train / "bee" / "5.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (train / "bee" / "6.jpg").write_text("I am no picture.\n")
    (val / "ant" / "0.png").symlink_to("nowhere.png")
    png = save(val / "bee" / "3.png", picture(200, 200)).read_bytes()
    (val / "bee" / "3.png").write_bytes(png[:100] + bytes(200) + png[300:])
    Image.fromarray(np.zeros((16, 16), dtype=np.float32)).save(val / "bee" / "4.tiff")
    return reasons


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_are_skipped_and_counted(tmp_path: Path, workers: int) -> None:
    reasons = spoil(write_folder(tmp_path))
    dataset = open_folder(tmp_path, workers)
    for epoch in (0, 1):
        batches = train(dataset, epoch)
        assert [len(labels) for _, labels in batches] == [4] * 4  # full, whatever is broken
        assert torch.stack([images for images, _ in batches]).isfinite().all()
    labels = [label for _, labels in dataset.val_batches(4) for label in labels.tolist()]
    assert labels == [0] * 4 + [1] * 3  # left out
    assert dataset.skipped == 6
    assert dataset.broken.keys() == reasons.keys()
    for path, reason in reasons.items():
        assert reason in dataset.broken[path]


def test_the_next_picture_of_the_order_takes_the_place_of_a_broken_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, train=4)
    numbers = {}
    for label, name in enumerate(("ant", "bee")):
        for number in range(4):  # each of a colour of its own
            value = 20 * (1 + 4 * label + number)
            pixels = np.full((16, 16, 3), value, dtype=np.uint8)
            save(folder / "train" / name / f"{number}.png", pixels)
            numbers[value] = 4 * label + number
    dataset = open_folder(folder)

    def order() -> list[int]:
        ((images, labels),) = train(dataset, size=8)
        found = [numbers[round(value)] for value in as_bytes(dataset, images)[:, 0, 0, 0]]
        assert labels.tolist() == [number // 4 for number in found]
        return found

    before = order()
    assert sorted(before) == list(range(8))
    for place in (2, 3, 7):
        label, number = divmod(before[place], 4)
        (folder / "train" / ("ant", "bee")[label] / f"{number}.png").write_bytes(b"")
    assert order() == [*before[:2], before[4], before[4], *before[4:7], before[0]]
    assert dataset.skipped == 3


def test_a_batch_of_broken_files_alone_is_left_out_of_validation(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, val=4)
    for number in range(4):
        (folder / "val" / "ant" / f"{number}.png").write_bytes(b"")
    ((images, labels),) = open_folder(folder).val_batches(4)
    assert images.shape == (4, 3, SIZE, SIZE)
    assert labels.tolist() == [1] * 4


def test_nothing_that_can_be_read(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, train=2)
    for path in (folder / "train").rglob("*.png"):
        path.write_text("no picture")
    with pytest.raises(
        UserError,
        match=r"^none of the 4 pictures in '.*/train' can be read; the last: not a picture of",
    ):
        open_folder(folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_files_that_vanish_while_training(tmp_path: Path, workers: int) -> None:
    folder = write_folder(tmp_path, train=2)
    dataset = open_folder(folder, workers)
    for path in (folder / "train").rglob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"^no picture in '.*/train' can be read any more$"):
        train(dataset)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long the parent waits before it looks whether its workers live: not for 5 s."""
    wait = torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(wait, "__defaults__", (0.1,))


WORKERS = (
    r"^a process that decodes pictures cannot go on: {}; it passes batches on through shared "
    r"memory.*: fewer --workers \(0: none\) need less of it, of memory and of open files$"
)
DIED = WORKERS.format(r"DataLoader worker \(pid\(s\) \d+\) exited unexpectedly")


@pytest.mark.usefixtures("impatient")
def test_a_worker_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_folder(write_folder(tmp_path), workers=1)
    monkeypatch.setattr("symrnn.vision.datasets.folder._decoded", lambda *_: os._exit(9))
    with pytest.raises(UserError, match=DIED):
        train(dataset)


@pytest.mark.usefixtures("impatient")
def test_a_worker_that_is_killed_while_the_model_trains(tmp_path: Path) -> None:
    """The error comes where batches are asked for, not in the midst of a step."""
    dataset = open_folder(write_folder(tmp_path), workers=1)
    batches = dataset.train_batches(0, 1, seed=1)
    next(batches)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)  # a signal's handler has its turn
    with pytest.raises(UserError, match=DIED):
        list(batches)


@pytest.mark.usefixtures("impatient")
def test_no_room_in_shared_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A batch that could not be passed on was dropped, and waited for for ever."""

    def full(*_: object) -> None:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    dataset = open_folder(write_folder(tmp_path), workers=1)
    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    with pytest.raises(UserError, match=DIED):
        train(dataset)
    words = "notice: a batch of pictures cannot be passed on: unable to allocate shared memory(shm)"
    assert capfd.readouterr().err.startswith(words)


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_no_room_for_the_workers_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Semaphores lie in shared memory too, and pipes want descriptors."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    dataset = open_folder(write_folder(tmp_path), workers=1)
    monkeypatch.setattr(multiprocessing.context.BaseContext, "Lock", refuse)
    with pytest.raises(UserError, match=WORKERS.format(r"\[Errno 28\] No space left on device")):
        train(dataset)
    gc.collect()


# ---- folders that are not like that --------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("only train", r"data '.*' lacks the folder 'val'"),
        ("only val", r"data '.*' lacks the folder 'train'"),
        ("empty class", r"class folder '.*/val/bee' holds no pictures \(files whose names .*\)"),
        ("files in train", r"'.*/train' should hold one folder per class; it has none, only .*"),
        (
            "other classes",
            r"data '.*' should have the same class folders in train and val; "
            r"only in train: bee; only in val: cat, cow, dog, eel, elk and 1 more",
        ),
    ],
)
def test_bad_folders(tmp_path: Path, change: str, message: str) -> None:
    folder = write_folder(tmp_path / "set", train=1, val=1)
    train, val = folder / "train", folder / "val"
    if change == "only train":
        val.rename(tmp_path / "val")
    elif change == "only val":
        train.rename(tmp_path / "train")
    elif change == "empty class":
        (val / "bee" / "0.png").rename(val / "bee" / "0.txt")
    elif change == "files in train":
        for name in ("ant", "bee"):
            (train / name / "0.png").rename(train / f"{name}.png")
            (train / name).rmdir()
    else:
        (val / "bee").rename(val / "cat")
        for name in ("cow", "dog", "eel", "elk", "fox"):
            save(val / name / "0.png", picture())
    with pytest.raises(UserError, match=f"^{message}$"):
        open_folder(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size should be an integer at least 1, got: 0"),
        ({"workers": -1}, "workers should be an integer at least 0, got: -1"),
    ],
)
def test_bad_arguments(tmp_path: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}$"):
        open_dataset(write_folder(tmp_path), **options)  # type: ignore[arg-type]


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path, train=1, val=1)
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "PIL.Image")
    with pytest.raises(
        UserError, match=r"pillow, .* not installed: pip install 'symrnn\[vision\]'"
    ):
        open_folder(folder)


def test_as_many_workers_as_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path, train=1, val=1)
    for processors, workers in ((3, 3), (100, 16)):
        monkeypatch.setattr("symrnn.vision.datasets.folder.usable_cores", lambda n=processors: n)
        dataset = open_dataset(folder)
        assert isinstance(dataset, FolderDataset)
        assert dataset.workers == workers
        assert dataset.image_size == 224
