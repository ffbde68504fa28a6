"""How gate matrices are packed: plans, sparse maps, and products by what was packed."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from symrnn import SymLSTM, get_symmetry, list_symmetries, native
from symrnn.rnn.fused.packing import WHOLE, Plan, SparseMap, plan_of, source_of

FOLDING = [name for name in list_symmetries() if get_symmetry(name, 4).folding is not None]
SIDES = [1, 2, 5, 16, 33]


def on_sides(names: list[str]) -> list[tuple[str, int]]:
    """Each form on every side; of chunks, which differ in their number alone, most on one."""
    some = ("chunk2", "chunk4:rows", "chunk64")
    return [
        (name, side)
        for name in names
        for side in (SIDES if name in some or not name.startswith("chunk") else [17])
    ]


needs_kernels = pytest.mark.skipif(not native.available(), reason=native.why_not())


def dense(sparse: SparseMap) -> Tensor:
    """The matrix (length of to, length of from)."""
    matrix = torch.zeros(len(sparse.start) - 1, sparse.columns)
    for row, (start, end) in enumerate(itertools.pairwise(sparse.start)):
        for k in range(start, end):
            matrix[row, sparse.index[k]] += float(sparse.scale[k])
    return matrix


@pytest.mark.parametrize(("symm", "side"), on_sides(list_symmetries()))
def test_a_form_knows_whether_its_matrices_are_their_own_transposes(symm: str, side: int) -> None:
    form = get_symmetry(symm, side)
    w = form.expand(torch.randn(5, form.numel, dtype=torch.float64))
    if ":skew" not in symm or side > 1:  # of one entry it does not say
        assert form.own_transpose == torch.equal(w, w.mT)
    if side > 2:
        others = symm.startswith(("block", "chunk")) or ":diag" in symm or ":skew" in symm
        assert form.own_transpose == (not others)


@pytest.mark.parametrize(("symm", "side"), on_sides(FOLDING))
def test_maps_do_what_the_folding_does(symm: str, side: int) -> None:
    plan = plan_of("ifgo", side, side, symm, "ifgo")
    folding = plan.folding
    assert folding is not None
    x, y = torch.randn(3, side), torch.randn(3, side)
    inputs, d_outputs = folding.inputs(x, -1), folding.outputs_adjoint(y, -1)
    products = [torch.randn(3, group.rows) for group in plan.groups]
    d_inputs = [torch.randn(3, group.columns) for group in plan.groups]
    output, d_x = torch.zeros(3, side), torch.zeros(3, side)
    for k, group in enumerate(plan.groups):
        assert group.maps is not None
        fold, unfold, fold_adjoint, unfold_adjoint = map(dense, group.maps)
        torch.testing.assert_close(x @ fold.T, inputs[k])
        torch.testing.assert_close(y @ unfold_adjoint.T, d_outputs[k])
        output += products[k] @ unfold.T
        d_x += d_inputs[k] @ fold_adjoint.T
        for one in group.maps:
            arrays = (one.start, one.index, one.scale)
            assert [a.dtype for a in arrays] == [np.int32, np.int32, np.float32]
            assert all(a.flags.c_contiguous for a in arrays)
    torch.testing.assert_close(output, folding.outputs(products, side, -1))
    torch.testing.assert_close(d_x, folding.inputs_adjoint(d_inputs, side, -1))


@pytest.mark.parametrize(("symm", "side"), on_sides(FOLDING))
def test_small_matrices_packed_as_symmetric_are_so(symm: str, side: int) -> None:
    form = get_symmetry(symm, side)
    groups = plan_of("h", side, side, symm, "h").groups
    v = torch.randn(form.numel, dtype=torch.float64)
    for m, group in zip(form.matrices(v), groups, strict=True):
        own = m.shape == m.mT.shape and torch.equal(m, m.mT)
        assert group.symmetric == own
        assert (group.rows, group.columns) == m.shape


def test_which_gates_are_packed_together() -> None:
    def plan(symm: str, symmetric: str) -> Plan:
        lstm = SymLSTM(8, 8, symm=symm, symm_hh=symmetric)
        form, packed, _ = source_of(lstm.layer_weights()[0].hh)
        return plan_of("ifgo", 8, 8, form, packed)

    def groups(symm: str, symmetric: str) -> list[tuple[str, int]]:
        found = plan(symm, symmetric).groups
        return [("".join("ifgo"[gate] for gate in g.gates), g.symmetric) for g in found]

    assert groups("none", "") == [("ifgo", False)]
    assert groups("avg", "ifgo") == [("ifgo", True)]
    assert groups("avg", "fo") == [("fo", True), ("ig", False)]
    assert groups("tri8", "i") == [("i", True), ("fgo", False)]
    assert groups("tri8", "ifgo") == [("ifgo", True)]
    assert groups("tri4", "ifgo") == [("ifgo", True), ("ifgo", True)]  # even and odd half
    assert groups("eigen", "fo") == [("fo", True), ("ig", False)]
    assert groups("avg:diag4", "fo") == [("fo", 1), ("ig", 0)]
    assert groups("avg:diag5", "fo") == [("ifgo", 0)]  # blocks across the tiles
    assert groups("avg:diag9", "ifgo") == [("ifgo", 1)]
    assert groups("avg:skew2", "ifgo") == [("ifgo", 1), ("ifgo", 0)]  # and the factors
    assert groups("avg:skew2", "fo") == [("fo", 1), ("fo", 0), ("ig", 0)]
    assert groups("block4", "fo") == [("ifgo", False)]
    assert groups("block4", "ifgo") == [("ifgo", False)]
    assert plan("block4", "fo").folding is None
    assert [g.rows for g in plan("block4", "ifgo").groups] == [4]


class _AllZero(TorchDispatchMode):
    """Stands for a tracer, which has no numbers."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        return torch.zeros_like(result) if isinstance(result, Tensor) else result


def test_a_plan_made_while_pytorch_traces_is_the_same() -> None:
    plan_of.cache_clear()
    with _AllZero(), torch.device("meta"):
        made = plan_of("h", 7, 7, "tri4", "h")
    plan_of.cache_clear()
    again = plan_of("h", 7, 7, "tri4", "h")
    for a, b in zip(made.groups, again.groups, strict=True):
        assert (a.rows, a.columns, a.symmetric) == (b.rows, b.columns, b.symmetric)
        assert a.maps is not None
        assert b.maps is not None
        assert all(torch.equal(dense(p), dense(q)) for p, q in zip(a.maps, b.maps, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_a_plan_is_the_same_by_any_default_dtype(dtype: torch.dtype) -> None:
    expected = plan_of("h", 7, 7, "tri4", "h")
    plan_of.cache_clear()
    torch.set_default_dtype(dtype)
    try:
        made = plan_of("h", 7, 7, "tri4", "h")
    finally:
        torch.set_default_dtype(torch.float32)
        plan_of.cache_clear()
    for a, b in zip(made.groups, expected.groups, strict=True):
        assert a.maps is not None
        assert b.maps is not None
        for p, q in zip(a.maps, b.maps, strict=True):
            assert p.scale.dtype == np.float32
            assert torch.equal(dense(p), dense(q))


def multiplied(plan: Plan, packed: Tensor, x: Tensor, *, transposed: bool) -> Tensor:
    """By the kernels: x (B, C) to (B, G·H), or transposed the other way."""
    lib = native.library()
    assert lib is not None
    y = x.new_empty(len(x), plan.columns if transposed else plan.gates * plan.rows)
    product = plan.product(packed)
    native.check(lib.symrnn_multiply(product, transposed, len(x), x.data_ptr(), y.data_ptr(), 1, 1))
    return y


def test_what_each_form_is_packed_from() -> None:
    """Two forms from their parameters, those that fold from small matrices, others whole."""

    def source(symm: str, symm_hh: str = "ifgo", *, whole: bool = False) -> tuple[str, list[int]]:
        lstm = SymLSTM(3, 8, symm=symm, symm_hh=symm_hh)
        form, symmetric, tensors = source_of(lstm.layer_weights()[0].hh, whole=whole)
        assert symmetric == (symm_hh if form else "")
        return form, [list(t.shape)[1:] for t in tensors]

    assert source("avg") == ("avg", [[36]])
    assert source("tri", "fo") == ("tri", [[36], [8, 8]])
    assert source("avg:diag2", "fo") == ("avg:diag2", [[40], [8, 8]])
    assert source("avg:skew3", "fo") == ("avg:skew3", [[36], [8, 6], [8, 8]])
    assert source("avg:skew3", whole=True) == ("", [[8, 8]])
    assert source("avg:diag3") == source("avg:diag2", whole=True) == ("", [[8, 8]])
    assert source("tri8") == ("tri8", [[4, 4]])
    assert source("tri8", "fo") == (WHOLE, [[8, 8], [8, 8]])
    assert source("avg:full") == source("eigen") == source("ldl") == (WHOLE, [[8, 8]])
    assert source("block4", "fo") == ("", [[8, 8]])
    assert source("avg", whole=True) == source("tri8", whole=True) == (WHOLE, [[8, 8]])
    with pytest.raises(ValueError, match="form='eigen' should be given as form='whole'"):
        plan_of("ifgo", 8, 8, "eigen", "ifgo")


@needs_kernels
@pytest.mark.parametrize(
    ("symm", "symm_hh", "side"),
    [
        *((symm, "ifgo", side) for symm, side in on_sides(list_symmetries())),
        *((f"avg:diag{block}", "ifgo", 50) for block in (1, 8, 24, 32, 48, 64)),
        *((f"avg:skew{planes}", "ifgo", 33) for planes in (1, 2, 16, 20)),
        *(
            (*some, side)
            for some in (
                *(("avg", "fo"), ("tri:diag2", "fo"), ("avg:skew3", "if")),
                *(("block4", "ig"), ("none", "")),
            )
            for side in SIDES
        ),
    ],
)
def test_packed_numbers_multiply_as_the_whole_matrix(symm: str, symm_hh: str, side: int) -> None:
    """And transposed; and so does, in PyTorch's operators, what they are packed from."""
    lstm = SymLSTM(3, side, symm=symm, symm_hh=symm_hh, dtype=torch.float64)
    for parameter in lstm.parameters():  # a skew part begins at zero
        torch.nn.init.uniform_(parameter, -0.5, 0.5)
    w = lstm.weight_hh_l0.detach()
    matrix = lstm.layer_weights()[0].hh
    form, symmetric, hidden = source_of(matrix)
    plan = plan_of("ifgo", side, side, form, symmetric)
    assert [m.shape for m in hidden] == plan.shapes()
    packed = plan.pack(hidden, torch.float64)
    assert packed.shape == (plan.length(torch.float64),)
    x, y = torch.randn(3, side, dtype=torch.float64), torch.randn(3, 4 * side, dtype=torch.float64)
    product, adjoint = (multiplied(plan, packed, v, transposed=v is y) for v in (x, y))
    torch.testing.assert_close(product, x @ w.T, rtol=0, atol=1e-13)
    torch.testing.assert_close(adjoint, y @ w, rtol=0, atol=1e-13)
    composite = plan.multiply(x, hidden).flatten(1)
    torch.testing.assert_close(composite, x @ w.T, rtol=0, atol=1e-13)
    # And the gradients of what is packed are those of the parameters, once through their forms.
    d_hidden = plan.gradients(y.view(3, 4, side), x, hidden, torch.matmul)
    assert [d.shape for d in d_hidden] == plan.shapes()
    found = torch.autograd.grad(hidden, matrix.tensors, d_hidden)
    expected = torch.autograd.grad((x @ lstm.weight_hh_l0.T * y).sum(), matrix.tensors)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("block", [1, 2, 16, 32, 64])
def test_free_blocks_are_packed_from_parameters_as_from_matrices(
    block: int, dtype: torch.dtype
) -> None:
    """In units of tiles, as symrnn.h has them."""
    side = 50
    form = get_symmetry(f"tri:diag{block}", side)
    v = torch.randn(2, form.numel)
    plan = plan_of("ab", side, side, form.name, "ab")
    (group,) = plan.groups
    assert group.symmetric == {1: 1, 2: 1, 16: 1, 32: 2, 64: 4}[block]
    given_whole = replace(plan, groups=(replace(group, staircase=None),))
    assert torch.equal(plan.pack([v], dtype), given_whole.pack([form.expand(v)], dtype))


@needs_kernels
def test_a_matrix_need_not_be_contiguous() -> None:
    plan = plan_of("h", 6, 4, "none", "")
    whole = torch.randn(1, 4, 6)
    assert torch.equal(
        plan.pack([whole.mT], torch.float32), plan.pack([whole.mT.contiguous()], torch.float32)
    )
    padded = torch.randn(2, 6, 9)[:1, :, 2:6]
    assert torch.equal(
        plan.pack([padded], torch.float32), plan.pack([padded.contiguous()], torch.float32)
    )
