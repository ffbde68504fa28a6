"""Downloads, from a server on this machine that misbehaves in every way it can."""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from symrnn.files import UserError, download
from symrnn.files.download import fetch, fetching_into, unpack

CONTENT = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def cut(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(CONTENT)))
    handler.end_headers()
    handler.wfile.write(CONTENT[:1000])


def closed(handler: BaseHTTPRequestHandler) -> None:
    pass


def nonsense(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"hello world\r\n\r\n")


def moved(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(302)
    handler.send_header("Location", "/good")
    handler.end_headers()


@pytest.fixture(autouse=True)
def _answers(web: Any) -> None:
    for answer in (cut, closed, nonsense, moved):
        web.answers[answer.__name__] = answer
    web.answers.update(good=CONTENT, wrong=b"x" * len(CONTENT), long=CONTENT + b"x")


@pytest.mark.parametrize("path", ["good", "moved"])
def test_the_file_as_it_is_served(web: Any, tmp_path: Path, path: str) -> None:
    fetch([web.address(path)], SHA256, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "file.bin").stat().st_mode == plain.stat().st_mode


def test_the_first_address_that_serves_it(web: Any, tmp_path: Path) -> None:
    paths = ("missing", "wrong", "cut", "good", "moved")
    fetch([web.address(path) for path in paths], SHA256, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert web.asked == ["missing", "wrong", "cut", "good"]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("missing", "HTTP 404 Not Found"),
        ("wrong", r"wrong contents \(SHA-256\), not stored"),
        ("long", r"wrong contents \(SHA-256\), not stored"),
        ("cut", r"cut short \(IncompleteRead\(1000 bytes read, 299000 more expected\)\)"),
        ("closed", r"no connection \(Remote end closed connection without response\)"),
        ("nonsense", r"no connection \(hello world\)"),
    ],
)
def test_what_goes_wrong_is_said(web: Any, tmp_path: Path, path: str, why: str) -> None:
    address = re.escape(web.address(path))
    with pytest.raises(UserError, match=rf"^file\.bin cannot be downloaded: {address}: {why}$"):
        fetch([web.address(path)], SHA256, tmp_path / "file.bin")


def test_a_server_that_gives_no_answer(
    web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = threading.Event()
    web.answers["silent"] = lambda _: given_up.wait(600)
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    try:
        with pytest.raises(UserError, match=r"/silent: no answer within 0\.1 s$"):
            fetch([web.address("silent")], SHA256, tmp_path / "f")
    finally:
        given_up.set()


def test_every_address_is_named_with_its_failure(web: Any, tmp_path: Path) -> None:
    addresses = ["http://127.0.0.1:9/f", "file:///etc/hostname", "hostname", web.address("gone")]
    with pytest.raises(UserError) as error:
        fetch(addresses, SHA256, tmp_path / "f")
    assert str(error.value) == (
        "f cannot be downloaded: http://127.0.0.1:9/f: no connection (Connection refused); "
        "file:///etc/hostname: want an http or https address; "
        "hostname: want an http or https address; "
        f"{web.address('gone')}: HTTP 404 Not Found"
    )


def test_a_proxy_that_is_not_there(tmp_path: Path) -> None:
    """The one that the environment names; conftest.py sets it."""
    with pytest.raises(UserError, match=r": no connection through the proxy \(.*refused\)$"):
        fetch(["http://example.invalid/f"], SHA256, tmp_path / "f")


def test_a_server_without_a_certificate(web: Any, tmp_path: Path) -> None:
    address = web.address("good").replace("http", "https")
    with pytest.raises(UserError, match=r": no secure connection \(.*\); \$REQ"):
        fetch([address], SHA256, tmp_path / "f")


def test_without_pooch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(
        UserError, match=r"pooch package, which is not installed: pip install pooch"
    ):
        fetch(["http://127.0.0.1:9/f"], SHA256, tmp_path / "f")


def test_a_bar_on_a_terminal_only(
    web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch([web.address("good")], SHA256, tmp_path / "f")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fetch([web.address("good")], SHA256, tmp_path / "f", progress=False)
    assert capsys.readouterr().err == ""
    fetch([web.address("good")], SHA256, tmp_path / "f")
    assert "100%" in capsys.readouterr().err


def test_a_full_disk(web: Any, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(900_000))
    with (
        pytest.raises(OSError, match="No space left on device"),
        fetching_into(small_disk) as aside,
    ):
        fetch([web.address("good")], SHA256, aside / "f")
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]


# ---- a folder for one process at a time ----------------------------------------------------------


def test_the_folder_aside_is_gone_afterwards(tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "cache"
    with fetching_into(cache) as aside:
        assert aside.parent == cache
        (aside / "file").touch()
    assert list(cache.iterdir()) == []


def test_several_at_once_fetch_once(web: Any, tmp_path: Path) -> None:
    def obtain(_: int) -> None:
        with fetching_into(tmp_path) as aside:
            if not (tmp_path / "f").is_file():
                fetch([web.address("good")], SHA256, aside / "f")
                os.replace(aside / "f", tmp_path / "f")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(obtain, range(6)))
    assert web.asked == ["good"]
    assert [path.name for path in tmp_path.iterdir()] == ["f"]


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    with fetching_into(tmp_path) as aside:
        name = aside.name
    (tmp_path / name).mkdir()
    (tmp_path / name / "half").touch()
    (tmp_path / "mine").touch()
    with fetching_into(tmp_path):
        assert not (tmp_path / name / "half").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then two may fetch the same at once, and neither sweeps what the other is at."""
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse)
    inside, leave = threading.Event(), threading.Event()

    def other() -> bool:
        with fetching_into(tmp_path) as aside:
            inside.set()
            assert leave.wait(600)
            return aside.is_dir()

    with ThreadPoolExecutor(1) as pool:
        there = pool.submit(other)
        assert inside.wait(600)
        with fetching_into(tmp_path):
            pass
        leave.set()
        assert there.result()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), fetching_into(tmp_path / "file"):
        pass


# ---- archives ------------------------------------------------------------------------------------

MEMBERS = {"set/a.bin": "a.bin", "set/deep/names.txt": "names"}
OTHERS = ("set/extra", "../outside", "set/../../outside")


def as_zip(*names: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as zipped:
        for name in names:
            zipped.writestr(name, f"of {name}")
    return packed.getvalue()


def as_tar(*names: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(f"of {name}")
            tar.addfile(member, io.BytesIO(f"of {name}".encode()))
        for name, target in (
            *(("set/link", "/etc/passwd"), ("set/up", "../../../etc/passwd")),
            *(("set/self", "self"), ("set/one", "other"), ("set/other", "one")),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        folder = tarfile.TarInfo("set/folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    return packed.getvalue()


@pytest.mark.parametrize("pack", [as_zip, as_tar])
def test_the_named_members_alone_are_unpacked(tmp_path: Path, pack: Callable[..., bytes]) -> None:
    (tmp_path / "packed").write_bytes(pack(*MEMBERS, *OTHERS))
    unpack(tmp_path / "packed", MEMBERS, tmp_path / "out")
    found = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert found == {"a.bin": "of set/a.bin", "names": "of set/deep/names.txt"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "packed"]


@pytest.mark.parametrize(
    ("content", "member"),
    [
        (b"", "x"),
        (b"no archive", "x"),
        (as_zip("set/a.bin"), "x"),
        (as_tar("set/a.bin"), "x"),
        (as_tar("set/a.bin")[:-60], "set/a.bin"),
        (as_tar("set/a.bin"), "set/folder"),
        (as_tar("set/a.bin"), "set/link"),
        (as_tar("set/a.bin"), "set/up"),
        (as_tar("set/a.bin"), "set/self"),
        (as_tar("set/a.bin"), "set/one"),
        (as_zip("set/a.bin").replace(b"of set", b"no set"), "set/a.bin"),
        # The flag that a member is encrypted, and a method of compression that nobody knows.
        (as_zip("a").replace(b"PK\1\2\x14\3\x14\0\0", b"PK\1\2\x14\3\x14\0\1"), "a"),
        (as_zip("a").replace(b"PK\1\2\x14\3\x14\0\0\0\0", b"PK\1\2\x14\3\x14\0\0\0\x62"), "a"),
        # Two that are known, of which the contents are not.
        (as_zip("a").replace(b"PK\1\2\x14\3\x14\0\0\0\0", b"PK\1\2\x14\3\x14\0\0\0\x0c"), "a"),
        (as_zip("a").replace(b"PK\1\2\x14\3\x14\0\0\0\0", b"PK\1\2\x14\3\x14\0\0\0\x0e"), "a"),
        # A place in the file that there is none of.
        (as_zip("a").replace(b"\x80\x01\0\0\0\0a", b"\x80\x01\xff\xff\xff\xffa"), "a"),
    ],
)
def test_an_archive_that_is_none_or_lacks_a_member(
    tmp_path: Path, content: bytes, member: str
) -> None:
    (tmp_path / "packed").write_bytes(content)
    with pytest.raises(UserError, match=r"^packed is not the archive that it should be: \S"):
        unpack(tmp_path / "packed", {member: "out"}, tmp_path / "out")
