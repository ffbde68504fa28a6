"""Models of characters and of a tokenizer's file, from training to text."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import lm.evaluate
import lm.generate
from data import encode_file
from data.codec import TokenizersCodec
from lm.generate import TextStream
from lm.perplexity import measure
from lm.saved import load_saved

Train = Callable[..., int]


def said_by(
    capsys: pytest.CaptureFixture[str], main: Callable[..., int], *arguments: object
) -> str:
    capsys.readouterr()
    assert main([*map(str, arguments), "--threads", "1"]) == 0
    return capsys.readouterr().out


def test_characters_are_measured_in_bits(
    train: Train, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("--out", tmp_path / "run", "--tokenizer", "char")
    trained = capsys.readouterr().out
    saved = load_saved(tmp_path / "run", torch.device("cpu"))
    text = encode_file(corpus / "test.txt", saved.codec)
    content = (corpus / "test.txt").read_text(encoding="utf-8")
    assert text.tokens == len(content)
    score = measure(saved.model, text, saved.codec.eos_id, precision=torch.inference_mode)
    bits = score.nats / len(content) / math.log(2)
    assert f"({bits:.4f} bits a character)" in trained
    assert trained.count(" bits a character)") == 4  # two epochs, and at the end both texts
    out = said_by(capsys, lm.evaluate.main, tmp_path / "run", "--cache", 20)
    said = {line[:22].strip(): line[22:] for line in out.splitlines()}
    assert float(said["bits per character"]) == pytest.approx(bits, abs=2e-4)
    assert float(said["perplexity per word"]) == pytest.approx(
        math.exp(score.nats / len(content.replace("\n", " <eos> ").split())), rel=1e-3
    )
    assert float(said["cache, bits per char."]) > 0
    logged = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "valid/bits_per_character" in logged
    assert "test/bits_per_character" in logged


def test_characters_are_generated_one_by_one(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("--out", tmp_path / "run", "--tokenizer", "char", "--epochs", 1)
    options = ["--prompt", "w1  w", "--tokens", 30]
    text = said_by(capsys, lm.generate.main, tmp_path / "run", *options)
    assert text.startswith("w1  w")
    assert len(text.rstrip("\n")) in range(5, 36)


def test_a_model_of_a_sentencepiece_file(
    train: Train, pieces_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same run as one that trained these pieces itself."""
    file = tmp_path / "pieces.model"
    file.write_bytes(load_saved(pieces_run, torch.device("cpu")).codec.model)  # type: ignore[attr-defined]
    train("--out", tmp_path / "run", "--tokenizer", file)
    file.unlink()  # what evaluates has it in the checkpoint
    wanted, found = (
        said_by(capsys, lm.evaluate.main, run).splitlines()
        for run in (pieces_run, tmp_path / "run")
    )
    assert found[1:8] == wanted[1:8]
    assert found[5].startswith("nats ")


def byte_level(tokens: list[str]) -> str:
    """The contents of a tokenizer.json of bytes, and of merges into these tokens."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the tokenizers package")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(tokens * 5, trainer)
    contents: str = made.to_str()
    return contents


def test_a_model_of_a_hugging_face_file(
    train: Train, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(byte_level(["w1", "w12", "w13 w1"]), encoding="utf-8")
    train("--out", tmp_path / "run", "--tokenizer", file, "--epochs", 1)
    file.unlink()
    out = said_by(capsys, lm.evaluate.main, tmp_path / "run")
    said = {line[:22].strip(): line[22:] for line in out.splitlines()}
    saved = load_saved(tmp_path / "run", torch.device("cpu"))
    lines = (corpus / "test.txt").read_text(encoding="utf-8").splitlines()
    tokens = sum(len(saved.codec.encode_line(line)) for line in lines)
    assert said["tokens"] == f"{tokens:,}"
    assert said["words"] == f"{sum(len(line.split()) + 1 for line in lines):,}"
    text = said_by(
        capsys, lm.generate.main, tmp_path / "run", "--prompt", "w1 naïve", "--tokens", 9
    )
    assert text.startswith("w1 naïve")


def test_a_character_of_several_pieces_comes_whole() -> None:
    codec = TokenizersCodec(byte_level(["w1"]))
    line = "w1 naïve 戦場 🙂 w"
    ids = codec.encode_line(line)
    stream = TextStream(codec)
    pushed = [stream.push(id) for id in ids]
    assert "".join(pushed) + stream.end() == f"{line}\n"
    assert "\ufffd" not in "".join(pushed)
    # A sequence that is no character at all does not wait for ever.
    stream = TextStream(codec)
    broken = codec.encode_line("é")[0]
    text = "".join(stream.push(broken) for _ in range(9)) + stream.end()
    assert text == codec.decode([broken] * 9) + "\n"
