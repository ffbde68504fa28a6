"""The corpora of the catalogue, from a server on this machine; tests/files has what goes wrong."""

import hashlib
import io
import re
import subprocess
import sys
import threading
import zipfile

import pytest

import data.download
from data import DataError
from data.catalogue import CATALOGUE, CatalogueEntry, RemoteFile
from data.download import download, download_entry

SPLITS = ("train", "valid", "test")


def remote(web, name, *paths, content, **options):
    sha256 = hashlib.sha256(content).hexdigest()
    addresses = tuple(web.address(path) for path in paths)
    return RemoteFile(name, addresses, sha256, len(content), **options)


def archive(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for split, content in members.items():
            zipped.writestr(f"corpus/wiki.{split}.tokens", content)
        zipped.writestr("corpus/extra", "not wanted")
    return buffer.getvalue()


PACKED = archive(train="of train", valid="of valid", test="of test")


def packed(web, content=PACKED):
    """A corpus of one archive."""
    web.answers["packed.zip"] = content
    members = {f"corpus/wiki.{split}.tokens": f"{split}.txt" for split in SPLITS}
    file = remote(web, "packed.zip", "gone.zip", "packed.zip", content=content, members=members)
    return CatalogueEntry("a corpus", "free", (file,), {}, 0)


def plain(web):
    """A corpus of three files."""
    web.answers.update({split: f"of {split}".encode() for split in SPLITS})
    files = (remote(web, f"{s}.txt", s, content=web.answers[s]) for s in SPLITS)
    return CatalogueEntry("a corpus", "free", tuple(files), {}, 0)


@pytest.mark.parametrize("entry", [packed, plain])
def test_the_texts_of_a_corpus_are_fetched_once(web, tmp_path, entry):
    texts = download_entry(entry(web), tmp_path / "here")
    assert {split: path.read_text() for split, path in texts.items()} == {
        split: f"of {split}" for split in SPLITS
    }
    names = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert names == ["test.txt", "train.txt", "valid.txt"]
    asked = len(web.asked)
    assert download_entry(entry(web), tmp_path / "here") == texts
    assert len(web.asked) == asked


def test_only_what_is_missing_is_fetched(web, tmp_path):
    (tmp_path / "train.txt").write_text("my own")
    download_entry(plain(web), tmp_path)
    assert web.asked == ["valid", "test"]
    assert (tmp_path / "train.txt").read_text() == "my own"


def test_what_was_fetched_before_a_failure_stays(web, tmp_path):
    entry = plain(web)
    del web.answers["test"]
    with pytest.raises(DataError, match=r"^test\.txt cannot be downloaded: http\S+/test: HTTP 404"):
        download_entry(entry, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.txt", "valid.txt"]


def test_a_failure_names_every_address_and_the_way_by_hand(web, tmp_path):
    entry = packed(web)
    web.answers["packed.zip"] = b"damaged"
    with pytest.raises(
        DataError,
        match=r"^packed\.zip cannot be downloaded: http\S+/gone\.zip: HTTP 404 Not Found; "
        r"http\S+/packed\.zip: wrong contents \(SHA-256\), not stored\. "
        r"It can be put by hand into '.*'$",
    ):
        download_entry(entry, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_several_at_once_fetch_once(web, tmp_path):
    threads = [
        threading.Thread(target=download_entry, args=(plain(web), tmp_path)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(web.asked) == sorted(SPLITS)


@pytest.mark.parametrize("content", [b"no archive", archive(train="alone")])
def test_an_archive_that_is_none_or_lacks_a_member(web, tmp_path, content):
    with pytest.raises(DataError, match="not the archive that it should be"):
        download_entry(packed(web, content), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_named(web, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file' cannot be written"):
        download_entry(plain(web), tmp_path / "file")


def test_a_full_disk(web, small_disk):
    (small_disk / "ballast").write_bytes(bytes(1 << 20))
    with pytest.raises(DataError, match=r"disk' cannot be written: the disk is full"):
        download_entry(plain(web), small_disk)


def test_without_pooch_what_is_there_opens_and_what_is_missing_says_so(web, tmp_path, monkeypatch):
    download_entry(plain(web), tmp_path)
    monkeypatch.setitem(sys.modules, "pooch", None)
    download_entry(plain(web), tmp_path)
    with pytest.raises(DataError, match=r"pip install pooch. It can be put by hand into"):
        download_entry(plain(web), tmp_path / "new")


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

    def test_prints_the_paths(self, web, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(CATALOGUE, "mine", packed(web))
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
