"""What a deployed model costs by each door: time, size, memory, and how far its numbers are.

    python scripts/benchmarks/deploy.py
    python scripts/benchmarks/deploy.py --sizes 1024 --seconds 3 --skip worker
    scripts/env pip install -c constraints.txt -e '.[bench]'    # for ONNX Runtime, once

Layer: one LSTM, hidden and input weights symmetric (form `avg`), H inputs, one step of one
sequence from a given state, one thread; medians of calls, the doors in turn, a block each. "eager"
is the layer by `auto`; "packed" and "plain" are `symrnn.deploy`'s forms of it, called, compiled by
`torch.compile` (fullgraph), exported by `torch.export`, and a package of AOTInductor's loaded into
Python. "C runtime" is `symrnn_run_vectors` and "kernel" `symrnn_advance`, both called by ctypes
with arguments that stand ready. ONNX Runtime has the plain form. "Opens" is the time from a file
to what can be called, once. The difference is the largest from the eager layer's output.

Language model: `lm`'s of the size `small` with random weights and 10,000 words, `avg` on the
hidden weights: tokens a second of one stream, drawn at temperature 1, by `lm.generate`, by
`symrnn.runtime` in Python, and by docs/examples/generate.c. One thread, and medians of runs in
turn. "First token" is a whole process, from its start to its end, of which one token is wanted:
the median of several, after one that is not counted.

Worker: a new process that loads a file of two layers of H = 1500, symmetric on hidden and input
weights, and makes a step of them: what is resident then, in MiB, and in brackets beyond what the
same process has where it only imports what it needs (torch, onnxruntime, symrnn). Beside it the
size of the file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cpu import onnx_version
from report import ROOT, explanation, make_parser, table, write_report
from timing import Peer, in_blocks
from torch import Tensor, nn
from tqdm import tqdm

import symrnn
from lm.generate import generate
from lm.model import LanguageModel
from lm.recipes import SIZES
from lm.sampling import draw
from symrnn import SymLSTM, native
from symrnn.export import OPSET
from symrnn.native.runtime import library as runtime_library
from symrnn.rnn.torch_state import free_time
from symrnn.training import set_threads

PARTS = ("layer", "language", "worker")
VOCABULARY = 10_000
WORKER = 1500
EAGER = "eager"
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "int8": torch.int8}


def main() -> None:
    parser = make_parser(__doc__, "results/deploy.md")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 1500], help="H of a layer")
    parser.add_argument("--seconds", type=float, default=20, help="for each H (20)")
    parser.add_argument("--tokens", type=int, default=2000, help="of a run of the language model")
    parser.add_argument("--rounds", type=int, default=5, help="of these, and of first tokens")
    parser.add_argument("--skip", nargs="+", choices=PARTS, default=[])
    options = parser.parse_args()
    set_threads(1)
    onnx = onnx_version()
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        if "layer" not in options.skip:
            for size in options.sizes:
                tables += layer_tables(size, options.seconds, Path(folder), onnx is not None)
        if "language" not in options.skip:
            tables += language_tables(options, Path(folder))
        if "worker" not in options.skip:
            tables += worker_tables(Path(folder), onnx is not None)
    versions = f"ONNX Runtime {onnx or 'was not measured'}."
    write_report(options.out, "Deployed models", [*explanation(__doc__), versions, *tables], seed=1)


# ---- a layer -----------------------------------------------------------------------------------


class Step(nn.Module):
    """A layer as a function of tensors alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output, (hn, cn) = self.layer(x, (h, c))
        return output, hn, cn


def stack(size: int, layers: int = 1) -> SymLSTM:
    torch.manual_seed(1)
    return SymLSTM(size, size, layers, symm="avg", symm_ih="ifgo").eval()


def example(size: int, layers: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(2)
    x = torch.randn(1, 1, size)
    h, c = (torch.randn(layers, 1, size).tanh() / 2 for _ in "hc")
    return x, h, c


def exported(step: Step, size: int, layers: int = 1) -> Any:
    """A program for any time and batch."""
    x, h, c = example(size, layers)
    given = x.repeat(3, 2, 1), h.repeat(1, 2, 1), c.repeat(1, 2, 1)
    steps, batch = (torch.export.Dim(name) for name in ("time", "batch"))
    shapes = ({0: steps, 1: batch}, {1: batch}, {1: batch})
    with free_time(), torch.no_grad():
        return torch.export.export(step, given, dynamic_shapes=shapes)


def compiled_ahead(program: Any, path: Path) -> Path:
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return path


def layer_tables(size: int, seconds: float, folder: Path, with_onnx: bool) -> list[str]:
    eager = stack(size)
    x, h, c = example(size)
    packed, plain = (Step(symrnn.deploy(eager, form)) for form in ("packed", "plain"))
    doors = Doors(folder, str(size), (x, h, c))
    doors.pickled("nn.LSTM", Step(eager.to_plain().eval()))
    doors.pickled(EAGER, Step(eager))
    doors.pickled("packed", packed)
    doors.add("packed, compiled", torch.compile(packed, fullgraph=True))
    doors.exported("packed, exported", exported(packed, size))
    path = compiled_ahead(exported(packed, size), folder / f"{size}.aoti.pt2")
    doors.opened("packed, AOTInductor", path, lambda: torch._inductor.aoti_load_package(str(path)))
    doors.exported("plain, exported", exported(plain, size))
    if with_onnx:
        written = folder / f"{size}.onnx"
        write_onnx(plain, written, x, h, c)
        doors.opened("ONNX Runtime", written, lambda: onnx_function(written))
    for dtype in DTYPES:
        doors.runtime(f"C runtime, {dtype}", eager, dtype)
        doors.add(f"kernel, {dtype}", kernel(eager, dtype, x, h, c))
    with torch.inference_mode():
        outputs = {name: _output(call()) for name, call in doors.calls.items()}
        peers = [Peer(name, call) for name, call in doors.calls.items()]
        times = {one.stmt: statistics.median(one.times) for one in in_blocks(peers, seconds)}
    rows = [
        [
            name,
            f"{1e3 * doors.seconds[name]:.1f}" if name in doors.seconds else "–",
            f"{1e6 * times[name]:,.1f}",
            f"{times[name] / times[EAGER]:.3f}",
            f"{doors.files[name].stat().st_size / 2**20:.1f}" if name in doors.files else "–",
            f"{float((outputs[name] - outputs[EAGER]).abs().max()):.2g}",
        ]
        for name in doors.calls
    ]
    head = ["door", "opens, ms", "µs a step", f"of {EAGER}", "file, MiB", "largest difference"]
    return [f"## Layer, H = {size}", table(head, rows)]


class Doors:
    """The ways out of one layer: what is called, what it was opened from, and how long that took.

    given: the input and the state that all are called with.
    """

    def __init__(self, folder: Path, name: str, given: tuple[Tensor, Tensor, Tensor]) -> None:
        self.folder, self.name, self.given = folder, name, given
        self.calls: dict[str, Callable[[], Any]] = {}
        self.files: dict[str, Path] = {}
        self.seconds: dict[str, float] = {}

    def add(self, name: str, function: Callable[..., Any]) -> None:
        self.calls[name] = partial(function, *self.given)

    def opened(self, name: str, path: Path, open_it: Callable[[], Callable[..., Any]]) -> None:
        started = time.perf_counter()
        function = open_it()
        self.seconds[name], self.files[name] = time.perf_counter() - started, path
        self.add(name, function)

    def pickled(self, name: str, step: Step) -> None:
        path = self.folder / f"{self.name}-{len(self.files)}.pt"
        torch.save(step.layer, path)
        self.opened(name, path, lambda: Step(torch.load(path, weights_only=False)))

    def exported(self, name: str, program: Any) -> None:
        path = self.folder / f"{self.name}-{len(self.files)}.pt2"
        torch.export.save(program, path)
        self.opened(name, path, lambda: torch.export.load(path).module())

    def runtime(self, name: str, layer: SymLSTM, dtype: str) -> None:
        """A step of the C runtime, the first of which is from the given state."""
        from symrnn import runtime

        path = self.folder / f"{self.name}-{dtype}.symrnn"
        symrnn.save_runtime(layer, path, dtype=getattr(torch, dtype))
        x, h, c = self.given
        run, output = runtime_library().symrnn_run_vectors, torch.empty(x.size(-1))

        def open_it() -> Callable[..., Tensor]:
            session = runtime.open(path).session()
            session.state = h.numpy(), c.numpy()
            arguments = session._pointer, 1, x.data_ptr(), 1, output.data_ptr()

            def step(*_: Tensor, _alive: Any = session) -> Tensor:
                native.check(run(*arguments))
                return output

            return step

        self.opened(name, path, open_it)


def _output(result: Any) -> Tensor:
    first = result[0] if isinstance(result, tuple | list) else result
    return torch.as_tensor(first).flatten().clone()


def write_onnx(step: Step, path: Path, x: Tensor, h: Tensor, c: Tensor) -> None:
    with torch.no_grad():
        torch.onnx.export(
            step, (x, h, c), path, input_names=["x", "h", "c"], opset_version=OPSET, dynamo=False
        )


def onnx_function(path: Path) -> Callable[..., Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x, h, c: session.run(None, {"x": x.numpy(), "h": h.numpy(), "c": c.numpy()})


def kernel(layer: SymLSTM, dtype: str, x: Tensor, h: Tensor, c: Tensor) -> Callable[..., Tensor]:
    """A step of the kernels, the first of which is from the given state."""
    low = stack(x.size(-1))
    low.load_state_dict(layer.state_dict())
    low.inference_dtype = DTYPES[dtype]
    stream = low.stream()
    stream.state = (h, c)
    advance, result = native.library().symrnn_advance, torch.empty(1, 1, x.size(-1))
    given = stream._bound.address, 1, 1, x.data_ptr(), None, result.data_ptr(), 1

    def step(*_: Tensor, _alive: Any = stream) -> Tensor:
        native.check(advance(*given))
        return result

    return step


# ---- a language model --------------------------------------------------------------------------


def language_model() -> LanguageModel:
    recipe = SIZES["small"]
    torch.manual_seed(1)
    model = LanguageModel(VOCABULARY, recipe.embedding_size, recipe.hidden_size, recipe.num_layers)
    model.initialize(recipe.init_range)
    return model.eval()


def language_tables(options: argparse.Namespace, folder: Path) -> list[str]:
    from symrnn import runtime
    from symrnn.runtime_file import Words

    model = language_model()
    words = Words("word", ["<eos>", *(f"w{k}" for k in range(1, VOCABULARY))], 0, None)
    program = compiled_example("generate", folder)
    doors: dict[str, Callable[[], float]] = {}
    firsts: dict[str, list[str]] = {}
    files: dict[str, int] = {}
    doors["lm.generate"] = partial(by_torch, model.deployed(), options.tokens)
    for dtype in DTYPES:
        path = folder / f"language-{dtype}.symrnn"
        symrnn.save_runtime(
            model.rnn,
            path,
            dtype=getattr(torch, dtype),
            embedding=model.encoder,
            linear=model.decoder,
            words=words,
        )
        name = f"symrnn.runtime, {dtype}"
        files[name] = path.stat().st_size
        doors[name] = partial(by_python, runtime.open(path), options.tokens)
        code = f"from symrnn import runtime; m = runtime.open({str(path)!r}); "
        firsts[name] = [
            sys.executable,
            "-c",
            code + "print(next(iter(m.session().generate('', 1, seed=1))))",
        ]
        if program is not None:
            command = [str(program), str(path), "--seed", "1", "--tokens"]
            doors[f"generate.c, {dtype}"] = partial(by_c, command, options.tokens)
            firsts[f"generate.c, {dtype}"] = [*command, "1"]
            files[f"generate.c, {dtype}"] = files[name]
    speeds: dict[str, list[float]] = {name: [] for name in doors}
    for _ in tqdm(range(options.rounds), "language", leave=False, disable=None):
        for name, door in doors.items():
            speeds[name].append(options.tokens / door())
    median = {name: statistics.median(own) for name, own in speeds.items()}
    starts = {name: first_token(command, options.rounds) for name, command in firsts.items()}
    rows = [
        [
            name,
            f"{median[name]:,.0f}",
            f"{median[name] / median['lm.generate']:.2f}",
            f"{1e3 * starts[name]:.1f}" if name in starts else "–",
            f"{files[name] / 2**20:.1f}" if name in files else "–",
        ]
        for name in doors
    ]
    head = ["door", "tokens a second", "of lm.generate", "first token, ms", "file, MiB"]
    library = native.PATH.stat().st_size / 2**20
    return [
        "## Language model",
        table(head, rows),
        f"The library of the kernels and the runtime: {library:.2f} MiB.{_size_of_onnx_runtime()}",
    ]


def _size_of_onnx_runtime() -> str:
    """A sentence on the libraries of that package, if it is installed."""
    found = importlib.util.find_spec("onnxruntime")
    if found is None or found.origin is None:
        return ""
    files = Path(found.origin).parent.rglob("*.so*")
    return f" Those of ONNX Runtime: {sum(f.stat().st_size for f in files) / 2**20:.1f} MiB."


def by_torch(model: LanguageModel, tokens: int) -> float:
    generator = torch.Generator().manual_seed(1)
    stream = generate(
        model, [0], tokens + 1, partial(draw, generator=generator), precision=nullcontext
    )
    next(stream)
    started = time.perf_counter()
    for _ in stream:
        pass
    return time.perf_counter() - started


def by_python(model: Any, tokens: int) -> float:
    stream = iter(model.session().generate("", tokens + 1, seed=1))
    next(stream)
    started = time.perf_counter()
    for _ in stream:
        pass
    return time.perf_counter() - started


def by_c(command: list[str], tokens: int) -> float:
    """The time of so many tokens beyond the first."""
    one, all = (_run([*command, str(count)]) for count in (1, tokens + 1))
    return all - one


def _run(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env=_environment())
    return time.perf_counter() - started


def first_token(command: list[str], rounds: int) -> float:
    _run(command)
    return statistics.median(_run(command) for _ in range(rounds))


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def compiled_example(name: str, folder: Path) -> Path | None:
    """One of docs/examples; None, and a word, where there is no C compiler."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        print(f"{compiler[0]}: no C compiler, so the programs in C are left out", file=sys.stderr)
        return None
    program = folder / name
    source = ROOT / "docs" / "examples" / f"{name}.c"
    library = native.PATH
    subprocess.run(
        [
            *(*compiler, "-O2", f"-I{library.parent}", str(source), str(library), "-lm"),
            *(f"-Wl,-rpath,{library.parent}", "-o", str(program)),
        ],
        check=True,
    )
    return program


# ---- a worker ----------------------------------------------------------------------------------

# What each worker imports, and what it does then with a file, {path}, and numbers for inputs.
_TORCH = "import torch; torch.set_num_threads(1); torch.set_grad_enabled(False)"
_STATE = "x, s = torch.ones(1, 1, {size}), torch.zeros(2, 1, {size}); "
WORKERS = {
    "nn.LSTM, torch.load": (
        _TORCH,
        _STATE + "m = torch.load({path!r}, weights_only=False); m(x, (s, s))",
    ),
    "eager, torch.load": (
        f"{_TORCH}; import symrnn; symrnn.SymLSTM",
        _STATE + "m = torch.load({path!r}, weights_only=False); m(x, (s, s))",
    ),
    "packed, torch.load": (
        f"{_TORCH}; import symrnn; symrnn.SymLSTM",
        _STATE + "m = torch.load({path!r}, weights_only=False); m(x, (s, s))",
    ),
    "packed, AOTInductor": (
        f"{_TORCH}; import torch._inductor.package; from symrnn.native.torch import load; load()",
        _STATE + "m = torch._inductor.aoti_load_package({path!r}); m(x, s, s)",
    ),
    "ONNX Runtime": (
        "import numpy as np; import onnxruntime",
        "x, s = np.ones((1, 1, {size}), 'f'), np.zeros((2, 1, {size}), 'f'); "
        "m = onnxruntime.InferenceSession({path!r}); m.run(None, dict(x=x, h=s, c=s))",
    ),
    "symrnn.runtime": (
        "import numpy as np; from symrnn import runtime",
        "m = runtime.open({path!r}).session(); m.step(np.ones((1, 1, {size}), 'f'))",
    ),
}
_RESIDENT = (
    "import json; print(json.dumps({k: int(v.split()[0]) for k, v in "
    "(line.split(':') for line in open('/proc/self/status')) if k == 'VmRSS'}))"
)


def worker_tables(folder: Path, with_onnx: bool) -> list[str]:
    eager = stack(WORKER, 2)
    x, h, c = example(WORKER, 2)
    packed = Step(symrnn.deploy(eager, "packed"))
    files: dict[str, Path] = {}
    steps = {
        "nn.LSTM, torch.load": Step(symrnn.deploy(eager, "plain")),
        "eager, torch.load": Step(eager),
        "packed, torch.load": packed,
    }
    for name, step in steps.items():
        files[name] = folder / f"worker-{len(files)}.pt"
        torch.save(step.layer, files[name])
    files["packed, AOTInductor"] = compiled_ahead(
        exported(packed, WORKER, 2), folder / "worker.aoti.pt2"
    )
    if with_onnx:
        files["ONNX Runtime"] = folder / "worker.onnx"
        write_onnx(steps["nn.LSTM, torch.load"], files["ONNX Runtime"], x, h, c)
    runtimes = {}
    for dtype in DTYPES:
        path = folder / f"worker-{dtype}.symrnn"
        symrnn.save_runtime(eager, path, dtype=getattr(torch, dtype))
        runtimes[f"symrnn.runtime, {dtype}"] = path
    rows = []
    memory: dict[str, float] = {}
    for name, path in {**files, **runtimes}.items():
        first, then = WORKERS["symrnn.runtime" if name in runtimes else name]
        code = then.format(path=str(path), size=WORKER)
        bare, whole = resident(first), resident(f"{first}; {code}")
        memory[name] = whole - bare
        size = path.stat().st_size / 2**20
        rows.append([name, f"{whole:,.0f} ({whole - bare:,.0f})", f"{size:.1f}"])
    for row, name in zip(rows, memory, strict=True):
        row.insert(2, f"{memory[name] / memory['nn.LSTM, torch.load']:.2f}")
    head = ["worker", "resident, MiB", "of nn.LSTM's", "file, MiB"]
    return [f"## Worker, two layers, H = {WORKER}", table(head, rows)]


def resident(code: str) -> float:
    """MiB of a new Python process after it ran some code."""
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}; {_RESIDENT}"],
        capture_output=True, text=True, check=True, env=_environment(),
    )  # fmt: skip
    return float(json.loads(ended.stdout.splitlines()[-1])["VmRSS"]) / 1024


if __name__ == "__main__":
    main()
