"""``backend="fused"`` on NVIDIA GPUs: the operators, when they are taken, and what stands in.

All of it runs where there is no GPU: tensors of the CPU are taken for those of a GPU, whose
kernels run thread by thread on tests/native/emulated_gpu.h. On a real one: tests/gpu.
"""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_sequence

from symrnn import SymGRU, SymLSTM, SymRNN, native
from symrnn.native import cuda
from symrnn.native.interface import Dtype, Gpu, Kernel
from symrnn.rnn import reference, stack, torch_state
from symrnn.rnn.fused import autograd, backend, operators
from symrnn.rnn.fused import cuda as kernels
from symrnn.rnn.weights import LayerWeights

IN, H = 5, 19


class EmulatedLibrary:
    """Stands for the library of symrnn_cuda.h; its GPU is emulated, its memory the process's."""

    gpu = Gpu(9, 60_000)

    def __init__(self, emulator: ctypes.CDLL) -> None:
        self.emulator = emulator
        self.calls = self.waves = 0

    def symrnn_cuda_forward(self, *arguments: Any) -> int:
        self.calls += 1
        return int(self.emulator.emulate_forward(*arguments[:-2], self.gpu, 2))

    def symrnn_cuda_backward(self, *arguments: Any) -> int:
        self.calls += 1
        return int(self.emulator.emulate_backward(*arguments[:-2], self.gpu, 2))

    def symrnn_cuda_forward_wavefront(self, *arguments: Any) -> int:
        self.calls += 1
        self.waves += 1
        return int(self.emulator.emulate_forward_wavefront(*arguments[:-2], self.gpu, 2))

    def symrnn_cuda_backward_wavefront(self, *arguments: Any) -> int:
        self.calls += 1
        self.waves += 1
        return int(self.emulator.emulate_backward_wavefront(*arguments[:-2], self.gpu, 2))

    def symrnn_cuda_pack(
        self, side: int, gates: int, dtype: Dtype, place: int, gate_stride: int, row_stride: int,
        to_dtype: Dtype, to: int, device: int, stream: int,
    ) -> int:  # fmt: skip
        length = (gates - 1) * gate_stride + (side - 1) * row_stride + side
        numbers = _numbers(place, length, dtype)
        w = numbers.float().as_strided((gates, side, side), (gate_stride, row_stride, 1))
        library, w = native.library(), w.contiguous()
        packed = torch.empty(library.symrnn_packed_length(1, side, side, gates, Dtype.FLOAT))
        status = library.symrnn_pack(
            *(1, side, side, gates, Dtype.FLOAT, w.data_ptr(), side * side, side),
            *(Dtype.FLOAT, packed.data_ptr(), 1),
        )
        _numbers(to, packed.numel(), to_dtype).copy_(packed)
        return int(status)


def _numbers(place: int, length: int, dtype: Dtype) -> Tensor:
    of = {number: known for known, number in kernels.DTYPES.items()}[dtype]
    memory = (ctypes.c_uint8 * (length * of.itemsize)).from_address(place)
    return torch.frombuffer(memory, dtype=of)


@pytest.fixture
def emulated(emulator: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedLibrary]:
    """Tensors of the CPU are a GPU's for the operators."""
    library = EmulatedLibrary(emulator)
    monkeypatch.setattr(cuda, "library", lambda: library)
    monkeypatch.setattr(cuda, "machine", lambda device: library.gpu)
    monkeypatch.setattr(kernels, "place", lambda tensor: (0, 0))
    monkeypatch.setattr(operators, "kernels_for", lambda tensor: kernels)
    monkeypatch.setattr(backend, "_said", set())
    monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", "ieee")
    kernels.fit.cache_clear()
    yield library
    kernels.fit.cache_clear()


def run(module: Any, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
    """What ``module(x, state)`` is on a GPU with backend="fused"."""
    parts = module._zeros(x, x.size(1)) if state is None else module._parts(state)
    output, last = backend._run_cuda(x, None, parts, module.layer_weights(), module._attributes())
    return output, module._whole(last)


def results(output: Tensor, state: Any, leaves: list[Tensor]) -> list[Tensor]:
    parts = [output, *(state if isinstance(state, tuple) else [state])]
    loss = sum((part.double() * torch.arange(1.0, 1 + part.numel()).view(part.shape).cos()).sum()
               for part in parts)  # fmt: skip
    return [*(part.detach() for part in parts), *torch.autograd.grad(loss, leaves)]


LAYERS: list[tuple[Any, dict[str, Any]]] = [
    (SymLSTM, {}),
    (SymLSTM, {"num_layers": 2, "bidirectional": True}),
    (SymLSTM, {"bias": False}),
    (SymGRU, {"bidirectional": True}),
    (SymGRU, {"bias": False}),
    (SymRNN, {"nonlinearity": "relu"}),
]


def expect(layer: Any, x: Tensor, state: Any = None) -> list[Tensor]:
    """Results and gradients by the loop, in float64 on the CPU."""
    exact = copy.deepcopy(layer).to("cpu", torch.float64)
    exact.backend = "reference"
    precise = x.detach().to("cpu", torch.float64).requires_grad_()
    if state is not None:
        state = tuple(part.detach().to("cpu", torch.float64) for part in state)
    return results(*exact(precise, state), [precise, *exact.parameters()])


def close(found: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    for a, b in zip(found, expected, strict=True):
        error = (a.double().cpu() - b).norm() / b.norm()
        assert error < tolerance


# ---- on a GPU that is emulated -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "options", "symm"),
    [
        *((*layer, "avg") for layer in LAYERS),
        # Matrices reach the kernels whole, whatever they are made from.
        *((*LAYERS[3], symm) for symm in ("tri", "avg4", "tri8", "eigen", "ldl")),
    ],
)
def test_equals_the_loop(
    emulated: EmulatedLibrary, make: Any, options: dict[str, Any], symm: str
) -> None:
    layer = make(IN, H, symm=symm, **options)
    x = torch.randn(4, 3, IN, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = results(*run(layer, x), [x, *layer.parameters()])
    close(found, expect(layer, x), 2e-6)
    assert emulated.calls == 2 * layer.num_layers * (2 if layer.bidirectional else 1)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
@pytest.mark.parametrize("make", [SymLSTM, SymGRU])
def test_numbers_of_16_bits(make: Any, dtype: torch.dtype, tolerance: float) -> None:
    """Within a few units of their last place: what is handed from step to step is rounded."""
    layer = make(IN, H, num_layers=2, dtype=dtype)
    x = torch.randn(4, 3, IN).to(dtype).requires_grad_()
    output, state = run(layer, x)
    assert output.dtype == dtype
    close(results(output, state, [x, *layer.parameters()]), expect(layer, x), tolerance)


def masked(layer: Any, batch: int) -> list[LayerWeights]:
    """The layer's weights, with a mask of the state for each layer and direction."""
    masks = (torch.rand(batch, H) > 0.4).float() * 1.5
    return [
        dataclasses.replace(w, state_mask=masks.roll(k))
        for k, w in enumerate(layer.layer_weights())
    ]


@pytest.mark.parametrize(("make", "options"), LAYERS)
def test_state_dropout(emulated: EmulatedLibrary, make: Any, options: dict[str, Any]) -> None:
    """The masks of one call, in the loop too."""
    layer = make(IN, H, **options)
    exact = copy.deepcopy(layer).double()
    x = torch.randn(4, 3, IN, requires_grad=True)
    precise = x.detach().double().requires_grad_()

    def called(run: Any, layer: Any, x: Tensor) -> list[Tensor]:
        torch.manual_seed(1)
        weights = masked(layer, x.size(1))
        output, last = run(x, None, layer._zeros(x, x.size(1)), weights, layer._attributes())
        return results(output, layer._whole(last), [x, *layer.parameters()])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = called(backend._run_cuda, layer, x)
    close(found, called(reference.BACKEND.run, exact, precise), 2e-6)
    assert emulated.calls == 2 * layer.num_layers * (2 if layer.bidirectional else 1)


def test_state_dropout_of_a_layer_that_is_packed(
    emulated: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "KERNEL", Kernel.PACKED)
    layer, x = SymLSTM(IN, H), torch.randn(2, 3, IN)
    weights = masked(layer, 3)
    arguments = (x, None, layer._zeros(x, 3), weights, layer._attributes())
    output, _ = backend._run_cuda(*arguments)
    torch.testing.assert_close(output, reference.BACKEND.run(*arguments)[0])
    assert emulated.calls == 1


# ---- two layers in one launch --------------------------------------------------------------------


@pytest.fixture
def wavefront(emulated: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch) -> EmulatedLibrary:
    """As above, and two layers take the kernel that is for them."""
    monkeypatch.setattr(kernels, "WAVEFRONT", True)
    return emulated


@pytest.mark.parametrize("drops", [{}, {"dropout": 0.5}])
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (SymLSTM, {}),
        (SymLSTM, {"bias": False}),
        (SymGRU, {}),
        (SymGRU, {"bias": False}),
        (SymRNN, {}),
    ],
)
def test_two_layers(
    wavefront: EmulatedLibrary,
    monkeypatch: pytest.MonkeyPatch,
    make: Any,
    options: dict[str, Any],
    drops: dict[str, float],
) -> None:
    """With masks of the state where there is one between the layers; in one launch each way."""
    layer = make(IN, H, num_layers=2, **options, **drops)
    exact = copy.deepcopy(layer).double()
    x = torch.randn(4, 3, IN, requires_grad=True)
    precise = x.detach().double().requires_grad_()

    def called(run: Any, layer: Any, x: Tensor) -> list[Tensor]:
        torch.manual_seed(1)
        weights = masked(layer, x.size(1)) if drops else layer.layer_weights()
        output, last = run(x, None, layer._zeros(x, x.size(1)), weights, layer._attributes())
        return results(output, layer._whole(last), [x, *layer.parameters()])

    found = called(backend._run_cuda, layer, x)
    torch.manual_seed(1)
    masked(layer, 3)
    between = F.dropout(torch.ones(12, H), 0.5).double()  # drawn as floats, after those masks
    monkeypatch.setattr(stack, "dropout", lambda x, *_: x * between)
    close(found, called(reference.BACKEND.run, exact, precise), 2e-6)
    assert (wavefront.waves, wavefront.calls) == (2, 2)


def test_two_layers_whose_backward_pass_does_not_fit_have_one_launch_each(
    wavefront: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = SymGRU(IN, H, num_layers=2)
    x = torch.randn(4, 3, IN, requires_grad=True)
    monkeypatch.setattr(autograd, "wavefront_fits", lambda *_: False)
    close(results(*run(layer, x), [x, *layer.parameters()]), expect(layer, x), 2e-6)
    assert (wavefront.waves, wavefront.calls) == (1, 3)


@pytest.mark.usefixtures("wavefront")
@pytest.mark.parametrize("make", [SymLSTM, SymGRU])
def test_gradients_of_two_layers_one_at_a_time(make: Any) -> None:
    """Of each result alone, of which the others get none; to each leaf alone, the rest frozen."""
    layer, x = make(IN, H, num_layers=2), torch.randn(2, 3, IN)
    state = [torch.randn(2, 3, H) for _ in range(2 if make is SymLSTM else 1)]
    exact, leaves = copy.deepcopy(layer).double(), [x, *state, *layer.parameters()]
    precise = [x.double(), *(part.double() for part in state), *exact.parameters()]

    def gradients(of: Any, layer: Any, leaves: list[Tensor], alone: int) -> list[Tensor]:
        for k, leaf in enumerate(leaves):
            leaf.requires_grad_(alone in (k, -1))
        weights, (x, *parts) = layer.layer_weights(), leaves[: 1 + len(state)]
        output, last = of(x, None, parts, weights, layer._attributes())
        wanted = leaves if alone < 0 else [leaves[alone]]
        found = [torch.autograd.grad(y.cos().sum(), wanted, retain_graph=True)
                 for y in (output, *last)]  # fmt: skip
        return [gradient for one in found for gradient in one]

    for alone in range(-1, len(leaves)):
        found = gradients(backend._run_cuda, layer, leaves, alone)
        close(found, gradients(reference.BACKEND.run, exact, precise, alone), 2e-6)


def test_two_layers_take_the_masks_that_the_loop_takes(
    wavefront: EmulatedLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = SymLSTM(IN, H, num_layers=2, dropout=0.5), torch.randn(4, 3, IN)
    torch.manual_seed(1)
    together, state = run(layer, x)
    monkeypatch.setattr(kernels, "WAVEFRONT", False)
    torch.manual_seed(1)
    apart, state_apart = run(layer, x)
    torch.testing.assert_close([together, *state], [apart, *state_apart])
    assert (wavefront.waves, wavefront.calls) == (1, 3)


@pytest.mark.parametrize(
    "options", [{"num_layers": 1}, {"num_layers": 3}, {"num_layers": 2, "bidirectional": True}]
)
def test_other_layers_run_one_by_one(wavefront: EmulatedLibrary, options: dict[str, Any]) -> None:
    layer, x = SymLSTM(IN, H, **options), torch.randn(2, 3, IN)
    close([run(layer, x)[0]], [expect(layer, x.requires_grad_())[0]], 2e-6)
    assert wavefront.waves == 0


def test_two_layers_that_do_not_fit_together_run_one_by_one(wavefront: EmulatedLibrary) -> None:
    wavefront.gpu = Gpu(3, 60_000)
    layer, x = SymLSTM(IN, 64, num_layers=2), torch.randn(2, 3, IN)
    close([run(layer, x)[0]], [expect(layer, x.requires_grad_())[0]], 2e-6)
    assert (wavefront.waves, wavefront.calls) == (0, 2)


def compare_gradients_of_gradients(layer: SymLSTM, x: Tensor) -> None:
    """On the kernels, with those of the loop in float64."""

    def twice(of: Any, x: Tensor, parameters: list[Tensor]) -> list[Tensor]:
        (first,) = torch.autograd.grad(of(x)[0].square().sum(), x, create_graph=True)
        return list(torch.autograd.grad(first.square().sum(), parameters))

    exact = copy.deepcopy(layer).double()
    exact.backend = "reference"
    found = twice(lambda x: run(layer, x), x, list(layer.parameters()))
    precise = x.detach().double().requires_grad_()
    close(found, twice(exact, precise, list(exact.parameters())), 1e-5)


@pytest.mark.usefixtures("wavefront")
def test_gradients_of_gradients_of_two_layers() -> None:
    layer, x = SymLSTM(2, 3, num_layers=2), torch.randn(2, 2, 2, requires_grad=True)

    compare_gradients_of_gradients(layer, x)


@pytest.mark.usefixtures("wavefront")
def test_what_pytorch_is_told_of_two_layers() -> None:
    """Schema, aliasing, shape function and gradient, in one call of all arguments."""
    w = [torch.randn(4, H, H) for _ in range(2)]
    hidden = [((m + m.mT) / 9).requires_grad_() for m in w]
    ih = [torch.randn(4 * H, width).requires_grad_() for width in (IN, H)]
    bias, state = torch.randn(4 * H), torch.randn(2, 3, H)
    arguments = (
        *(torch.randn(6, IN), ih[0], bias, bias, [hidden[0]], ih[1], bias, bias, [hidden[1]]),
        *(state, state.clone(), torch.rand(2, 3, H), torch.rand(6, H), "LSTM", "whole", "ifgo"),
    )
    torch.library.opcheck(torch.ops.symrnn.two_layers.default, arguments)
    output, hn, cn, gates, cells, *packed = torch.ops.symrnn.two_layers(*arguments)
    backward = (
        *(*packed, ih[1], output, gates, cells, state, state.clone(), *arguments[11:13]),
        *(torch.randn_like(output), hn.clone(), cn.clone(), "LSTM", "whole", "ifgo"),
    )
    backward = tuple(one.detach() if isinstance(one, Tensor) else one for one in backward)
    torch.library.opcheck(torch.ops.symrnn.two_layers_backward.default, backward)


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("steps", [1, 2])
def test_from_a_given_state(steps: int) -> None:
    layer = SymLSTM(IN, H)
    x = torch.randn(steps, 2, IN, requires_grad=True)
    state = (torch.randn(1, 2, H), torch.randn(1, 2, H))
    found = results(*run(layer, x, state), [x, *layer.parameters()])
    close(found, expect(layer, x, state), 2e-6)


@pytest.mark.usefixtures("emulated")
def test_from_a_state_that_lies_anywhere() -> None:
    """A view's first number need not be where four can be read at once."""
    layer = SymLSTM(IN, 16)
    x = torch.randn(1, 2, IN, requires_grad=True)
    h0, c0 = (torch.randn(33)[1:].view(1, 2, 16) for _ in range(2))
    assert h0.data_ptr() % 16 != 0
    found = results(*run(layer, x, (h0, c0)), [x, *layer.parameters()])
    close(found, expect(layer, x, (h0, c0)), 2e-6)


@pytest.mark.usefixtures("emulated")
def test_gradients_of_gradients() -> None:
    layer, x = SymLSTM(2, 3), torch.randn(2, 2, 2, requires_grad=True)

    compare_gradients_of_gradients(layer, x)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: SymLSTM(IN, H, symm_hh="if"), "of all gates should be symmetric"),
        (lambda: SymLSTM(IN, H, symm="none"), "of all gates should be symmetric"),
        (lambda: SymLSTM(IN, H, symm="chunk2"), "are not their own transposes"),
        (lambda: SymLSTM(IN, H, symm="avg:diag2"), "are not their own transposes"),
        (lambda: SymLSTM(IN, H, symm="avg:skew2"), "are not their own transposes"),
        (lambda: SymLSTM(IN, H, dtype=torch.float64), "they have no torch.float64"),
        (lambda: SymLSTM(IN, 300), "hidden_size=300 in torch.float32 does not fit on the chip"),
    ],
)
def test_else_the_vendors_operator_and_one_word(
    emulated: EmulatedLibrary, make: Any, why: str
) -> None:
    layer = make()
    x = torch.randn(2, 3, IN, dtype=layer._dtype())
    with pytest.warns(UserWarning, match=f"PyTorch's operator here: .*{why}"):
        output, _ = run(layer, x)
    torch.testing.assert_close(output, layer.to_plain()(x)[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(layer, x)
    assert emulated.calls == 0


@pytest.mark.usefixtures("emulated")
def test_packed_sequences_are_the_vendors() -> None:
    layer = SymLSTM(IN, H)
    packed = pack_sequence([torch.randn(3, IN), torch.randn(1, IN)])
    state = layer._zeros(packed.data, 2)
    with pytest.warns(UserWarning, match="a PackedSequence may end before others"):
        output, _ = backend._run_cuda(
            packed.data, packed.batch_sizes, state, layer.layer_weights(), layer._attributes()
        )
    torch.testing.assert_close(output, layer.to_plain()(packed)[0].data)


def test_what_does_not_fit_is_an_error_of_the_operator(emulated: EmulatedLibrary) -> None:
    emulated.gpu = Gpu(9, 1000)
    w, x, h = torch.zeros(4, H, H), torch.zeros(2, IN), torch.zeros(1, H)
    with pytest.raises(RuntimeError, match=r"hidden_size=19 .* do not fit on the chip"):
        torch.ops.symrnn.layer(
            x, torch.zeros(4 * H, IN), None, None, [w], h, h, None, None, "LSTM", "whole", "ifgo",
            False, torch.float32,
        )  # fmt: skip


@pytest.mark.usefixtures("emulated")
def test_weights_that_are_not_whole_are_refused_by_the_operator() -> None:
    x, h = torch.zeros(2, IN), torch.zeros(1, H)
    v = torch.zeros(4, H * (H + 1) // 2)
    with pytest.raises(ValueError, match="the symmetric matrices of all gates, whole"):
        torch.ops.symrnn.layer(
            x, torch.zeros(4 * H, IN), None, None, [v], h, h, None, None, "LSTM", "avg", "ifgo",
            False, torch.float32,
        )  # fmt: skip


def test_nothing_is_said_of_gpus_where_there_is_none() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert cuda.library() is None
    assert "GPU" in cuda.why_not() or "CUDA" in cuda.why_not()


@pytest.mark.usefixtures("emulated")
def test_products_of_the_input_follow_the_recurrent_switch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    switch = torch.backends.cuda.matmul
    for wanted in ("tf32", "ieee"):
        monkeypatch.setattr(torch.backends.cudnn.rnn, "fp32_precision", wanted)
        assert torch_state.rounds_to_tf32() == (wanted == "tf32")
        before = switch.fp32_precision
        with kernels._products_as_recurrent(torch.float32):
            assert (switch.fp32_precision == "tf32") == (wanted == "tf32")
        assert switch.fp32_precision == before
