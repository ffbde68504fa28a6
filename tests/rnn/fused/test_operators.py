"""The operators ``torch.ops.symrnn``: as PyTorch wants operators, and strict."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from symrnn import SymGRU, SymLSTM, SymRNN, native
from symrnn.rnn.fused.operators import states_before
from symrnn.rnn.fused.packing import source_of

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())

OPS = torch.ops.symrnn
IN, H, B = 3, 5, 2
SIZES = torch.tensor([2, 2, 1, 1])
KINDS = [(SymLSTM, "avg"), (SymGRU, "tri4"), (SymRNN, "block4")]


def arguments(
    make: Any, symm: str, dtype: torch.dtype, batch_sizes: Tensor | None = None
) -> dict[str, Any]:
    """Those of ``layer``, by name."""
    module = make(IN, H, symm=symm, dtype=dtype)
    form, symmetric, hidden = source_of(module.layer_weights()[0].hh)
    rows = 6 if batch_sizes is None else int(batch_sizes.sum())
    c0 = torch.randn(B, H, dtype=dtype) if make is SymLSTM else None
    return {
        "input": torch.randn(rows, IN, dtype=dtype),
        "w_ih": module.weight_ih_l0.detach(),
        "bias_ih": module.bias_ih_l0.detach(),
        "bias_hh": module.bias_hh_l0.detach(),
        "hidden": [m.detach() for m in hidden],
        "h0": torch.randn(B, H, dtype=dtype),
        "c0": c0,
        "batch_sizes": batch_sizes,
        "state_mask": None,
        "mode": module.mode,
        "form": form,
        "symmetric": symmetric,
        "reverse": False,
        "packed_dtype": dtype,
    }


DIFFERENTIABLE = ("input", "w_ih", "bias_ih", "bias_hh", "h0", "c0")


def leaves(given: dict[str, Any]) -> dict[str, Any]:
    """The same, asking for every gradient."""
    made = dict(given)
    for name in DIFFERENTIABLE:
        if made[name] is not None:
            made[name] = made[name].clone().requires_grad_()
    made["hidden"] = [m.clone().requires_grad_() for m in given["hidden"]]
    return made


@pytest.mark.parametrize(
    ("make", "symm", "sizes", "reverse", "masked"),
    [
        (SymLSTM, "avg", None, False, False),
        (SymGRU, "tri4", SIZES, True, False),
        (SymRNN, "block4", SIZES, False, False),
        (SymRNN, "avg:skew2", SIZES, True, False),
        (SymGRU, "avg", SIZES, True, True),
    ],
    ids=["LSTM", "GRU", "RNN", "skew", "masked GRU"],
)
def test_opcheck(make: Any, symm: str, sizes: Tensor | None, reverse: bool, masked: bool) -> None:
    """Schema, aliasing, shape function, gradient, and the same numbers when traced."""
    given = {**arguments(make, symm, torch.float32, sizes), "reverse": reverse}
    if masked:
        given["state_mask"] = torch.rand(B, H)
    mask = given["state_mask"]
    torch.library.opcheck(OPS.layer.default, tuple(leaves(given).values()))
    output, _, cn, gates, cells, packed = OPS.layer(*given.values())
    taken = (packed, output, gates, cells, given["h0"], given["c0"], sizes, mask)
    d_cn = torch.randn_like(cn) if given["c0"] is not None else None
    attributes = (given["mode"], given["form"], given["symmetric"], reverse)
    torch.library.opcheck(
        OPS.layer_backward.default, (*taken, torch.randn_like(output), None, d_cn, *attributes)
    )
    torch.library.opcheck(
        OPS.hidden_gradients.default,
        (torch.randn_like(gates), given["hidden"], output, given["h0"], sizes, mask, *attributes),
    )
    for dtype in (torch.bfloat16, torch.int8):
        low = {**given, "packed_dtype": dtype}
        torch.library.opcheck(OPS.layer.default, tuple(low.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("m", "k", "n"), [(3, 0, 4), (0, 3, 4), (1, 1, 1), (16, 7, 16), (17, 5, 1), (33, 600, 50)]
)
def test_matmul_reads_both_as_they_lie(m: int, k: int, n: int, dtype: torch.dtype) -> None:
    plain, bias = torch.randn(m, k, dtype=dtype), torch.randn(n, dtype=dtype)
    strided = torch.randn(m, 2 * k, dtype=dtype)[:, ::2]
    for a in (plain, torch.randn(k, m, dtype=dtype).mT, strided):
        for b in (torch.randn(k, n, dtype=dtype), torch.randn(n, k, dtype=dtype).mT):
            exact = a.double() @ b.double()
            close = {"rtol": 1e-5, "atol": 1e-4}
            torch.testing.assert_close(OPS.matmul(a, b, None), exact.to(dtype), **close)
            torch.testing.assert_close(OPS.matmul(a, b, bias), (exact + bias).to(dtype), **close)
    torch.library.opcheck(OPS.matmul.default, (a, b, bias))
    for wrong, words in [
        ((a, torch.randn(k + 1, n, dtype=dtype), None), "b should have shape"),
        ((a, b, bias[1:]), "bias should have shape"),
        ((a[0] if m else a.sum(0), b, None), "a and b should have 2 dimensions, got: 1 and 2"),
    ]:
        with pytest.raises(ValueError, match=words):
            OPS.matmul(*wrong)


@pytest.mark.parametrize("sizes", [None, SIZES], ids=["equal", "unequal"])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_states_before_are_those_each_row_started_from(
    sizes: Tensor | None, reverse: bool
) -> None:
    h0 = torch.randn(B, H)
    lengths = [B, B, B] if sizes is None else sizes.tolist()
    steps = [torch.randn(size, H) for size in lengths]
    expected: dict[int, Tensor] = {}
    state = h0.clone()
    for t in range(len(steps))[:: -1 if reverse else 1]:
        expected[t] = state[: lengths[t]].clone()
        state[: lengths[t]] = steps[t]
    found = states_before(torch.cat(steps), h0, sizes, reverse)
    assert torch.equal(found, torch.cat([expected[t] for t in range(len(steps))]))


@pytest.mark.parametrize(("make", "symm"), KINDS)
def test_no_result_shares_memory(make: Any, symm: str) -> None:
    given = arguments(make, symm, torch.float64)
    tensors = [*OPS.layer(*given.values()), *(v for v in given.values() if isinstance(v, Tensor))]
    places = [t.untyped_storage().data_ptr() for t in tensors if t.numel()]
    assert len(set(places)) == len(places)


def test_only_wanted_gradients_are_made() -> None:
    given = arguments(SymLSTM, "avg", torch.float64)
    for name in DIFFERENTIABLE:
        alone = {**given, name: given[name].clone().requires_grad_()}
        OPS.layer(*alone.values())[0].sum().backward()
        whole = leaves(given)
        OPS.layer(*whole.values())[0].sum().backward()
        torch.testing.assert_close(alone[name].grad, whole[name].grad, rtol=0, atol=0)


F32, F64 = torch.float32, torch.float64
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "one dimension": ({"input": torch.zeros(6)}, "input and h0 should have 2 dimensions, got"),
    "dtype": ({"input": torch.zeros(6, IN).half()}, "input should be float32 or float64, got: tor"),
    "mixed": ({"h0": torch.zeros(B, H).double()}, "h0 should be torch.float32, as input is, got"),
    "width": ({"w_ih": torch.zeros(4 * H, IN + 1)}, r"w_ih should have shape \(20, 3\), got: \(20"),
    "bias": ({"bias_hh": torch.zeros(H)}, r"bias_hh should have shape \(20,\), got: \(5,\)"),
    "one bias": ({"bias_hh": None}, "bias_ih and bias_hh should both be given or neither"),
    "no c0": ({"c0": None}, "c0 should be given for an LSTM and no other mode, got: mode='LSTM'"),
    "rows": ({"input": torch.zeros(5, IN)}, "input should have a multiple of 2 rows"),
    "mode": ({"mode": "QRNN"}, "mode should be one of LSTM, GRU, RNN_TANH, RNN_RELU, got: 'QRNN'"),
    "growing": ({"batch_sizes": torch.tensor([2, 1, 2, 1])}, "batch_sizes should fall from 2, the"),
    "sum": ({"batch_sizes": torch.tensor([2, 1])}, "and sum to 6, the rows of input, got"),
    "first": ({"batch_sizes": torch.tensor([3, 2, 1])}, "should fall from 2, the rows of h0"),
    "empty": ({"batch_sizes": torch.tensor([], dtype=torch.int64)}, "batch_sizes should fall"),
    "zero": ({"batch_sizes": torch.tensor([2, 2, 2, 0])}, "to 1 at least"),
    "int32": ({"batch_sizes": torch.tensor([2, 2, 2]).int()}, "batch_sizes should be int64 of one"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_arguments_are_refused_by_name(wrong: str) -> None:
    changed, words = WRONG[wrong]
    given = arguments(SymLSTM, "avg", torch.float32)
    OPS.layer(*given.values())
    with pytest.raises(ValueError, match=words):
        OPS.layer(*{**given, **changed}.values())


def test_wrong_hidden_weights_are_refused() -> None:
    given = arguments(SymLSTM, "avg", torch.float32)
    (v,) = given["hidden"]
    for hidden, dtype, words in [
        ([v[:3]], F32, r"hidden should have shapes \[\(4, 15\)\], got: \[\(3, 15\)\]"),
        ([v, v], F32, r"hidden should have shapes"),
        ([v.half()], F32, r"hidden\[0\] should be float32 or float64, got: torch.float16"),
        (
            [v],
            F64,
            "dtype should be torch.float32 or torch.bfloat16 or torch.int8 for numbers of torch",
        ),
    ]:
        with pytest.raises(ValueError, match=words):
            OPS.layer(*{**given, "hidden": hidden, "packed_dtype": dtype}.values())


def test_hidden_weights_of_another_dtype_are_refused() -> None:
    """The kernels take the type of all numbers from the packed ones."""
    single, double = (arguments(SymLSTM, "avg", dtype) for dtype in (F32, F64))
    for given, hidden, dtype in [
        (single, double["hidden"], F64),
        (double, single["hidden"], F32),
        (double, single["hidden"], torch.bfloat16),
    ]:
        with pytest.raises(ValueError, match=r"hidden\[0\] should be torch.float.., as input is"):
            OPS.layer(*{**given, "hidden": hidden, "packed_dtype": dtype}.values())


def test_gradients_of_hidden_weights_are_made_of_what_fits() -> None:
    output, h0 = torch.randn(6, H), torch.randn(B, H)
    given = (output, h0, None, None, "LSTM", "avg", "ifgo", False)
    right, hidden = torch.randn(6, 4 * H), [torch.randn(4, 15)]
    assert OPS.hidden_gradients(right, hidden, *given)[0].shape == (4, 15)
    with pytest.raises(ValueError, match=r"hidden should have shapes \[\(4, 15\)\], got: \["):
        OPS.hidden_gradients(right, [*hidden, *hidden], *given)
    for d_hidden, words in [
        (torch.randn(400, 4 * H), r"d_hidden should have shape \(6, 20\), got: \(400, 20\)"),
        (torch.randn(6, 3 * H), r"d_hidden should have shape \(6, 20\), got: \(6, 15\)"),
        (right.double(), "output should be torch.float64, as d_hidden is"),
    ]:
        with pytest.raises(ValueError, match=words):
            OPS.hidden_gradients(d_hidden, hidden, *given)


WRONG_PACKED: dict[str, tuple[Tensor, str]] = {
    "short": (torch.zeros(256), r"packed should have shape \(1024,\), got: \(256,\)"),
    "dtype": (torch.zeros(1024).double(), "packed should be torch.float32, got: torch.float64"),
    "unaligned": (torch.zeros(1028)[4:], "aligned to 64 bytes"),
}


@pytest.mark.parametrize("wrong", WRONG_PACKED)
def test_wrong_packed_weights_are_refused(wrong: str) -> None:
    packed, words = WRONG_PACKED[wrong]
    given = arguments(SymLSTM, "avg", torch.float32)
    output, _, _, gates, cells, _ = OPS.layer(*given.values())
    with pytest.raises(ValueError, match=words):
        OPS.layer_backward(
            packed, output, gates, cells, given["h0"], given["c0"], None, None, output, None, None,
            "LSTM", "avg", "ifgo", False,
        )  # fmt: skip


def test_the_backward_pass_wants_the_numbers_that_were_multiplied() -> None:
    given = leaves(arguments(SymLSTM, "avg", torch.float32))
    output = OPS.layer(*{**given, "packed_dtype": torch.bfloat16}.values())[0]
    with pytest.raises(ValueError, match=r"packed should be torch.float32, got: torch.bfloat16"):
        output.sum().backward()


def test_under_vmap_there_is_an_error() -> None:
    given = arguments(SymLSTM, "avg", torch.float32)

    def run(x: Tensor) -> Tensor:
        return OPS.layer(*{**given, "input": x}.values())[0]

    with pytest.raises(RuntimeError, match='cannot run under vmap: use backend="reference"'):
        torch.func.vmap(run)(torch.zeros(4, 6, IN))


def test_under_autocast_the_arithmetic_is_in_float32() -> None:
    given = arguments(SymLSTM, "avg", torch.float32)
    expected = OPS.layer(*given.values())
    with torch.autocast("cpu", torch.bfloat16):
        found = OPS.layer(*given.values())
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_tensors_of_two_devices_are_refused() -> None:
    """PyTorch takes such a call for one of "meta", which has no numbers."""
    matrices = [torch.randn(3, 4, 4)]
    arguments = [torch.randn(6, 4), torch.randn(12, 4), *torch.randn(2, 12), matrices]
    arguments.append(torch.zeros(2, 4))
    others = (None, None, None, "GRU", "", "", False, torch.float32)
    torch.ops.symrnn.layer(*arguments, *others)
    for k, argument in enumerate(arguments):
        away = (
            [m.to("meta") for m in argument] if isinstance(argument, list) else argument.to("meta")
        )
        mixed = [*arguments[:k], away, *arguments[k + 1 :]]
        with pytest.raises(ValueError, match="tensors should be on one device, got: cpu, meta"):
            torch.ops.symrnn.layer(*mixed, *others)
    with pytest.raises(ValueError, match="tensors should be on one device, got: cpu, meta"):
        torch.ops.symrnn.matmul(torch.randn(2, 3), torch.randn(3, 4), torch.randn(4, device="meta"))
