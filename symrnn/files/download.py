"""Downloads: a file from the first of several addresses that serves it, its SHA-256 verified.

pooch transfers, hashes and shows progress. It comes with the extras `train` and `vision`; where it
is missing, a download is a UserError that says what to install.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

from symrnn.files.errors import UserError, causes

TIMEOUT = 30
"""Seconds without a byte after which an address is given up."""

_ASIDE = ".download-"
_HEADERS = {"User-Agent": "symrnn", "Accept-Encoding": "identity"}


@contextmanager
def fetching_into(folder: Path) -> Iterator[Path]:
    """A new folder inside `folder` to download and unpack in, removed at the end.

    `folder` is made if need be. Other processes that download into it wait until then, where the
    file system has locks; so look for what you want in here, not before. What a killed process
    left is removed first. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder) as alone:
        for left in folder.glob(f"{_ASIDE}*") if alone else ():
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(
            prefix=_ASIDE, dir=folder, ignore_cleanup_errors=True
        ) as aside:
            yield Path(aside)


def fetch(addresses: Sequence[str], sha256: str, path: Path, *, progress: bool = True) -> None:
    """Writes to `path` what the first of `addresses` serves that has this SHA-256 (in hex).

    addresses: http or https.
    progress: show a bar, on a terminal and where tqdm is installed.

    Raises UserError with what went wrong at each address, or if there is no pooch; OSError if
    `path` cannot be written.
    """
    pooch = _pooch()
    import requests  # what pooch transfers with

    transfer = pooch.HTTPDownloader(
        progressbar=progress and _can_show_progress(),
        chunk_size=1 << 16,
        timeout=TIMEOUT,
        headers=_HEADERS,
    )
    failures = []
    for address in addresses:
        try:
            transfer(address, str(path), None)
        except requests.RequestException as error:
            why = _reason(error)
        else:
            if pooch.file_hash(str(path)) == sha256:
                with path.open("r+b") as file:
                    os.fsync(file.fileno())
                return
            why = "wrong contents (SHA-256), not stored"
        failures.append(f"{address}: {why}")
    raise UserError(f"{path.name} cannot be downloaded: {'; '.join(failures)}")


def unpack(archive: Path, members: Mapping[str, str], folder: Path) -> None:
    """Writes the named members of a zip or tar archive into `folder`, and nothing else.

    members: for each name in the archive, the name of the file in `folder`.
    folder: is made if need be.

    Raises UserError if it is no such archive, is damaged or lacks a member; OSError if `folder`
    cannot be written.
    """
    folder.mkdir(exist_ok=True)
    for name, blocks in groupby(_contents(archive, members), itemgetter(0)):
        with open(folder / members[name], "wb") as file:
            for _, block in blocks:
                file.write(block)
            file.flush()
            os.fsync(file.fileno())


def _contents(archive: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """The contents of these members, one after the other, in blocks with the member's name."""
    try:
        with _opened(archive) as member:
            for name in names:
                source = member(name)
                if source is None:
                    raise KeyError(f"{name} is no file")
                with source:
                    yield name, b""  # of an empty file too
                    while block := source.read(1 << 20):
                        yield name, block
    except Exception as error:  # damage may lead the libraries to any
        why = str(error.args[0] if error.args else "") or type(error).__name__
        raise UserError(f"{archive.name} is not the archive that it should be: {why}") from error


@contextmanager
def _opened(archive: Path) -> Iterator[Callable[[str], IO[bytes] | None]]:
    """What opens a member by its name."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield zipped.open
    else:
        with tarfile.open(archive, "r:gz") as tar:
            yield tar.extractfile


def _reason(error: Exception) -> str:
    """Why there was no file from an address, in a few words."""
    import requests

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return f"no answer within {TIMEOUT} s"
    if isinstance(error, (requests.exceptions.MissingSchema, requests.exceptions.InvalidSchema)):
        return "want an http or https address"
    *_, inner = causes(error)  # requests and urllib3 wrap what the system said many times
    words = str(getattr(inner, "strerror", None) or inner).strip()
    if isinstance(error, requests.exceptions.ProxyError):
        return f"no connection through the proxy ({words})"
    if isinstance(error, requests.exceptions.SSLError):
        return (
            f"no secure connection ({words}); $REQUESTS_CA_BUNDLE names the certificates to trust"
        )
    if isinstance(error, requests.ConnectionError):
        return f"no connection ({words})"
    return f"cut short ({words})"


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Waits until no other process is in here; False where the file system cannot tell."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # NFS does not lock folders
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


def _pooch() -> Any:
    try:
        import pooch
    except ImportError as error:
        raise UserError(
            "downloads need the pooch package, which is not installed: pip install pooch"
        ) from error
    return pooch


def _can_show_progress() -> bool:
    on_terminal = sys.stderr is not None and sys.stderr.isatty()
    return on_terminal and importlib.util.find_spec("tqdm") is not None
