"""``python -m lm.export``: a trained model as a file that runs without this library."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data import Codec, DataError, SentencePieceCodec, WordCodec
from lm.model import LanguageModel
from lm.saved import Saved, load_saved
from symrnn import native
from symrnn.deploy import FORMS
from symrnn.export import (
    Axes,
    ExportError,
    Program,
    Tensors,
    export,
    export_parser,
    outcome,
    place_of,
    require,
    table,
)
from symrnn.files import UserError, describe_os_error, replacing, run_program
from symrnn.training.command_line import print_table

EXAMPLE = """\
examples:
  python -m lm.export                                   the newest run in ./runs, its weights
  python -m lm.export runs/ptb-small-avg-seed1 --to onnx --out model.onnx
  python -m lm.export best.safetensors --to pt2 --out model.pt2
  python -m lm.export --to aoti --dtype int8            for a C++ program, with packed weights

The file takes tokens (time, batch) and the state (h0, and of an LSTM c0), and gives logits and the
new state; time and batch are free. It is compared with the model before it is there: exit code 1
if it differs by more than float32 explains. The vocabulary goes beside it: FILE.vocab.txt, a word
a line, or FILE.pieces.model of sentencepiece. docs/deployment.md has what loads each kind.
"""


PACKED_KINDS = ("pt2", "aoti")
"""Of --to, the kinds whose programs may hold packed weights."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}
"""What --dtype takes."""


def main(arguments: Sequence[str] | None = None) -> int:
    description = "Export a trained model, with constant weights, and its vocabulary."
    options = make_parser("lm.export", description, EXAMPLE).parse_args(arguments)
    require(options.to)
    form, dtype = form_of(options)
    saved = load_saved(options.checkpoint, torch.device("cpu"), precision="fp32")
    path = place_of(options, saved.path)
    vocabulary = vocabulary_path(path, saved.codec)
    program = program_of(saved, vocabulary.name, form, dtype)
    print_table({"model": saved.path, **table(program, options.to)})
    if options.dry_run:
        print_table({"would be written": path, "vocabulary": vocabulary})
        return 0
    done = export(program, options.to, path, lambda: write_vocabulary(vocabulary, saved.codec))
    print_table({**outcome(done), "vocabulary": vocabulary})
    return 0


def make_parser(program: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """The options of ``python -m lm.export``."""
    parser = export_parser(program, description, epilog)
    add = parser.add_argument
    add(
        "--form",
        choices=FORMS,
        help="of pt2 and aoti: packed, weights as our kernels read them, for those who load our "
        "operators; plain, PyTorch's own layers (packed for aoti, else plain)",
    )
    add("--dtype", choices=list(DTYPES), help="of packed recurrent weights (as trained)")
    return parser


def form_of(options: argparse.Namespace) -> tuple[str, torch.dtype | None]:
    """The form and the dtype that are asked for; ExportError where a kind of file has none such."""
    form = options.form or ("packed" if options.to == "aoti" else "plain")
    if form == "packed" and options.to not in PACKED_KINDS:
        kinds = " and ".join(PACKED_KINDS)
        raise ExportError(f"--form packed is of --to {kinds}, got: --to {options.to}")
    if form == "packed" and not native.available():
        raise ExportError(f"--form packed: {native.why_not()}")
    if options.dtype is not None and form != "packed":
        raise ExportError(f"--dtype {options.dtype} is of packed weights: add --form packed")
    return form, DTYPES.get(options.dtype)


# ---- the program -------------------------------------------------------------------------------


class _Parts(nn.Module):
    """The parts of a language model, shared with it, which take and give tensors alone."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.encoder, self.rnn, self.decoder = model.encoder, model.rnn, model.decoder


class _LSTM(_Parts):
    def forward(self, tokens: Tensor, h0: Tensor, c0: Tensor) -> Tensors:
        output, (hn, cn) = self.rnn(self.encoder(tokens), (h0, c0))
        return self.decoder(output), hn, cn


class _SingleState(_Parts):
    def forward(self, tokens: Tensor, h0: Tensor) -> Tensors:
        output, hn = self.rnn(self.encoder(tokens), h0)
        return self.decoder(output), hn


def program_of(
    saved: Saved, vocabulary: str, form: str = "plain", dtype: torch.dtype | None = None
) -> Program:
    """What leaves of a saved model. vocabulary: the name of the file beside it."""
    model = saved.model
    expected = None
    if dtype not in (None, torch.float32):
        expected = copy.deepcopy(model)
        expected.rnn.inference_dtype = dtype
    states = model.states
    layers, hidden = model.rnn.num_layers, model.rnn.hidden_size
    size = model.encoder.num_embeddings
    state: Axes = (layers, "batch", hidden)

    def draw(sizes: Mapping[str, int]) -> Tensors:
        generator = torch.Generator().manual_seed(1)
        time, batch = sizes["time"], sizes["batch"]
        tokens = torch.randint(size, (time, batch), generator=generator)
        return tokens, *(torch.randn(layers, batch, hidden, generator=generator) for _ in states)

    return Program(
        model=model,
        deployed=model.deployed(form, dtype=dtype),
        flat=_LSTM if len(states) == 2 else _SingleState,  # type: ignore[arg-type]
        inputs={"tokens": ("time", "batch"), **{f"{s}0": state for s in states}},
        outputs={"logits": ("time", "batch", size), **{f"{s}n": state for s in states}},
        draw=draw,
        about=about(saved, vocabulary),
        form=form,
        dtype=dtype,
        expected=expected,
    )


def about(saved: Saved, vocabulary: str) -> dict[str, Any]:
    """What a file says of its model: what was trained, how good it is, how text becomes tokens."""
    names = ("recipe", "size", "cell", "symm", "symm_hh", "symm_ih", "tied", "num_layers")
    config = {name: saved.config.get(name) for name in (*names, "embedding_size", "hidden_size")}
    outcome = {name: saved.meta.get(name) for name in ("epoch", "valid_perplexity")}
    codec = saved.codec
    ids = {"vocab_size": len(codec), "eos_id": codec.eos_id, "unk_id": codec.unk_id}
    return {
        "task": "language model",
        **config,
        **outcome,
        **ids,
        "vocabulary": {"kind": codec.kind, "file": vocabulary},
    }


# ---- the vocabulary ----------------------------------------------------------------------------


def vocabulary_path(path: Path, codec: Codec) -> Path:
    """Where the vocabulary goes that belongs to the file at ``path``."""
    return path.with_suffix(".pieces.model" if codec.kind == "sentencepiece" else ".vocab.txt")


def write_vocabulary(path: Path, codec: Codec) -> None:
    """Write sentencepiece's model, or the tokens in the order of their ids, one a line.

    Raises UserError for a token that has a line end in it, as a tokenizer of one's own may give.
    """
    if isinstance(codec, SentencePieceCodec):
        contents = codec.model
    else:
        assert isinstance(codec, WordCodec)
        tokens = codec.vocabulary.tokens
        broken = next((token for token in tokens if "\n" in token), None)
        if broken is not None:
            raise UserError(f"{path}: a token with a line end, {broken!r}, has no line of its own")
        contents = "".join(f"{token}\n" for token in tokens).encode()
    try:
        with replacing(path) as new:
            new.write_bytes(contents)
    except OSError as error:
        raise UserError(f"{path}: was not written: {describe_os_error(error)}") from error


if __name__ == "__main__":
    run_program(main, DataError)
