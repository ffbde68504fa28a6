"""Text from a model: as it would be drawn by hand, the same for the same seed, word by word."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import lm.evaluate
import lm.generate
from data import SentencePieceCodec, Vocabulary, WordCodec
from data.text import blocks_of_lines
from lm.generate import TextStream, encode_prompt
from lm.perplexity import measure
from lm.saved import load_saved
from symrnn import native


def generate(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert lm.generate.main([*map(str, arguments), "--threads", "1"]) == 0
    return capsys.readouterr().out


def test_a_seed_decides_the_text(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = generate(capsys, finished, "--seed", 5, "--tokens", 60)
    assert first == generate(capsys, finished, "--seed", 5, "--tokens", 60)
    assert first != generate(capsys, finished, "--seed", 6, "--tokens", 60)
    assert first == generate(capsys, finished, "--seed", 5, "--tokens", 61)[: len(first) - 1] + "\n"
    # Every token is a word or a line end; a line end is added where none was drawn.
    assert len(first.split()) + first.count("\n") - 60 in (0, 1)


def test_greedy_is_the_likeliest_token_again_and_again(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = load_saved(finished, torch.device("cpu"))
    ids = [saved.codec.eos_id, *saved.codec.encode_line("w3 naïve")[:-1]]
    with torch.no_grad():
        for _ in range(25):  # the whole text anew for each token, without any state
            ids.append(int(saved.model(torch.tensor(ids)[:, None])[0][-1, 0].argmax()))
    wanted = saved.codec.decode(ids[1:]).rstrip("\n") + "\n"
    greedy = ["--temperature", "0", "--tokens", "25", "--prompt", "w3 naïve"]
    backends = ["auto", "reference", "vendor", *(["fused"] if native.available() else [])]
    for backend in backends:
        made = generate(capsys, finished, *greedy, "--backend", backend)
        assert made.rstrip("\n") + "\n" == wanted


@pytest.mark.skipif(not native.available(), reason=native.why_not())
def test_recurrent_weights_of_lower_precision(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In bfloat16 the perplexity is that of the rounded weights; in int8 it is near."""
    run = tmp_path / "run"
    train("--out", run, "--epochs", 1, "--init-range", 1.5)  # large, so that rounding tells

    def nats(*arguments: object) -> float:
        capsys.readouterr()
        assert lm.evaluate.main([str(run), "--threads", "1", *map(str, arguments)]) == 0
        return float(capsys.readouterr().out.split("nats ")[1].split()[0])

    saved = load_saved(run, torch.device("cpu"))
    with torch.no_grad():
        saved.model.rnn = saved.model.rnn.from_plain(saved.model.rnn.to_plain(), "none")
        for name, weight in saved.model.rnn.named_parameters():
            if name.startswith("weight"):
                weight.copy_(weight.bfloat16())
    _, text, _ = lm.evaluate.open_text(saved, None, None)
    wanted = measure(saved.model, text, saved.codec.eos_id, precision=nullcontext).nats
    exact = nats("--weights", "float32")
    assert exact == nats()
    for backend in ("auto", "fused"):
        rounded = nats("--weights", "bfloat16", "--backend", backend)
        assert rounded == pytest.approx(wanted, abs=2e-3)
        assert rounded != exact
    assert generate(capsys, run, "--weights", "bfloat16", "--tokens", 5)
    coarse = nats("--weights", "int8")
    assert coarse != exact
    assert coarse == pytest.approx(exact, rel=0.02)
    assert generate(capsys, run, "--weights", "int8", "--tokens", 5)
    assert "weights               bfloat16" in generate(
        capsys, run, "--weights", "bfloat16", "--dry-run"
    )


@pytest.mark.parametrize("cell", ["gru", "rnn"])
def test_other_cells_carry_their_state(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], cell: str
) -> None:
    """Text and perplexity, against the whole text anew for each token, without any state."""
    train("--out", tmp_path / "run", "--cell", cell, "--precision", "fp64", "--lr", 5)
    saved = load_saved(tmp_path / "run", torch.device("cpu"))
    ids, nats = [saved.codec.eos_id], 0.0
    with torch.no_grad():
        for _ in range(25):
            logits = saved.model(torch.tensor(ids)[:, None])[0][-1, 0]
            ids.append(int(logits.argmax()))
            nats -= logits.log_softmax(0)[ids[-1]].item()
    greedy = ["--temperature", "0", "--tokens", "25"]
    for backend in ("auto", "reference", "script"):
        made = generate(capsys, tmp_path / "run", *greedy, "--backend", backend)
        assert made.rstrip("\n") == saved.codec.decode(ids[1:]).rstrip("\n")
    text = tmp_path / "text"
    text.write_text(saved.codec.decode([*ids[1:], saved.codec.eos_id]), encoding="utf-8")
    table = tmp_path / "table"
    assert (
        lm.evaluate.main([str(tmp_path / "run"), "--data", str(text), f"--per-token={table}"]) == 0
    )
    measured = [float(line.split("\t")[1]) for line in table.read_text().splitlines()[1:26]]
    assert sum(measured) == pytest.approx(nats, abs=1e-9)


def test_drawn_tokens_are_those_of_the_models_probabilities(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first token of many texts, against the softmax."""
    saved = load_saved(finished, torch.device("cpu"))
    with torch.no_grad():
        logits = saved.model(torch.tensor([[saved.codec.eos_id]]))[0][0, 0]
    likeliest = {saved.codec.decode([int(id)]).strip() for id in logits.topk(2).indices}
    drawn = {
        generate(capsys, finished, "--seed", seed, "--tokens", 1, "--top-k", 2).strip()
        for seed in range(20)
    }
    assert drawn == likeliest


class Watched(list[str]):
    """A stdout that keeps what each flush has made visible."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = ""

    def write(self, text: str) -> None:
        self.waiting += text

    def flush(self) -> None:
        if self.waiting:
            self.append(self.waiting)
        self.waiting = ""


def test_words_come_one_by_one(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdout = Watched()
    monkeypatch.setattr("sys.stdout", stdout)
    lm.generate.main([str(finished), "--tokens", "30", "--threads", "1"])
    assert not stdout.waiting
    assert len(stdout) >= 30
    assert all(len(piece.split()) <= 1 for piece in stdout)


def test_a_long_prompt_is_read_in_pieces(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than those are decoded at once, and the text is that of the whole."""
    model = load_saved(finished, torch.device("cpu")).model
    prompt, rows = [number % 20 for number in range(100)], []
    monkeypatch.setattr("lm.generate.PIECE", 16)
    model.decoder.register_forward_hook(lambda _, x, __: rows.append(len(x[0])))
    greedy = lm.generate.generate(
        model, prompt, 3, lambda logits: int(logits.argmax()), precision=nullcontext
    )
    said = [*greedy]
    assert rows == [16] * 6 + [3, 1, 1, 1]
    with torch.no_grad():
        for id in said:
            assert id == model(torch.tensor(prompt).view(-1, 1))[0][-1, 0].argmax()
            prompt.append(id)


def test_several_lines_may_be_the_prompt() -> None:
    codec = WordCodec(Vocabulary(["<eos>", "a", "b"]))
    assert encode_prompt("", codec) == []
    assert encode_prompt("a b", codec) == [1, 2]
    assert encode_prompt("a\n\nb", codec) == [1, 0, 0, 2]
    assert encode_prompt("a\n", codec) == [1, 0]


@pytest.mark.parametrize("content", [b"a b\n\nb", b"\xef\xbb\xbfa b\r\n\r\nb\r\n"])
def test_the_prompt_may_be_standard_input(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """Its last line end, which `echo` writes, does not end the line that is to be continued."""
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert encode_prompt("-", WordCodec(Vocabulary(["<eos>", "a", "b"]))) == [1, 2, 0, 0, 2]


def test_streamed_text_is_the_decoded_text() -> None:
    words = WordCodec(Vocabulary(["<eos>", "a", "b", "<unk>"]))
    lines = ["der Hund schläft", "die Hunde schlafen, die Katze nicht", "Katzen schlafen viel"] * 9
    pieces = SentencePieceCodec.train(blocks_of_lines(lines, "lines"), 30)
    generator = torch.Generator().manual_seed(0)
    for codec in (words, pieces):
        for length in (0, 1, 2, 5, 300):
            ids = torch.randint(len(codec), (length,), generator=generator).tolist()
            stream = TextStream(codec)
            parts = [stream.push(id) for id in ids] + [stream.end()]
            assert "".join(parts).rstrip("\n") == codec.decode(ids).rstrip("\n")
    # A line longer than the window, of words in several pieces; words are never torn.
    line = " ".join(lines)
    stream = TextStream(pieces)
    parts = [stream.push(id) for id in pieces.encode_line(line)]
    assert "".join(parts) == line + "\n"
    assert all(part.strip() in line.split() for part in parts if part.strip())


def test_subwords_are_put_together(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("--out", tmp_path / "run", "--tokenizer", "sentencepiece", "--vocab-size", 28)
    text = generate(capsys, tmp_path / "run", "--prompt", "w1 naïve", "--tokens", 80)
    assert text.startswith("w1 naïve")
    assert "▁" not in text
    assert text.endswith("\n")


def test_a_dry_run_generates_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = generate(capsys, finished, "--dry-run", "--top-k", 5)
    assert "parameters, training  1,285\n" in said
    assert "top_k                 5\n" in said
