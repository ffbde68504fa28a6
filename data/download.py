"""Fetching the corpora of the catalogue.

A file is written aside as NAME.part and gets its name once its SHA-256 is right. What a cut
connection left in NAME.part is taken up again, by the next address or the next run (HTTP Range);
what has a wrong checksum is deleted. Two processes may ask for the same file: one waits.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import re
import shutil
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from data.cache import cache_folder
from data.catalogue import CATALOGUE, CatalogueEntry, RemoteFile
from data.errors import DataError
from data.text import progress_bar

SPLIT_FILES = ("train.txt", "valid.txt", "test.txt")
TIMEOUT = 30
"""Seconds without a byte after which an address is given up."""

_CHUNK = 1 << 16
_HEADERS = {"User-Agent": "symrnn", "Accept-Encoding": "identity"}


def download(
    name: str, folder: str | os.PathLike[str], *, progress: bool = True
) -> dict[str, Path]:
    """The texts of a corpus of the catalogue: a path for each of train, valid and test.

    What is missing in `folder` is downloaded there; what is there is taken as it is.

    Raises DataError if the name is unknown, or if no address gives a file with the right checksum,
    with what went wrong at each.
    """
    if name not in CATALOGUE:
        raise DataError(f"corpus must be one of {', '.join(CATALOGUE)}, got {name!r}")
    return download_entry(CATALOGUE[name], folder, progress=progress)


def download_entry(
    entry: CatalogueEntry, folder: str | os.PathLike[str], *, progress: bool = True
) -> dict[str, Path]:
    """The same for an entry that need not stand in the catalogue."""
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for remote in entry.files:
            wanted = [target / here for here in remote.members.values()] or [target / remote.name]
            if not all(path.is_file() for path in wanted):
                fetch(remote, target / remote.name, progress=progress)
                if remote.members:
                    _extract(target / remote.name, remote, target)
                    (target / remote.name).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"{os.fspath(folder)!r} cannot be written: {error.strerror or error}"
        ) from error
    return {name.removesuffix(".txt"): target / name for name in SPLIT_FILES}


def fetch(remote: RemoteFile, path: Path, *, progress: bool = True) -> None:
    """One file, from the first of its addresses that gives it whole.

    Does nothing if the file is there. Raises DataError as `download` does.
    """
    with _locked_part(path) as part:
        if part is None:
            return
        failures = []
        for address in remote.addresses:
            resumed = part.seek(0, os.SEEK_END) > 0
            why = _try(address, remote, part, progress)
            if why == _WRONG and resumed:  # perhaps what was there before was wrong
                why = _try(address, remote, part, progress)
            if why is None:
                part.flush()
                os.fsync(part.fileno())
                os.replace(part.name, path)
                return
            failures.append(f"{address}: {why}")
    raise DataError(
        f"{remote.name} cannot be downloaded; "
        + "; ".join(failures)
        + f". It can be put by hand at {str(path)!r}"
    )


_WRONG = "wrong contents (SHA-256), not kept"


def _try(address: str, remote: RemoteFile, part: BinaryIO, progress: bool) -> str | None:
    """Complete `part` from one address; None if it is right then, else what is wrong."""
    why = None
    try:
        _fetch_rest(address, remote, part, progress)
    except _Unusable as error:
        return str(error)
    except (http.client.HTTPException, OSError) as error:
        why = _reason(error)
    size = part.seek(0, os.SEEK_END)
    if size < remote.size:
        return why or f"cut short, {size} of {remote.size} bytes"
    if _sha256(part) == remote.sha256:
        return None
    part.truncate(0)
    return _WRONG


class _Unusable(Exception):
    """An address answers, but not with the file."""


def _fetch_rest(address: str, remote: RemoteFile, part: BinaryIO, progress: bool) -> None:
    """Append to `part` what it lacks; what comes is not checked beyond its size."""
    if not address.startswith(("https://", "http://")):
        raise _Unusable("want an http or https address")
    have = part.seek(0, os.SEEK_END)
    if have > remote.size:
        part.truncate(0)
        have = part.seek(0)
    if have == remote.size:
        return
    headers = dict(_HEADERS)
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(address, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        if have and not (answer.status == 206 and _starts_at(answer, have)):
            if answer.status == 206:
                raise _Unusable(f"answers with bytes from elsewhere than {have}")
            part.truncate(0)  # the server sends the file from its start
            have = part.seek(0)
        with progress_bar(remote.size, f"downloading {remote.name}", progress) as bar:
            bar.update(have)
            while chunk := answer.read(_CHUNK):
                have += len(chunk)
                if have > remote.size:
                    part.truncate(0)
                    raise _Unusable(f"sends more than the {remote.size} bytes of the file")
                part.write(chunk)
                bar.update(len(chunk))


def _starts_at(answer: http.client.HTTPResponse, place: int) -> bool:
    found = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return found is not None and int(found[1]) == place


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"no connection ({error.reason})"
    if isinstance(error, http.client.IncompleteRead):
        return "cut short"
    return str(error) or type(error).__name__


@contextmanager
def _locked_part(path: Path) -> Iterator[BinaryIO | None]:
    """NAME.part, open for us alone; None if the file itself is there by then.

    An empty NAME.part is removed at the end, any other stays to be taken up again.
    """
    aside = path.with_name(path.name + ".part")
    while True:
        with open(aside, "a+b") as part:
            _lock(part)
            if path.is_file():
                if _same_file(part, aside) and part.seek(0, os.SEEK_END) == 0:
                    aside.unlink()
                yield None
                return
            if not _same_file(part, aside):
                continue  # whom we waited for renamed or removed it
            try:
                yield part
            finally:
                if _same_file(part, aside) and part.seek(0, os.SEEK_END) == 0:
                    aside.unlink()
            return


def _lock(file: BinaryIO) -> None:
    """Wait until no other process holds this file. Where there is no flock, do not."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX)


def _same_file(file: BinaryIO, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def _extract(archive: Path, remote: RemoteFile, folder: Path) -> None:
    """The named members of a zip archive, nothing else, under names of our own."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            for member, here in remote.members.items():
                aside = folder / f"{here}.{os.getpid()}.part"
                try:
                    with zipped.open(member) as source, open(aside, "wb") as target:
                        shutil.copyfileobj(source, target, 1 << 20)
                        target.flush()
                        os.fsync(target.fileno())
                    os.replace(aside, folder / here)
                finally:
                    aside.unlink(missing_ok=True)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{str(archive)!r} is not the archive it should be: {error}") from error
    except FileNotFoundError:
        # Another process extracted and removed the archive: then all is there.
        if not all((folder / here).is_file() for here in remote.members.values()):
            raise


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m data.download`; the exit code."""
    names = "\n".join(
        f"  {name:13} {entry.title}; {sum(file.size for file in entry.files) / 1e6:.1f} MB\n"
        f"  {'':13} {entry.licence}"
        for name, entry in CATALOGUE.items()
    )
    parser = argparse.ArgumentParser(
        prog="python -m data.download",
        description=f"Download a corpus, checksum verified.\n\n{names}",
        epilog="example: python -m data.download ptb",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help=f"one of {', '.join(CATALOGUE)}")
    parser.add_argument(
        "--out",
        metavar="FOLDER",
        help="where to put train.txt, valid.txt and test.txt (default: where open_corpus finds "
        "them, in $SYMRNN_DATA or ~/.cache/symrnn)",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    options = parser.parse_args(arguments)
    folder = Path(options.out) if options.out else cache_folder() / "corpora" / options.name
    try:
        texts = download(options.name, folder, progress=not options.quiet)
    except DataError as error:
        print(f"data.download: error: {error}", file=sys.stderr)
        return 2
    for path in texts.values():
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
