"""The program that encodes ahead: `python -m data.encode`."""

import io
import subprocess
import sys

import pytest

from data import open_corpus
from data.encode import main
from data.errors import run_program


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


def test_rare_words_become_unk(folder, tmp_path):
    assert main([str(folder), "--min-count", "2", "--out", str(tmp_path / "out")]) == 0
    corpus = open_corpus(tmp_path / "out")
    assert corpus.codec.decode(corpus.train.ids) == "a b <unk>\na b\n"


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


@pytest.mark.parametrize(
    ("main", "code"), [(lambda: 3, 3), (lambda: 1 // 0, None), ("interrupt", 130), ("pipe", 141)]
)
def test_the_frame_of_the_programs(main, code, monkeypatch):
    def fail():
        raise KeyboardInterrupt if main == "interrupt" else BrokenPipeError

    monkeypatch.setattr("os.dup2", lambda *_: None)
    with pytest.raises(SystemExit if code else ZeroDivisionError) as end:
        run_program(main if callable(main) else fail)
    if code:
        assert end.value.code == code


def test_a_folder_whose_name_the_terminal_cannot_hold(folder, tmp_path, monkeypatch):
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr("sys.stdout", stdout)
    arguments = [str(folder.rename(tmp_path / "naïf…")), "--cache", str(tmp_path / "cache")]
    with pytest.raises(SystemExit) as end:
        run_program(lambda: main(arguments))
    assert end.value.code == 0
    assert stdout.buffer.getvalue().startswith(b"na\xeff\\u2026: ")
