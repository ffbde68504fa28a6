"""One step of one sequence on a CPU: our layers, ONNX Runtime's, OpenVINO's and PyTorch's.

    python scripts/benchmarks/one_step.py
    python scripts/benchmarks/one_step.py --kinds LSTM --sizes 64 256 --seconds 3
    scripts/env pip install -c constraints.txt -e '.[bench]' openvino    # for the peers, once

One layer with as many inputs as hidden units (H). All weights are symmetric (form `avg`), which
peers that do not know of symmetry get in full. "Hidden" makes use of the symmetry of the hidden
weights, "both" of that of the input weights too. "Stream" is `layer.stream()`, called with a step;
"out" the same with `out=`; "call" is the layer called with a state. "bf16" and "int8" are dtypes of
the stored weights: ours by `inference_dtype`, ONNX Runtime's int8 by its `quantize_dynamic`,
which has no GRU, OpenVINO's bf16 by its hint of the inference precision. `session.run` takes and
gives NumPy arrays, as users call it; OpenVINO's request shares them. Inference in
`torch.inference_mode`. Before the time is taken, the outputs of all are compared.

In turn, each peer makes a block of calls, as in `cpu.py`, each timed by itself; a figure is the
median of all calls.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cpu import onnx_session, onnx_version
from report import explanation, make_parser, table, write_report
from timing import Peer, in_blocks
from torch import Tensor, nn
from tqdm import tqdm

from symrnn import SymGRU, SymLSTM
from symrnn.training import set_threads

SIZES = (64, 128, 256, 384, 512, 650, 1024, 1500)
KINDS: dict[str, tuple[type[SymLSTM] | type[SymGRU], str]] = {
    "LSTM": (SymLSTM, "ifgo"),
    "GRU": (SymGRU, "rzn"),
}
ONNX_ORDER = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2]}  # its i o f c and z r h, of PyTorch's gates
DTYPES = {"": None, ", bf16": torch.bfloat16, ", int8": torch.int8}
# The largest difference of an output: of rounded weights, what is plainly wrong.
TOLERANCE = {"": 1e-5, ", bf16": 3e-2, ", int8": 1e-1}
ONNX, ONNX_INT8 = "ONNX Runtime", "ONNX Runtime, int8"
OPENVINO, OPENVINO_BF16 = "OpenVINO", "OpenVINO, bf16"


def main() -> None:
    parser = make_parser(__doc__, "results/one_step.md")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--seconds", type=float, default=12, help="for each kind and size (12)")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    set_threads(options.threads)
    onnx = onnx_version()
    openvino = openvino_version()
    tables = []
    for kind in options.kinds:
        columns: dict[int, dict[str, float]] = {}
        for size in tqdm(options.sizes, kind, leave=False, disable=None):
            # Parameters made in inference mode count no changes: nothing packed of them is cached.
            peers = peers_of(kind, size, onnx is not None, openvino is not None)
            with torch.inference_mode():
                compare(peers, f"{kind}, H = {size}")
                measured = in_blocks(peers, options.seconds)
            columns[size] = {one.stmt: 1e6 * statistics.median(one.times) for one in measured}
        names = list(dict.fromkeys(name for column in columns.values() for name in column))
        head = [str(size) for size in columns]
        micros = [
            [
                name,
                *(f"{column[name]:,.1f}" if name in column else "–" for column in columns.values()),
            ]
            for name in names
        ]
        tables += [f"## {kind}, µs a step", table([f"{kind}, H =", *head], micros)]
        for other in (ONNX, ONNX_INT8, "nn"):
            if not any(other in column for column in columns.values()):
                continue
            rows = [
                [name, *(f"{column[other] / column[name]:.2f}" for column in columns.values())]
                for name in names
                if name != other
            ]
            title = f"nn.{kind}" if other == "nn" else other
            tables += [f"### {title} by", table([f"{kind}, H =", *head], rows)]
    versions = (
        f"ONNX Runtime {onnx or 'was not measured'}; OpenVINO {openvino or 'was not measured'}."
    )
    write_report(
        options.out, "One step of one sequence", [*explanation(__doc__), versions, *tables], seed=1
    )


def openvino_version() -> str | None:
    try:
        import openvino
    except ImportError as error:
        print(f"{error}: OpenVINO is left out", file=sys.stderr)
        return None
    return str(openvino.__version__).partition("-")[0]


def peers_of(kind: str, size: int, with_onnx: bool, with_openvino: bool) -> list[Peer]:
    layer, gates = KINDS[kind]
    torch.manual_seed(1)
    both = layer(size, size, symm="avg", symm_ih=gates).eval()
    plain = both.to_plain()
    x = torch.randn(1, size)
    state = [torch.randn(1, 1, size).tanh() / 2 for _ in both.STATES]
    hx: Any = tuple(state) if len(state) == 2 else state[0]
    peers = [Peer("nn", lambda: plain(x[None], hx)[0])]
    if with_onnx:
        peers += onnx_peers(kind, plain, x, state)
    if with_openvino:
        peers += openvino_peers(kind, plain, x, state)
    for name, symm_ih in (("hidden", ""), ("both", gates)):
        for suffix, dtype in DTYPES.items():
            ours = layer.from_plain(plain, "avg", symm_ih=symm_ih, backend="fused").eval()
            ours.inference_dtype = dtype
            stream = ours.stream()
            peers.append(Peer(f"{name}{suffix}: stream", streaming(stream, x, hx)))
            if name == "both":
                out = torch.empty(1, size)
                stream = ours.stream()
                peers.append(
                    Peer(f"{name}{suffix}: stream, out", streaming(stream, x, hx, out=out))
                )
            peers.append(Peer(f"{name}{suffix}: call", lambda ours=ours: ours(x[None], hx)[0]))
    return peers


def streaming(stream: Any, x: Tensor, hx: Any, **options: Tensor) -> Callable[[], Tensor]:
    stream.state = hx  # for the first call, whose output is compared
    return lambda: stream(x, **options)


def compare(peers: list[Peer], where: str) -> None:
    """Exit unless the outputs of all peers are those of the first, as far as their weights are."""
    exact = torch.as_tensor(peers[0].call()).flatten()
    for peer in peers[1:]:
        error = float((torch.as_tensor(peer.call()).flatten() - exact).abs().max())
        kind = next((name for name in TOLERANCE if name and name in peer.name), "")
        if not error <= TOLERANCE[kind]:
            sys.exit(f"{where}: {peer.name} differs from {peers[0].name} by {error:.1e}")


def onnx_model(kind: str, plain: nn.LSTM | nn.GRU) -> Any:
    """An ONNX model of one operator with the weights of PyTorch's layer."""
    from onnx import TensorProto, helper, numpy_helper

    def ordered(name: str) -> Tensor:
        gates = getattr(plain, name).detach().chunk(len(ONNX_ORDER[kind]))
        return torch.cat([gates[k] for k in ONNX_ORDER[kind]])

    weights = {
        "W": ordered("weight_ih_l0"),
        "R": ordered("weight_hh_l0"),
        "B": torch.cat([ordered("bias_ih_l0"), ordered("bias_hh_l0")]),
    }
    size = plain.hidden_size
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    given = {"x": (1, 1, size), **{f"{s}0": (1, 1, size) for s in states}}
    made = {"output": (1, 1, 1, size), **{f"{s}n": (1, 1, size) for s in states}}
    values = [
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in of.items()
        ]
        for of in (given, made)
    ]
    options = {"linear_before_reset": 1} if kind == "GRU" else {}
    node = helper.make_node(
        kind, ["x", "W", "R", "B", "", *list(given)[1:]], list(made), hidden_size=size, **options
    )
    tensors = [numpy_helper.from_array(w[None].numpy(), name) for name, w in weights.items()]
    graph = helper.make_graph([node], kind, *values, tensors)
    opset = [helper.make_opsetid("", 14)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8)


def feed_of(x: Tensor, state: list[Tensor]) -> dict[str, Any]:
    names = [f"{letter}0" for letter in "hc"[: len(state)]]
    return {"x": x[None].numpy(), **{n: s.numpy() for n, s in zip(names, state, strict=True)}}


def onnx_peers(kind: str, plain: Any, x: Tensor, state: list[Tensor]) -> list[Peer]:
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    model, feed = onnx_model(kind, plain), feed_of(x, state)
    models = {ONNX: model.SerializeToString()}
    if kind == "LSTM":
        logging.disable()  # it would recommend steps that one operator has no use for
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / name for name in ("float.onnx", "int8.onnx")]
            onnx.save(model, paths[0])
            quantize_dynamic(*paths, per_channel=True, op_types_to_quantize=["LSTM"])
            models[ONNX_INT8] = paths[1].read_bytes()
        logging.disable(logging.NOTSET)
    peers = []
    for name, one in models.items():
        session = onnx_session(one, torch.get_num_threads())
        peers.append(Peer(name, lambda session=session: session.run(None, feed)[0]))
    return peers


def openvino_peers(kind: str, plain: Any, x: Tensor, state: list[Tensor]) -> list[Peer]:
    import openvino

    core, feed = openvino.Core(), feed_of(x, state)
    model = core.read_model(onnx_model(kind, plain).SerializeToString())
    peers = []
    for name, precision in ((OPENVINO, "f32"), (OPENVINO_BF16, "bf16")):
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "INFERENCE_PRECISION_HINT": precision,
        }
        request = core.compile_model(model, "CPU", settings).create_infer_request()
        peers.append(
            Peer(
                name,
                lambda request=request: request.infer(feed, share_inputs=True, share_outputs=True)[
                    0
                ],
            )
        )
    return peers


if __name__ == "__main__":
    main()
