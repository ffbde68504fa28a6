"""Fetching an archive once: written aside, size and SHA-256 checked, then unpacked.

What a cut connection left is taken up again by the next run (HTTP Range), and what has a wrong
checksum is deleted. Of processes that want the same archive one fetches it and the others wait.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import sys
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from symrnn.files import UserError
from symrnn.files.errors import describe_os_error

TIMEOUT = 30
"""Seconds without a byte after which the server is given up."""

_HEADERS = {"User-Agent": "symrnn", "Accept-Encoding": "identity"}


@dataclass(frozen=True)
class Archive:
    """A tar archive, packed with gzip, of one folder.

    sha256, size: of the archive; size in bytes.
    folder: in which all its members lie, and what it is called here.
    members: the files in it that are wanted. Nothing else is unpacked.
    """

    address: str
    sha256: str
    size: int
    folder: str
    members: tuple[str, ...]


def cache_folder() -> Path:
    """Where what is downloaded is kept: $SYMRNN_DATA, else ~/.cache/symrnn."""
    return Path(os.environ.get("SYMRNN_DATA") or Path.home() / ".cache" / "symrnn")


def obtain(archive: Archive, cache: Path, *, download: bool = True) -> Path:
    """The folder that was packed, inside ``cache``; what is there is taken as it is.

    download: whether to fetch it if it is not there.

    Raises UserError if it may not be or cannot be fetched, and says what to do by hand.
    """
    target = cache / archive.folder
    by_hand = f"{archive.address} can be unpacked by hand to {str(target)!r}"
    if target.is_dir():
        return target
    if not download:
        raise UserError(f"{str(target)!r} is not there, and downloads are off; {by_hand}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache / f"{archive.folder}.lock"):
            if not target.is_dir():
                packed = cache / f"{archive.folder}.tar.gz.part"
                _fetch(archive, packed)
                _unpack(archive, packed, target)
                packed.unlink()
    except _FailedError as error:
        raise UserError(f"{archive.address} cannot be downloaded: {error}; {by_hand}") from error
    except OSError as error:
        raise UserError(
            f"{str(cache)!r} cannot be written: {describe_os_error(error)}; another folder can be "
            "given in $SYMRNN_DATA"
        ) from error
    return target


class _FailedError(Exception):
    """Why the archive is not to be had."""


def _fetch(archive: Archive, path: Path) -> None:
    """Complete the file, so that it is the archive; it is kept if it is only too short."""
    with open(path, "a+b") as part:
        resumed = 0 < part.seek(0, os.SEEK_END) < archive.size
        _fetch_rest(archive, part)
        if resumed and not _right(archive, part):  # perhaps what was there before was wrong
            part.truncate(0)
            _fetch_rest(archive, part)
        if not _right(archive, part):
            path.unlink()
            raise _FailedError("wrong contents (SHA-256), not kept")
        part.flush()
        os.fsync(part.fileno())


def _fetch_rest(archive: Archive, part: BinaryIO) -> None:
    """Append to ``part`` what it lacks."""
    have = part.seek(0, os.SEEK_END)
    if have > archive.size:
        part.truncate(0)
        have = part.seek(0)
    if have == archive.size:
        return
    headers = {**_HEADERS, "Range": f"bytes={have}-"} if have else _HEADERS
    request = urllib.request.Request(archive.address, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            if have and not (answer.status == 206 and _starts_at(answer, have)):
                if answer.status == 206:
                    raise _FailedError(f"the server sends bytes from elsewhere than {have}")
                part.truncate(0)  # it sends the file from its start
                have = part.seek(0)
            with _progress_bar(archive, have) as bar:
                while chunk := _read(answer):
                    have += len(chunk)
                    if have > archive.size:
                        part.truncate(0)
                        raise _FailedError(f"the server sends more than {archive.size} bytes")
                    part.write(chunk)
                    if bar is not None:
                        bar.update(len(chunk))
    except urllib.error.HTTPError as error:
        raise _FailedError(f"HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        raise _FailedError(f"no connection ({error.reason})") from error
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        # While waiting for an answer; what breaks off within one, _read ends.
        raise _FailedError(f"no answer ({str(error).strip()})") from error
    if have < archive.size:
        raise _FailedError(f"cut short, {have} of {archive.size} bytes; the next run goes on there")


def _read(answer: http.client.HTTPResponse) -> bytes:
    """The next bytes; none at the end, also where the connection broke, which the size tells."""
    try:
        return answer.read(1 << 16)
    except (http.client.HTTPException, OSError):
        return b""


def _starts_at(answer: http.client.HTTPResponse, place: int) -> bool:
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return found is not None and int(found[1]) == place


def _right(archive: Archive, part: BinaryIO) -> bool:
    digest = hashlib.sha256()
    part.seek(0)
    while chunk := part.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest() == archive.sha256


def _unpack(archive: Archive, packed: Path, target: Path) -> None:
    """The members by their names, nothing else, into a folder that appears whole."""
    aside = target.with_name(f"{target.name}.part")
    shutil.rmtree(aside, ignore_errors=True)  # of a process that was killed
    aside.mkdir()
    try:
        with tarfile.open(packed, "r:gz") as tar:
            for name in archive.members:
                source = tar.extractfile(f"{archive.folder}/{name}")
                if source is None:
                    raise _FailedError(f"its {archive.folder}/{name} is no file")
                with source, open(aside / name, "wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                    file.flush()
                    os.fsync(file.fileno())
        os.rename(aside, target)
    except (KeyError, tarfile.TarError, EOFError, zlib.error) as error:
        raise _FailedError(f"it is not the archive that it should be: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Wait until no other process is in here. Where there is no flock, do not."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(lock, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _progress_bar(archive: Archive, have: int) -> Any:
    """A bar over bytes, on a terminal and with tqdm; else a context that gives None."""
    if sys.stderr is None or not sys.stderr.isatty():
        return nullcontext()
    try:
        from tqdm import tqdm
    except ImportError:
        return nullcontext()
    what = f"downloading {archive.address.rpartition('/')[2]}"
    return tqdm(total=archive.size, initial=have, desc=what, unit="B", unit_scale=True, leave=False)
