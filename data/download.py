"""Fetching the corpora of the catalogue, each file verified by its SHA-256.

A file is written aside and gets its name when it is whole. Two processes may ask for the same
corpus: one waits. What is there already needs no network and neither pooch nor symrnn.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from data.cache import cache_folder
from data.catalogue import CATALOGUE, SPLITS, CatalogueEntry
from data.errors import DataError, run_program


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
    texts = {split: target / f"{split}.txt" for split in SPLITS}
    if not all(map(os.path.isfile, texts.values())):
        _complete(target, entry, progress)
    return texts


def _complete(target: Path, entry: CatalogueEntry, progress: bool) -> None:
    """Downloads what is missing in a folder."""
    # Only now: symrnn imports torch, which nothing else here needs.
    from symrnn.files import UserError, describe_os_error
    from symrnn.files.download import fetch, fetching_into, unpack

    try:
        with fetching_into(target) as aside:
            for remote in entry.files:
                wanted = tuple(remote.members.values()) or (remote.name,)
                if all((target / name).is_file() for name in wanted):
                    continue
                packed = aside / remote.name
                fetch(remote.addresses, remote.sha256, packed, progress=progress)
                if remote.members:
                    unpack(packed, remote.members, aside)
                for name in wanted:
                    os.replace(aside / name, target / name)
    except UserError as error:
        raise DataError(f"{error}. It can be put by hand into {str(target)!r}") from error
    except OSError as error:
        raise DataError(f"{str(target)!r} cannot be written: {describe_os_error(error)}") from error


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
    try:
        folder = Path(options.out) if options.out else cache_folder() / "corpora" / options.name
        texts = download(options.name, folder, progress=not options.quiet)
    except DataError as error:
        print(f"data.download: error: {error}", file=sys.stderr)
        return 2
    for path in texts.values():
        print(path)
    return 0


if __name__ == "__main__":
    run_program(main)
