"""The program that encodes ahead: `python -m data.encode`."""

import subprocess
import sys

import pytest

from data import open_corpus
from data.encode import main


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        (folder / f"{split}.txt").write_text("a b c\na b\n")
    return folder


def test_shows_the_counts_and_writes_a_folder_that_opens(folder, tmp_path, capsys):
    out = tmp_path / "a new" / "corpus"
    assert main([str(folder), "--vocab-size", "4", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "texts: 4 ids, tokenizer word"
    assert lines[2].split() == ["train", "7", "7", "2"]
    corpus = open_corpus(out)
    assert corpus.codec.decode(corpus.test.ids) == "a b <unk>\na b\n"
    assert corpus.name == "texts"


def test_without_out_it_fills_the_cache(folder, tmp_path, capsys):
    assert main([str(folder), "--cache", str(tmp_path / "cache")]) == 0
    assert len(list((tmp_path / "cache" / "encoded").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "is not one of builtin"),
        (["{folder}", "--vocab-size", "1"], "vocab_size must be at least 2, got 1"),
        (["{folder}", "--tokenizer", "chars"], "tokenizer must be"),
        (["{folder}", "--out", "{folder}"], "already there"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(folder, tmp_path, capsys, arguments, message):
    arguments = [argument.format(folder=folder) for argument in arguments]
    assert main([*arguments, "--cache", str(tmp_path / "cache")]) == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_what_is_encoded_is_not_encoded_again(folder, tmp_path, capsys):
    assert main([str(folder), "--out", str(tmp_path / "one")]) == 0
    assert main([str(tmp_path / "one"), "--out", str(tmp_path / "two")]) == 2
    assert "already encoded: copy the folder" in capsys.readouterr().err
    assert main([str(tmp_path / "one")]) == 0


def test_runs_without_torch_and_shows_an_example(folder, tmp_path):
    script = (
        "import sys; sys.modules['torch'] = None; sys.modules['sentencepiece'] = None\n"
        "import runpy; runpy.run_module('data.encode', run_name='__main__')"
    )
    command = [sys.executable, "-W", "error", "-c", script]
    shown = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "example: python -m data.encode" in shown.stdout
    command += [str(folder), "--out", str(tmp_path / "out")]
    subprocess.run(command, capture_output=True, text=True, check=True)
    assert open_corpus(tmp_path / "out").train.tokens == 7
