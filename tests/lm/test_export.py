"""lm.export: files that give the model's numbers where this library is not, or no file."""

from __future__ import annotations

import json
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import lm.export
import lm.generate
import symrnn.export
import symrnn.vision.export
from lm.saved import Saved, load_saved
from symrnn import native, runtime
from symrnn.files import UserError
from symrnn.native import building

CPU = torch.device("cpu")
SIZES = ((1, 1), (9, 2), (2, 5))
"""Time and batch: none of those of the example, nor of the program's own comparison."""


def inputs(saved: Saved, time: int, batch: int) -> tuple[Tensor, ...]:
    state = [torch.randn(2, batch, 8) for _ in saved.model.states]
    return torch.randint(len(saved.codec), (time, batch)), *state


def assert_same_numbers(run: Callable[..., Any], saved: Saved) -> None:
    for time, batch in SIZES:
        tokens, *state = inputs(saved, time, batch)
        with torch.no_grad():
            logits, new = saved.model(tokens, tuple(state))
        torch.testing.assert_close(tuple(run(tokens, *state)), (logits, *new), rtol=0, atol=1e-5)


def export(*arguments: object) -> int:
    return lm.export.main([str(argument) for argument in arguments])


# ---- each kind of file ---------------------------------------------------------------------------


def test_plain_weights_fill_the_layers_of_pytorch(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.safetensors"
    assert export(finished, "--out", path) == 0
    assert "largest difference" in capsys.readouterr().out
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["symrnn"])
    size, hidden = about["vocab_size"], about["hidden_size"]
    model = nn.ModuleDict(
        {
            "encoder": nn.Embedding(size, hidden),
            "rnn": nn.LSTM(hidden, hidden, 2),
            "decoder": nn.Linear(hidden, size),
        }
    )
    model.load_state_dict(weights)  # every name, and no other

    def run(tokens: Tensor, h0: Tensor, c0: Tensor) -> tuple[Tensor, ...]:
        output, (hn, cn) = model["rnn"](model["encoder"](tokens), (h0, c0))
        return model["decoder"](output), hn, cn

    saved = load_saved(finished, CPU)
    with torch.no_grad():
        assert_same_numbers(run, saved)

    assert about["inputs"] == {
        "tokens": {"dtype": "int64", "axes": ["time", "batch"]},
        "h0": {"dtype": "float32", "axes": [2, "batch", 8]},
        "c0": {"dtype": "float32", "axes": [2, "batch", 8]},
    }
    assert about["outputs"]["logits"] == {"dtype": "float32", "axes": ["time", "batch", size]}
    assert (about["symm"], about["symm_hh"], about["recipe"]) == ("avg", "ifgo", "zaremba")
    assert about["valid_perplexity"] == saved.meta["valid_perplexity"]
    assert about["tied"] == {}
    words = (tmp_path / about["vocabulary"]["file"]).read_text("utf-8").splitlines()
    assert words == list(saved.codec.state()["tokens"])
    assert words[about["eos_id"]] == "<eos>"


def test_tied_weights_are_written_once(gru_run: Path, tmp_path: Path) -> None:
    assert export(gru_run, "--out", tmp_path / "model.safetensors") == 0
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "decoder.weight" not in file.keys()  # noqa: SIM118
        about = json.loads(file.metadata()["symrnn"])
    assert about["tied"] == {"decoder.weight": "encoder.weight"}
    assert [*about["inputs"]] == ["tokens", "h0"]
    assert [*about["outputs"]] == ["logits", "hn"]


@pytest.mark.parametrize("run", ["finished", "gru_run"])
def test_programs_of_torch_export_take_any_time_and_batch(
    run: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    saved = load_saved(request.getfixturevalue(run), CPU)
    path = tmp_path / "model.pt2"
    assert export(saved.path, "--to", "pt2", "--out", path) == 0
    extra = {"symrnn.json": ""}
    program = torch.export.load(path, extra_files=extra)
    assert_same_numbers(program.module(), saved)
    # One operator for all steps, and no loop of the example's five.
    operators = [str(node.target) for node in program.graph.nodes]
    assert sum(name in ("aten.lstm.input", "aten.gru.input") for name in operators) == 1
    assert not any("cell" in name for name in operators)
    about = json.loads(extra["symrnn.json"])
    assert about["format"] == "pt2"
    assert program.graph_signature.user_inputs == tuple(about["inputs"])


@pytest.mark.parametrize("run", ["finished", "gru_run"])
def test_onnx_files_hold_constant_weights_and_take_any_time_and_batch(
    run: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    saved = load_saved(request.getfixturevalue(run), CPU)
    path = tmp_path / "model.onnx"
    assert export(saved.path, "--to", "onnx", "--out", path) == 0

    model = onnx.load(path)
    about = json.loads({p.key: p.value for p in model.metadata_props}["symrnn"])
    assert [x.name for x in model.graph.input] == [*about["inputs"]]
    assert [x.name for x in model.graph.output] == [*about["outputs"]]
    assert model.opset_import[0].version == about["opset"]
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {
        out for node in model.graph.node if node.op_type == "Constant" for out in node.output
    }
    recurrent = [node for node in model.graph.node if node.op_type in ("LSTM", "GRU")]
    assert len(recurrent) == 2
    assert all({*node.input[1:4]} <= constants for node in recurrent)

    session = onnxruntime.InferenceSession(path)

    def infer(*tensors: Tensor) -> map[Tensor]:
        named = dict(zip(about["inputs"], (x.numpy() for x in tensors), strict=True))
        return map(torch.from_numpy, session.run([*about["outputs"]], named))

    assert_same_numbers(infer, saved)


def test_an_onnx_file_runs_in_openvino_and_is_quantized(finished: Path, tmp_path: Path) -> None:
    """Both want constant weights."""
    openvino = pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    quantization = pytest.importorskip("onnxruntime.quantization")
    saved = load_saved(finished, CPU)
    path, small = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    assert export(finished, "--to", "onnx", "--out", path) == 0
    exactly = {"INFERENCE_PRECISION_HINT": "f32"}  # bfloat16 where a processor has it, otherwise
    compiled = openvino.Core().compile_model(path, "CPU", exactly)

    def infer(*tensors: Tensor) -> map[Tensor]:
        return map(torch.from_numpy, compiled([x.numpy() for x in tensors]).values())

    assert_same_numbers(infer, saved)
    quantization.quantize_dynamic(path, small)
    assert b"DynamicQuantizeLSTM" in small.read_bytes()


def test_the_vocabulary_of_pieces_is_the_model_of_sentencepiece(
    pieces_run: Path, tmp_path: Path
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    assert export(pieces_run, "--out", tmp_path / "model.safetensors") == 0
    processor = sentencepiece.SentencePieceProcessor(str(tmp_path / "model.pieces.model"))
    codec = load_saved(pieces_run, CPU).codec
    assert [*processor.EncodeAsIds("w1 w2 w3"), codec.eos_id] == codec.encode_line("w1 w2 w3")


def test_without_out_the_file_goes_beside_the_checkpoint(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(run_copy, "--dry-run") == 0
    assert f"would be written      {run_copy / 'model.safetensors'}" in capsys.readouterr().out
    assert not (run_copy / "model.safetensors").exists()
    assert export(run_copy) == 0
    assert (run_copy / "model.safetensors").exists()
    assert (run_copy / "model.vocab.txt").exists()


@pytest.mark.parametrize("kind", ["plain", "pt2", "onnx"])
def test_nothing_is_said_of_deprecation(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = tmp_path / f"model{symrnn.export.KINDS[kind]}"
        assert export(finished, "--to", kind, "--out", path) == 0
    assert capfd.readouterr().err == ""


# ---- what is refused -----------------------------------------------------------------------------


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["plain", "pt2", "onnx"])
def test_a_file_with_other_numbers_is_refused_and_nothing_left(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    path = tmp_path / f"model{symrnn.export.KINDS[kind]}"
    path.write_text("the former file")
    write, load = symrnn.export.FILES[kind]

    def wrong(program: symrnn.export.Program, new: Path) -> None:
        program.deployed.get_submodule("rnn").weight_hh_l1[3, 2] += 1e-3
        write(program, new)

    monkeypatch.setitem(symrnn.export.FILES, kind, (wrong, load))
    with pytest.raises(symrnn.export.RefusedError, match=r"its \w+ differs from the model's by"):
        export(finished, "--to", kind, "--out", path)
    assert symrnn.export.RefusedError.exit_code == 1
    assert names(tmp_path) == {path.name}
    assert path.read_text() == "the former file"


def test_another_shape_is_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, load = symrnn.export.FILES["plain"]

    def short(program: symrnn.export.Program, new: Path) -> Callable[..., Any]:
        run = load(program, new)
        assert run is not None
        return lambda tensors: tuple(x[:5] for x in run(tensors))

    monkeypatch.setitem(symrnn.export.FILES, "plain", (write, short))
    message = r"at time 7, batch 2 its logits has shape \[5, 2, \d+\], the model's \[7, 2, \d+\]"
    with pytest.raises(symrnn.export.RefusedError, match=message):
        export(finished, "--out", tmp_path / "model.safetensors")
    assert names(tmp_path) == set()


def test_a_file_that_does_not_run_at_other_sizes_is_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fixed(program: symrnn.export.Program, new: Path) -> Callable[..., Any]:
        def run(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            if tensors[0].shape != (5, 3):
                raise ValueError(f"expected (5, 3), got {tuple(tensors[0].shape)}\nand so on")
            return program.call(program.deployed)(tensors)

        return run

    write, _ = symrnn.export.FILES["plain"]
    monkeypatch.setitem(symrnn.export.FILES, "plain", (write, fixed))
    message = r"at time 1, batch 1 it does not run: expected \(5, 3\), got \(1, 1\)$"
    with pytest.raises(symrnn.export.RefusedError, match=message):
        export(finished, "--out", tmp_path / "model.safetensors")
    assert names(tmp_path) == set()


def test_onnx_without_its_package_is_said_at_the_start(
    finished: Path,
    tmp_path: Path,
    refused: Callable[..., str],
    without: Callable[..., None],
) -> None:
    without("onnx")
    message = refused("export", finished, "--to", "onnx", "--out", tmp_path / "model.onnx")
    assert message == "--to onnx needs the onnx package: pip install 'symrnn[onnx]'"
    assert names(tmp_path) == set()


def test_bad_places_are_errors(run_copy: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    assert refused("export", run_copy, "--to", "tflite").startswith(
        "argument --to: invalid choice: 'tflite' (choose from"
    )
    where = tmp_path / "none" / "model.safetensors"
    assert refused("export", run_copy, "--out", where) == (
        f"--out {where}: the folder {where.parent} does not exist"
    )
    assert refused("export", run_copy, "--to", "pt2", "--out", where) == (
        f"--out {where}: names of --to pt2 end in .pt2"
    )
    folder = tmp_path / "folder.pt2"
    folder.mkdir()
    assert refused("export", run_copy, "--to", "pt2", "--out", folder) == (
        f"--out {folder}: there is a folder of that name; name a file"
    )
    best = run_copy / "best.safetensors"
    assert refused("export", run_copy, "--out", best) == (
        f"--out {best}: that is the checkpoint itself; name another file"
    )
    assert "there is no such" in refused("export", tmp_path / "nothing.safetensors")


@pytest.mark.parametrize(("room", "lacking"), [(1, "model.safetensors"), (2, "model.vocab.txt")])
def test_a_full_disk_leaves_no_half_file(
    finished: Path, small_disk: Path, refused: Callable[..., str], room: int, lacking: str
) -> None:
    """room: in pages, of which the weights take two."""
    (small_disk / "filling").write_bytes(bytes(2**20 - room * 2**12))
    message = refused("export", finished, "--out", small_disk / "model.safetensors")
    assert message == f"{small_disk / lacking}: was not written: the disk is full"
    assert names(small_disk) == {"filling"}


# ---- the C runtime -------------------------------------------------------------------------------


@pytest.mark.skipif(not native.available(), reason="the native kernels are not built")
class TestRuntime:
    """What symrnn.runtime and the example in C make of the file."""

    OPTIONS = (
        {},
        {"temperature": 0},
        {"top_k": 3, "temperature": 0.7},
        {"top_p": 0.6, "seed": 4},
        {"top_k": 9, "top_p": 0.9},
    )

    @pytest.mark.parametrize("run", ["finished", "gru_run", "pieces_run"])
    def test_its_tokens_are_those_of_lm_generate(
        self,
        run: str,
        request: pytest.FixtureRequest,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        if run == "pieces_run":
            pytest.importorskip("sentencepiece")
        folder, path = request.getfixturevalue(run), tmp_path / "model.symrnn"
        assert export(folder, "--to", "runtime", "--out", path) == 0
        assert [*tmp_path.iterdir()] == [path]  # the vocabulary is in it
        model = runtime.open(path)
        saved = load_saved(folder, CPU)
        program = compiled_example(tmp_path) if shutil.which("cc") else None
        for options in self.OPTIONS:
            words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
            capsys.readouterr()
            lm.generate.main([str(folder), "--tokens=80", "--threads=1", *words])
            expected = capsys.readouterr().out
            tokens = [*model.session().generate([saved.codec.eos_id], 80, **options)]
            text = model.decode(tokens)
            assert expected == (text if text.endswith("\n") else text + "\n")
            if program is not None:
                split = [word for option in words for word in option.split("=")]
                ended = subprocess.run(
                    [program, path, "--tokens", "80", *split], capture_output=True, check=True
                )
                assert ended.stdout.decode() == expected

    def test_a_prompt_is_read_as_lm_generate_reads_it(
        self, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "model.symrnn"
        assert export(finished, "--to", "runtime", "--out", path) == 0
        model, prompt = runtime.open(path), "w1  naïve\nw7 w3"
        capsys.readouterr()
        lm.generate.main([str(finished), "--tokens=30", "--threads=1", "--prompt", prompt])
        tokens = model.encode(prompt)
        tokens += model.session().generate(prompt, 30)
        assert capsys.readouterr().out == model.decode([*tokens]).rstrip("\n") + "\n"

    @pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
    def test_weights_of_lower_precision_are_held_to_a_model_that_has_them(
        self, dtype: str, gru_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "model.symrnn"
        assert export(gru_run, "--to", "runtime", "--dtype", dtype, "--out", path) == 0
        said = capsys.readouterr().out
        assert "from the model with such weights" in said
        model, saved = runtime.open(path), load_saved(gru_run, CPU)
        assert (model.dtype, model.about["cell"]) == (dtype, "gru")
        tokens, *state = inputs(saved, 5, 3)
        session = model.session(3)
        session.state = [part.numpy() for part in state]
        with torch.no_grad():
            logits, _ = saved.model(tokens, tuple(state))
        difference = np.abs(session.step(tokens.numpy()) - logits.numpy()).max()
        assert 0 < difference < 0.05 * logits.abs().max()

    def test_a_file_that_gives_other_numbers_is_not_kept(
        self, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def worse(program: symrnn.export.Program, new: Path) -> None:
            assert program.save_runtime is not None
            program.model.decoder.bias.data += 1e-3  # type: ignore[union-attr,operator]
            program.save_runtime(new)
            program.model.decoder.bias.data -= 1e-3  # type: ignore[union-attr,operator]

        _, load = symrnn.export.FILES["runtime"]
        monkeypatch.setitem(symrnn.export.FILES, "runtime", (worse, load))
        with pytest.raises(symrnn.export.RefusedError, match="differs from the model's"):
            export(finished, "--to", "runtime", "--out", tmp_path / "model.symrnn")
        assert [*tmp_path.iterdir()] == []

    def test_a_dtype_is_of_packed_weights_and_a_runtime_for_language_models(
        self, finished: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(UserError, match="--dtype int8 is of packed weights"):
            export(finished, "--dtype", "int8")
        with pytest.raises(UserError, match="--to runtime is for recurrent layers"):
            symrnn.vision.export.main([str(finished), "--to", "runtime"])


def compiled_example(folder: Path) -> Path:
    """docs/examples/generate.c as a program."""
    source = Path(lm.export.__file__).parents[1] / "docs" / "examples" / "generate.c"
    library = building.FOLDER / building.LIBRARY
    made = folder / "generate"
    link = [f"-I{building.FOLDER}", library, f"-Wl,-rpath,{building.FOLDER}"]
    subprocess.run(["cc", "-O1", source, *link, "-o", made], check=True)
    return made
