"""symrnn.runtime: the C runtime on a model file, held to the layers and samplers of PyTorch."""

from __future__ import annotations

import copy
import ctypes
import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

import symrnn
from lm.sampling import draw
from symrnn import SymGRU, SymLSTM, SymLSTMCell, SymRNN, native, runtime, save_runtime
from symrnn.native.runtime import Generator, library
from symrnn.runtime_file import PackedLinear, Words, pack_matrix, unpack_matrix

pytestmark = pytest.mark.skipif(not native.available(), reason="the native kernels are not built")

DTYPES = [torch.float32, torch.bfloat16, torch.int8]
FORMS = [
    "none", "tri", "avg", "avg:full", "avg:diag16", "avg:diag32", "avg:skew2", "tri4", "avg8",
    "block4", "block16", "chunk4", "chunk2:rows", "eigen", "ldl",
]  # fmt: skip
WORDS = Words("word", ["<unk>", "<eos>", "the", "cat", "sat", "on", "a", "mat", "naïve"], 1, 0)


def opened(path: Path, layers: nn.Module, **arguments: Any) -> runtime.Model:
    save_runtime(layers, path, **arguments)
    return runtime.open(path)


def lowered(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return unpack_matrix(pack_matrix(weight, dtype))


@pytest.fixture
def language_model(tmp_path: Path) -> runtime.Model:
    """Of nine words, with one matrix for embedding and decoder."""
    torch.manual_seed(3)
    embedding, linear = nn.Embedding(9, 12), nn.Linear(12, 9)
    linear.weight = embedding.weight
    return opened(
        tmp_path / "model.symrnn",
        SymLSTM(12, 12, 2, symm="avg"),
        embedding=embedding,
        linear=linear,
        words=WORDS,
        about={"perplexity": 8.5},
    )


# ---- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("symm", FORMS)
def test_a_stack_with_a_linear_end_gives_the_numbers_of_the_layers(
    symm: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    side = 40 if symm == "avg:diag32" else 18
    of_gates = "" if symm == "none" else "ifgo"
    for layers in (
        SymLSTM(side, side, 2, symm=symm, symm_hh=of_gates, symm_ih=of_gates),
        SymLSTM(7, side, symm=symm, symm_hh=of_gates and "fo"),
        SymGRU(7, side, 2, symm=symm),
        SymRNN(7, side, symm=symm),
    ):
        linear = nn.Linear(side, 5)
        model = opened(tmp_path / "model", layers, dtype=dtype, linear=linear)
        x = torch.randn(4, 3, layers.input_size)
        found = model.session(3).step(x.numpy())
        if dtype != torch.float32:
            layers.inference_dtype = dtype
        with torch.no_grad():
            expected = PackedLinear(linear, dtype)(layers(x)[0])
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model_gives_its_logits(dtype: torch.dtype, tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    embedding, linear = nn.Embedding(37, 20), nn.Linear(20, 37)
    if tied:
        linear.weight = embedding.weight
    layers = SymGRU(20, 20, symm="tri8")
    model = opened(tmp_path / "model", layers, dtype=dtype, embedding=embedding, linear=linear)
    layers.inference_dtype = None if dtype == torch.float32 else dtype
    tokens = torch.arange(37 * 4).remainder(37).view(-1, 4)
    with torch.no_grad():
        output, _ = layers(nn.functional.embedding(tokens, lowered(embedding.weight, dtype)))
        expected = PackedLinear(linear, dtype)(output)
        if dtype != torch.int8:  # whose products round vectors too
            plain = nn.functional.linear(output, lowered(linear.weight, dtype), linear.bias)
            torch.testing.assert_close(expected, plain, rtol=0, atol=2e-6)
    found = model.session(4).step(tokens.numpy())
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2e-6)
    with safe_open(model.path, "np") as file:
        assert ("linear" in file.keys()) is not tied  # noqa: SIM118


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_layers_of_pytorch_are_written_too(kind: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = kind(5, 6, 2)
    x = torch.randn(7, 2, 5)
    found = opened(tmp_path / "model", layers).session(2).step(x.numpy())
    np.testing.assert_allclose(found, layers(x)[0].detach().numpy(), rtol=0, atol=1e-6)


def test_a_cell_and_relu_and_no_bias(tmp_path: Path) -> None:
    torch.manual_seed(0)
    cell, x = SymLSTMCell(5, 6, symm="none"), torch.randn(2, 5)
    found = opened(tmp_path / "cell", cell).session(2).step(x.numpy())
    np.testing.assert_allclose(found, cell(x)[0].detach().numpy(), rtol=0, atol=1e-6)
    layers, x = SymRNN(3, 4, nonlinearity="relu", bias=False), torch.randn(9, 1, 3)
    found = opened(tmp_path / "relu", layers).session().step(x.numpy())
    np.testing.assert_allclose(found, layers(x)[0].detach().numpy(), rtol=0, atol=1e-6)


def test_steps_one_by_one_and_all_at_once_are_the_same(tmp_path: Path) -> None:
    """Also where a call is cut into several, and a linear layer into rows: from 2048 and 64 on."""
    torch.manual_seed(0)
    model = opened(tmp_path / "model", SymLSTM(3, 4), linear=nn.Linear(4, 2))
    x = np.random.default_rng(0).standard_normal((50, 70, 3), np.float32)
    at_once, one_by_one = model.session(70), model.session(70)
    expected = np.stack([one_by_one.step(step) for step in x])
    np.testing.assert_allclose(at_once.step(x), expected, rtol=0, atol=1e-6)
    for found, wanted in zip(at_once.state, one_by_one.state, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def test_two_threads_compute_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = opened(tmp_path / "model", SymLSTM(200, 200), linear=nn.Linear(200, 500))
    x = np.random.default_rng(0).standard_normal((5, 1, 200), np.float32)
    one, two = (model.session(threads=threads).step(x) for threads in (1, 2))
    np.testing.assert_allclose(one, two, rtol=0, atol=1e-5)


# ---- sessions ------------------------------------------------------------------------------------


def test_a_session_is_copied_reset_pickled_and_set(language_model: runtime.Model) -> None:
    session = language_model.session(2)
    session.step([[2, 3], [4, 5]])
    twins = [session.copy(), copy.deepcopy(session), pickle.loads(pickle.dumps(session))]
    other = language_model.session(2)
    other.state = session.state
    expected = session.step([6, 7])
    for twin in (*twins, other):
        np.testing.assert_array_equal(twin.step([6, 7]), expected)
    session.reset(1)
    assert [part.any(axis=(0, 2)).tolist() for part in session.state] == [[True, False]] * 2
    session.reset()
    assert not any(part.any() for part in session.state)
    assert [part.shape for part in session.state] == [(2, 2, 12)] * 2


def test_sessions_of_several_threads_and_of_forked_children(language_model: runtime.Model) -> None:
    expected = language_model.session().step([[2], [3], [4]])
    found: list[Any] = []

    def run() -> None:
        session = language_model.session()
        for _ in range(50):
            session.reset()
            found.append(session.step([[2], [3], [4]]))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 200
    assert all((one == expected).all() for one in found)

    child = os.fork()
    if child == 0:
        same = (language_model.session(threads=2).step([[2], [3], [4]]) == expected).all()
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_what_a_model_says_of_itself(language_model: runtime.Model) -> None:
    model = language_model
    assert (model.mode, model.dtype, model.layers) == ("LSTM", "float32", 2)
    assert (model.input_size, model.hidden_size, model.output_size) == (12, 12, 9)
    assert (model.tokens, model.eos, model.unknown, model.pieces) == (9, 1, 0, None)
    assert model.about == {"perplexity": 8.5}
    assert model.session().step(2).shape == (9,)


# ---- drawing -------------------------------------------------------------------------------------


def test_the_generator_is_that_of_pytorch() -> None:
    lib, own = library(), Generator()
    assert lib is not None
    for seed in (0, 1, 2**32 - 1):
        lib.symrnn_seed(own, seed)
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.rand((), generator=generator, dtype=torch.float64) for _ in range(700)]
        assert [lib.symrnn_uniform(own) for _ in drawn] == drawn


@pytest.mark.parametrize("name", ["avx512", "avx2", "portable"])
def test_tokens_are_drawn_as_by_the_programs(name: str) -> None:
    lib, own, token = library(), Generator(), ctypes.c_int32()
    assert lib is not None
    before = lib.symrnn_cpu()
    if lib.symrnn_use_cpu(name.encode()):
        pytest.skip(f"this processor has no {name}")
    try:
        numbers = torch.Generator().manual_seed(0)
        lib.symrnn_seed(own, 5)
        generator = torch.Generator().manual_seed(5)
        for n in range(600):
            size = (1, 2, 17, 64, 65, 1000, 4001)[n % 7]
            logits = torch.randn(size, generator=numbers) * (1, 3, 0.1)[n % 3]
            if n % 4 == 0:
                logits = logits.mul(2).round()  # equal ones
            if n % 5 == 1:
                logits[1:] = -torch.inf
            temperature = (1.0, 0.7, 1.5, 0.0, 1e-300)[n % 5]
            top_k, top_p = (None, 5, 40, 3)[n % 4], (None, 0.9, 0.5, 1.0, 0.99)[n % 6 % 5]
            expected = draw(logits, generator, temperature=temperature, top_k=top_k, top_p=top_p)
            native.check(
                lib.symrnn_draw(
                    size,
                    logits.data_ptr(),
                    own,
                    temperature,
                    top_k or 0,
                    top_p or 1.0,
                    ctypes.byref(token),
                )
            )
            assert token.value == expected, (size, temperature, top_k, top_p)
    finally:
        lib.symrnn_use_cpu(before)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_logits_without_a_softmax_are_an_error(wrong: float, tmp_path: Path) -> None:
    embedding, linear = nn.Embedding(9, 4), nn.Linear(4, 9)
    with torch.no_grad():
        linear.bias.fill_(wrong)
    model = opened(
        tmp_path / "model", SymRNN(4, 4), embedding=embedding, linear=linear, words=WORDS
    )
    with pytest.raises(runtime.ModelError, match=f"the largest logit is {wrong}"):
        next(model.session().generate("", 1))


# ---- text ----------------------------------------------------------------------------------------


def test_words_become_tokens_and_text_again(language_model: runtime.Model) -> None:
    model = language_model
    assert model.encode("the  cat\u3000sat\n\non a\tnaïve zebra\n") == [
        2,
        3,
        4,
        1,
        1,
        5,
        6,
        8,
        0,
        1,
    ]
    assert model.encode("") == []
    assert model.decode([2, 3, 1, 1, 8, 7]) == "the cat\n\nnaïve mat"
    with pytest.raises(runtime.ModelError, match="the word <eos>"):
        model.encode("the <eos>")
    with pytest.raises(runtime.ModelError, match="not UTF-8"):
        model.encode("the \ud800")
    with pytest.raises(runtime.ModelError, match="NUL"):
        model.encode("a\0b")
    with pytest.raises(runtime.ModelError, match="from 0 to 8, got: 9"):
        model.decode([9])


def test_an_unknown_word_without_a_token_for_it(tmp_path: Path) -> None:
    words = Words("word", ["<eos>", "a"], 0, None)
    model = opened(tmp_path / "model", SymRNN(4, 4), embedding=nn.Embedding(2, 4), words=words)
    with pytest.raises(runtime.ModelError, match="the word zebra is not in the vocabulary"):
        model.encode("a zebra")


def test_a_long_token_is_written_whole(tmp_path: Path) -> None:
    words = Words("callable", ["<eos>", "ä" * 500], 0, None)
    model = opened(tmp_path / "model", SymRNN(4, 4), embedding=nn.Embedding(2, 4), words=words)
    assert model.decode([1, 1, 0]) == "ä" * 500 + " " + "ä" * 500 + "\n"
    with pytest.raises(runtime.ModelError, match="made by a function"):
        model.encode("a")


# ---- what is refused -----------------------------------------------------------------------------


def test_wrong_arguments_are_named(language_model: runtime.Model, tmp_path: Path) -> None:
    session = language_model.session(2)
    for inputs, words in (
        ([1, 2, 3], r"shape \(2\) or \(T, 2\), got: \(3,\)"),
        (3, r"got: \(\)"),
        (np.zeros((0, 2), int), "at least one step"),
        ([1.0, 2.0], "integers, got: float64"),
        ([0, 9], "from 0 to 8, got: 9"),
        ([0, -1], "from 0 to 8, got: -1"),
        ([0, 2**32], "from 0 to 8"),
    ):
        with pytest.raises(ValueError, match=words):
            session.step(inputs)
    for arguments, words in (
        ({"batch": 0}, "batch should be at least 1"),
        ({"threads": 0}, "threads should be at least 1"),
        ({"batch": 2**62}, "batch should be"),
    ):
        with pytest.raises(ValueError, match=words):
            language_model.session(**arguments)
    with pytest.raises(ValueError, match="row should be"):
        session.reset(2)
    with pytest.raises(ValueError, match="2 arrays"):
        session.state = [np.zeros((2, 2, 12), np.float32)]
    with pytest.raises(ValueError, match="batch of 1"):
        session.generate("", 1)
    vectors = opened(tmp_path / "vectors", SymRNN(4, 5))
    with pytest.raises(runtime.ModelError, match="no logits"):
        vectors.session().generate([1], 1)
    with pytest.raises(ValueError, match="float32, got: float64"):
        vectors.session().step(np.zeros((1, 4)))
    with pytest.raises(ValueError, match=r"shape \(1, 4\) or \(T, 1, 4\)"):
        vectors.session().step(np.zeros((1, 5), np.float32))
    with pytest.raises(runtime.ModelError, match="no vocabulary"):
        vectors.encode("a")


def test_wrong_options_of_generate_are_named_before_anything_runs(
    language_model: runtime.Model,
) -> None:
    session = language_model.session()
    session.step(3)
    before = session.state
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"tokens": -1}, "tokens should be an integer at least 0, got: -1"),
        ({"tokens": 2.5}, "tokens should be an integer at least 0, got: 2.5"),
        ({"seed": -1}, "seed should be an integer from 0 to 4294967295, got: -1"),
        ({"seed": 2**32}, "seed should be .* got: 4294967296"),
        ({"seed": 1.0}, "seed should be .* got: 1.0"),
        ({"temperature": -1.0}, "temperature should be finite and at least 0, got: -1"),
        ({"temperature": np.inf}, "temperature should be .* got: inf"),
        ({"temperature": np.nan}, "temperature should be .* got: nan"),
        ({"top_k": 0}, "top_k should be an integer at least 1, got: 0"),
        ({"top_k": 2.5}, "top_k should be .* got: 2.5"),
        ({"top_p": 0.0}, "top_p should be above 0 and at most 1, got: 0"),
        ({"top_p": 1.5}, "top_p should be .* got: 1.5"),
        ({"prompt": []}, "at least one step"),
        ({"prompt": [9]}, "from 0 to 8, got: 9"),
    )
    for options, words in wrong:
        with pytest.raises(ValueError, match=words):
            session.generate(**{"prompt": "the cat", "tokens": 2, **options})
    assert [*session.generate("the cat", 0)] == []
    for found, expected in zip(session.state, before, strict=True):
        np.testing.assert_array_equal(found, expected)
    all_of_them = language_model.session().generate("the cat", 5, top_k=2**70)
    assert [*all_of_them] == [*language_model.session().generate("the cat", 5)]


def test_files_that_are_no_models(tmp_path: Path) -> None:
    def why(content: bytes | None) -> str:
        path = tmp_path / "file"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(runtime.ModelError) as refusal:
            runtime.open(path)
        assert str(path) in str(refusal.value)
        return str(refusal.value)

    assert "No such file" in why(None)
    assert "is empty" in why(b"")
    assert "no safetensors file" in why(b"PK\x03\x04" + bytes(100))
    save_runtime(SymRNN(4, 4), tmp_path / "good")
    good = (tmp_path / "good").read_bytes()
    length = int.from_bytes(good[:8], "little")
    assert "ends before its tensors" in why(good[:-1])
    assert "goes on after its tensors" in why(good + b"x")
    assert "its header is no JSON" in why(good[:8] + b"{" * length + good[8 + length :])
    assert "its mode should be LSTM" in why(good.replace(b"RNN_TANH", b"RNN_TANX"))
    assert "has no tensor layers.0.xx" in why(good.replace(b"layers.0.hh", b"layers.0.xx", 1))
    assert "version 7" in why(good.replace(b'version\\": 1', b'version\\": 7'))
    symrnn.save_packed(SymRNN(4, 4), tmp_path / "packed")
    assert "is no model that can be used" in why((tmp_path / "packed").read_bytes())
    with pytest.raises(runtime.ModelError, match="is not a file"):
        runtime.open(tmp_path)


class Contents:
    """Of a file of the runtime, to be changed: its structure, and its tensors by name.

    tensors: each with its type, "F32" or "I32", and its bytes.
    """

    def __init__(self, path: Path) -> None:
        raw = path.read_bytes()
        first = 8 + int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8:first])
        self.structure: Any = json.loads(header.pop("__metadata__")["symrnn.runtime"])
        self.tensors = {
            name: (tensor["dtype"], raw[first:][slice(*tensor["data_offsets"])])
            for name, tensor in header.items()
        }

    def add(self, name: str, kind: str, numbers: NDArray[Any]) -> None:
        raw = numbers.tobytes()
        self.tensors[name] = kind, raw + bytes(-len(raw) % 64)

    def write(self, path: Path) -> None:
        header: dict[str, Any] = {"__metadata__": {"symrnn.runtime": json.dumps(self.structure)}}
        place = 0
        for name, (kind, raw) in self.tensors.items():
            offsets = [place, place := place + len(raw)]
            header[name] = {"dtype": kind, "shape": [len(raw) // 4], "data_offsets": offsets}
        text = json.dumps(header).encode()
        text += b" " * (-(8 + len(text)) % 64)
        data = b"".join(raw for _, raw in self.tensors.values())
        path.write_bytes(len(text).to_bytes(8, "little") + text + data)


@pytest.mark.parametrize("form", ["symmetric", "folded", "skew"])
@pytest.mark.parametrize("name", ["embedding", "linear"])
def test_an_embedding_and_a_linear_end_are_full_matrices(
    name: str, form: str, tmp_path: Path
) -> None:
    """Whatever else is consistent in itself, and would be right of a layer, is refused."""
    side = 32
    path = tmp_path / "model"
    end = {"embedding": nn.Embedding(side, side), "linear": nn.Linear(side, side)}[name]
    save_runtime(SymRNN(side, side), path, **{name: end})  # type: ignore[arg-type]
    contents = Contents(path)
    contents.write(path)
    runtime.open(path)
    described = contents.structure[name]
    full = {"rows": side, "columns": side, "gates": 1, "symmetric": 0}
    assert described["groups"] == [full]
    kind, numbers = contents.tensors[name]
    tile = 256 * 4  # bytes
    if form == "symmetric":
        described["groups"] = [{**full, "symmetric": 1}]
        contents.tensors[name] = kind, numbers[: 3 * tile]  # of four
    elif form == "folded":  # each row by one number of an empty map
        described["groups"] = [{**full, "rows": 1, "outputs": 0}]
        contents.tensors[name] = kind, numbers[: 2 * tile]
        parts = {"start": np.zeros(side + 1, np.int32), "index": np.zeros(16, np.int32)}
        for part, array in parts.items():
            contents.add(part, "I32", array)
        contents.add("scale", "F32", np.zeros(16, np.float32))
        names = {part: part for part in (*parts, "scale")}
        contents.structure["maps"].append({"from": 1, "to": side, **names})
    else:
        described["groups"].append({**full, "columns": 2, "skew": True})
        contents.tensors[name] = kind, numbers + bytes(2 * tile)
    contents.write(path)
    with pytest.raises(runtime.ModelError, match=f"its {name} should be one group: full"):
        runtime.open(path)


def test_what_cannot_be_written_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    monkeypatch.setattr("symrnn.runtime_file._LAYERS", 3)  # 1,025 are seconds in the making
    wrong: list[tuple[nn.Module, dict[str, Any], str]] = [
        (SymRNN(4, 4, bidirectional=True), {}, "bidirectional should be False"),
        (SymLSTM(4, 4, proj_size=2, symm_hh=""), {}, "proj_size is 2"),
        (SymRNN(4, 4, 4), {}, "at most 3 layers, got: 4"),
        (SymRNN(4, 4).double(), {}, "float32 on the CPU, got: torch.float64"),
        (SymRNN(4, 4), {"dtype": torch.float16}, "dtype should be one of"),
        (SymRNN(4, 4), {"linear": nn.Linear(5, 4)}, r"linear should have a weight \(any, 4\)"),
        (SymRNN(4, 4), {"embedding": nn.Embedding(9, 5)}, "embedding should have a weight"),
        (SymRNN(4, 4), {"words": WORDS}, "a token for each row"),
        (nn.Linear(4, 4), {}, "layers should be a recurrent layer"),
    ]
    for layers, arguments, words in wrong:
        with pytest.raises(ValueError, match=words):
            save_runtime(layers, path, **arguments)
    with pytest.raises(symrnn.files.UserError, match="was not written"):
        save_runtime(SymRNN(4, 4), tmp_path / "nowhere" / "model")
    assert [*tmp_path.iterdir()] == []


def test_a_header_is_written_up_to_the_length_that_is_read(tmp_path: Path) -> None:
    most = (4 << 20) - 8  # the data after it is aligned to 64 bytes, and its length takes 8
    opened(tmp_path / "short", SymRNN(4, 4), about={"text": ""})
    others = int.from_bytes((tmp_path / "short").read_bytes()[:8], "little")
    room = most - others
    about = opened(tmp_path / "long", SymRNN(4, 4), about={"text": "a" * room}).about
    assert about == {"text": "a" * room}
    assert int.from_bytes((tmp_path / "long").read_bytes()[:8], "little") == most
    with pytest.raises(ValueError, match="at most 4,194,304 bytes, got: 4,194,360"):
        save_runtime(SymRNN(4, 4), tmp_path / "longer", about={"text": "a" * (room + 64)})
    assert not (tmp_path / "longer").exists()


# ---- without PyTorch -----------------------------------------------------------------------------


def in_a_fresh_python(code: str, folder: Path) -> list[Any]:
    """What the code prints, as JSON."""
    root = str(Path(symrnn.__file__).parents[1])
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_a_model_runs_where_torch_is_not_loaded(language_model: runtime.Model) -> None:
    code = """
import json, sys
import symrnn
assert dir(symrnn) and symrnn.native.available()
from symrnn import runtime
model = runtime.open("model.symrnn")
print(json.dumps([*model.session().generate("the cat", 9, seed=4)]))
print(json.dumps([name for name in ("torch", "safetensors") if name in sys.modules]))
"""
    folder = Path(language_model.path).parent
    tokens, loaded = in_a_fresh_python(code, folder)
    assert tokens == [*language_model.session().generate("the cat", 9, seed=4)]
    assert loaded == []


def test_names_of_the_package_come_when_they_are_asked_for(tmp_path: Path) -> None:
    code = """
import json, pickle, sys
import symrnn
before = "torch" in sys.modules
from symrnn import SymLSTM, deploy, native
import symrnn.deployment, symrnn.vision
assert symrnn.deploy is deploy and callable(symrnn.deploy)
assert {"SymLSTM", "runtime", "save_runtime"} <= set(dir(symrnn))
assert pickle.loads(pickle.dumps(SymLSTM)) is symrnn.SymLSTM
try:
    symrnn.nothing
except AttributeError as error:
    print(json.dumps([before, str(error)]))
"""
    ((before, error),) = in_a_fresh_python(code, tmp_path)
    assert before is False
    assert error == "module 'symrnn' has no attribute 'nothing'"
