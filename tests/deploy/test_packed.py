"""Packed modules: the numbers of the modules that they were made of, by packed weights alone."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import pickle
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from symrnn import (
    SymGRU,
    SymGRUCell,
    SymLSTM,
    SymLSTMCell,
    SymRNN,
    SymRNNCell,
    deploy,
    native,
    symmetrize,
)
from symrnn.layers import PackedLinear
from symrnn.rnn.fused import packed_run
from symrnn.rnn.packed import PACKED, PackedGRU, PackedLSTM

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())

H = 10
LAYERS = [SymLSTM, SymGRU, SymRNN]
CELLS = [SymLSTMCell, SymGRUCell, SymRNNCell]
FORMS = ["none", "tri", "avg", "avg:full", "avg:diag4", "avg:skew2", "tri8", "block4", "block16"]
FORMS += ["chunk4", "chunk2:rows", "eigen:3", "ldl"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int8]


def fused(make: Callable[..., Any], dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A module in evaluation mode that runs on the kernels, its weights packed as ``dtype``."""
    torch.manual_seed(0)
    own = torch.float64 if dtype == torch.float64 else torch.float32
    module = make(H, H, dtype=own, backend="fused", **options).eval()
    if dtype in (torch.bfloat16, torch.int8):
        module.inference_dtype = dtype
    return module


def tensors(result: Any) -> list[Tensor]:
    """All tensors of a result, in order."""
    if isinstance(result, Tensor):
        return [result]
    return [tensor for part in result if part is not None for tensor in tensors(part)]


def assert_equal(found: Any, expected: Any) -> None:
    """To the last bit."""
    assert type(found) is type(expected)
    for one, other in zip(tensors(found), tensors(expected), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def by_operator(packed: Any, x: Tensor, state: Sequence[Tensor], lengths: Any = None) -> Any:
    """The operator's output, and the new state."""
    output, h, c = torch.ops.symrnn.packed_layers(
        x, lengths, state, packed._weights(), packed.structure, packed._directions * H
    )
    return output, [h, c][: len(state)]


# ---- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symm", FORMS)
@pytest.mark.parametrize("make", LAYERS)
def test_layers_of_every_form_and_type_give_the_same_bits(
    make: Any, symm: str, dtype: torch.dtype, operators: Any
) -> None:
    module = fused(make, dtype, num_layers=2, symm=symm, symm_ih=make.GATES)
    packed: Any = deploy(module)
    assert type(packed) is PACKED[module.PLAIN]
    assert packed.packed_dtype == dtype
    x = torch.randn(5, 3, H, dtype=module._dtype())
    expected = module(x)
    assert_equal(packed(x), expected)
    assert_equal(packed(x), expected)  # as planned by the first call
    hx = expected[1]
    assert_equal(packed(x, hx), module(x, hx))
    state = [hx] if isinstance(hx, Tensor) else list(hx)
    assert_equal(by_operator(packed, x, state)[0], module(x, hx)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("symm", ["none", "avg", "block4"])
@pytest.mark.parametrize("make", CELLS)
def test_cells_give_the_same_bits(make: Any, symm: str, dtype: torch.dtype) -> None:
    module = fused(make, dtype, symm=symm)
    packed: Any = deploy(module)
    for shape in ((3, H), (0, H), (H,)):
        x = torch.randn(shape, dtype=module._dtype())
        hx = module(x)
        for _ in range(2):
            assert_equal(packed(x), hx)
            assert_equal(packed(x, hx), module(x, hx))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("make", LAYERS)
def test_every_form_of_a_call(make: Any, bidirectional: bool, bias: bool, operators: Any) -> None:
    """Gates that are not symmetric too, an input of another size, no biases, relu."""
    options: dict[str, Any] = {"nonlinearity": "relu"} if make is SymRNN else {}
    torch.manual_seed(0)
    module = make(
        *(4, H, 2), bias=bias, dropout=0.5, bidirectional=bidirectional, batch_first=True,
        symm_hh=make.GATES[0], backend="fused", **options,
    ).eval()  # fmt: skip
    packed: Any = deploy(module).train()  # there is no dropout
    sequences = [torch.randn(length, 4) for length in (6, 2, 4)]
    ragged = pack_sequence(sequences, enforce_sorted=False)
    for shape in ((3, 5, 4), (1, 5, 4), (3, 1, 4), (0, 5, 4), (5, 4)):
        x = torch.randn(shape)
        expected = module(x)
        for _ in range(2):
            assert_equal(packed(x), expected)
            assert_equal(packed(x, expected[1]), module(x, expected[1]))
    expected = module(ragged)
    assert_equal(packed(ragged), expected)
    assert_equal(packed(ragged, expected[1]), module(ragged, expected[1]))
    hx = expected[1]
    state = [part.index_select(1, ragged.sorted_indices) for part in tensors(hx)]
    data, new = by_operator(packed, ragged.data, state, ragged.batch_sizes)
    whole: PackedSequence = module(ragged, hx)[0]
    assert_equal(data, whole.data)
    again = [part.index_select(1, ragged.unsorted_indices) for part in new]
    assert_equal(again, tensors(module(ragged, hx)[1]))


@pytest.mark.parametrize("ragged", [False, True])
def test_long_inputs_are_run_in_chunks(
    ragged: bool, operators: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fused(SymGRU, torch.float64, num_layers=2, bidirectional=True)
    reference = copy.deepcopy(module)
    reference.backend = "reference"
    packed: Any = deploy(module)
    lengths = [400 - 3 * k for k in range(8)] if ragged else [300] * 8  # 2,400 rows at least
    x = pack_sequence([torch.randn(length, H, dtype=torch.float64) for length in lengths])
    expected = reference(x)
    monkeypatch.setattr(packed_run, "MOST_ROWS", 100)
    torch.testing.assert_close(packed(x), expected, rtol=0, atol=1e-13)
    state = [torch.zeros(4, 8, H, dtype=torch.float64)]
    found = by_operator(packed, x.data, state, x.batch_sizes)
    torch.testing.assert_close(found[0], expected[0].data, rtol=0, atol=1e-13)
    torch.testing.assert_close(found[1][0], expected[1], rtol=0, atol=1e-13)
    if not ragged:
        whole, h = by_operator(packed, x.data.view(300, 8, H), state)
        assert_equal(whole, found[0].view(300, 8, -1))
        assert_equal(h, found[1])


@pytest.mark.parametrize("make", [SymLSTM, SymGRUCell])
def test_a_stream_of_packed_layers_is_that_of_the_module(make: Any) -> None:
    module = fused(make, torch.bfloat16)
    streams = [part.stream(batch=3) for part in (module, deploy(module))]
    for _ in range(3):
        x = torch.randn(3, H)
        expected, found = (stream(x) for stream in streams)
        assert_equal(found, expected)
    assert_equal(streams[1].state, streams[0].state)
    with pytest.raises(ValueError, match="a stream goes forward in time"):
        deploy(SymLSTM(H, H, bidirectional=True)).stream()  # type: ignore[operator]


@pytest.mark.parametrize("symm", FORMS[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_symmetric_linear_layers_are_packed(symm: str, dtype: torch.dtype, operators: Any) -> None:
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(H, H, bias=symm != "tri", dtype=dtype))
    symmetrize(linear, symm)
    weight, bias = linear[0].weight.detach(), linear[0].bias
    (packed,) = deploy(linear)
    assert isinstance(packed, PackedLinear)
    atol = 1e-5 if dtype == torch.float32 else 1e-13
    torch.testing.assert_close(packed.weight, weight, rtol=0, atol=atol)
    for shape in ((H,), (3, H), (2, 0, H), (2, 3, H)):
        x = torch.randn(shape, dtype=dtype)
        expected = F.linear(x, weight, bias)
        torch.testing.assert_close(packed(x), expected, rtol=0, atol=atol)
        found = operators.ops.packed_linear(x, packed.packed_weight, bias, packed.structure, H)
        assert_equal(found, packed(x))


# ---- models --------------------------------------------------------------------------------------


class Model(nn.Module):
    """A bit of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, H)
        self.rnn = SymLSTM(H, H, 2, symm_ih="ifgo", backend="fused")
        self.again = self.rnn
        self.plain = nn.LSTM(H, H)
        self.projected = SymLSTM(H, H, proj_size=3, symm_hh="")
        self.linear = nn.Linear(H, H)
        self.attention = nn.MultiheadAttention(H, 2)
        symmetrize(self.linear, "avg")
        symmetrize(self.attention, "avg")

    def forward(self, ids: Tensor) -> Tensor:
        x, _ = self.again(self.rnn(self.embedding(ids))[0])
        y = self.linear(self.plain(x)[0])
        return self.projected(self.attention(y, y, y)[0])[0]


def test_the_other_modules_of_a_model_are_plain_or_left_alone() -> None:
    model = Model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    packed = deploy(model)
    ids = torch.randint(7, (5, 3))
    torch.testing.assert_close(packed(ids), model.eval()(ids))
    assert packed.again is packed.rnn
    assert type(packed.rnn) is PackedLSTM
    assert type(packed.plain) is type(packed.projected) is nn.LSTM
    assert type(packed.linear) is PackedLinear
    assert type(packed.attention) is nn.MultiheadAttention
    assert not packed.training
    assert not any(p.requires_grad for p in packed.parameters())
    assert not any("symrnn" in type(p).__module__ for p in packed.attention.modules())
    assert_equal(tensors([*model.state_dict().values()]), tensors([*before.values()]))
    assert_equal(deploy(packed)(ids), packed(ids))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_no_call_reads_the_weight_of_a_packed_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is computed at every reading, and the fast path of a transformer's layer reads two."""
    layer = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(16, 16), nn.TransformerEncoder(layer, 2)).eval()
    symmetrize(model, "avg", [nn.Linear, "1.layers.*"])
    packed = deploy(model)
    assert type(packed[0]) is PackedLinear

    def read(self: PackedLinear) -> Tensor:
        raise AssertionError("a call has read the weight")

    monkeypatch.setattr(PackedLinear, "weight", property(read))
    x, ends = torch.randn(3, 4, 16), torch.arange(4) > torch.tensor([[2], [3], [1]])
    torch.testing.assert_close(packed(x), model(x))
    torch.testing.assert_close(
        packed[1](x, src_key_padding_mask=ends)[~ends],
        model[1](x, src_key_padding_mask=ends)[~ends],
    )


def test_nothing_but_packed_weights_is_held() -> None:
    side = 160
    module = SymLSTM(side, side, 2, symm_ih="ifgo")
    packed = deploy(module)
    names = [f"{name}_l{k}" for k in (0, 1) for name in ("weight_hh", "weight_ih", "bias_sum")]
    assert sorted(packed.state_dict()) == sorted(names)
    assert not [*packed.parameters()]
    size = {torch.float32: 0.56, torch.bfloat16: 0.29, torch.int8: 0.16}  # the diagonal tiles whole
    full = 4 * sum(p.numel() for p in nn.LSTM(side, side, 2).parameters())
    for dtype, most in size.items():
        file = io.BytesIO()
        torch.save(deploy(module, dtype=dtype), file)
        held = sum(t.untyped_storage().nbytes() for t in deploy(module, dtype=dtype).buffers())
        assert held < most * full
        assert len(file.getvalue()) < held + 8192  # pickled as they are, and nothing beside them


def saved_and_loaded(model: nn.Module, **options: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False, **options)


@pytest.mark.parametrize("symm", ["avg", "block4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_copies_and_pickles(symm: str, dtype: torch.dtype) -> None:
    packed = deploy(fused(SymGRU, dtype, symm=symm))
    x = torch.randn(5, 3, H)
    expected = packed(x)
    ways: list[Callable[[Any], Any]] = [
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        saved_and_loaded,
        lambda m: m.to("cpu").float(),
        lambda m: m.share_memory(),
    ]
    for way in ways:
        made = way(packed)
        assert_equal(made(x), expected)
        assert made.packed_dtype == dtype
    other = deploy(fused(SymGRU, dtype, symm=symm))
    for buffer in other.buffers():
        if buffer.dtype != torch.int32:
            buffer.zero_()
    assert not torch.equal(other(x)[0], expected[0])
    other.load_state_dict(packed.state_dict())
    assert_equal(other(x), expected)
    # Memory that is not aligned, as of a file that is mapped.
    state = {name: shifted(tensor) for name, tensor in packed.state_dict().items()}
    other.load_state_dict(state, assign=True)
    assert_equal(other(x), expected)
    with torch.inference_mode():
        assert_equal(copy.deepcopy(packed)(x), expected)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's /proc")
def test_a_file_that_is_mapped_is_run_where_it_lies(tmp_path: Path) -> None:
    packed: Any = deploy(SymLSTM(H, H))
    path = tmp_path / "packed.pt"
    torch.save(packed, path)
    mapped = torch.load(path, weights_only=False, mmap=True)
    x = torch.randn(5, 3, H)
    assert_equal(mapped(x), packed(x))
    lines = Path("/proc/self/maps").read_text().splitlines()
    places = [line.split()[0].split("-") for line in lines if line.endswith(str(path))]
    address = mapped.weight_hh_l0.data_ptr()
    assert any(int(first, 16) <= address < int(last, 16) for first, last in places)


def shifted(tensor: Tensor) -> Tensor:
    room = torch.empty(tensor.nbytes + 8, dtype=torch.uint8)
    return room[8:].view(tensor.dtype).copy_(tensor)


def test_weights_that_are_exchanged_are_used() -> None:
    one, other = (deploy(SymLSTM(H, H, backend="fused")) for _ in range(2))
    x = torch.randn(1, 1, H)
    expected = other(x)
    for _ in range(2):
        one(x)
    buffers = dict(other.named_buffers())
    assert_equal(torch.func.functional_call(one, buffers, (x,)), expected)
    one.load_state_dict(other.state_dict())
    assert_equal(one(x), expected)


def test_tensors_that_are_no_packed_weights_are_not_read() -> None:
    packed: Any = deploy(SymGRU(H, H))
    x, own = torch.randn(1, 1, H), dict(packed.named_buffers())
    wrong = {
        "packed weights of .* bytes are not of this structure": own["weight_hh_l0"][:-64],
        "packed weights should be contiguous": own["weight_hh_l0"].repeat(2)[::2],
    }
    for words, tensor in wrong.items():
        with pytest.raises(ValueError, match=words):
            torch.func.functional_call(packed, {**own, "weight_hh_l0": tensor}, (x,))
    for words, tensor in {
        r"bias should have shape \(30,\)": own["bias_n_l0"],
        "bias should be torch.float32, got: torch.float64": own["bias_sum_l0"].double(),
    }.items():
        with pytest.raises(ValueError, match=words):
            torch.func.functional_call(packed, {**own, "bias_sum_l0": tensor}, (x,))


def test_many_threads() -> None:
    module = fused(SymLSTM, num_layers=2)
    packed = deploy(module)
    x = [torch.randn(4, 3, H) for _ in range(8)]
    expected = [module(part)[0] for part in x]
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda part: _call(packed, part), x)]
    assert_equal(found, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_made_by_fork_runs_what_was_cold_before() -> None:
    packed, x = deploy(SymLSTM(H, H, 2)), torch.randn(4, 3, H)
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, which Python minds and the kernels do not
        child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            os.write(write, _call(packed, x).numpy().tobytes())
        os._exit(0)
    os.close(write)
    found = os.read(read, 4096)
    os.close(read)
    os.waitpid(child, 0)
    assert found == _call(packed, x).numpy().tobytes()


def _call(packed: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        output: Tensor = packed(x)[0]
    return output


def test_autocast_computes_in_the_type_of_the_weights() -> None:
    packed = deploy(fused(SymGRU))
    x = torch.randn(5, 3, H)
    with torch.autocast("cpu", torch.bfloat16):
        found = packed(x.bfloat16())
    assert_equal(found, packed(x.bfloat16().float()))


# ---- what is refused -----------------------------------------------------------------------------


def test_what_a_call_refuses() -> None:
    packed = deploy(SymLSTM(4, H))
    x = torch.randn(5, 3, 4)
    with torch.enable_grad(), pytest.raises(RuntimeError, match=r"PackedLSTM .* has no gradients"):
        packed(x.requires_grad_())
    with torch.enable_grad():
        assert not packed(x.detach())[0].requires_grad
    x = x.detach()
    with pytest.raises(ValueError, match=r"RNN input dtype \(torch.float64\) does not match"):
        packed(x.double())
    with pytest.raises(RuntimeError, match=r"input.size.* must be equal to input_size. Expected 4"):
        packed(x[..., :3])
    with pytest.raises(RuntimeError, match=r"Expected hidden\[0\] size \(1, 3, 10\)"):
        packed(x, (torch.zeros(1, 2, H), torch.zeros(1, 3, H)))
    with pytest.raises(ValueError, match=r"hx should be torch.float32, got: torch.float64"):
        packed(x, (torch.zeros(1, 3, H).double(), torch.zeros(1, 3, H)))
    with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
        packed(x[:0])
    with pytest.raises(RuntimeError, match="has no derivatives and no vmap"):
        torch.func.vmap(packed)(x.unsqueeze(0))
    with pytest.raises(RuntimeError, match=r"runs on the device cpu, .* are on meta: deploy"):
        packed.to("meta")(x)
    with pytest.raises(RuntimeError, match=r"torch.jit.script takes no PackedLSTM"):
        torch.jit.script(deploy(SymLSTM(4, H)))
    linear = nn.Sequential(nn.Linear(H, H))
    symmetrize(linear, "avg")
    with pytest.raises(RuntimeError, match=r"input should have shape \(..., 10\), got: \(3, 4\)"):
        deploy(linear)(torch.randn(3, 4))


def test_packed_numbers_are_never_cast() -> None:
    for dtype in (torch.float32, torch.int8):
        packed = deploy(SymLSTM(H, H), dtype=dtype)
        x = torch.randn(5, 3, H)
        expected = packed(x)
        for other in (torch.float16, torch.float64, torch.bfloat16):
            with pytest.raises(ValueError, match="packed weights of PackedLSTM stay torch"):
                packed.to(other)
        with pytest.raises(ValueError, match="packed weights of PackedLSTM stay torch"):
            packed.type(torch.float32)
        assert_equal(packed(x), expected)


def test_weights_packed_otherwise_are_not_loaded() -> None:
    packed = deploy(SymGRU(16, 16, symm="block4"))
    with pytest.raises(RuntimeError, match=r"weight_hh_l0 should be packed as torch.int8, got: "):
        deploy(SymGRU(16, 16, symm="block4"), dtype=torch.int8).load_state_dict(packed.state_dict())
    with pytest.raises(RuntimeError, match="the state_dict holds weights packed otherwise"):
        deploy(SymGRU(16, 16, symm="chunk4")).load_state_dict(packed.state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for weight_hh_l0"):
        packed.load_state_dict(nn.GRU(16, 16).state_dict())


@pytest.mark.parametrize("symm", ["avg", "block4"])
def test_one_made_without_storage_is_filled_by_a_state_dict(symm: str) -> None:
    linear = nn.Sequential(nn.Linear(H, H))
    symmetrize(linear, symm)
    for module in (SymLSTM(H, H, symm=symm), linear):
        packed = deploy(module)
        x, file = torch.randn(5, 3, H), io.BytesIO()
        for empty in (copy.deepcopy(packed), copy.deepcopy(packed).to("meta").to("meta")):
            other = copy.deepcopy(empty).to_empty(device="cpu")
            other.load_state_dict(packed.state_dict())
            assert_equal(other(x), packed(x))
        other = copy.deepcopy(packed).to("meta")
        other.load_state_dict(packed.state_dict(), assign=True)
        assert_equal(other(x), packed(x))
        torch.save(packed, file)
        file.seek(0)
        loaded = torch.load(file, map_location="meta", weights_only=False).to("meta")
        with pytest.raises(ValueError, match=r"was loaded to the device meta, .*: load it to cpu"):
            loaded.to_empty(device="cpu")


def test_what_cannot_be_packed() -> None:
    with pytest.raises(
        ValueError, match="model cannot be packed: weight_hh_l0 should be float32 or float"
    ):
        deploy(SymLSTM(H, H).half())
    with pytest.raises(ValueError, match=r"1 cannot be packed: .* on the device cpu, got: meta"):
        deploy(nn.Sequential(nn.Linear(H, H), SymLSTM(H, H, device="meta")))
    with pytest.raises(ValueError, match=r"dtype should be torch.float64 for numbers of torch.fl"):
        deploy(SymLSTM(H, H).double(), dtype=torch.int8)
    with pytest.raises(ValueError, match=r"dtype of form='packed' should be .*int8, got: torch.f"):
        deploy(SymLSTM(H, H), dtype=torch.float16)
    packed = deploy(SymLSTM(H, H))
    with pytest.raises(ValueError, match=r"model is packed already, as torch.float32: dtype"):
        deploy(packed, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"model is packed: deploy the model that it was made of"):
        deploy(packed, "plain")
    with pytest.raises(TypeError, match=r"in the place of nn.GRU, got: SymLSTM"):
        PackedGRU(SymLSTM(H, H))
    with pytest.raises(ValueError, match="packed layers have no projections"):
        PackedLSTM(SymLSTM(H, H, proj_size=2, symm_hh=""))
