"""Downloads, against a server on this machine that misbehaves in every way it can."""

import hashlib
import http.server
import io
import random
import re
import subprocess
import sys
import threading
import zipfile

import pytest

import data.download
from data import DataError
from data.catalogue import CATALOGUE, CatalogueEntry, RemoteFile
from data.download import download, download_entry, fetch

CONTENT = random.Random(0).randbytes(300_000)


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT at /good, and otherwise at the other paths; keeps what it was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []
        self.files = {}

    def address(self, path):
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        way = self.path.strip("/")
        wanted = self.headers.get("Range")
        self.server.asked.append((way, wanted))
        content = self.server.files.get(way, CONTENT)
        start = 0
        if way == "missing":
            return self.send_error(404)
        if way == "wrong":
            content = b"x" * len(CONTENT)
        if way == "long":
            content = CONTENT + b"x"
        if way == "elsewhere" and wanted:
            start = 7
        elif way != "no range" and wanted:
            start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])
        if wanted and way != "no%20range":
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            start = 0
            self.send_response(200)
        body = content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if way == "cut":
            body = body[: len(body) // 2]
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def remote(server, *ways, content=CONTENT, **options):
    return RemoteFile(
        "file.bin",
        tuple(server.address(way) for way in ways),
        hashlib.sha256(content).hexdigest(),
        len(content),
        **options,
    )


def test_a_file_is_fetched_once(server, tmp_path):
    path = tmp_path / "file.bin"
    fetch(remote(server, "good"), path)
    fetch(remote(server, "good"), path)
    assert path.read_bytes() == CONTENT
    assert server.asked == [("good", None)]
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_there_in_part_is_taken_up(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    fetch(remote(server, "good"), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert server.asked == [("good", "bytes=1000-")]


def test_cut_short_keeps_the_part_for_the_next_time(server, tmp_path):
    with pytest.raises(DataError, match=r"/cut: cut short"):
        fetch(remote(server, "cut"), tmp_path / "file.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin.part"]
    assert (tmp_path / "file.bin.part").read_bytes() == CONTENT[:150_000]
    fetch(remote(server, "good"), tmp_path / "file.bin")
    assert server.asked[-1] == ("good", "bytes=150000-")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_the_next_address_goes_on_where_one_was_cut(server, tmp_path):
    fetch(remote(server, "missing", "cut", "good"), tmp_path / "file.bin")
    assert server.asked == [("missing", None), ("cut", None), ("good", "bytes=150000-")]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_server_that_knows_no_range_sends_all_again(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    fetch(remote(server, "no%20range"), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_range_from_elsewhere_is_not_taken(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    with pytest.raises(DataError, match="bytes from elsewhere than 1000"):
        fetch(remote(server, "elsewhere"), tmp_path / "file.bin")


def test_wrong_contents_are_deleted(server, tmp_path):
    with pytest.raises(DataError, match=r"/wrong: wrong contents"):
        fetch(remote(server, "wrong"), tmp_path / "file.bin")
    assert list(tmp_path.iterdir()) == []


def test_after_wrong_contents_the_next_address_begins_anew(server, tmp_path):
    fetch(remote(server, "wrong", "good"), tmp_path / "file.bin")
    assert server.asked == [("wrong", None), ("good", None)]


def test_a_wrong_part_is_fetched_again_from_the_start(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(b"x" * 1000)
    fetch(remote(server, "good"), tmp_path / "file.bin")
    assert server.asked == [("good", "bytes=1000-"), ("good", None)]


def test_a_part_that_is_whole_already_needs_no_server(server, tmp_path):
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    fetch(remote(server, "missing"), tmp_path / "file.bin")
    assert server.asked == []


def test_more_than_the_file_is_deleted(server, tmp_path):
    with pytest.raises(DataError, match=r"/long: sends more than the 300000 bytes"):
        fetch(remote(server, "long"), tmp_path / "file.bin")
    assert list(tmp_path.iterdir()) == []


def test_every_address_is_named_with_its_failure(server, tmp_path):
    nowhere = RemoteFile("f", ("http://127.0.0.1:9/f", server.address("missing")), "", 1)
    with pytest.raises(DataError, match=r"127.0.0.1:9/f: no connection .*missing: HTTP 404") as e:
        fetch(nowhere, tmp_path / "f")
    assert "put by hand" in str(e.value)
    assert list(tmp_path.iterdir()) == []


def test_other_sorts_of_address_are_refused(tmp_path):
    with pytest.raises(DataError, match="want an http or https address"):
        fetch(RemoteFile("f", ("file:///etc/hostname",), "", 1), tmp_path / "f")


def test_two_at_once_fetch_once(server, tmp_path):
    threads = [
        threading.Thread(target=fetch, args=(remote(server, "good"), tmp_path / "file.bin"))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.asked == [("good", None)]
    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


def archive(members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return buffer.getvalue()


def entry(server, content):
    server.files["zip"] = content
    members = {f"corpus/wiki.{s}.tokens": f"{s}.txt" for s in ("train", "valid", "test")}
    file = remote(server, "zip", content=content, members=members)
    return CatalogueEntry("a corpus", "free", (file,), {}, 0)


def test_an_archive_gives_its_named_members_only(server, tmp_path):
    members = {f"corpus/wiki.{s}.tokens": s for s in ("train", "valid", "test")}
    content = archive({**members, "../outside.txt": "bad", "corpus/extra": "not wanted"})
    texts = download_entry(entry(server, content), tmp_path / "here")
    assert {split: path.read_text() for split, path in texts.items()} == {
        split: split for split in ("train", "valid", "test")
    }
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "here", "test.txt", "train.txt", "valid.txt",
    ]  # fmt: skip
    download_entry(entry(server, content), tmp_path / "here")
    assert len(server.asked) == 1


@pytest.mark.parametrize("content", [b"no archive", archive({"corpus/wiki.train.tokens": "x"})])
def test_an_archive_that_is_none_or_lacks_a_member(server, tmp_path, content):
    with pytest.raises(DataError, match="not the archive it should be"):
        download_entry(entry(server, content), tmp_path)


def test_an_unwritable_folder_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file' cannot be written"):
        download_entry(entry(server, b""), tmp_path / "file")


def test_unknown_names_list_the_known(tmp_path):
    with pytest.raises(DataError, match="one of ptb, wikitext-2, wikitext-103, got 'imdb'"):
        download("imdb", tmp_path)


def test_the_catalogue_is_complete():
    for known in CATALOGUE.values():
        assert set(known.tokens) == {"train", "valid", "test"}
        names = [n for f in known.files for n in (f.members.values() or [f.name])]
        assert sorted(names) == ["test.txt", "train.txt", "valid.txt"]
        for file in known.files:
            assert re.fullmatch("[0-9a-f]{64}", file.sha256)
            assert all(address.startswith("https://") for address in file.addresses)


class TestProgram:
    def run(self, *arguments):
        return data.download.main([*arguments, "--quiet"])

    def test_prints_the_paths(self, server, tmp_path, monkeypatch, capsys):
        members = {f"corpus/wiki.{s}.tokens": s for s in ("train", "valid", "test")}
        monkeypatch.setitem(CATALOGUE, "mine", entry(server, archive(members)))
        assert self.run("mine", "--out", str(tmp_path / "a b")) == 0
        assert capsys.readouterr().out.split("\n")[0] == str(tmp_path / "a b" / "train.txt")

    def test_an_error_is_one_line_and_exit_code_2(self, capsys):
        assert self.run("imdb") == 2
        output = capsys.readouterr()
        assert output.err.startswith("data.download: error: corpus must be one of ptb")
        assert output.err.count("\n") == 1

    def test_help_has_an_example(self):
        command = [sys.executable, "-W", "error", "-m", "data.download", "--help"]
        output = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "example: python -m data.download ptb" in output.stdout
        assert output.stderr == ""
