"""Perplexity, against a loop that feeds one token at a time to a plain nn.LSTM in float64."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import lm.evaluate
from data import encode_corpus, encode_file
from lm.saved import load_saved
from symrnn import open_packed


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, str]:
    """What lm.evaluate says, by name."""
    capsys.readouterr()
    assert lm.evaluate.main([*map(str, arguments), "--threads", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {line[:22].strip(): line[22:] for line in lines}


def slow_nats(run: Path, text: Path) -> list[float]:
    """The negative log-probability of each token of a text."""
    saved = load_saved(run, torch.device("cpu"), precision="fp64")
    lstm, encoder, decoder = saved.model.rnn.to_lstm(), saved.model.encoder, saved.model.decoder
    state, before, nats = None, saved.codec.eos_id, []
    with torch.no_grad():
        for line in text.read_text(encoding="utf-8").splitlines():
            for id in saved.codec.encode_line(line):
                output, state = lstm(encoder(torch.tensor([[before]])), state)
                nats.append(-decoder(output).log_softmax(2)[0, 0, id].item())
                before = id
    return nats


@pytest.fixture
def long_text(corpus: Path, tmp_path: Path) -> Path:
    """A text of more than two windows."""
    text = tmp_path / "long.txt"
    text.write_text((corpus / "train.txt").read_text(encoding="utf-8") * 6, encoding="utf-8")
    return text


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
def test_every_token_counts_once(
    finished: Path, long_text: Path, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    nats = slow_nats(finished, long_text)
    assert len(nats) > 2 * 1024
    said = evaluate(capsys, finished, "--data", long_text, "--precision", precision)
    assert said["tokens"] == said["words"] == f"{len(nats):,}"
    mean = sum(nats) / len(nats)
    assert float(said["nats"]) == pytest.approx(sum(nats), rel=1e-6)
    assert float(said["perplexity per token"]) == pytest.approx(math.exp(mean), abs=1e-4)
    assert said["perplexity per word"] == said["perplexity per token"]


def test_a_text_of_one_token_and_of_a_whole_window(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for tokens in (1, 2, 1023, 1024, 1025):
        text = tmp_path / f"{tokens}.txt"
        text.write_text(" ".join(["w1"] * (tokens - 1)) + "\n")
        said = evaluate(capsys, finished, "--data", text)
        assert said["tokens"] == f"{tokens:,}"
        assert float(said["nats"]) == pytest.approx(sum(slow_nats(finished, text)), abs=1e-3)


def test_by_default_the_newest_run_and_its_test_text(
    run_copy: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "runs").mkdir()
    run_copy.rename(tmp_path / "runs" / "mine")
    monkeypatch.chdir(tmp_path)
    said = evaluate(capsys)
    assert said["checkpoint"] == "runs/mine/best.safetensors"
    wanted = evaluate(capsys, "runs/mine", "--data", corpus / "test.txt")
    assert said["nats"] == wanted["nats"]
    valid = evaluate(capsys, "runs/mine/last.safetensors", "--split", "valid")
    assert valid["text"].endswith(", valid")


def test_the_perplexity_that_training_reported(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = open_packed(finished / "best.safetensors").meta["valid_perplexity"]
    said = evaluate(capsys, finished, "--split", "valid")
    assert float(said["perplexity per token"]) == pytest.approx(kept, abs=1e-3)


def test_the_table_of_tokens_sums_to_the_total(
    finished: Path, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.tsv"
    said = evaluate(capsys, finished, "--per-token", table)
    lines = table.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "token\tnats"
    rows = [line.split("\t") for line in lines[1:]]
    text = (corpus / "test.txt").read_text(encoding="utf-8")
    assert [row[0] for row in rows] == text.replace("\n", " <eos> ").split()
    assert sum(float(row[1]) for row in rows) == pytest.approx(float(said["nats"]), abs=1e-3)

    assert lm.evaluate.main([str(finished), "--per-token"]) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == lines
    assert "perplexity per token" in captured.err


def test_how_much_of_the_text_is_unknown(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("--out", tmp_path / "run", "--vocab-size", 10, "--epochs", 1)
    text = tmp_path / "text"
    text.write_text("unheard of\n<unk> w3 <unk>\n" * 500 + "\n")
    said = evaluate(capsys, tmp_path / "run", "--data", text)
    codec = load_saved(tmp_path / "run", torch.device("cpu")).codec
    known = 500 * (codec.encode_line("w3")[0] != codec.unk_id)
    assert said["unknown words"] == f"{2_500 - known:,} ({(2500 - known) / 3501:.2%} of tokens)"


def test_a_token_takes_one_line_whatever_it_holds() -> None:
    assert lm.evaluate.escaped("naïve ▁x") == "naïve ▁x"
    assert lm.evaluate.escaped("a\tb\n\\\u2028\x85") == "a\\tb\\n\\\\\\u2028\\x85"


def test_subwords_are_measured_per_word_too(
    pieces_run: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = evaluate(capsys, pieces_run, "--data", corpus / "test.txt")
    words = (corpus / "test.txt").read_text(encoding="utf-8").replace("\n", " <eos> ").split()
    assert said["words"] == f"{len(words):,}"
    nats = slow_nats(pieces_run, corpus / "test.txt")
    assert said["tokens"] == f"{len(nats):,}"
    assert len(nats) > len(words)
    per_token, per_word = (float(said[f"perplexity per {unit}"]) for unit in ("token", "word"))
    assert per_token == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-4)
    assert per_word == pytest.approx(math.exp(sum(nats) / len(words)), rel=1e-4)


def test_a_corpus_of_another_vocabulary_is_encoded_anew(
    train: Callable[..., int], corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ids must be those of the checkpoint, not those that the corpus would have by itself."""
    train("--out", tmp_path / "run", "--vocab-size", 10)
    other = tmp_path / "other"
    other.mkdir()
    for split in ("train", "valid", "test"):
        (other / f"{split}.txt").write_text("unheard of w3 w4\nw4\n")
    said = evaluate(capsys, tmp_path / "run", "--data", other)
    direct = evaluate(capsys, tmp_path / "run", "--data", other / "test.txt")
    assert said["nats"] == direct["nats"]
    codec = load_saved(tmp_path / "run", torch.device("cpu")).codec
    assert list(encode_file(other / "test.txt", codec).ids[:2]) == [codec.unk_id] * 2
    builtin = evaluate(capsys, tmp_path / "run", "--data", "builtin")
    assert "best possible" not in builtin


def test_a_folder_is_its_text_in_the_checkpoints_vocabulary(
    pieces_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Words that the folder's own train text lacks are none the less words to the model."""
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "train.txt").write_text("w1 <unk> w2\n" * 20)
    (folder / "valid.txt").write_text("w3\n")
    (folder / "test.txt").write_text("w11 w12 w1\nw18 naïve <unk>\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    wanted = sum(slow_nats(pieces_run, folder / "test.txt"))
    for data in ("texts", "./texts/", folder, "texts/test.txt", folder / "test.txt"):
        said = evaluate(capsys, pieces_run, "--data", data)
        assert float(said["nats"]) == pytest.approx(wanted, rel=1e-6)
        assert said["words"] == "8"


def test_of_a_folder_only_the_text_asked_for_is_read(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    monkeypatch.setenv("SYMRNN_DATA", str(tmp_path / "cache"))
    (folder / "wiki.test.tokens").write_text("w11 w12 w1\n")
    (folder / "valid.txt").write_bytes(b"\xff unheard of")
    said = evaluate(capsys, finished, "--data", folder)
    assert float(said["nats"]) == pytest.approx(
        sum(slow_nats(finished, folder / "wiki.test.tokens")), rel=1e-6
    )
    assert said["text"] == f"{folder}, test"
    assert not (tmp_path / "cache").exists()


def test_a_named_corpus_is_its_downloaded_text_as_the_checkpoint_reads_it(
    pieces_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SYMRNN_DATA", str(tmp_path))
    text = tmp_path / "corpora" / "wikitext-2" / "test.txt"
    text.parent.mkdir(parents=True)
    text.write_text("w11 <unk> w1\n")
    said = evaluate(capsys, pieces_run, "--data", "wikitext-2")
    assert float(said["nats"]) == pytest.approx(sum(slow_nats(pieces_run, text)), rel=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["corpora"]


def test_without_data_it_is_the_text_the_model_trained_on_wherever_one_stands(
    pieces_run: Path,
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SYMRNN_DATA", str(tmp_path))
    said = evaluate(capsys, pieces_run)
    assert said["text"] == f"{corpus}, test"
    assert said["nats"] == evaluate(capsys, pieces_run, "--data", corpus / "test.txt")["nats"]
    assert list(tmp_path.iterdir()) == []  # nothing is encoded ahead


def test_an_encoded_corpus_is_read_by_either_vocabulary(
    finished: Path,
    pieces_run: Path,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = {split: corpus / f"{split}.txt" for split in ("train", "valid", "test")}
    encode_corpus(tmp_path / "encoded", **texts)
    for run in (finished, pieces_run):
        said = evaluate(capsys, run, "--data", tmp_path / "encoded")
        assert said["nats"] == evaluate(capsys, run, "--data", corpus / "test.txt")["nats"]


@pytest.mark.skipif(not os.path.exists("/dev/fd"), reason="needs /dev/fd")
def test_a_pipe_is_a_text(
    finished: Path,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = (corpus / "test.txt").read_bytes()
    wanted = evaluate(capsys, finished, "--data", corpus / "test.txt")["nats"]
    read, write = os.pipe()
    os.write(write, content)
    os.close(write)
    assert evaluate(capsys, finished, "--data", f"/dev/fd/{read}")["nats"] == wanted
    os.close(read)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    said = evaluate(capsys, finished, "--data", "-")
    assert (said["text"], said["nats"]) == ("-", wanted)


def test_standard_input_is_one_text(finished: Path, refused: Callable[..., str]) -> None:
    options = ["--data", "-", "--dynamic", "--dynamic-statistics", "-"]
    assert refused("evaluate", finished, *options).startswith("standard input is one text: ")


def test_a_dry_run_evaluates_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = evaluate(capsys, finished, "--dry-run", "--per-token", finished / "new")
    assert said["parameters, training"] == "1,285"
    assert said["hidden_size"] == "8"
    assert "nats" not in said
    assert not (finished / "new").exists()
