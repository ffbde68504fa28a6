"""A step of a layer beside busy processes: the symmetric LSTM, PyTorch's and ONNX Runtime's.

    python scripts/benchmarks/busy.py
    python scripts/benchmarks/busy.py --sizes 256 --seconds 3
    scripts/env pip install -c constraints.txt -e '.[bench]'    # for ONNX Runtime, once

One layer with as many inputs as hidden units (H), one step of one sequence, all threads. Beside it
run no process, or one for each core that does nothing but count, of equal priority or of the lowest
(nice 19). "Stream" is `SymLSTM.stream`, its hidden and input weights symmetric; its peers get the
same weights in full.

In turn, each peer makes a block of calls, as in `cpu.py`, each timed by itself. The figures are the
median of all calls and, in brackets, the time that 99 of 100 calls stay below. "Against quiet" is
the median against that of the same peer beside no process.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from cpu import (
    BOTH,
    LSTM,
    ONNX,
    fused,
    inputs,
    onnx_model,
    onnx_session,
    onnx_version,
    symmetric_lstm,
)
from report import explanation, make_parser, table, write_report
from timing import Peer, in_blocks

from symrnn.training import set_threads

STREAM = "stream"
LOADS = {"none": None, "nice 19": 19, "equal": 0}


def main() -> None:
    parser = make_parser(__doc__, "results/busy.md")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 650, 1024])
    parser.add_argument("--seconds", type=float, default=12, help="for each size and load")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    set_threads(options.threads)
    with_onnx = onnx_version() is not None
    rows = []
    for size in options.sizes:
        peers = peers_of(size, with_onnx)
        quiet: dict[str, float] = {}
        for name, nice in LOADS.items():
            with torch.inference_mode(), busy(nice):
                measured = in_blocks(peers, options.seconds)
            middle = {one.stmt: 1e6 * statistics.median(one.times) for one in measured}
            quiet = quiet or middle
            for one in measured:
                last = 1e6 * statistics.quantiles(one.times, n=100)[-1]
                rows.append(
                    [
                        f"{size}, {name}, {one.stmt}",
                        f"{middle[one.stmt]:,.0f} ({last:,.0f})",
                        f"{middle[one.stmt] / quiet[one.stmt]:.2f}",
                        *(
                            f"{middle[peer] / middle[one.stmt]:.2f}" if peer in middle else "–"
                            for peer in (LSTM, ONNX)
                        ),
                    ]
                )
    header = ["H, beside, peer", "µs a step (99 of 100)", "against quiet"]
    header += [f"{LSTM} / this", f"{ONNX} / this"]
    write_report(
        options.out,
        "A step beside busy processes",
        [*explanation(__doc__), table(header, rows)],
        seed=1,
    )


def peers_of(size: int, with_onnx: bool) -> list[Peer]:
    plain = symmetric_lstm(size).eval()
    x, *state = inputs(size, 1, 1)
    stream, step = fused(plain, BOTH).stream(), x[0]
    peers = [Peer(STREAM, lambda: stream(step)), Peer(LSTM, lambda: plain(x, tuple(state)))]
    if with_onnx:
        session = onnx_session(onnx_model(plain), torch.get_num_threads())
        feed = {"x": x.numpy(), "h0": state[0].numpy(), "c0": state[1].numpy()}
        peers.append(Peer(ONNX, lambda: session.run(None, feed)))
    return peers


@contextmanager
def busy(nice: int | None) -> Iterator[None]:
    """Beside one counting process for each core; None: beside none."""
    count = 0 if nice is None else len(os.sched_getaffinity(0))
    program = f"import os\nos.nice({nice})\nwhile True: pass"
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    main()
