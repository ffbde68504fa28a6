"""Files of deployed models: weights, programs of ``torch.export`` and ONNX, compiled packages.

All but those with packed weights are run without this library; those, with its operators alone.

One kind is its own: that of the C runtime, which knows neither Python nor PyTorch.

A file is written aside, run, and compared with the model that it is of, on other sizes than the
example's; only then it takes its name. What the export programs share stands here.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from symrnn import native, runtime
from symrnn.files import UserError, describe_os_error, replacing, to_json
from symrnn.native.building import NotBuiltError, compiler
from symrnn.programs import run_parser
from symrnn.rnn.torch_state import free_time

KINDS = {
    "plain": ".safetensors",
    "pt2": ".pt2",
    "onnx": ".onnx",
    "aoti": ".aoti.pt2",
    "runtime": ".symrnn",
}
"""What --to takes, and how the names of such files end."""

OPSET = 17
"""The version of ONNX's operators: of 2022, so that runtimes of some age know it."""

KEY = "symrnn"
"""Under which a file holds what it is, in JSON: in safetensors' metadata, in ONNX's
``metadata_props``, as the extra file ``symrnn.json`` of torch.export, and in the metadata of a
package of AOTInductor."""

Axes = tuple[str | int, ...]
"""A tensor's axes: the name of a free one, or the size."""

Tensors = tuple[Tensor, ...]

EXAMPLE = {"time": 5, "batch": 3}
"""The sizes of the free axes that a program is traced with."""

OTHERS = ({"time": 1, "batch": 1}, {"time": 7, "batch": 2}, {"time": 3, "batch": 6})
"""The sizes with which a file is compared with its model."""


class ExportError(UserError):
    """A file that could not be written, or wants a package that is not there."""


class RefusedError(UserError):
    """A file that does not give the numbers of its model."""

    exit_code = 1


@dataclass(frozen=True)
class Program:
    """A model that is to leave, with names for what goes in and what comes out.

    model: as trained, in float32 on the CPU, in evaluation mode.
    deployed: the same by :func:`symrnn.deploy`; its state_dict is what "plain" writes.
    form, dtype: as that was called with.
    flat: makes of either a module that takes the inputs, in their order, and gives the outputs.
    inputs, outputs: by name.
    draw: example inputs, for sizes of the free axes.
    about: what the model is, as JSON.
    expected: whose numbers a file should give: the model, or a copy that rounds its weights as the
        file does.
    save_runtime: writes the file of the C runtime; None of a model that it does not run.
    """

    model: nn.Module
    deployed: nn.Module
    flat: Callable[[nn.Module], nn.Module]
    inputs: Mapping[str, Axes]
    outputs: Mapping[str, Axes]
    draw: Callable[[Mapping[str, int]], Tensors]
    about: dict[str, Any]
    form: str = "plain"
    dtype: torch.dtype | None = None
    expected: nn.Module | None = None
    save_runtime: Callable[[Path], None] | None = None

    def call(self, model: nn.Module) -> Callable[[Tensors], Tensors]:
        """Runs one of the models on inputs."""
        flat = self.flat(model)

        def run(inputs: Tensors) -> Tensors:
            with torch.no_grad():
                outputs = flat(*inputs)
            return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

        return run

    def described(self, kind: str) -> dict[str, Any]:
        """What a file says of itself: ``about``, and each input and output with type and axes."""
        example = self.draw(EXAMPLE)
        described: dict[str, Any] = {"format": kind, **self.about}
        for which, axes, tensors in (
            ("inputs", self.inputs, example),
            ("outputs", self.outputs, self.call(self.deployed)(example)),
        ):
            described[which] = {
                name: {"dtype": str(tensor.dtype).removeprefix("torch."), "axes": list(its)}
                for (name, its), tensor in zip(axes.items(), tensors, strict=True)
            }
        if self.form == "packed":
            dtype = self.dtype or torch.float32
            described |= {"form": "packed", "packed_dtype": str(dtype).removeprefix("torch.")}
        if kind == "plain":
            described["tied"] = tied_names(self.deployed)
        if kind == "onnx":
            described["opset"] = OPSET
        return described


@dataclass(frozen=True)
class Exported:
    """What came of an export.

    path, size: of the file, in bytes.
    difference: the largest of an output from the model's, the lowered one if there is one; None if
        nothing here could run the file.
    rounding: the largest of an output with rounded weights from the trained model's; None without.
    """

    path: Path
    size: int
    difference: float | None
    rounding: float | None = None


def export(
    program: Program, kind: str, path: Path, beside: Callable[[], None] = lambda: None
) -> Exported:
    """Write a program to a file of a kind of :data:`KINDS`, or replace one, in one step.

    beside: writes what belongs beside the file, once that is found to be right.

    Raises ExportError if it cannot be written, :class:`RefusedError` if it gives other numbers
    than the model; a former file is then untouched, and nothing is left beside it.
    """
    require(kind)
    write, load = FILES[kind]
    try:
        with replacing(path) as new:
            write(program, new)
            run = load(program, new)
            difference = None if run is None else compare(program, run, path)
            rounding = None if program.expected is None else _rounding(program)
            size = new.stat().st_size
            beside()
    except OSError as error:
        raise ExportError(f"{path}: was not written: {describe_os_error(error)}") from error
    return Exported(path, size, difference, rounding)


def require(kind: str, *, recurrent: bool = True) -> None:
    """Raise ExportError if what files of this kind are made with is not installed.

    recurrent: whether the model is, as those that the runtime runs are.
    """
    if kind == "runtime" and not recurrent:
        raise ExportError("--to runtime is for recurrent layers, and this is a network for images")
    if kind == "runtime" and not native.available():
        raise ExportError(f"--to runtime: {native.why_not()}")
    if kind == "onnx" and not _installed("onnx"):
        raise ExportError("--to onnx needs the onnx package: pip install 'symrnn[onnx]'")
    if kind == "aoti":
        try:
            compiler()
        except NotBuiltError as error:
            raise ExportError(f"--to aoti needs a C++ compiler: {error}") from None


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a module without a spec, or None in its place
        return False


def compare(program: Program, run: Callable[[Tensors], Tensors], path: Path) -> float:
    """The largest difference of an output of ``run`` from that of ``program.expected``.

    Raises RefusedError if ``run`` fails, and if that is more than float32 explains: than 16 times
    what the model itself differs from its computation in float64, and 2⁻²⁰ of the largest number
    of that output.
    """
    model, exact = program.call(program.model), program.call(copy.deepcopy(program.model).double())
    rounded = model if program.expected is None else program.call(program.expected)
    largest = 0.0
    for sizes in OTHERS:
        inputs = program.draw(sizes)
        free = {axis for axes in program.inputs.values() for axis in axes if axis in sizes}
        at = "at " + ", ".join(f"{axis} {size}" for axis, size in sizes.items() if axis in free)
        try:
            found = run(inputs)
        except Exception as error:  # each runtime has errors of its own
            why = str(error).partition("\n")[0]
            raise RefusedError(f"{path}: was not written: {at} it does not run: {why}") from error
        expected = rounded(inputs)
        unrounded = expected if rounded is model else model(inputs)
        true = exact(tuple(x.double() if x.is_floating_point() else x for x in inputs))
        outputs = zip(program.outputs, found, expected, unrounded, true, strict=True)
        for name, got, own, model_own, right in outputs:
            if got.shape != own.shape:
                raise RefusedError(
                    f"{path}: was not written: {at} its {name} has shape {list(got.shape)}, the "
                    f"model's {list(own.shape)}"
                )
            difference = _largest(got.double() - own.double())
            allowed = 16 * _largest(model_own.double() - right) + 2**-20 * _largest(right)
            if not difference <= allowed:  # nan is not
                raise RefusedError(
                    f"{path}: was not written: {at} its {name} differs from the model's by "
                    f"{difference:.2g}, and float32 explains {allowed:.2g}"
                )
            largest = max(largest, difference)
    return largest


def _rounding(program: Program) -> float:
    """The largest difference of an output of what is expected from the trained model's."""
    assert program.expected is not None
    model, rounded = program.call(program.model), program.call(program.expected)
    inputs = [program.draw(sizes) for sizes in OTHERS]
    pairs = [pair for x in inputs for pair in zip(model(x), rounded(x), strict=True)]
    return max(_largest(own - low) for own, low in pairs)


def _largest(x: Tensor) -> float:
    return x.abs().max().item()


# ---- the kinds of file -------------------------------------------------------------------------


def tied_names(model: nn.Module) -> dict[str, str]:
    """The names in a state_dict of tensors that have one before, and that one's."""
    first: dict[int, str] = {}
    tied = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if first.setdefault(id(tensor), name) != name:
            tied[name] = first[id(tensor)]
    return tied


def _write_plain(program: Program, new: Path) -> None:
    tied = tied_names(program.deployed)
    tensors = {
        name: tensor.contiguous()
        for name, tensor in program.deployed.state_dict().items()
        if name not in tied
    }
    metadata = {KEY: to_json(program.described("plain"), "about")}
    new.write_bytes(safetensors.torch.save(tensors, metadata))


def _load_plain(program: Program, new: Path) -> Callable[[Tensors], Tensors]:
    loaded = copy.deepcopy(program.deployed)
    for tensor in loaded.state_dict().values():
        tensor.zero_()
    with safe_open(new, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tied = json.loads(file.metadata()[KEY])["tied"]
    loaded.load_state_dict({**tensors, **{name: tensors[first] for name, first in tied.items()}})
    return program.call(loaded)


def _exported(program: Program) -> torch.export.ExportedProgram:
    dims = {name: torch.export.Dim(name) for name in EXAMPLE}
    shapes = tuple(
        {at: dims[axis] for at, axis in enumerate(axes) if isinstance(axis, str)}
        for axes in program.inputs.values()
    )
    flat, example = program.flat(program.deployed), program.draw(EXAMPLE)
    with _quietly(), free_time(), torch.no_grad():
        return torch.export.export(flat, example, dynamic_shapes=shapes)


def _write_pt2(program: Program, new: Path) -> None:
    exported = _exported(program)
    about = to_json(program.described("pt2"), "about")
    with _quietly(), new.open("wb") as file:
        torch.export.save(exported, file, extra_files={f"{KEY}.json": about})


def _load_pt2(program: Program, new: Path) -> Callable[[Tensors], Tensors]:
    with _quietly(), new.open("rb") as file:
        loaded = torch.export.load(file).module()

    def run(inputs: Tensors) -> Tensors:
        outputs = loaded(*inputs)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    return run


def _write_aoti(program: Program, new: Path) -> None:
    about = to_json(program.described("aoti"), "about")
    with _quietly(), torch.no_grad(), new.open("wb") as file:
        torch._inductor.aoti_compile_and_package(
            _exported(program),
            package_path=file,
            inductor_configs={"aot_inductor.metadata": {KEY: about}},
        )


def _load_aoti(program: Program, new: Path) -> Callable[[Tensors], Tensors]:
    with _quietly(), new.open("rb") as file:
        loaded = torch._inductor.aoti_load_package(file)

    def run(inputs: Tensors) -> Tensors:
        outputs = loaded(*inputs)
        return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)

    return run


def _write_onnx(program: Program, new: Path) -> None:
    import onnx

    size = sum(tensor.nbytes for tensor in program.deployed.state_dict().values())
    if size >= 2**31:  # a limit of protobuf
        raise ExportError(f"--to onnx: a file holds at most 2 GiB, and the weights have {size:,} B")
    axes = {**program.inputs, **program.outputs}
    with _quietly(), torch.no_grad():
        # The exporter by torch.export, torch's default since 2.9, writes a file for the example's
        # number of steps, whatever it calls the axis: an LSTM's output is reshaped to it, an RNN is
        # unrolled (torch 2.13). The older one, which torch calls deprecated and has in 2.10 as in
        # 2.13, writes ONNX's operators for any number. It needs no onnxscript either.
        torch.onnx.export(
            program.flat(program.deployed),
            program.draw(EXAMPLE),
            new,
            input_names=[*program.inputs],
            output_names=[*program.outputs],
            dynamic_axes={
                name: {at: axis for at, axis in enumerate(its) if isinstance(axis, str)}
                for name, its in axes.items()
            },
            opset_version=OPSET,
            dynamo=False,
        )
    model = onnx.load(new)
    onnx.helper.set_model_props(model, {KEY: to_json(program.described("onnx"), "about")})
    onnx.checker.check_model(model, full_check=True)
    new.write_bytes(model.SerializeToString())


def _load_onnx(program: Program, new: Path) -> Callable[[Tensors], Tensors] | None:
    if not _installed("onnxruntime"):
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(new.read_bytes(), providers=["CPUExecutionProvider"])

    def run(inputs: Tensors) -> Tensors:
        named = zip(program.inputs, inputs, strict=True)
        found = session.run([*program.outputs], {name: x.numpy() for name, x in named})
        return tuple(map(torch.from_numpy, found))

    return run


def _write_runtime(program: Program, new: Path) -> None:
    assert program.save_runtime is not None  # `require` has seen to it
    program.save_runtime(new)


def _load_runtime(program: Program, new: Path) -> Callable[[Tensors], Tensors]:
    model = runtime.open(new)

    def run(inputs: Tensors) -> Tensors:
        x, *state = (tensor.numpy() for tensor in inputs)
        session = model.session(x.shape[1])
        session.state = state
        return tuple(map(torch.from_numpy, (session.step(x), *session.state)))

    return run


Write = Callable[[Program, Path], None]
Load = Callable[[Program, Path], Callable[[Tensors], Tensors] | None]

FILES: dict[str, tuple[Write, Load]] = {
    "plain": (_write_plain, _load_plain),
    "pt2": (_write_pt2, _load_pt2),
    "onnx": (_write_onnx, _load_onnx),
    "aoti": (_write_aoti, _load_aoti),
    "runtime": (_write_runtime, _load_runtime),
}
"""For each kind what writes a file, and what makes one run: None if nothing here can."""


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporters' warnings of their own future, and of what the comparison settles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# ---- the programs ------------------------------------------------------------------------------


def export_parser(program: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """The options of a program that exports a trained model."""
    parser = run_parser(program, description, epilog)
    add = parser.add_argument
    add(
        "--to",
        choices=list(KINDS),
        default="plain",
        help="plain: the weights by PyTorch's names, safetensors; pt2: a program of torch.export; "
        "onnx: one of ONNX, which needs the extra [onnx]; aoti: a package of AOTInductor, machine "
        "code for processors like this one; runtime: packed weights and vocabulary, for C and "
        "symrnn.runtime (plain)",
    )
    add("--out", type=Path, metavar="FILE", help="(model, and what its kind ends in, beside RUN's)")
    add("--dry-run", action="store_true", help="print what would be written, write nothing")
    return parser


def place_of(options: argparse.Namespace, checkpoint: Path) -> Path:
    """Where the file of a checkpoint's model goes; ExportError if it cannot."""
    path: Path = options.out or checkpoint.with_name("model" + KINDS[options.to])
    if not path.name.endswith(KINDS[options.to]):  # torch.export.load, for one, goes by it
        raise ExportError(f"--out {path}: names of --to {options.to} end in {KINDS[options.to]}")
    if path.is_dir():
        raise ExportError(f"--out {path}: there is a folder of that name; name a file")
    if not path.parent.is_dir():
        raise ExportError(f"--out {path}: the folder {path.parent} does not exist")
    if path.exists() and checkpoint.exists() and os.path.samefile(path, checkpoint):
        raise ExportError(f"--out {path}: that is the checkpoint itself; name another file")
    return path


def table(program: Program, kind: str) -> dict[str, str]:
    """What a program prints of what goes in and what comes out."""
    described = program.described(kind)
    return {
        which: "; ".join(
            f"{name} {its['dtype']} ({', '.join(map(str, its['axes']))})"
            for name, its in described[which].items()
        )
        for which in ("inputs", "outputs")
    }


def outcome(exported: Exported) -> dict[str, str]:
    """What a program prints of the file that it wrote."""
    compared = "not known: onnxruntime, which would run the file, is not installed"
    if exported.difference is not None:
        compared = (
            f"{exported.difference:.2g} from the model, at other sizes than it was traced with"
        )
    rounded = {}
    if exported.rounding is not None:
        compared = f"{exported.difference:.2g} from the model with such weights"
        rounded = {"due to the weights": f"{exported.rounding:.2g} from the trained model"}
    return {
        "written": f"{exported.path}, {exported.size:,} bytes",
        "largest difference": compared,
        **rounded,
    }
