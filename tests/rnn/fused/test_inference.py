"""Cached packed weights: never out of date, never in the way, of bfloat16 or int8 if asked for."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_sequence
from torch.overrides import BaseTorchFunctionMode

from symrnn import SymGRU, SymGRUCell, SymLSTM, SymLSTMCell, SymRNN, native
from symrnn.rnn.fused.packing import plan_of, source_of
from symrnn.rnn.modes import MODES
from symrnn.rnn.weights import GateMatrix

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())

IN, H = 6, 6


def results(module: Any, *inputs: Any) -> list[Tensor]:
    found = module(*inputs)
    parts = [found] if isinstance(found, Tensor) else found
    return [t for part in parts for t in ([part] if isinstance(part, Tensor) else part)]


def check(layer: Any, x: Tensor) -> None:
    """The result is the reference loop's on the weights as they now are."""
    expected = copy.deepcopy(layer)
    expected.backend = "reference"
    with torch.no_grad():
        for rows in (x, x.repeat(20, *[1] * (x.dim() - 1))):  # few, and many
            torch.testing.assert_close(results(layer, rows), results(expected, rows))


@pytest.fixture
def layer() -> SymLSTM:
    """With packed weights at hand, the input's too, and those that are not packed."""
    made = SymLSTM(IN, H, 2, symm="avg", symm_hh="fo", symm_ih="i", backend="fused")
    check(made, torch.randn(4, 2, IN))
    assert made._cache.entry is not None
    return made


# ---- out of date -------------------------------------------------------------------------------


def _load(layer: SymLSTM) -> None:
    other = SymLSTM(IN, H, 2, symm="avg", symm_hh="fo", symm_ih="i")
    layer.load_state_dict(other.state_dict())


def _load_assigning(layer: SymLSTM) -> None:
    other = SymLSTM(IN, H, 2, symm="avg", symm_hh="fo", symm_ih="i")
    layer.load_state_dict(other.state_dict(), assign=True)


def _step(layer: SymLSTM) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer(torch.randn(4, 2, IN))[0].square().sum().backward()
    optimizer.step()


def _fused_step(layer: SymLSTM) -> None:
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.1, fused=True)
    layer(torch.randn(4, 2, IN))[0].square().sum().backward()
    optimizer.step()


def _in_place(layer: SymLSTM) -> None:
    with torch.no_grad():
        layer.weight_hh_l0_avg[1, 3] = 2.0


def _in_inference_mode(layer: SymLSTM) -> None:
    with torch.inference_mode():
        layer.weight_hh_l1_rest[0, 0] = 2.0


def _bias(layer: SymLSTM) -> None:
    with torch.no_grad():
        layer.bias_hh_l1.add_(0.5)


def _input(layer: SymLSTM) -> None:
    with torch.no_grad():
        layer.weight_ih_l1_rest.neg_()


def _assigned(layer: SymLSTM) -> None:
    layer.weight_hh_l0_avg = nn.Parameter(torch.randn(2, H * (H + 1) // 2))


def _matrix(layer: SymLSTM) -> None:
    layer.weight_hh_l0 = torch.randn(4 * H, H)


def _new_data(layer: SymLSTM) -> None:
    layer.weight_hh_l0_avg.data = torch.randn(2, H * (H + 1) // 2)


def _through_data(layer: SymLSTM) -> None:
    layer.weight_hh_l0_avg.data.mul_(-1.0)


def _half_through_data(layer: SymLSTM) -> None:
    layer.weight_ih_l0_rest.data[: H // 2].fill_(0.25)


def _through_numpy(layer: SymLSTM) -> None:
    layer.bias_ih_l0.detach().numpy()[:] = 0.5


def _anew(layer: SymLSTM) -> None:
    layer.reset_parameters()


def _there_and_back(layer: SymLSTM) -> None:
    layer.double()
    with torch.no_grad():
        layer.weight_hh_l0_avg.mul_(0.5)
    layer.float()


def _parametrized(layer: SymLSTM) -> None:
    parametrize.register_parametrization(layer, "bias_ih_l0", _Double())


class _Double(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2 * w


def _transposed(layer: SymLSTM) -> None:
    layer.weight_ih_l0_rest = nn.Parameter(torch.randn(IN, 3 * H).T)


CHANGES: list[Callable[[SymLSTM], None]] = [
    _load,
    _load_assigning,
    _step,
    _fused_step,
    _in_place,
    _in_inference_mode,
    _bias,
    _input,
    _assigned,
    _matrix,
    _new_data,
    _through_data,
    _half_through_data,
    _through_numpy,
    _anew,
    _there_and_back,
    _parametrized,
    _transposed,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_the_weights_is_seen_by_the_next_call(
    layer: SymLSTM, change: Callable[[SymLSTM], None]
) -> None:
    x = torch.randn(4, 2, IN)
    with torch.no_grad():
        before = layer(x)[0]
    change(layer)
    with torch.no_grad():
        assert (layer(x)[0] - before).abs().max() > 1e-4
    check(layer, x)
    check(layer, x)


@pytest.mark.parametrize("change", CHANGES)
def test_and_so_it_is_by_calls_with_gradients(
    layer: SymLSTM, change: Callable[[SymLSTM], None]
) -> None:
    """Which cache nothing, and use nothing that is cached."""
    x = torch.randn(4, 2, IN)
    layer(x)
    change(layer)
    expected = copy.deepcopy(layer)
    expected.backend = "reference"
    found = []
    for module in (layer, expected):
        loss = module(x)[0].square().sum()
        found.append([loss, *torch.autograd.grad(loss, list(module.parameters()))])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_single_entries_written_unseen_want_a_word(layer: SymLSTM) -> None:
    """What the docstring says is not noticed, and what it says to do."""
    layer.weight_hh_l0_rest.data[0, 1] = 3.0
    layer.flatten_parameters()
    check(layer, torch.randn(4, 2, IN))


def test_the_samples_do_not_all_lie_in_one_column() -> None:
    layer = SymLSTM(6, 8, backend="fused")
    x = torch.randn(4, 2, 6)
    check(layer, x)
    for name in ("weight_ih_l0", "weight_hh_l0_avg"):
        getattr(layer, name).data[:, 1:] *= -1
        check(layer, x)


def test_a_matrix_that_is_transposed_where_it_lies_is_seen() -> None:
    layer = SymRNN(6, 6, symm="none", backend="fused")
    x = torch.randn(4, 2, 6)
    check(layer, x)
    for w in (layer.weight_hh_l0, layer.weight_ih_l0):
        w.data = w.data.T
        check(layer, x)
        check(layer, x)


def test_memory_is_not_mistaken_for_what_lay_there_before() -> None:
    """The memory of weights that are packed is not given to others."""
    layer = SymLSTM(IN, H, backend="fused")
    x = torch.randn(1, 1, IN)
    for _ in range(20):
        layer.weight_hh_l0_avg.data = torch.randn(4, H * (H + 1) // 2)
        check(layer, x)


@pytest.mark.parametrize("flip", [False, True])
def test_gradients_switched_on_and_off(layer: SymLSTM, flip: bool) -> None:
    x = torch.randn(4, 2, IN)
    layer.requires_grad_(flip)
    cached = layer._cache.entry
    check(layer, x)
    assert layer._cache.entry is cached
    assert layer(x)[0].requires_grad == flip
    layer.requires_grad_(not flip)
    assert layer(x)[0].requires_grad != flip


def test_memory_may_still_be_swapped(layer: SymLSTM) -> None:
    """PyTorch refuses to swap a tensor that another one is a view of."""
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        layer.double()
        check(layer, torch.randn(4, 2, IN, dtype=torch.float64))
        layer.double().float()
        other = SymLSTM(IN, H, 2, symm="avg", symm_hh="fo", symm_ih="i")
        check(layer, torch.randn(4, 2, IN))
        layer.load_state_dict(other.state_dict())
        check(layer, torch.randn(4, 2, IN))
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_functional_call_leaves_the_cache_alone(layer: SymLSTM) -> None:
    x = torch.randn(4, 2, IN)
    other = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
    expected = copy.deepcopy(layer)
    expected.backend = "reference"
    with torch.no_grad():
        found = torch.func.functional_call(layer, other, (x,))
        torch.testing.assert_close(found, torch.func.functional_call(expected, other, (x,)))
    check(layer, x)


def test_tensors_that_stand_in_for_parameters_are_not_cached(layer: SymLSTM) -> None:
    x = torch.randn(4, 2, IN)
    other = {name: torch.randn_like(p) for name, p in layer.named_parameters()}
    references = [weakref.ref(tensor) for tensor in other.values()]
    with torch.no_grad():
        torch.func.functional_call(layer, other, (x,))
    assert layer._cache.entry is None
    del other
    assert not any(reference() is not None for reference in references)


def test_a_parameter_that_is_no_weight_may_be_on_another_device() -> None:
    layer = SymLSTM(IN, H, 2, symm="none", backend="fused")
    layer.extra = nn.Parameter(torch.empty_like(layer.bias_hh_l0, device="meta"))
    x = torch.randn(4, 2, IN)
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[0], layer(x)[0])


def test_weights_made_in_inference_mode_are_never_cached() -> None:
    with torch.inference_mode():
        layer = SymLSTM(IN, H, backend="fused")
        x = torch.randn(4, 2, IN)
        expected = layer.to_plain()
        torch.testing.assert_close(layer(x), expected(x))
        layer.weight_ih_l0.mul_(2.0)
        torch.testing.assert_close(layer(x), layer.to_plain()(x))
    assert layer._cache.entry is None


# ---- in the way --------------------------------------------------------------------------------


def test_copies_pickles_and_state_dicts_hold_nothing_packed(layer: SymLSTM) -> None:
    bare = SymLSTM(IN, H, 2, symm="avg", symm_hh="fo", symm_ih="i", backend="fused")
    assert layer.state_dict().keys() == bare.state_dict().keys()
    assert len(pickle.dumps(layer)) == len(pickle.dumps(bare))
    whole = io.BytesIO()
    torch.save(layer, whole)
    whole.seek(0)
    x = torch.randn(4, 2, IN)
    for other in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(whole, weights_only=False),
        copy.copy(layer),
    ):
        with torch.no_grad():
            torch.testing.assert_close(other(x), layer(x), rtol=0, atol=0)
    assert copy.deepcopy(layer)._cache.entry is None
    layer.to(torch.float64)
    assert layer._cache.entry is None


def test_a_pickle_of_before_weights_were_cached(layer: SymLSTM) -> None:
    state = {name: value for name, value in vars(layer).items() if name != "_cache"}
    old = SymLSTM.__new__(SymLSTM)
    old.__setstate__(state)
    check(old, torch.randn(4, 2, IN))


def test_a_copy_is_packed_for_itself(layer: SymLSTM) -> None:
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight_hh_l0_avg.zero_()
    x = torch.randn(4, 2, IN)
    check(other, x)
    check(layer, x)


# ---- the fast path -----------------------------------------------------------------------------

KINDS: list[tuple[Any, dict[str, Any]]] = [
    (SymLSTM, {}),
    (SymLSTM, {"num_layers": 2, "bidirectional": True, "bias": False}),
    (SymLSTM, {"batch_first": True}),
    (SymGRU, {"num_layers": 2, "symm": "tri4"}),
    (SymRNN, {"nonlinearity": "relu", "symm": "none"}),
    (SymLSTMCell, {}),
    (SymGRUCell, {"symm": "tri8"}),
]


@pytest.mark.parametrize(("make", "options"), KINDS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_fast_path_gives_the_same_bits(
    make: Any, options: dict[str, Any], mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = make(IN, H, backend="fused", **options)
    is_cell = make in (SymLSTMCell, SymGRUCell)
    shapes = [(2, IN), (IN,)] if is_cell else [(1, 1, IN), (3, 1, IN), (1, 3, IN), (4, IN)]
    shapes += [] if is_cell else [(3, 2, IN), (40, 2, IN)]
    for shape in shapes:
        x = torch.randn(shape)
        with mode():
            first = module(x)
            hx = first if is_cell else first[1]
            found = []
            for composite in (False, True):
                if composite:
                    monkeypatch.setattr(type(module), "_fast_path", lambda *_: None)
                found.append([*results(module, x), *results(module, x, hx)])
            monkeypatch.undo()
            for a, b in zip(*found, strict=True):
                assert torch.equal(a, b)
                assert a.shape == b.shape
            assert module._fast_path(x, hx) is not None or (
                options.get("batch_first") and len(shape) == 3 and min(shape[:2]) > 1
            )


def test_what_is_not_sound_does_not_take_the_fast_path(layer: SymLSTM) -> None:
    x, h = torch.randn(1, 1, IN), torch.zeros(2, 1, H)
    wrong: list[tuple[Any, Any]] = [
        (x[0, 0], None),
        (x[None], None),
        (x[..., :-1], None),
        (x.double(), None),
        (x.to("meta"), None),
        (torch.empty(0, 1, IN), None),
        (torch.empty(1, 0, IN), None),
        (torch.randn(4, IN, 2).transpose(1, 2), None),
        (nn.Parameter(x), None),
        (pack_sequence([x[0]]), None),
        ("text", None),
        (x, h),
        (x, (h,)),
        (x, (h, h, h)),
        (x, (h, h[:1])),
        (x, (h[0], h[0])),
        (x, (h.double(), h)),
        (x, (h, h.to("meta"))),
        (x, (h, torch.zeros(2, 1, 2 * H)[..., ::2])),
        (x, "hc"),
    ]
    with torch.no_grad():
        assert layer._fast_path(x, (h, h)) is not None
        for input, hx in wrong:
            assert layer._fast_path(input, hx) is None
        with torch.autocast("cpu"):
            assert layer._fast_path(x, None) is None
        with BaseTorchFunctionMode():  # a mode may do anything to what is called
            assert layer._fast_path(x, None) is None
            with torch.device("cpu"):
                assert layer._fast_path(x, None) is None
        with torch.device("meta"):
            assert layer._fast_path(x, None) is None
        with torch.device("cpu"):  # but for this one
            assert layer._fast_path(x, None) is not None
    assert layer._fast_path(x, None) is None  # gradients may be wanted
    layer.backend = "reference"
    with torch.no_grad():
        assert layer._fast_path(x, None) is None


def test_a_call_under_a_default_device_is_right(layer: SymLSTM) -> None:
    x = torch.randn(1, 1, IN)
    with torch.no_grad():
        expected = layer(x)
        for device in ("meta", "cpu"):
            with torch.device(device):
                torch.testing.assert_close(layer(x), expected)
                layer.flatten_parameters()
                torch.testing.assert_close(layer(x), expected)


WRONG_WEIGHTS: list[tuple[str, Tensor, str]] = [
    ("bias_ih_l0", torch.zeros(4), r"bias_ih_l0 should have shape \(24,\), got: \(4,\)"),
    ("bias_hh_l0", torch.zeros(24).half(), "bias_hh_l0 should be float32 or float64, got"),
    ("weight_ih_l1", torch.zeros(24, 5), "shape"),
    ("weight_hh_l1", torch.zeros(6, 6), "should have shape"),
    ("weight_hh_l1", torch.zeros(24, 6).double(), "dtype should be torch.float64"),
]


@pytest.mark.parametrize(("name", "wrong", "words"), WRONG_WEIGHTS)
def test_other_tensors_in_the_place_of_weights_are_refused(
    name: str, wrong: Tensor, words: str
) -> None:
    """No memory is read that is not theirs."""
    for rows in (1, 100):
        plain = SymLSTM(IN, H, 2, symm="none", backend="fused")
        x = torch.randn(rows, 1, IN)
        with torch.no_grad():
            plain(x)
            setattr(plain, name, nn.Parameter(wrong))
            with pytest.raises((ValueError, RuntimeError), match=words):
                plain(x)


# ---- bfloat16 ----------------------------------------------------------------------------------


def rounded(layer: SymLSTM | SymGRU) -> Any:
    """PyTorch's layer with the whole weights rounded to bfloat16, and nothing else."""
    plain = layer.to_plain()
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if name.startswith("weight"):
                weight.copy_(weight.bfloat16())
    return plain


@pytest.mark.parametrize("backend", ["fused", "auto"])
@pytest.mark.parametrize("make", [SymLSTM, SymGRU, SymRNN])
@pytest.mark.parametrize("options", [{"symm": "avg"}, {"symm": "none"}, {"symm": "block4"}])
def test_bfloat16_rounds_the_weights_and_nothing_else(
    make: Any, options: dict[str, Any], backend: str
) -> None:
    """At any length; so a gate's sum is wrong by 2**-9 of Σ|w·x| at most, half a unit of 8 bits."""
    layer = make(20, 20, 2, backend=backend, **options)
    layer.inference_dtype = torch.bfloat16
    expected = rounded(layer)
    for steps in (1, 5, 70):
        x = torch.randn(steps, 2, 20)
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(layer(x), expected(x), rtol=0, atol=2e-6)
                assert not torch.equal(layer(x)[0], layer.to_plain()(x)[0])


def test_bfloat16_is_near_float32() -> None:
    """Weights change by 2**-9 of themselves, so a gate's sum by that much of Σ|w·x|.

    Here Σ|w·x| is below 2·20·max|w|·max|x|; a sigmoid's slope is 1/4 at most and tanh's 1.
    """
    layer = SymLSTM(20, 20, symm="tri4", backend="fused")
    x = torch.rand(1, 2, 20)
    with torch.no_grad():
        exact = layer(x)[0]
        layer.inference_dtype = torch.bfloat16
        bound = 2**-9 * 20 * 20**-0.5 * 2  # h0 is zero; the odd half of tri4 sums two weights
        assert 0 < (layer(x)[0] - exact).abs().max() < bound


def test_bfloat16_is_for_inference_alone() -> None:
    layer = SymLSTM(IN, H, backend="fused")
    exact = copy.deepcopy(layer)
    layer.inference_dtype = torch.bfloat16
    x = torch.randn(3, 2, IN)
    assert torch.equal(layer(x)[0], exact(x)[0])
    layer.requires_grad_(False)  # none is wanted here either
    assert not torch.equal(layer(x)[0], exact(x)[0])
    layer.requires_grad_(True)
    layer.inference_dtype = None
    with torch.no_grad():
        assert torch.equal(layer(x)[0], exact(x)[0])


def test_bfloat16_in_compiled_programs() -> None:
    torch.compiler.reset()
    layer = SymGRU(IN, H, backend="fused")
    layer.inference_dtype = torch.bfloat16
    x = torch.randn(3, 2, IN)
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), layer(x))
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_the_choice_is_checked_and_survives(dtype: torch.dtype) -> None:
    layer = SymLSTM(IN, H, backend="fused")
    assert layer.inference_dtype is None
    for wrong in (torch.float16, torch.uint8, "bfloat16"):
        with pytest.raises(ValueError, match="inference_dtype should be None or"):
            layer.inference_dtype = wrong
    assert "inference_dtype" not in repr(layer)
    layer.inference_dtype = dtype
    assert f"symm_ih='', inference_dtype={dtype}\n" in repr(layer)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other.inference_dtype is dtype
    layer.double()
    with pytest.raises(ValueError, match=r"inference_dtype=.* is for weights of float32, got"):
        layer(torch.randn(1, 1, IN, dtype=torch.float64))


@pytest.mark.parametrize("make", [SymLSTM, SymGRUCell])
def test_bfloat16_is_refused_where_it_would_do_nothing(make: Any) -> None:
    module = make(IN, H, backend="vendor")
    with pytest.raises(ValueError, match='wants backend="auto" or "fused", got: \'vendor\''):
        module.inference_dtype = torch.bfloat16
    module.inference_dtype = None


# ---- int8 --------------------------------------------------------------------------------------


def int8_product(matrix: GateMatrix, x: Tensor) -> Tensor:
    """x (B, C) times the transposed matrix, by the kernels: tests/native has them bit for bit."""
    layout = matrix.layout
    form, symmetric, tensors = source_of(matrix)
    plan = plan_of(layout.gates, layout.rows, layout.columns, form, symmetric)
    packed = plan.pack([tensor.detach() for tensor in tensors], torch.int8)
    x, y = x.contiguous(), x.new_empty(len(x), matrix.shape[0])
    library = native.library()
    assert library is not None
    given = (False, len(x), x.data_ptr(), y.data_ptr(), 1, 1)
    native.check(library.symrnn_multiply(plan.product(packed), *given))
    return y


def int8_loop(layer: Any, x: Tensor, output: Tensor) -> Tensor:
    """The readable loop; each step takes up what the kernels gave, so that both round the same."""
    (w,) = layer.layer_weights()
    mode = MODES[layer.mode]
    state = [torch.zeros_like(output[0]) for _ in mode.states]
    made = []
    for t, row in enumerate(x):
        given = int8_product(w.ih, row) + w.bias_ih
        state = mode.pointwise(given, int8_product(w.hh, state[0]) + w.bias_hh, state)
        made.append(state[0])
        state = [output[t], *state[1:]]
    return torch.stack(made)


INT8 = [
    {"symm": "avg"},
    {"symm": "avg", "partly": True},
    {"symm": "tri", "partly": True, "symm_ih": True},
    {"symm": "avg:diag2", "symm_ih": True},
    {"symm": "avg:skew2", "partly": True, "symm_ih": True},
    {"symm": "none"},
    {"symm": "tri4"},
    {"symm": "block4"},
    {"symm": "chunk4"},
    {"symm": "eigen"},
]


@pytest.mark.parametrize("make", [SymLSTM, SymGRU, SymRNN])
@pytest.mark.parametrize("options", INT8, ids=lambda options: "-".join(map(str, options.values())))
def test_int8_is_the_loop_on_int8_products(make: Any, options: dict[str, Any]) -> None:
    gates = make.GATES
    given = {"symm": options["symm"]}
    if options.get("partly"):
        given["symm_hh"] = gates[-2:]
    if options.get("symm_ih"):
        given["symm_ih"] = gates[:1]
    layer = make(40, 40, backend="fused", **given)
    if ":skew" in options["symm"]:  # whose skew part begins at zero
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -0.2, 0.2)
    layer.inference_dtype = torch.int8
    with torch.no_grad():
        for batch in (1, 3, 6):
            x = torch.randn(5, batch, 40)
            output = results(layer, x)[0]
            torch.testing.assert_close(output, int8_loop(layer, x, output), rtol=0, atol=1e-6)
            exact = results(layer.to_plain(), x)[0]
            error = (output - exact).abs().max()
            assert 1e-5 < error < 0.03


def test_int8_is_the_same_however_it_is_run() -> None:
    """Sums are of integers: no bit depends on threads, nor on how many steps a call takes."""
    layer = SymLSTM(30, 70, 2, symm_hh="ifo", backend="fused")
    layer.inference_dtype = torch.int8
    x = torch.randn(6, 3, 30)
    threads = torch.get_num_threads()
    try:
        with torch.no_grad():
            found = []
            for n in (1, 2, 5):
                torch.set_num_threads(n)
                found.append(results(layer, x))
            steps, state = [], None
            for row in x:
                output, state = layer(row[None], state)
                steps.append(output)
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))
    assert torch.equal(torch.cat(steps), found[0][0])
    with torch.no_grad():
        many = layer(x.repeat(1, 700, 1))[0]  # more rows than are packed in other types
        assert torch.equal(many[:, :3], layer(x.repeat(1, 10, 1))[0][:, :3])


def test_int8_cells_are_a_step_of_the_layer() -> None:
    layer = SymGRU(20, 20, symm="avg", backend="fused")
    cell = SymGRUCell(20, 20, symm="avg", backend="fused")
    cell.load_state_dict({name.replace("_l0", ""): t for name, t in layer.state_dict().items()})
    cell.inference_dtype = layer.inference_dtype = torch.int8
    x = torch.randn(1, 2, 20)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(cell(x[0]), layer(x)[0][0])


def test_int8_is_for_inference_alone() -> None:
    layer = SymLSTM(IN, H, backend="fused")
    exact = copy.deepcopy(layer)
    layer.inference_dtype = torch.int8
    x = torch.randn(3, 2, IN)
    assert torch.equal(layer(x)[0], exact(x)[0])
    with torch.no_grad():
        assert not torch.equal(layer(x)[0], exact(x)[0])


def test_int8_in_compiled_programs() -> None:
    torch.compiler.reset()
    layer = SymGRU(IN, H, backend="fused")
    layer.inference_dtype = torch.int8
    x = torch.randn(3, 2, IN)
    with torch.no_grad():
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), layer(x))
    torch.compiler.reset()


def test_int8_of_states_beyond_one() -> None:
    """A state that is given, and that of a ReLU, may be of any size."""
    layer = SymRNN(20, 20, nonlinearity="relu", backend="fused")
    layer.inference_dtype = torch.int8
    x, h = torch.randn(4, 2, 20), 100 * torch.randn(1, 2, 20)
    with torch.no_grad():
        exact = layer.to_plain()(x, h)[0]
        assert (layer(x, h)[0] - exact).abs().max() < 0.03 * exact.abs().max()
