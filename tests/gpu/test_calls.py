"""Ways to call a fused layer on a GPU: streams, graphs, processes, autocast, torch.compile.

Each against the plain call of the same layer, bit for bit where nothing is rounded otherwise; and
a language model that trains.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from symrnn import SymLSTM
from symrnn.native import cuda

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("strict_warnings")]

Tensors = dict[str, Tensor]

SIDE, BATCH, STEPS, WIDTH = 200, 20, 35, 64


def some_layer(device: torch.device, **options: Any) -> tuple[Any, Tensor]:
    """A layer on the kernels and an input, float32."""
    if device.type == "cuda":
        assert cuda.available(), cuda.why_not()
    layer = SymLSTM(WIDTH, SIDE, backend="fused", device=device, **options)
    return layer, torch.randn(STEPS, BATCH, WIDTH, device=device)


def outputs(layer: Any, x: Tensor) -> Tensors:
    with torch.no_grad():
        output, (h, c) = layer(x)
    return {"output": output, "hn": h, "cn": c}


def with_gradients(run: Any, layer: Any, x: Tensor) -> Tensors:
    """The output and the gradient of each parameter."""
    output, _ = run(x)
    gradients = torch.autograd.grad(output.square().sum(), list(layer.parameters()))
    names = [f"d_{name}" for name, _ in layer.named_parameters()]
    return {"output": output.detach(), **dict(zip(names, gradients, strict=True))}


def assert_equal(found: Tensors, expected: Tensors) -> None:
    """Bit for bit."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def errors(found: Tensors, expected: Tensors) -> dict[str, float]:
    """‖found − expected‖ / ‖expected‖ of each."""
    return {
        name: float((found[name].double() - exact.double()).norm() / exact.double().norm())
        for name, exact in expected.items()
    }


def test_unbatched(device: torch.device) -> None:
    layer, x = some_layer(device)
    alone, one = outputs(layer, x[:, 0].contiguous()), outputs(layer, x[:, :1].contiguous())
    assert_equal(alone, {name: tensor.select(1, 0) for name, tensor in one.items()})


def test_without_a_state(device: torch.device) -> None:
    layer, x = some_layer(device)
    zeros = torch.zeros(1, BATCH, SIDE, device=device)
    with torch.no_grad():
        output, (h, c) = layer(x, (zeros, zeros.clone()))
    assert_equal(outputs(layer, x), {"output": output, "hn": h, "cn": c})


# ---- streams and graphs ------------------------------------------------------------------------


def test_on_another_stream_while_the_current_one_multiplies(gpu: torch.device) -> None:
    layer, x = some_layer(gpu)
    expected = outputs(layer, x)
    busy = torch.randn(4096, 4096, device=gpu)
    stream = torch.cuda.Stream(gpu)
    torch.cuda.synchronize(gpu)
    for _ in range(10):
        busy = busy @ busy
        busy = busy / busy.norm()
    with torch.cuda.stream(stream):
        found = [outputs(layer, x) for _ in range(10)]
    torch.cuda.synchronize(gpu)
    for one in found:
        assert_equal(one, expected)


def test_on_two_streams_at_once(gpu: torch.device) -> None:
    """The kernel wants the whole chip: one call has to wait for the other."""
    layer, _ = some_layer(gpu)
    inputs = [torch.randn(STEPS, BATCH, WIDTH, device=gpu) for _ in range(2)]
    expected = [outputs(layer, x) for x in inputs]
    streams = [torch.cuda.Stream(gpu) for _ in inputs]
    torch.cuda.synchronize(gpu)
    found: list[list[Tensors]] = [[], []]
    for _ in range(20):
        for k, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                found[k].append(outputs(layer, inputs[k]))
    torch.cuda.synchronize(gpu)
    for k, several in enumerate(found):
        for one in several:
            assert_equal(one, expected[k])


def warmed(call: Callable[[], Any]) -> None:
    """Run it on a stream of its own, as PyTorch wants before a capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()


@pytest.mark.parametrize("train", [False, True])
def test_a_graph_replayed_with_other_inputs(gpu: torch.device, train: bool) -> None:
    layer, x = some_layer(gpu)
    layer.train(train)
    h, c = torch.randn(2, 1, BATCH, SIDE, device=gpu)
    d_output = torch.randn(STEPS, BATCH, SIDE, device=gpu)
    x.requires_grad_(train)
    parameters = dict(layer.named_parameters())

    def call() -> Tensors:
        with torch.set_grad_enabled(train):
            output, (hn, cn) = layer(x, (h, c))
            found = {"output": output, "hn": hn, "cn": cn}
            if train:
                wanted = {"x": x, **parameters}
                gradients = torch.autograd.grad(output, list(wanted.values()), d_output)
                found |= {f"d_{name}": d for name, d in zip(wanted, gradients, strict=True)}
        return {name: tensor.detach() for name, tensor in found.items()}

    warmed(call)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        static = call()
    for _ in range(3):
        with torch.no_grad():
            for tensor in (x, h, c, d_output):
                tensor.copy_(torch.randn_like(tensor))
        graph.replay()
        torch.cuda.synchronize(gpu)
        replayed = {name: tensor.clone() for name, tensor in static.items()}
        assert_equal(replayed, call())


# ---- autocast, torch.compile, training ---------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.bfloat16, 3e-2), (torch.float16, 5e-3)], ids=str
)
def test_under_autocast(gpu: torch.device, dtype: torch.dtype, limit: float) -> None:
    """Near float64, in the dtypes that nn.LSTM gives, and with gradients."""
    layer, x = some_layer(gpu)
    exact = copy.deepcopy(layer).double()
    exact.backend = "reference"
    plain = layer.to_lstm()
    with torch.autocast("cuda", dtype):
        output, state = layer(x)
        theirs, their_state = plain(x)
    assert [t.dtype for t in (output, *state)] == [t.dtype for t in (theirs, *their_state)]
    output.float().square().sum().backward()
    assert errors({"output": output.detach()}, {"output": exact(x.double())[0]})["output"] <= limit
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_compiled(device: torch.device) -> None:
    layer, x = some_layer(device)
    found = with_gradients(torch.compile(layer), layer, x)
    off = errors(found, with_gradients(layer, layer, x))
    assert {name: error for name, error in off.items() if not error <= 1e-5} == {}


def test_a_language_model_trains_as_with_the_vendors_operator(device: torch.device) -> None:
    from lm.model import LanguageModel

    losses = {}
    for backend in ("fused", "vendor"):
        torch.manual_seed(1)
        model = LanguageModel(100, 64, 64, 2, symm="avg", backend=backend)
        model.initialize(0.1)
        model.to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        ids = torch.randint(100, (21, 10, 8), device=device)
        losses[backend] = []
        for inputs, targets in itertools.pairwise(ids):
            optimizer.zero_grad()
            with torch.backends.cudnn.flags(allow_tf32=False):
                logits, _ = model(inputs)
                loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
                loss.backward()
            optimizer.step()
            losses[backend].append(loss.item())
    assert losses["fused"] == pytest.approx(losses["vendor"], rel=1e-3)


# ---- other GPUs and other processes ------------------------------------------------------------


def test_on_another_gpu_than_the_current_one(gpu: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU only")
    layer, x = some_layer(gpu)
    other = torch.device("cuda", 1)
    found = outputs(copy.deepcopy(layer).to(other), x.to(other))
    assert_equal({name: tensor.to(gpu) for name, tensor in found.items()}, outputs(layer, x))


TOGETHER = 1.5  # seconds that each of two processes runs the kernel


def run_for_a_while(device: torch.device) -> None:
    """Print a number made of the results of many calls, which all agree."""
    torch.manual_seed(1)
    layer = SymLSTM(64, 650 if device.type == "cuda" else 24, backend="fused", device=device)
    x = torch.randn(100, BATCH, 64, device=device)
    first = outputs(layer, x)
    end = time.monotonic() + TOGETHER
    while time.monotonic() < end:
        assert_equal(outputs(layer, x), first)
    print(hashlib.sha256(first["output"].cpu().numpy().tobytes()).hexdigest())


def test_two_processes_at_once(device: torch.device) -> None:
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, __file__, str(device)]
    running = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
        )
        for _ in range(2)
    ]
    try:
        said = [process.communicate()[0].split() for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0]
    assert said[0] == said[1] != []


if __name__ == "__main__":
    run_for_a_while(torch.device(sys.argv[1]))
