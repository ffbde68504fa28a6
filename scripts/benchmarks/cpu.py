"""The fused symmetric LSTM on a CPU, beside PyTorch's, ONNX Runtime's and the TorchScript cell.

    python scripts/benchmarks/cpu.py
    python scripts/benchmarks/cpu.py --quick --sizes 650 --only forward
    python scripts/benchmarks/cpu.py --against ../before        # another checkout, see trees.py
    scripts/env pip install -c constraints.txt -e '.[bench]'    # for ONNX Runtime, once

One layer with as many inputs as hidden units (H); T steps, batch B. All peers compute the same
function: the weights are symmetric, hidden and input, in the form `avg`, and peers that do not know
of symmetry get them as full matrices. "Fused hidden" makes use of the symmetry of the hidden
weights alone, "fused both" of that of the input weights too; "bf16" stores the packed weights in
bfloat16. Before the time is taken, the outputs and last states of all are compared.

In turn, each peer makes a block of calls: first some to warm up, so that its own weights are in the
cache as they are when a text is generated, then 40 ms of calls, five at least, each timed by
itself. A call of 20 to 100 ms is warmed up once and timed twice, a longer one is just timed once.
Rounds of such blocks, each beginning with another peer, go on for as many seconds as `--seconds`
says, and three rounds at least; a figure is the median over all calls of all rounds.

After a call the threads of OpenMP go on spinning for some 5 ms and those of ONNX Runtime for some
40 ms, which would take a core from the next peer: before each block the script sleeps until the
process has used no processor time for 12 ms.

ONNX Runtime's session runs sequentially with as many threads as torch has and spins as it does by
default; `session.run` takes and gives NumPy arrays, as users call it. `nn.LSTMCell` is called for
each step from Python and its outputs are stacked. Inference runs in `torch.inference_mode`. A
training step is forward, and backward from ones to input and weights; before each, untimed, the
gradients are dropped and every parameter is changed in place (by 0), as an optimizer would.
"Autocast" is the forward pass under autocast to bfloat16, with the gradient that this gives; there
the goal is for the better of nn.LSTM with it and without.
Training is measured last, with the C library asked to keep freed memory, as `lm.train` does;
everything else with the C library as it is.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import trees
from report import ROOT, explanation, make_parser, table, write_report
from timing import Call, Peer, in_blocks, lap, quartiles
from torch import Tensor, nn
from tqdm import tqdm

from symrnn import SymLSTM, native
from symrnn.training import environment, keep_freed_memory, set_threads

SIZES = (200, 650, 1024, 1500, 2048)
SHAPES = ((1, 1), (35, 1), (35, 4), (35, 20))
TRAINING_SHAPE = (35, 20)
PARTS = ("forward", "bandwidth", "training")

LSTM, CELL, ONNX, SCRIPT = "nn.LSTM", "nn.LSTMCell", "ONNX Runtime", "script"
HIDDEN, BOTH = "fused hidden", "fused both"
HIDDEN_BF16, BOTH_BF16 = f"{HIDDEN}, bf16", f"{BOTH}, bf16"
LSTM_AUTOCAST = f"{LSTM}, autocast"
HIDDEN_AUTOCAST, BOTH_AUTOCAST = f"{HIDDEN}, autocast", f"{BOTH}, autocast"
AUTOCAST = (LSTM_AUTOCAST, HIDDEN_AUTOCAST, BOTH_AUTOCAST)
FUSED = (HIDDEN, HIDDEN_BF16, BOTH, BOTH_BF16)

TOLERANCE = 1e-5  # outputs and states of float32 weights, largest difference to nn.LSTM's
BF16_TOLERANCE = 2e-2  # those of bfloat16 weights: only what is plainly wrong; the table has more
GRADIENT_TOLERANCE = 1e-4  # the input's gradient, as a share of its largest entry
AUTOCAST_TOLERANCE = 5e-2  # that of bfloat16 products

SHARE = 0.85  # of the bandwidth of a plain read, for sizes from SHARE_FROM
SHARE_FROM = 650
READS = [2**k for k in range(18, 28)]  # bytes, 256 KiB to 128 MiB
SQUARE = 512  # side of the matrices whose product is the measured peak


class Goal(NamedTuple):
    """The least ratios of a peer's time to ours at two threads; None where none is set."""

    part: str
    size: int
    shape: tuple[int, int]
    ours: str
    onnx: float | None
    lstm: float | None


GOALS = [
    Goal("forward", 1500, (1, 1), HIDDEN, 1.5, 20),
    Goal("forward", 1500, (1, 1), BOTH, 3, 40),
    Goal("forward", 1500, (1, 1), BOTH_BF16, 8, None),
    Goal("forward", 1500, (35, 1), HIDDEN, 2.2, 5),
    Goal("forward", 650, (1, 1), HIDDEN, 1.3, 5),
    Goal("forward", 650, (35, 1), HIDDEN, 1.3, 5),
    Goal("forward", 200, (1, 1), HIDDEN, 0.8, 5),
    *(Goal("forward", size, (35, 20), HIDDEN, None, 1) for size in SIZES),
    *(Goal("training", size, (35, 20), HIDDEN, None, 1) for size in SIZES),
    *(Goal("training", size, (35, 20), HIDDEN_AUTOCAST, None, 1.8) for size in (650, 1500)),
]
GOAL_THREADS = 2

# For --against: what a layer of each tree is asked for.
CASES = [
    trees.Case("LSTM", "avg", backend, size, *shape, train=train, both=both, bf16=bf16)
    for train, shapes in ((False, ((1, 1), (35, 1), (35, 20))), (True, (TRAINING_SHAPE,)))
    for size in (64, 200, 650, 1500)
    for shape in shapes
    for backend in ("fused", "auto")
    for both in (False, True)
    for bf16 in ((False, True) if backend == "fused" and not train else (False,))
]

# ---- the peers ---------------------------------------------------------------------------------


def symmetric_lstm(size: int) -> nn.LSTM:
    """An nn.LSTM whose hidden and input weights are symmetric."""
    torch.manual_seed(size)
    return SymLSTM(size, size, symm="avg", symm_ih="ifgo").to_lstm()


def fused(plain: nn.LSTM, name: str) -> SymLSTM:
    symm_ih = "ifgo" if name in (BOTH, BOTH_BF16) else ""
    layer = SymLSTM.from_lstm(plain, "avg", symm_ih=symm_ih, backend="fused")
    if name in (HIDDEN_BF16, BOTH_BF16):
        layer.inference_dtype = torch.bfloat16
    return layer


def cell_loop(plain: nn.LSTM) -> Callable[[Tensor, tuple[Tensor, Tensor]], Any]:
    """nn.LSTMCell with the weights of an nn.LSTM, called step by step."""
    cell = nn.LSTMCell(plain.input_size, plain.hidden_size, device="meta")
    for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        setattr(cell, name, getattr(plain, f"{name}_l0"))

    def run(x: Tensor, state: tuple[Tensor, Tensor]) -> Any:
        h, c = state[0][0], state[1][0]
        outputs = []
        for step in x:
            h, c = cell(step, (h, c))
            outputs.append(h)
        return torch.stack(outputs), (h[None], c[None])

    return run


def onnx_model(plain: nn.LSTM) -> bytes:
    """An ONNX model of one LSTM operator with the weights of an nn.LSTM."""
    from onnx import TensorProto, helper, numpy_helper

    def iofc(name: str) -> Tensor:  # PyTorch's gates are i f g o
        i, f, g, o = getattr(plain, name).detach().chunk(4)
        return torch.cat([i, o, f, g])

    weights = {
        "W": iofc("weight_ih_l0"),
        "R": iofc("weight_hh_l0"),
        "B": torch.cat([iofc("bias_ih_l0"), iofc("bias_hh_l0")]),
    }
    size = plain.hidden_size
    shapes = {
        "x": ("T", "B", plain.input_size),
        "h0": (1, "B", size),
        "c0": (1, "B", size),
        "output": ("T", 1, "B", size),
        "hn": (1, "B", size),
        "cn": (1, "B", size),
    }
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    ]
    node = helper.make_node(
        "LSTM", ["x", "W", "R", "B", "", "h0", "c0"], ["output", "hn", "cn"], hidden_size=size
    )
    tensors = [numpy_helper.from_array(w[None].numpy(), name) for name, w in weights.items()]
    graph = helper.make_graph([node], "lstm", values[:3], values[3:], tensors)
    opset = [helper.make_opsetid("", 14)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def onnx_session(model: bytes, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def onnx_version() -> str | None:
    """The version of ONNX Runtime, or None, with a word about it, where it is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        print(
            f"{error}: ONNX Runtime is left out; to have it among the peers: "
            "pip install -c constraints.txt -e '.[bench]'",
            file=sys.stderr,
        )
        return None
    return str(onnxruntime.__version__)


# ---- the parts of the run ----------------------------------------------------------------------


class Run:
    """What is asked for, and what has been measured so far."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.onnx = onnx_version() if "forward" in options.only else None
        self.result: dict[str, Any] = {
            "forward": [],
            "training": [],
            "bandwidth": [],
            "errors": [],
            "roofs": [],
        }
        sizes, threads = len(options.sizes), len(options.threads)
        cases = {"forward": sizes * threads * len(SHAPES), "training": sizes * threads}
        cases["bandwidth"] = 2 * sizes * threads + threads
        self.bar = tqdm(
            total=sum(cases[part] for part in options.only),
            unit="case",
            leave=False,
            dynamic_ncols=True,
            disable=None,
        )

    def measure(self, what: str, peers: list[Peer], share: float = 1) -> Any:
        """share: of the time that a case has."""
        self.bar.set_description(what)
        times = in_blocks(peers, share * self.options.seconds, self.options.rounds)
        self.bar.update()
        found = {}
        for one in times:
            low, middle, high = (1e6 * value for value in quartiles(one.times))
            calls = len(one.times)
            found[one.stmt] = {"us": middle, "low": low, "high": high, "calls": calls}
        return found

    def forward(self) -> None:
        for size in self.options.sizes:
            plain = symmetric_lstm(size).eval()
            layers: dict[str, Any] = {
                LSTM: plain,
                CELL: cell_loop(plain),
                SCRIPT: SymLSTM.from_lstm(plain, "avg", backend="script"),
                **{name: fused(plain, name) for name in FUSED},
            }
            model = onnx_model(plain) if self.onnx else b""
            with torch.inference_mode():
                self.errors(size, layers)
                for threads in self.options.threads:
                    set_threads(threads)
                    session = onnx_session(model, threads) if self.onnx else None
                    for shape in SHAPES:
                        self.forward_case(size, threads, shape, layers, session)

    def forward_case(
        self, size: int, threads: int, shape: tuple[int, int], layers: dict[str, Any], session: Any
    ) -> None:
        steps, batch = shape
        x, *state = inputs(size, steps, batch)
        peers = [
            Peer(name, lambda layer=layer: layer(x, tuple(state)))  # type: ignore[misc]
            for name, layer in layers.items()
        ]
        if session is not None:
            feed = {"x": x.numpy(), "h0": state[0].numpy(), "c0": state[1].numpy()}
            peers.insert(2, Peer(ONNX, lambda: session.run(None, feed)))
        compare(peers, f"H = {size}, T = {steps}, B = {batch}, threads = {threads}")
        times = self.measure(f"H = {size}, ({steps}, {batch})", peers)
        for peer in peers:
            self.result["forward"].append(
                {
                    "threads": threads,
                    "H": size,
                    "T": steps,
                    "B": batch,
                    "peer": peer.name,
                    **times[peer.name],
                    "flops": 16 * size * size * steps * batch,
                    "weight_bytes": weight_bytes(peer.name, size, steps),
                }
            )

    def errors(self, size: int, layers: dict[str, Any]) -> None:
        """What bfloat16 weights change in the outputs of 35 steps."""
        x, *state = inputs(size, *TRAINING_SHAPE)
        exact = layers[LSTM](x, tuple(state))[0]
        for name in FUSED:
            error = layers[name](x, tuple(state))[0] - exact
            self.result["errors"].append(
                {
                    "H": size,
                    "peer": name,
                    "largest": float(error.abs().max()),
                    "relative": float(error.norm() / exact.norm()),
                }
            )

    def training(self) -> None:
        keep_freed_memory()
        steps, batch = TRAINING_SHAPE
        for size in self.options.sizes:
            plain = symmetric_lstm(size)
            layers = {LSTM: plain, HIDDEN: fused(plain, HIDDEN), BOTH: fused(plain, BOTH)}
            layers |= dict(zip(AUTOCAST, layers.values(), strict=True))
            peers, gradients = [], []
            for name, layer in layers.items():
                x = inputs(size, steps, batch)[0].requires_grad_()
                peer = Peer(name, *training_step(layer, x, name in AUTOCAST))
                lap(peer)
                gradients.append(x.grad)
                peers.append(peer)
            largest = float(gradients[0].abs().max())
            for peer, gradient in zip(peers, gradients, strict=True):
                error = float((gradient - gradients[0]).abs().max()) / largest
                autocast = peer.name in AUTOCAST
                if not error <= (AUTOCAST_TOLERANCE if autocast else GRADIENT_TOLERANCE):
                    sys.exit(f"H = {size}: the gradient of {peer.name} is off by {error:.1e}")
            for threads in self.options.threads:
                set_threads(threads)
                times = self.measure(f"H = {size}, training", peers)
                for name in layers:
                    self.result["training"].append(
                        {
                            "threads": threads,
                            "H": size,
                            "T": steps,
                            "B": batch,
                            "peer": name,
                            **times[name],
                        }
                    )

    def bandwidth(self) -> None:
        """The symmetric product of four gates at batch 1 against a plain read of its matrices."""
        for size in self.options.sizes:
            for dtype in (torch.float32, torch.bfloat16):
                packed = pack(size, dtype)
                for threads in self.options.threads:
                    peers = [product(packed, size, threads), read(packed, threads, "read")]
                    times = self.measure(f"H = {size}, product", peers, 1 / 8)
                    bytes_ = packed.nbytes * repeats(packed.nbytes)
                    self.result["bandwidth"].append(
                        {
                            "threads": threads,
                            "H": size,
                            "dtype": str(dtype).removeprefix("torch."),
                            "bytes": packed.nbytes,
                            "product": bytes_ / times["product"]["us"] / 1e3,
                            "read": bytes_ / times["read"]["us"] / 1e3,
                        }
                    )
        for threads in self.options.threads:
            self.roofs(threads)

    def roofs(self, threads: int) -> None:
        """How fast memory of many sizes is read, and torch multiplies matrices."""
        set_threads(threads)
        memory = torch.ones(max(READS) // 4)
        peers = [read(memory[: count // 4], threads, str(count)) for count in READS]
        a, b = torch.randn(2, SQUARE, SQUARE)
        peers.append(Peer("product", lambda: a @ b))
        times = self.measure("roofs", peers, 1 / 2)
        self.result["roofs"].append(
            {
                "threads": threads,
                "gflops": 2 * SQUARE**3 / times["product"]["us"] / 1e3,
                "reads": [
                    {
                        "bytes": count,
                        "gbs": count * repeats(count) / times[str(count)]["us"] / 1e3,
                    }
                    for count in READS
                ],
            }
        )


def inputs(size: int, steps: int, batch: int) -> list[Tensor]:
    """x (T, B, I), normally distributed, and h and c (1, B, H), as large as such states are."""
    torch.manual_seed(steps * batch)
    return [torch.randn(steps, batch, size), *torch.randn(2, 1, batch, size).tanh() / 2]


def training_step(layer: nn.Module, x: Tensor, autocast: bool) -> tuple[Call, Call]:
    """Forward and backward from ones; and what is done before it."""
    parameters = list(layer.parameters())
    ones = torch.ones(*x.shape[:2], layer.hidden_size)

    def prepare() -> None:
        x.grad = None
        with torch.no_grad():
            for parameter in parameters:
                parameter.grad = None
                parameter.add_(0)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = layer(x)[0]
        output.backward(ones.to(output.dtype))

    return step, prepare


def compare(peers: list[Peer], where: str) -> None:
    """Exit unless the outputs and last states of all peers are those of the first."""

    def results(peer: Peer) -> list[Tensor]:
        output, *state = peer.call()
        parts = [output, *(state[0] if len(state) == 1 else state)]
        return [torch.as_tensor(part).flatten() for part in parts]

    exact = results(peers[0])
    for peer in peers[1:]:
        pairs = zip(results(peer), exact, strict=True)
        error = max(float((part - of_first).abs().max()) for part, of_first in pairs)
        if not error <= (BF16_TOLERANCE if "bf16" in peer.name else TOLERANCE):
            sys.exit(f"{where}: {peer.name} differs from {peers[0].name} by {error:.1e}")


# ---- native products ---------------------------------------------------------------------------


def kernels() -> ctypes.CDLL:
    lib = native.library()
    if lib is None:
        sys.exit(native.why_not())
    return lib


def weight_bytes(name: str, size: int, steps: int) -> int | None:
    """Bytes of weights that a call reads at the least: hidden ones each step, input ones once.

    None for the scripted cell, which expands its weights on every call.
    """
    if name == SCRIPT:
        return None
    if name not in FUSED:
        return 16 * size * size * (steps + 1)
    symmetric, full = (
        kernels().symrnn_packed_length(s, size, size, 4, native.Dtype.FLOAT) for s in (1, 0)
    )
    item = 2 if name in (HIDDEN_BF16, BOTH_BF16) else 4
    return item * (symmetric * steps + (symmetric if name in (BOTH, BOTH_BF16) else full))


def code(dtype: torch.dtype) -> native.Dtype:
    return native.Dtype.BFLOAT16 if dtype == torch.bfloat16 else native.Dtype.FLOAT


def pack(size: int, dtype: torch.dtype) -> Tensor:
    """Four symmetric matrices, packed."""
    torch.manual_seed(size)
    whole = torch.randn(4, size, size)
    packed = torch.empty(kernels().symrnn_packed_length(1, size, size, 4, code(dtype)), dtype=dtype)
    native.check(
        kernels().symrnn_pack(
            *(1, size, size, 4),
            *(native.Dtype.FLOAT, whole.data_ptr(), size * size, size),
            *(code(dtype), packed.data_ptr(), 1),
        )
    )
    return packed


def repeats(count: int) -> int:
    """How often so many bytes are read in one call: for about 5 ms at 100 GB/s."""
    return math.ceil(5e-3 * 100e9 / count)


def product(packed: Tensor, size: int, threads: int) -> Peer:
    """The matrices of :func:`pack` by one vector."""
    term = native.Term(symmetric=1, rows=size, columns=size, gates=0b1111, packed=packed.data_ptr())
    whole = native.Product(
        dtype=code(packed.dtype),
        gates=4,
        rows=size,
        columns=size,
        terms=1,
        term=ctypes.pointer(term),
    )
    x, y = torch.randn(size), torch.empty(4 * size)
    multiply, repeat = kernels().symrnn_multiply, repeats(packed.nbytes)
    return Peer(
        "product",
        lambda: native.check(multiply(whole, 0, 1, x.data_ptr(), y.data_ptr(), repeat, threads)),
    )


def read(memory: Tensor, threads: int, name: str) -> Peer:
    """A plain read of the memory."""
    total = torch.empty(1)
    again, repeat = kernels().symrnn_read, repeats(memory.nbytes)
    return Peer(
        name,
        lambda: native.check(
            again(memory.data_ptr(), memory.nbytes, repeat, threads, total.data_ptr())
        ),
    )


# ---- the report --------------------------------------------------------------------------------


class Times:
    """The medians of a part of the result, by threads, size, shape and peer."""

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self.us = {(r["threads"], r["H"], (r["T"], r["B"]), r["peer"]): r["us"] for r in records}
        self.cases = list(dict.fromkeys(key[:3] for key in self.us))
        self.peers = list(dict.fromkeys(key[3] for key in self.us))

    def ratio(self, case: tuple[int, int, tuple[int, int]], peer: str, ours: str) -> float | None:
        """The peer's time divided by ours; None if either was not measured."""
        times = self.us.get((*case, peer)), self.us.get((*case, ours))
        return None if times[0] is None or times[1] is None else times[0] / times[1]

    def lstm_ratio(self, case: tuple[int, int, tuple[int, int]], ours: str) -> float | None:
        """As ``ratio`` for nn.LSTM; beside autocast, for the better of it with that and without."""
        peers = (LSTM, LSTM_AUTOCAST) if ours in AUTOCAST else (LSTM,)
        ratios = [self.ratio(case, peer, ours) for peer in peers]
        return min((ratio for ratio in ratios if ratio is not None), default=None)


def threads_in_words(threads: int) -> str:
    return "one thread" if threads == 1 else f"{threads} threads"


def case_in_words(size: int, shape: tuple[int, int]) -> str:
    return f"H = {size}, ({shape[0]}, {shape[1]})"


def number(us: float) -> str:
    return f"{us:,.1f}" if us < 100 else f"{us:,.0f}"


def verdict(value: float | None, goal: float | None) -> list[str]:
    """Cells: what was measured, the goal, whether it is met."""
    if goal is None:
        return ["", "", ""]
    if value is None:
        return ["not measured", f"≥ {goal:g}", ""]
    return [f"{value:.2f}", f"≥ {goal:g}", "met" if value >= goal else "missed"]


def goals_table(parts: dict[str, Times]) -> str | None:
    rows = []
    for goal in GOALS:
        times = parts[goal.part]
        case = (GOAL_THREADS, goal.size, goal.shape)
        ours = times.us.get((*case, goal.ours))
        if ours is None:
            continue
        training = ", forward and backward" if goal.part == "training" else ""
        rows.append(
            [
                f"{case_in_words(goal.size, goal.shape)}{training}, {goal.ours}",
                number(ours),
                *verdict(times.ratio(case, ONNX, goal.ours), goal.onnx),
                *verdict(times.lstm_ratio(case, goal.ours), goal.lstm),
            ]
        )
    header = ["", "ours, µs", "ONNX Runtime / ours", "goal", "", "nn.LSTM / ours", "goal", ""]
    return table(header, rows) if rows else None


def times_table(times: Times, threads: int) -> str:
    rows = []
    for case in times.cases:
        if case[0] == threads:
            cells = [number(times.us[(*case, peer)]) for peer in times.peers]
            rows.append([case_in_words(*case[1:]), *cells])
    return table(["µs", *times.peers], rows)


def ratios_table(times: Times, threads: int, peers: tuple[str, ...], ours: tuple[str, ...]) -> str:
    pairs = [(peer, own) for peer in peers if peer in times.peers for own in ours]
    rows = []
    for case in times.cases:
        if case[0] == threads:
            ratios = [times.ratio(case, *pair) for pair in pairs]
            rows.append([case_in_words(*case[1:]), *(f"{ratio:.2f}" for ratio in ratios)])
    return table(["", *(f"{peer} / {own}" for peer, own in pairs)], rows)


def bandwidth_table(records: list[dict[str, Any]]) -> str:
    rows = []
    for r in sorted(records, key=lambda r: (r["dtype"] != "float32", r["threads"])):
        share = r["product"] / r["read"]
        goal = SHARE if r["H"] >= SHARE_FROM and r["dtype"] == "float32" else None
        rows.append(
            [
                f"{r['dtype']}, {threads_in_words(r['threads'])}, H = {r['H']}",
                f"{r['bytes'] / 2**20:.2f}",
                f"{r['product']:.1f}",
                f"{r['read']:.1f}",
                f"{share:.2f}",
                *verdict(share, goal)[1:],
            ]
        )
    return table(["", "MiB", "product, GB/s", "read, GB/s", "share", "goal", ""], rows)


def reads_table(roofs: list[dict[str, Any]]) -> str:
    header = ["MiB", *(f"{threads_in_words(r['threads'])}, GB/s" for r in roofs)]
    rows = [
        [f"{reads[0]['bytes'] / 2**20:g}", *(f"{one['gbs']:.1f}" for one in reads)]
        for reads in zip(*(r["reads"] for r in roofs), strict=True)
    ]
    return table(header, rows)


def report(result: dict[str, Any], out: Path, notes: str) -> None:
    """The result in words and tables, with the picture if there is enough for one."""
    onnx = result["made"]["onnxruntime"]
    paragraphs = [
        *explanation(__doc__),
        f"ONNX Runtime {onnx}." if onnx else "ONNX Runtime was not measured.",
    ]
    parts = {part: Times(result[part]) for part in ("forward", "training")}
    goals = goals_table(parts)
    if goals:
        paragraphs += [f"## Goals\n\nWith {threads_in_words(GOAL_THREADS)}.", goals]
    threads = list(dict.fromkeys(case[0] for times in parts.values() for case in times.cases))
    times = parts["forward"]
    for count in threads if times.cases else []:
        paragraphs += [
            f"## Forward, {threads_in_words(count)}\n\n"
            f"Microseconds of a call, by (T, B). Outputs and last states of float32 weights are "
            f"those of nn.LSTM to within {TOLERANCE:g}.",
            times_table(times, count),
            "The peer's time divided by ours:",
            ratios_table(times, count, (ONNX, LSTM), FUSED),
        ]
    times = parts["training"]
    for count in threads if times.cases else []:
        paragraphs += [
            f"## Forward and backward, {threads_in_words(count)}",
            times_table(times, count),
            ratios_table(times, count, (LSTM,), (HIDDEN, BOTH)),
            ratios_table(times, count, (LSTM, LSTM_AUTOCAST), (HIDDEN_AUTOCAST, BOTH_AUTOCAST)),
        ]
    if result["bandwidth"]:
        paragraphs += [
            "## Bandwidth of the symmetric product\n\n"
            "The product of all four gates with one vector, in bytes of packed matrices a second, "
            "against a plain read of the same bytes in turn with it.",
            bandwidth_table(result["bandwidth"]),
            "What a plain read of so many bytes reaches, again and again:",
            reads_table(result["roofs"]),
            "`torch.mm` of two matrices of "
            + f"{SQUARE}×{SQUARE}: "
            + ", ".join(
                f"{r['gflops']:.0f} GFLOP/s with {threads_in_words(r['threads'])}"
                for r in result["roofs"]
            )
            + ".",
        ]
    if result["errors"]:
        rows = [
            [f"H = {r['H']}, {r['peer']}", f"{r['largest']:.1e}", f"{r['relative']:.1e}"]
            for r in result["errors"]
        ]
        paragraphs += [
            "## What bfloat16 weights change\n\n"
            "All outputs of 35 steps of a batch of 20, against nn.LSTM in float32: the largest "
            "difference, and the norm of the difference as a share of the outputs'.",
            table(["", "largest", "relative"], rows),
        ]
    if result["forward"] and result["roofs"]:
        path = out.with_name(f"{out.stem}_roofline.png")
        roofline = [ROOT / "scripts/tables/roofline.py", out.with_suffix(".json"), "--out", path]
        subprocess.run([sys.executable, *map(str, roofline)], check=True)
        paragraphs += [
            "## Roofline\n\n"
            "Flops are those of products with the whole matrices, 16·H²·T·B; bytes those of the "
            "weights that a call reads at the least, the hidden ones once a step, the input ones "
            "once a call.",
            f"![GFLOP/s against flops per byte of weights]({path.name})",
        ]
    paragraphs += [notes] if notes else []
    write_report(out, "The fused LSTM on a CPU", paragraphs)


def main() -> None:
    shown = " ".join(map(str, SIZES))
    parser = make_parser(__doc__)
    parser.add_argument("--sizes", nargs="+", type=int, help=f"H ({shown})")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], help="(1 2)")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts of the run (all)"
    )
    parser.add_argument("--seconds", type=float, help="for each case (6; 0.4 with --quick)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one round of few sizes, to see whether it runs (to runs/cpu_quick/)",
    )
    parser.add_argument(
        "--notes",
        type=Path,
        default=Path(__file__).with_name("cpu_notes.md"),
        help="Markdown to end the report with (cpu_notes.md beside this file)",
    )
    parser.add_argument("--out", type=Path, help="(results/cpu.md); .json and .png beside it")
    trees.add_options(parser)
    options = parser.parse_args()
    if options.against:
        options.out = options.out or Path("runs/cpu_against.md")
        trees.compare(CASES, options, max(options.threads))
        return
    quick = options.quick
    options.sizes = options.sizes or ([200, 650] if quick else list(SIZES))
    options.seconds = options.seconds or (0.4 if quick else 6)
    options.rounds = 1 if quick else 3
    out = options.out or Path("runs/cpu_quick/cpu.md" if quick else "results/cpu.md")
    notes = options.notes.read_text(encoding="utf-8").strip()

    kernels()  # or end here
    run = Run(options)
    with run.bar:
        # Training comes last: what it asks of the C library cannot be taken back.
        for part in PARTS:
            if part in options.only:
                getattr(run, part)()
    set_threads(max(options.threads))
    result = {"made": {**environment(), "onnxruntime": run.onnx}, **run.result}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    report(result, out, notes)


if __name__ == "__main__":
    main()
