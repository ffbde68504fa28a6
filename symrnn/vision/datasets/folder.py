"""Pictures in a folder of class folders, too many for memory, decoded in worker processes.

    train/CLASS/…/NAME.jpg        val/CLASS/…/NAME.jpg

as ImageNet is usually stored. Files that cannot be read as a picture are skipped and counted.
"""

from __future__ import annotations

import errno
import hashlib
import math
import multiprocessing.queues
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.utils.data
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from symrnn.files import UserError
from symrnn.files.errors import describe_os_error
from symrnn.training.process import usable_cores
from symrnn.vision.datasets.augment import Box, Normalise, central_box, random_box
from symrnn.vision.datasets.dataset import (
    Batch,
    Dataset,
    random_numbers,
    require_integer,
    shuffled,
)

if TYPE_CHECKING:
    from PIL import Image

ENDINGS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""What the names of pictures end in, in small letters or capitals. Other files are ignored."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's pixels, as most who train on it use them; here for any folder of pictures."""

_MOST_WORKERS = 16


class FolderDataset(Dataset):
    """The pictures of a folder with ``train`` and ``val``, each of which has one folder per class.

    Class folders may be links, be nested and hold links to files and to folders elsewhere. A link
    into the part (``train`` or ``val``) or one of its class folders is not followed, nor one to
    what holds them or the link: those pictures have their class already. A folder to which several
    ways lead within a class counts once. What begins with a dot is ignored, and so are files whose
    names end in none of ENDINGS. Labels follow the sorted names of the classes.

    Training: a box of random size, shape and place (:func:`random_box`), scaled to image_size,
    flipped from left to right or not. Validation: the middle (:func:`central_box`), scaled. Scaling
    is bilinear over all pixels that a new one covers; JPEGs are decoded at a half, quarter or
    eighth of their size where the box still has image_size pixels a side then, which is faster and
    changes pixels a little. Pictures of any mode become RGB: of a transparent one its colours, of
    16 bits the upper 8. A turn noted in EXIF is not made.

    A broken file's place in a training batch is taken by the next of that epoch's order that can
    be read, which thus comes twice; in validation it is left out, and its batch is smaller. Either
    is counted in ``skipped``, and ``broken`` maps its path to what was wrong.

    The fingerprint is of the names of classes and files.

    folder: with train and val.
    image_size: s, of the pictures given.
    workers: processes that decode; with 0 this one does. None: as many as it may use processors,
        at most 16.

    Raises UserError if there is no pillow, or the folder is not like that, or no picture of a part
    can be read.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        image_size: int = 224,
        workers: int | None = None,
    ) -> None:
        _require_pillow()
        require_integer("image_size", image_size, 1)
        if workers is not None:
            require_integer("workers", workers, 0)
        self.name = folder.resolve().name
        self.device = device
        self.image_size = image_size
        self.workers = min(usable_cores(), _MOST_WORKERS) if workers is None else workers
        self.mean, self.std = MEAN, STD
        self._normalise = Normalise(MEAN, STD, device)
        self._train, self._val = _Files(folder / "train"), _Files(folder / "val")
        _require_same_classes(self._train, self._val)
        self.classes = self._train.classes
        self.train_size, self.val_size = len(self._train.names), len(self._val.names)
        both = (self._train.fingerprint() + self._val.fingerprint()).encode()
        self.fingerprint = hashlib.sha256(both).hexdigest()
        self.broken = {}
        for files in (self._train, self._val):
            self._require_readable(files)

    def _require_readable(self, files: _Files) -> None:
        places = _Places(files, self.image_size)
        for place in range(len(files.names)):
            picture = places[place]
            self._note(files, picture.broken)
            if picture.pixels is not None:
                return
        raise UserError(
            f"none of the {len(files.names)} pictures in {str(files.folder)!r} can be read; the "
            f"last: {picture.broken[-1][1]}"
        )

    def _note(self, files: _Files, broken: list[tuple[int, str]]) -> None:
        for place, why in broken:
            self.broken[str(files.path(place))] = why

    def _train_batches(
        self, key: tuple[int, int], numbers: range, batch_size: int, share: slice
    ) -> Iterator[Batch]:
        batches = [range(n * batch_size, (n + 1) * batch_size)[share] for n in numbers]
        places = _PlacesAtRandom(self._train, self.image_size, key)
        for images, labels in self._load(places, batches):
            if len(labels) < share.stop - share.start:
                raise UserError(f"no picture in {str(self._train.folder)!r} can be read any more")
            yield images, labels

    def _val_batches(self, batches: list[range]) -> Iterator[Batch]:
        for images, labels in self._load(_Places(self._val, self.image_size), batches):
            if len(labels):
                yield images, labels

    def _load(self, places: _Places, batches: list[range]) -> Iterator[Batch]:
        loader: DataLoader[Any] = DataLoader(
            places,
            batch_sampler=batches,  # type: ignore[arg-type]  # any sequences of places
            num_workers=min(self.workers, len(batches)),
            collate_fn=_collated,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_begin_worker,
            generator=torch.Generator(),  # it draws a number of its own, not of the program's
        )
        for images, labels, broken in _from_workers(loader) if loader.num_workers else loader:
            self._note(places.files, broken)
            images = self._normalise(images.to(self.device, non_blocking=True))
            yield images, labels.to(self.device, non_blocking=True)


# ---- files ---------------------------------------------------------------------------------------


class _Files:
    """The pictures of ``train`` or ``val``, sorted by class, then by name.

    Names stand in one array: of a million Python strings every worker would soon have its own
    copy, as counting references writes to them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names: list[bytes] = []
        counts = []
        try:
            self.classes = _class_folders(folder)
            claimed = [os.path.realpath(folder), *_places_of(folder, self.classes)]
            for name in self.classes:
                found = sorted(_pictures(str(folder / name), os.fsencode(name), claimed))
                if not found:
                    raise UserError(
                        f"class folder {str(folder / name)!r} holds no pictures (files whose "
                        f"names end in {', '.join(ENDINGS)})"
                    )
                names += found
                counts.append(len(found))
        except OSError as error:
            raise UserError(f"{error.filename}: {describe_os_error(error)}") from error
        self.names = np.array(names)
        self.labels = np.repeat(np.arange(len(counts)), counts)

    def path(self, place: int) -> Path:
        return self.folder / os.fsdecode(bytes(self.names[place]))

    def fingerprint(self) -> str:
        return hashlib.sha256(b"\0".join(self.names.tolist())).hexdigest()


def _class_folders(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise UserError(f"data {str(folder.parent)!r} lacks the folder {folder.name!r}")
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".")]
    classes = sorted(entry.name for entry in found if _is_folder(entry))
    if not classes:
        files = f", only {len(found)} files" if found else ""
        raise UserError(f"{str(folder)!r} should hold one folder per class; it has none{files}")
    return tuple(classes)


def _places_of(folder: Path, classes: Sequence[str]) -> list[str]:
    """Where the class folders really lie, in their order.

    Raises UserError if one holds another: the pictures of that one would be of both classes.
    """
    places = [os.path.realpath(folder / name) for name in classes]
    # In this order what lies within a folder comes straight after it.
    order = sorted(range(len(places)), key=lambda i: places[i].split(os.sep))
    for outer, inner in pairwise(order):
        if _is_within(places[inner], places[outer]):
            raise UserError(
                f"class folder {str(folder / classes[outer])!r} holds what {classes[inner]!r} "
                f"holds: both are, or lie in, {places[outer]!r}"
            )
    return places


def _pictures(folder: str, name: bytes, claimed: Collection[str]) -> Iterator[bytes]:
    """Names of the pictures in a folder and those below, each after ``name`` and a slash.

    A link to a folder is followed, but not one to where pictures have their class already, or to
    what holds that, or the link itself. Each folder is read once.

    claimed: where class folders lie, and the folder that holds them.
    """
    to_read, seen = [(folder, name)], set()
    while to_read:
        folder, name = to_read.pop()
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in seen:
            continue
        seen.add(here)
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if entry.name.startswith("."):
                continue
            below = name + b"/" + os.fsencode(entry.name)
            if _is_folder(entry):
                if not (entry.is_symlink() and _leads_to(entry.path, claimed)):
                    to_read.append((entry.path, below))
            elif entry.name.lower().endswith(ENDINGS) and _is_file(entry):
                yield below


def _leads_to(link: str, claimed: Collection[str]) -> bool:
    """Whether a link leads into one of these folders, to one that holds one, or holds the link."""
    target = os.path.realpath(link)
    upwards = _is_within(os.path.realpath(os.path.dirname(link)), target)
    return upwards or any(_is_within(target, one) or _is_within(one, target) for one in claimed)


def _is_within(path: str, folder: str) -> bool:
    """Whether a path is a folder or below it; both absolute, and without links."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False  # a link to itself leads nowhere


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file, or a link that leads nowhere, which is a file that cannot be read."""
    if entry.is_symlink() and not os.path.exists(entry.path):
        return True
    return entry.is_file()


def _require_same_classes(train: _Files, val: _Files) -> None:
    differences = []
    for files, other in ((train, val), (val, train)):
        only = sorted(set(files.classes) - set(other.classes))
        if only:
            more = f" and {len(only) - 5} more" if len(only) > 5 else ""
            differences.append(f"only in {files.folder.name}: {', '.join(only[:5])}{more}")
    if differences:
        raise UserError(
            f"data {str(train.folder.parent)!r} should have the same class folders in train and "
            f"val; {'; '.join(differences)}"
        )


# ---- decoding, in the workers --------------------------------------------------------------------


class _Picture(NamedTuple):
    """What became of one place in a batch.

    pixels: uint8 (3, s, s), or None if nothing could be read.
    broken: places among the files of those that could not be read, and why.
    """

    pixels: NDArray[np.uint8] | None
    label: int
    broken: list[tuple[int, str]]


class _Places(torch.utils.data.Dataset[_Picture]):
    """The pictures in the order of the files, for validation."""

    def __init__(self, files: _Files, size: int) -> None:
        self.files = files
        self.size = size

    def __getitem__(self, place: int) -> _Picture:
        return self._first([place], lambda width, height: central_box(width, height, self.size))

    def _first(self, candidates: Iterable[int], box_of: Callable[[int, int], Box]) -> _Picture:
        """The first of these files that can be read."""
        broken = []
        for place in candidates:
            try:
                pixels = _decoded(self.files.path(place), box_of, self.size)
            except Exception as error:  # a decoder may raise anything on a broken file
                broken.append((place, _reason(error)))
            else:
                return _Picture(pixels, int(self.files.labels[place]), broken)
        return _Picture(None, 0, broken)


class _PlacesAtRandom(_Places):
    """The pictures in the order of an epoch, each cut and flipped at random; key: seed and epoch.

    How one is cut and flipped depends on its place in the order, besides the key.
    """

    def __init__(self, files: _Files, size: int, key: tuple[int, int]) -> None:
        super().__init__(files, size)
        self.key = key
        self.order = shuffled(len(files.names), key)

    def __getitem__(self, place: int) -> _Picture:
        random = random_numbers(*self.key, place)
        flip = random.integers(2) == 1
        candidates = (int(i) for part in (self.order[place:], self.order[:place]) for i in part)
        picture = self._first(candidates, lambda w, h: random_box(w, h, random))
        if flip and picture.pixels is not None:
            return picture._replace(pixels=picture.pixels[:, :, ::-1])
        return picture


def _decoded(path: Path, box_of: Callable[[int, int], Box], size: int) -> NDArray[np.uint8]:
    """The part of a picture that box_of(width, height) chooses, scaled, as uint8 (3, s, s)."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a million files many have something odd
        with Image.open(path) as image:
            width, height = image.size
            left, upper, right, lower = box_of(width, height)
            enough = min(1.0, size / min(right - left, lower - upper))
            drafted = image.draft("RGB", (math.ceil(width * enough), math.ceil(height * enough)))
            part = drafted[1][2] / width if drafted else 1  # what a JPEG was reduced to
            box = (left * part, upper * part, right * part, lower * part)
            scaled = _as_rgb(image).resize((size, size), Image.Resampling.BILINEAR, box)
    return np.asarray(scaled).transpose(2, 0, 1)


def _as_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}, whose range is unknown")
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno:
        return describe_os_error(error)
    if type(error).__name__ == "UnidentifiedImageError":
        return "not a picture of a kind that pillow knows"
    return str(error) or type(error).__name__


def _collated(pictures: list[_Picture]) -> tuple[Tensor, Tensor, list[tuple[int, str]]]:
    """Pixels (B, 3, s, s) and labels (B,) of those that could be read, and what was wrong."""
    broken = [pair for picture in pictures for pair in picture.broken]
    read = [picture for picture in pictures if picture.pixels is not None]
    if not read:
        return torch.empty(0, 3, 1, 1, dtype=torch.uint8), torch.empty(0, dtype=torch.long), broken
    pixels = np.stack([picture.pixels for picture in read])  # type: ignore[misc]
    return torch.from_numpy(pixels), torch.tensor([picture.label for picture in read]), broken


def _from_workers(loader: DataLoader[Any]) -> Iterator[Any]:
    """What the workers of a loader collate. Raises UserError once one of them cannot go on."""
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        batches = iter(loader)
        # It looks after its workers while it waits. The handler that it installed besides would
        # raise at any other time as well, in the midst of a step or of writing a checkpoint.
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler)
        yield from batches
    except (OSError, RuntimeError, MemoryError, EOFError) as error:
        # One that could not be made in full is not to be torn down as if it had been.
        _MultiProcessingDataLoaderIter._shutdown = True
        why = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(
            f"a process that decodes pictures cannot go on: {why}; it passes batches on through "
            f"shared memory{_size_of_shared_memory()}: fewer --workers (0: none) need less of it, "
            "of memory and of open files"
        ) from error


def _size_of_shared_memory() -> str:
    """Where it is and how large, in brackets; "" where it is not a file system."""
    try:
        found = os.statvfs("/dev/shm")
    except OSError:  # not on Linux
        return ""
    return f" (/dev/shm, {found.f_blocks * found.f_frsize / 2**20:,.0f} MiB)"


def _begin_worker(_: int) -> None:
    # Ctrl-C goes to the workers as well, and what they decode is needed to end properly.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # By default a batch that cannot be sent is dropped, and the parent waits for it for ever.
    # There is no public door: concurrent.futures overrides this method too.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore


def _end_worker(error: Exception, _: object) -> None:
    print(f"notice: a batch of pictures cannot be passed on: {error}", file=sys.stderr, flush=True)
    os._exit(1)


def _require_pillow() -> None:
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise UserError(
            "data: pictures in a folder are decoded by pillow, which is not installed: "
            "pip install 'symrnn[vision]'"
        ) from error
