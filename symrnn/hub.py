"""Models in folders as Hugging Face's hub has them: saved, loaded, sent there and fetched from it.

A folder holds

    model.safetensors  a packed model (:mod:`symrnn.storage`): symmetric matrices once, and all that
                       belongs to the model; whole and verified, and all that is loaded
    config.json        of that the configuration, for people and for the hub
    README.md          the model's card (:mod:`symrnn.card`)

On this machine that takes no network and no further package. The hub is reached by huggingface_hub,
of the extra ``hub``, which is imported when it is. Nothing here unpickles.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from symrnn import __version__
from symrnn.card import Card
from symrnn.files import UserError, describe_os_error, replacing, to_json
from symrnn.programs import run_parser
from symrnn.storage import Packed, open_packed

MODEL, CONFIG, README = "model.safetensors", "config.json", "README.md"
"""The files of a folder, by the hub's usual names."""

Model = TypeVar("Model", bound="HubMixin")


class HubError(UserError):
    """A folder or a repository that is none of a model of ours, or could not be written."""


@dataclass(frozen=True)
class HubKind:
    """How the models of a kind are written, read and described.

    write: writes a model into a packed file, with a "config" in its ``meta``.
    read: the model of such a file, on the CPU and in evaluation mode; UserError if there is none.
    card: what a model says of itself, under a title.
    """

    write: Callable[[Any, Path], None]
    read: Callable[[Packed], Any]
    card: Callable[[Any, str], Card]


KINDS: dict[str, HubKind] = {}
"""By the ``hub_kind`` of their classes. The modules that write and read such models put them here,
as they import the class, which so imports nothing that stores it.
"""


class HubMixin:
    """``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` of a model.

    Their names, arguments and results are those of ``huggingface_hub.ModelHubMixin``. It is none:
    a class would be another one where that package is installed, every program would load it, a
    model would be built as a file says before that is checked, and a repository without safetensors
    unpickled.
    """

    hub_kind: ClassVar[str]
    """What such models are, in words, of :data:`KINDS`: a folder says it, and one of another kind
    is refused.
    """

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        **options: Any,
    ) -> str | None:
        """Write the model into a folder, which is made if need be.

        The card says what the model is. Of its training it says nothing, since the weights may have
        changed after that: ``python -m lm.hub`` and ``symrnn.vision.hub`` make those of runs. A
        README.md that is there already stays as it is.

        push_to_hub: send it to the hub too, to ``repo_id`` (by default the folder's name), with the
            ``options`` of :meth:`push_to_hub`; the result is the address of the commit there.

        Raises HubError if the folder holds a config.json of something else, if it cannot be
        written, and for a model that could not be read again: one that was changed after it was
        made, such as folded or deployed ones. What was there before is then untouched. TypeError
        for arguments of ``push_to_hub`` without it.
        """
        if not push_to_hub and (options or repo_id is not None):
            given = ", ".join([*options, *(["repo_id"] if repo_id is not None else [])])
            raise TypeError(f"save_pretrained takes {given} with push_to_hub=True only")
        folder, kind = Path(save_directory), KINDS[self.hub_kind]
        write_folder(
            self,
            folder,
            lambda path: kind.write(self, path),
            lambda: kind.card(self, folder.resolve().name),
        )
        if not push_to_hub:
            return None
        return upload(folder, repo_id or folder.resolve().name, **options)

    @classmethod
    def from_pretrained(
        cls: type[Model],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Model:
        """The model of a folder, or of the hub's repository of that name, "user/name".

        On the CPU, in evaluation mode. The other arguments are for the hub: a branch, tag or
        commit; where downloads are stored; whether to download again, or only to take what is
        stored; the token, or whether the stored one is sent.

        Raises HubError for no such folder or repository, one without a model of this class, and
        where the hub is needed and huggingface_hub is not installed; UserError, each with its own
        message, for files that are damaged or contradict each other.
        """
        name = os.fspath(pretrained_model_name_or_path)
        folder = Path(name)
        if not folder.is_dir():
            if isinstance(pretrained_model_name_or_path, os.PathLike) or not _is_repository(name):
                raise HubError(f"{name}: there is no such folder, and no repository has that name")
            folder = download(
                name,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
        return read_folder(cls, folder)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Send the model to the hub's repository ``repo_id``, "user/name", made if need be.

        It gets the files of :meth:`save_pretrained`; a card that is there is replaced. ``options``:
        ``commit_message``, ``private`` (of a new repository), ``token``, ``branch``, ``create_pr``.

        Returns the address of the commit. Raises HubError if huggingface_hub is not installed, and
        for whatever the hub refuses.
        """
        _huggingface_hub(f"push_to_hub({repo_id!r})")  # before anything is written
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, repo_id.rpartition("/")[2])
            self.save_pretrained(path)
            return upload(path, repo_id, **options)


# ---- a folder ----------------------------------------------------------------------------------


def write_folder(
    model: HubMixin, folder: Path, write: Callable[[Path], None], card: Callable[[], Card]
) -> None:
    """Write a model's folder; see :meth:`HubMixin.save_pretrained`.

    write: the packed file.  card: the card, asked for where there is no README.md.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CONFIG).exists():
            _config_in(folder, model.hub_kind)  # of something else it is not overwritten
        with replacing(folder / MODEL) as new:
            failed = ""
            try:
                write(new)
                failed = "the model could not be read again: "
                packed = open_packed(new)
                KINDS[model.hub_kind].read(packed)
            except UserError as error:
                failed += str(error).replace(f"{new}: ", "")
                raise HubError(f"{folder}: was not written: {failed}") from error
        about = {"library_name": "symrnn", "symrnn_version": __version__, "kind": model.hub_kind}
        about |= {"config": packed.meta["config"]}
        _write_text(folder / CONFIG, to_json(about, CONFIG, indent=2) + "\n")
        if not (folder / README).exists():
            _write_text(folder / README, card().markdown())
    except OSError as error:
        raise HubError(f"{folder}: was not written: {describe_os_error(error)}") from error


def _write_text(path: Path, text: str) -> None:
    with replacing(path) as new:
        new.write_bytes(text.encode())


def read_folder(cls: type[Model], folder: Path) -> Model:
    """The model of a folder; see :meth:`HubMixin.from_pretrained`."""
    said = _config_in(folder, cls.hub_kind)
    if not (folder / MODEL).is_file():
        raise HubError(f"{folder}: holds no {MODEL}")
    packed = open_packed(folder / MODEL)
    model = KINDS[cls.hub_kind].read(packed)
    if packed.meta["config"] != said:
        raise HubError(
            f"{folder}: its {CONFIG} says something else than {MODEL}: one of them is of another "
            "model, or was changed"
        )
    if not isinstance(model, cls):
        raise HubError(f"{folder}: holds a {type(model).__name__}, not a {cls.__name__}")
    return model


def _config_in(folder: Path, kind: str) -> Any:
    """The configuration that a folder's config.json has; HubError if it is not of such a model."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise HubError(f"{folder}: holds no {CONFIG}, and so no model of symrnn") from None
    except OSError as error:
        raise HubError(f"{path}: cannot be read: {describe_os_error(error)}") from error
    except (ValueError, RecursionError) as error:
        raise HubError(f"{path}: is damaged: {error}") from error
    if not isinstance(config, dict) or config.get("library_name") != "symrnn":
        raise HubError(f"{path}: is of something else than a model of symrnn")
    if config.get("kind") != kind:
        raise HubError(f"{path}: should be of the kind {kind!r}, got: {config.get('kind')!r}")
    return config.get("config")


# ---- the hub -----------------------------------------------------------------------------------


def _is_repository(name: str) -> bool:
    """Whether a name may be one of the hub's rather than a path."""
    return name.count("/") <= 1 and not name.startswith((".", "/", "~")) and "\\" not in name


def _huggingface_hub(what: str) -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise HubError(
            f"{what} needs the huggingface_hub package: pip install 'symrnn[hub]'"
        ) from error


def download(repo_id: str, **options: Any) -> Path:
    """The folder with a repository's model, fetched unless it is stored already.

    Of a repository the model and its configuration are fetched, whatever else it holds.
    """
    hub = _huggingface_hub(f"{repo_id}: is no folder here, and to fetch it from the hub")
    try:
        folder = hub.snapshot_download(repo_id, allow_patterns=[MODEL, CONFIG], **options)
    except Exception as error:  # of the HTTP library as well, which differs between versions
        why = _first_line(error)
        raise HubError(f"{repo_id}: is no folder, and the hub does not give it: {why}") from error
    return Path(folder)


def upload(
    folder: Path,
    repo_id: str,
    *,
    commit_message: str = "A model of symrnn",
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
) -> str:
    """Send a folder's three files to a repository; see :meth:`HubMixin.push_to_hub`."""
    hub = _huggingface_hub(f"sending {repo_id} to the hub")
    try:
        api = hub.HfApi(token=token, library_name="symrnn", library_version=__version__)
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            allow_patterns=[MODEL, CONFIG, README],
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
        )
    except Exception as error:  # as above
        raise HubError(f"{repo_id}: cannot be sent: {_first_line(error)}") from error
    return str(commit)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# ---- the programs ------------------------------------------------------------------------------


def hub_parser(program: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """The options of a program that makes a folder of a trained model."""
    parser = run_parser(program, description, epilog)
    add = parser.add_argument
    add("--out", type=Path, metavar="FOLDER", help="a new folder (hub, in RUN's)")
    add("--license", metavar="NAME", help="the model's, as the hub names it, such as mit (none)")
    add(
        "--push",
        metavar="REPO",
        help="send it to that repository, USER/NAME; needs the extra [hub]",
    )
    add("--private", action="store_true", default=None, help="of a new repository")
    add("--dry-run", action="store_true", help="print the card, write nothing")
    return parser


def run_hub_program(
    options: argparse.Namespace,
    checkpoint: Path,
    model: HubMixin,
    write: Callable[[Path], None],
    card: Card,
) -> dict[str, str]:
    """Do what the options ask for, of a model that was read from a checkpoint; what to print."""
    folder: Path = options.out or checkpoint.with_name("hub")
    if options.dry_run:
        return {"would be written": str(folder), "card": f"\n\n{card.markdown()}"}
    if options.push is not None:
        _huggingface_hub(f"--push {options.push}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HubError(f"--out {folder}: is there already, and not empty; name a new folder")
    write_folder(model, folder, write, lambda: card)
    done = {"written": f"{folder}, {(folder / MODEL).stat().st_size:,} bytes of {MODEL}"}
    if options.push is not None:
        done["sent"] = upload(folder, options.push, private=options.private)
    return done
