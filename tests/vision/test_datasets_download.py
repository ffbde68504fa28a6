"""The archive of a set, from a server on this machine that misbehaves."""

from __future__ import annotations

import hashlib
import http.server
import io
import re
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from symrnn.files import UserError
from symrnn.vision.datasets.download import Archive, obtain

MEMBERS = {"a.bin": np.random.default_rng(0).bytes(200_000), "names.txt": b"one\ntwo\n"}


def pack(**more: bytes) -> bytes:
    """The archive: the members, what else is given, and some that would lead elsewhere."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        others = {f"set/{name}": b"x" for name in ("readme.html", "../../outside", "sub/c.bin")}
        for name, content in (
            *others.items(),
            *((f"set/{name}", content) for name, content in {**MEMBERS, **more}.items()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("set/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return packed.getvalue()


CONTENT = pack()


class Server(http.server.ThreadingHTTPServer):
    """Gives CONTENT at /good, and otherwise at the other paths; keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []

    def archive(self, way: str, **options: object) -> Archive:
        values: dict[str, object] = {
            "address": f"http://127.0.0.1:{self.server_address[1]}/{way}",
            "sha256": hashlib.sha256(CONTENT).hexdigest(),
            "size": len(CONTENT),
            "folder": "set",
            "members": tuple(MEMBERS),
        }
        return Archive(**{**values, **options})  # type: ignore[arg-type]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        way, wanted = self.path.strip("/"), self.headers.get("Range")
        self.server.asked.append((way, wanted))
        if way == "missing":
            return self.send_error(404)
        if way == "silent":
            return time.sleep(0.3)
        if way in ("closed", "nonsense"):
            self.wfile.write({"closed": b"", "nonsense": b"hello world\r\n\r\n"}[way])
            return None
        body = {"wrong": b"x" * len(CONTENT), "long": CONTENT + b"x"}.get(way, CONTENT)
        if wanted and way != "whole":
            start = 7 if way == "elsewhere" else int(re.findall(r"\d+", wanted)[0])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            body = body[start:]
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if way == "cut" else body)


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def is_there(cache: Path) -> bool:
    """The members, and nothing else in the cache but the lock."""
    assert sorted(path.name for path in cache.iterdir()) == ["set", "set.lock"]
    found = {path.name: path.read_bytes() for path in (cache / "set").iterdir()}
    assert found == MEMBERS
    return True


def test_the_named_members_are_unpacked(server: Server, tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "cache"
    assert obtain(server.archive("good"), cache) == cache / "set"
    assert is_there(cache)
    assert list(tmp_path.iterdir()) == [tmp_path / "deep"]  # no member led outside


def test_what_is_there_is_taken_as_it_is(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    assert obtain(server.archive("good"), tmp_path, download=False) == tmp_path / "set"
    assert obtain(server.archive("good"), tmp_path) == tmp_path / "set"
    assert server.asked == []


def test_a_cut_download_is_taken_up(server: Server, tmp_path: Path) -> None:
    half = len(CONTENT) // 2
    with pytest.raises(UserError, match=rf"/cut cannot be downloaded: cut short, {half} of"):
        obtain(server.archive("cut"), tmp_path)
    assert (tmp_path / "set.tar.gz.part").read_bytes() == CONTENT[:half]
    obtain(server.archive("good"), tmp_path)
    assert server.asked[-1] == ("good", f"bytes={half}-")
    assert is_there(tmp_path)


def test_a_server_that_knows_no_ranges_sends_all_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(CONTENT[:99])
    obtain(server.archive("whole"), tmp_path)
    assert server.asked == [("whole", "bytes=99-")]
    assert is_there(tmp_path)


@pytest.mark.parametrize("there", [b"x" * 99, CONTENT + b"x"])
def test_a_wrong_part_is_fetched_again(server: Server, tmp_path: Path, there: bytes) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(there)
    obtain(server.archive("good"), tmp_path)
    assert server.asked[-1] == ("good", None)
    assert is_there(tmp_path)


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("missing", "HTTP 404 Not Found"),
        ("wrong", r"wrong contents \(SHA-256\), not kept"),
        ("long", f"the server sends more than {len(CONTENT)} bytes"),
    ],
)
def test_what_goes_wrong_is_said_and_not_kept(
    server: Server, tmp_path: Path, way: str, why: str
) -> None:
    with pytest.raises(UserError) as error:
        obtain(server.archive(way), tmp_path)
    assert re.search(
        rf"/{way} cannot be downloaded: {why}; http\S+ can be unpacked by hand to '.*/set'",
        str(error.value),
    )
    obtain(server.archive("good"), tmp_path)
    assert server.asked == [(way, None), ("good", None)]
    assert is_there(tmp_path)


def test_bytes_from_elsewhere_are_not_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "set.tar.gz.part").write_bytes(CONTENT[:99])
    with pytest.raises(UserError, match="bytes from elsewhere than 99"):
        obtain(server.archive("elsewhere"), tmp_path)
    assert (tmp_path / "set.tar.gz.part").read_bytes() == CONTENT[:99]


@pytest.mark.parametrize(
    ("way", "why"),
    [
        ("closed", "Remote end closed connection without response"),
        ("nonsense", "hello world"),
        ("silent", "timed out"),
    ],
)
def test_a_server_that_gives_no_answer(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, why: str
) -> None:
    """Which has nothing to do with the cache, of which other errors of the system are."""
    monkeypatch.setattr("symrnn.vision.datasets.download.TIMEOUT", 0.05)
    with pytest.raises(UserError, match=rf"/{way} cannot be downloaded: no answer \({why}\);"):
        obtain(server.archive(way), tmp_path)


def test_nobody_answers(server: Server, tmp_path: Path) -> None:
    archive = server.archive("good", address="http://127.0.0.1:9/set.tar.gz")
    with pytest.raises(UserError, match=r"cannot be downloaded: no connection \(.*\)"):
        obtain(archive, tmp_path)


@pytest.mark.parametrize("members", [("a.bin", "absent.bin"), ("a.bin", "sub")])
def test_an_archive_without_its_members(
    server: Server, tmp_path: Path, members: tuple[str, ...]
) -> None:
    with pytest.raises(UserError, match="it is not the archive that it should be"):
        obtain(server.archive("good", members=members), tmp_path)
    assert not (tmp_path / "set").exists()


def test_several_at_once_fetch_it_once(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        found = set(pool.map(lambda _: obtain(server.archive("good"), tmp_path), range(6)))
    assert found == {tmp_path / "set"}
    assert server.asked == [("good", None)]
    assert is_there(tmp_path)


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file' cannot be written: .*\$SYMRNN_DATA"):
        obtain(server.archive("good"), tmp_path / "file")


def test_a_full_disk(server: Server, small_disk: Path) -> None:
    (small_disk / "ballast").write_bytes(bytes(900_000))
    with pytest.raises(UserError, match="cannot be written: the disk is full"):
        obtain(server.archive("good"), small_disk)
    assert not (small_disk / "set").exists()
