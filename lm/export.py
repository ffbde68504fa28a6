"""``python -m lm.export``: a trained model as a file that runs without this library."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data import Codec, DataError, SentencePieceCodec, TokenizersCodec, WordCodec
from lm.model import LanguageModel
from lm.saved import Saved, load_saved
from lm.stack import RecurrentStack
from symrnn import native
from symrnn.deployment import FORMS
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
from symrnn.runtime_file import PackedLinear, Words, pack_matrix, save_runtime, unpack_matrix
from symrnn.training.command_line import print_table

EXAMPLE = """\
examples:
  python -m lm.export                                   the newest run in ./runs, its weights
  python -m lm.export runs/ptb-small-avg-seed1 --to onnx --out model.onnx
  python -m lm.export best.safetensors --to pt2 --out model.pt2
  python -m lm.export --to aoti --dtype int8            for a C++ program, with packed weights
  python -m lm.export --to runtime --dtype int8         for a C program

The file takes tokens (time, batch) and the state (h0, and of an LSTM c0), and gives logits and the
new state; time and batch are free. It is compared with the model before it is there: exit code 1
if it differs by more than float32 explains. The vocabulary goes beside it: FILE.vocab.txt, a word
a line, or FILE.pieces.model of sentencepiece; into the file of runtime. docs/deployment.md has what
loads each kind.
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
    beside = options.to != "runtime"
    vocabulary = vocabulary_path(path, saved.codec) if beside else path
    program = program_of(saved, vocabulary.name, options.to, form, dtype)
    print_table({"model": saved.path, **table(program, options.to)})
    if options.dry_run:
        print_table({"would be written": path, "vocabulary": vocabulary})
        return 0

    def write_beside() -> None:
        if beside:
            write_vocabulary(vocabulary, saved.codec)

    done = export(program, options.to, path, write_beside)
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
    add(
        "--dtype",
        choices=list(DTYPES),
        help="of packed recurrent weights, and in runtime of all (as trained)",
    )
    return parser


def form_of(options: argparse.Namespace) -> tuple[str, torch.dtype | None]:
    """The form and the dtype that are asked for; ExportError where a kind of file has none such."""
    form = options.form or ("packed" if options.to == "aoti" else "plain")
    if form == "packed" and options.to not in PACKED_KINDS:
        kinds = " and ".join(PACKED_KINDS)
        raise ExportError(f"--form packed is of --to {kinds}, got: --to {options.to}")
    if form == "packed" and not native.available():
        raise ExportError(f"--form packed: {native.why_not()}")
    if options.dtype is not None and form != "packed" and options.to != "runtime":
        raise ExportError(f"--dtype {options.dtype} is of packed weights: add --form packed")
    return form, DTYPES.get(options.dtype)


# ---- the program -------------------------------------------------------------------------------


class _Parts(nn.Module):
    """The parts of a language model, shared with it, which take and give tensors alone."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.encoder, self.rnn = model.encoder, model.rnn
        self.decoder = nn.Sequential(model.projection, model.decoder)


class _LSTM(_Parts):
    def forward(self, tokens: Tensor, h0: Tensor, c0: Tensor) -> Tensors:
        output, (hn, cn) = self.rnn(self.encoder(tokens), (h0, c0))
        return self.decoder(output), hn, cn


class _Stacked(_Parts):
    """Of a stack of layers: each has a state of its own."""

    def forward(self, tokens: Tensor, *state: Tensor) -> Tensors:
        output, state = self.rnn(self.encoder(tokens), state)
        return self.decoder(output), *state


class _SingleState(_Parts):
    def forward(self, tokens: Tensor, h0: Tensor) -> Tensors:
        output, hn = self.rnn(self.encoder(tokens), h0)
        return self.decoder(output), hn


def program_of(
    saved: Saved,
    vocabulary: str,
    kind: str = "plain",
    form: str = "plain",
    dtype: torch.dtype | None = None,
) -> Program:
    """What leaves of a saved model, in a file of a kind.

    vocabulary: the name of the file that it is in.
    form, dtype: of :func:`symrnn.deploy`; of the C runtime the dtype is that of all weights.
    """
    model = saved.model
    expected = None
    if dtype is not None and dtype != torch.float32:
        expected = copy.deepcopy(model)
        for layer in expected.layers:
            layer.inference_dtype = dtype
        if kind == "runtime":
            _lower_ends(expected, dtype)
    stacked = isinstance(model.rnn, RecurrentStack)
    if stacked and kind != "plain":
        raise UserError(
            f"--to {kind} takes recurrent layers of one module, and this model has a stack of "
            f"{len(model.layers)} (fixed masks, or a last layer of another size): --to plain has it"
        )
    size = model.encoder.num_embeddings
    names = [f"{s}{{}}" for s in model.states]
    if stacked:
        names = [f"{s}{{}}_l{k}" for k in range(len(model.layers)) for s in model.states]
    state: dict[str, Axes] = {
        name: (shape[0], "batch", shape[2])
        for name, shape in zip(names, model.state_shapes(1), strict=True)
    }

    def draw(sizes: Mapping[str, int]) -> Tensors:
        generator = torch.Generator().manual_seed(1)
        time, batch = sizes["time"], sizes["batch"]
        tokens = torch.randint(size, (time, batch), generator=generator)
        shapes = model.state_shapes(batch)
        return tokens, *(torch.randn(shape, generator=generator) for shape in shapes)

    flat: Any = _Stacked if stacked else _LSTM if len(model.states) == 2 else _SingleState
    return Program(
        model=model,
        deployed=model.deployed(form, dtype=dtype if form == "packed" else None),
        flat=flat,
        inputs={"tokens": ("time", "batch"), **{s.format(0): a for s, a in state.items()}},
        outputs={
            "logits": ("time", "batch", size),
            **{s.format("n"): a for s, a in state.items()},
        },
        draw=draw,
        about=about(saved, vocabulary),
        form=form,
        dtype=dtype,
        expected=expected,
        save_runtime=partial(write_runtime, saved, vocabulary, dtype or torch.float32),
    )


def write_runtime(saved: Saved, vocabulary: str, dtype: torch.dtype, path: Path) -> None:
    """Write the file of the C runtime: the model, its vocabulary and what it says of itself."""
    model, codec = saved.model, saved.codec
    if isinstance(codec, SentencePieceCodec):
        words = Words(codec.kind, codec.pieces(), codec.eos_id, codec.unk_id, codec.model)
    elif isinstance(codec, WordCodec) and codec.unit == "word":
        words = Words(codec.kind, codec.vocabulary.tokens, codec.eos_id, codec.unk_id)
    else:
        raise UserError(f"--to runtime knows words and sentencepiece, got: tokens of {codec.kind}")
    save_runtime(
        model.rnn,
        path,
        dtype=dtype,
        embedding=model.encoder,
        linear=linear_end(model),
        words=words,
        about=about(saved, vocabulary),
    )


def linear_end(model: LanguageModel) -> nn.Linear:
    """What the C runtime computes of the highest layer's output: decoder and projection, as one.

    Raises UserError for a decoder that is no matrix.
    """
    decoder = model.whole_decoder()
    if not isinstance(decoder, nn.Linear):
        raise UserError("--to runtime has no adaptive softmax, which this model has")
    return decoder


def _lower_ends(model: LanguageModel, dtype: torch.dtype) -> None:
    """Have embedding and decoder computed as in the C runtime with weights of this dtype."""
    end = PackedLinear(linear_end(model), dtype)
    rounded = unpack_matrix(pack_matrix(model.encoder.weight, dtype))
    model.encoder.weight = nn.Parameter(rounded)
    model.decoder = end  # type: ignore[assignment]
    model.projection = nn.Identity()


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
    suffixes = {"sentencepiece": ".pieces.model", "tokenizers": ".tokenizer.json"}
    return path.with_suffix(suffixes.get(codec.kind, ".vocab.txt"))


def write_vocabulary(path: Path, codec: Codec) -> None:
    """Write the tokenizer's own model, or the tokens in the order of their ids, one a line.

    Raises UserError for a token that has a line end in it, as a tokenizer of one's own may give.
    """
    if isinstance(codec, SentencePieceCodec):
        contents = codec.model
    elif isinstance(codec, TokenizersCodec):
        contents = codec.model.encode()
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
