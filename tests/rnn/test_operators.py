"""The operators ``torch.ops.symrnn``: as PyTorch wants operators, and strict."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from symrnn import SymGRU, SymLSTM, SymRNN, native
from symrnn.rnn.packing import matrices_of

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
    matrix = module._matrices["weight_hh_l0"]
    matrices = [m.detach() for m in matrices_of(matrix, module, module.symmetry)]
    packed = OPS.pack(matrices, module.GATES, H, H, symm, matrix.symmetric, dtype)
    rows = 6 if batch_sizes is None else int(batch_sizes.sum())
    c0 = torch.randn(B, H, dtype=dtype) if make is SymLSTM else None
    return {
        "input": torch.randn(rows, IN, dtype=dtype),
        "w_ih": module.weight_ih_l0.detach(),
        "bias_ih": module.bias_ih_l0.detach(),
        "bias_hh": module.bias_hh_l0.detach(),
        "matrices": matrices,
        "packed": packed,
        "h0": torch.randn(B, H, dtype=dtype),
        "c0": c0,
        "batch_sizes": batch_sizes,
        "mode": module.mode,
        "symm": symm,
        "symmetric": matrix.symmetric,
        "reverse": False,
    }


DIFFERENTIABLE = ("input", "w_ih", "bias_ih", "bias_hh", "h0", "c0")


def leaves(given: dict[str, Any]) -> dict[str, Any]:
    """The same, asking for every gradient."""
    made = dict(given)
    for name in DIFFERENTIABLE:
        if made[name] is not None:
            made[name] = made[name].clone().requires_grad_()
    made["matrices"] = [m.clone().requires_grad_() for m in given["matrices"]]
    return made


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("sizes", [None, SIZES], ids=["equal", "unequal"])
@pytest.mark.parametrize(("make", "symm"), KINDS)
def test_opcheck(make: Any, symm: str, sizes: Tensor | None, reverse: bool) -> None:
    """Schema, aliasing, shape function, gradient, and the same numbers when traced."""
    given = {**arguments(make, symm, torch.float32, sizes), "reverse": reverse}
    torch.library.opcheck(OPS.layer.default, tuple(leaves(given).values()))
    output, _, cn, gates, cells = OPS.layer(*given.values())
    taken = (given["packed"], output, gates, cells, given["h0"], given["c0"], sizes)
    d_cn = torch.randn_like(cn) if given["c0"] is not None else None
    how = (given["mode"], symm, given["symmetric"], reverse)
    torch.library.opcheck(
        OPS.layer_backward.default, (*taken, torch.randn_like(output), None, d_cn, *how)
    )
    torch.library.opcheck(OPS.states_before.default, (output, given["h0"], sizes, reverse))
    gates_of = {"LSTM": "ifgo", "GRU": "rzn"}.get(given["mode"], "h")
    for dtype in (torch.float32, torch.bfloat16):
        packing = (given["matrices"], gates_of, H, H, symm, given["symmetric"], dtype)
        torch.library.opcheck(OPS.pack.default, packing)


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
    found = OPS.states_before(torch.cat(steps), h0, sizes, reverse)
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
    "short": ({"packed": torch.zeros(256)}, r"packed should have shape \(1024,\), got: \(256,\)"),
    "packed": (
        {"packed": torch.zeros(1024).double()},
        "packed should be torch.float32 or tor",
    ),
    "unaligned": ({"packed": torch.zeros(1028)[4:]}, "aligned to 64 bytes"),
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


def test_wrong_matrices_are_refused() -> None:
    m = torch.zeros(4, H, H)
    for matrices, dtype, words in [
        ([m[:3]], F32, r"matrices should have shapes \[\(4, 5, 5\)\], got: \[\(3, 5, 5\)\]"),
        ([m, m], F32, r"matrices should have shapes"),
        ([m.half()], F32, r"matrices\[0\] should be float32 or float64, got: torch.float16"),
        (
            [m],
            F64,
            r"dtype should be torch.float32 or torch.bfloat16 for matrices of torch.float32",
        ),
        ([m.double()], torch.bfloat16, r"dtype should be torch.float64 for matrices of"),
    ]:
        with pytest.raises(ValueError, match=words):
            OPS.pack(matrices, "ifgo", H, H, "avg", "ifgo", dtype)


def test_the_way_back_wants_the_numbers_that_were_multiplied() -> None:
    given = leaves(arguments(SymLSTM, "avg", torch.float32))
    low = OPS.pack(
        [m.detach() for m in given["matrices"]], "ifgo", H, H, "avg", "ifgo", torch.bfloat16
    )
    output = OPS.layer(*{**given, "packed": low}.values())[0]
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
