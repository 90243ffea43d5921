"""Where kernels tend to break: huge inputs, large means, ties, shared arrays. Kernels and twins alike."""

import numpy as np
import pytest

from fastllm import kernels
from fastllm.kernels import reference
from fastllm.kernels.cases.packed import matrices
from fastllm.kernels.reference.packed import KINDS, unpacked

EPS = float(np.finfo(np.float32).eps)
EXTREMES = np.array([[-1e4, -100, -20, -1e-30, 0, 1e-30, 20, 100, 1e4]], np.float32)
NO_ARRAY = np.empty((0, 0), np.float32)


@pytest.fixture(params=[kernels, reference], ids=["kernel", "twin"])
def backend(request):
    return request.param


def nan(*shape):
    return np.full(shape, np.nan, np.float32)


@pytest.mark.parametrize("name", ["relu", "gelu", "gelu_tanh", "silu"])
def test_activations_saturate(backend, name):
    """Far from 0 all are x or 0, with slope 1 or 0."""
    out, dx = nan(*EXTREMES.shape), nan(*EXTREMES.shape)
    getattr(backend, f"{name}_forward")(out, EXTREMES)
    getattr(backend, f"{name}_backward")(dx, np.ones_like(EXTREMES), EXTREMES)
    far = np.abs(EXTREMES) >= 20
    # silu(-20) is still -20 * exp(-20) = -4e-8
    np.testing.assert_allclose(out[far], np.maximum(EXTREMES, 0)[far], rtol=EPS, atol=1e-7)
    np.testing.assert_allclose(dx[far], (EXTREMES > 0)[far], rtol=EPS, atol=1e-7)
    assert np.isfinite(out).all()
    assert np.isfinite(dx).all()


def test_relu_is_flat_at_zero(backend):
    dx = nan(1, 3)
    backend.relu_backward(dx, np.ones((1, 3), np.float32), np.array([[-0.0, 0.0, 1e-30]], np.float32))
    np.testing.assert_array_equal(dx, [[0, 0, 1]])


def test_swiglu_saturates(backend):
    gate_up = np.concatenate([EXTREMES, np.full_like(EXTREMES, 2)], axis=1)
    out, dgate_up = nan(*EXTREMES.shape), nan(*gate_up.shape)
    backend.swiglu_forward(out, gate_up)
    backend.swiglu_backward(dgate_up, np.ones_like(EXTREMES), gate_up)
    np.testing.assert_allclose(out[:, [0, -1]], [[0, 2e4]], rtol=EPS)
    assert np.isfinite(out).all()
    assert np.isfinite(dgate_up).all()


def test_a_shut_gate_lets_nothing_through(backend):
    """However large it is."""
    gate_up = np.array([[-200, -1000, 1e37, -3e38]], np.float32)
    out, dgate_up = nan(1, 2), nan(1, 4)
    backend.swiglu_forward(out, gate_up)
    backend.swiglu_backward(dgate_up, np.full_like(out, 1e3), gate_up)
    np.testing.assert_array_equal(out, 0)
    np.testing.assert_array_equal(dgate_up, 0)


@pytest.mark.parametrize("row", [EXTREMES, np.full((1, 7), 1e4, np.float32), np.full((1, 7), -1e4, np.float32)])
def test_softmax_and_cross_entropy_of_huge_logits(backend, row):
    out = nan(*row.shape)
    backend.softmax_forward(out, row)
    ties = np.sum(row == row.max())
    np.testing.assert_allclose(out, (row == row.max()) / ties, rtol=8 * EPS, atol=0)

    losses, correct, dlogits = nan(1), np.full(1, -1, np.int32), nan(*row.shape)
    target = np.array([row.argmax()], np.int32)
    backend.cross_entropy_forward_backward(losses, correct, dlogits, row, target, 1.0)
    np.testing.assert_allclose(losses, np.log(ties), rtol=8 * EPS, atol=8 * EPS)
    assert correct[0] == 1
    assert dlogits.sum() == pytest.approx(0, abs=8 * EPS)


def test_first_of_equal_logits_is_the_prediction(backend):
    logits = np.array([[1, 3, 3, 2], [1, 3, 3, 2]], np.float32)
    losses, correct = nan(2), np.full(2, -1, np.int32)
    backend.cross_entropy_forward(losses, correct, logits, np.array([1, 2], np.int32))
    np.testing.assert_array_equal(correct, [1, 0])


def test_gradient_may_overwrite_logits(backend):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((7, 533), dtype=np.float32)
    targets = rng.integers(0, 533, 7, dtype=np.int32)
    losses, correct, dlogits = nan(7), np.full(7, -1, np.int32), nan(7, 533)
    backend.cross_entropy_forward_backward(losses, correct, dlogits, logits, targets, 0.5)
    losses_again, correct_again = nan(7), np.full(7, -1, np.int32)
    backend.cross_entropy_forward_backward(losses_again, correct_again, logits, logits, targets, 0.5)
    np.testing.assert_allclose(logits, dlogits, rtol=8 * EPS, atol=8 * EPS)
    np.testing.assert_allclose(losses_again, losses, rtol=8 * EPS)
    np.testing.assert_array_equal(correct_again, correct)


@pytest.mark.parametrize("value", [0.1, 12.34, 1234.5678, 1e6 / 3])
@pytest.mark.parametrize("width", [7, 288, 768])
def test_layernorm_of_equal_numbers_is_the_bias(value, width):
    """The rounding of their mean is no variance."""
    x, out = np.full((1, width), value, np.float32), nan(1, width)
    weight, bias = np.ones(width, np.float32), np.full(width, 0.5, np.float32)
    kernels.layernorm_forward(out, nan(1), nan(1), x, weight, bias, 1e-5)
    np.testing.assert_array_equal(out, 0.5)


def test_layernorm_of_rows_far_from_zero(backend):
    """mean = 1000 deviations: E[x^2] - E[x]^2 in float32 would keep one digit of the variance."""
    rng = np.random.default_rng(0)
    x = 1000 + rng.standard_normal((7, 130), dtype=np.float32)
    out, mean, rstd = nan(7, 130), nan(7), nan(7)
    weight, bias = np.ones(130, np.float32), np.zeros(130, np.float32)
    backend.layernorm_forward(out, mean, rstd, x, weight, bias, 1e-5)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean(axis=1, keepdims=True)) / np.sqrt(exact.var(axis=1, keepdims=True) + 1e-5)
    # One rounding of the mean moves all numbers of a row by 1000 * eps.
    np.testing.assert_allclose(out, exact, atol=1000 * EPS, rtol=1000 * EPS)


def test_rope_turns_back(backend):
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((7, 4 * 16), dtype=np.float32)
    angle = rng.uniform(0, 6, (7, 8))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    turned = qkv.copy()
    backend.rope_forward(turned, cos, sin, np.arange(7, dtype=np.int32), 3, False)
    np.testing.assert_array_equal(turned[:, 48:], qkv[:, 48:])
    assert not np.allclose(turned[:, :48], qkv[:, :48])
    backend.rope_backward(turned, cos, sin, np.arange(7, dtype=np.int32), 3, False)
    np.testing.assert_allclose(turned, qkv, rtol=8 * EPS, atol=8 * EPS)


def test_attention_sees_neither_the_future_nor_other_sequences(backend):
    """Row 2 of sequences 0-3 and 4-6 changes itself and row 3 only."""
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((7, 3 * 16), dtype=np.float32)
    starts = np.array([0, 4, 7], np.int32)
    changed = qkv.copy()
    changed[2] += 1
    before, after = nan(7, 16), nan(7, 16)
    for out, columns in [(before, qkv), (after, changed)]:
        scratch = backend.attention_scratch(8) if backend is kernels else NO_ARRAY
        backend.attention_forward(out, nan(7, 2), columns, starts, 2, 2, 8**-0.5, scratch)
    np.testing.assert_array_equal(after[[0, 1, 4, 5, 6]], before[[0, 1, 4, 5, 6]])
    assert (after[[2, 3]] != before[[2, 3]]).all()


def test_a_row_has_the_same_bits_among_few_and_among_many():
    """Few rows are packed in the weight's place, in tiles as wide as they are; 100 are read where they stand."""
    rng = np.random.default_rng(0)
    rows, inputs, outputs = 100, 900, 131
    x, weight = rng.standard_normal((rows, inputs), np.float32), rng.standard_normal((outputs, inputs), np.float32)
    bias, residual = rng.standard_normal(outputs, np.float32), rng.standard_normal((rows, outputs), np.float32)

    def forward(count):
        room = nan(count + 2, outputs)  # nothing beyond the rows is written
        kernels.linear_forward(room[1:-1], x[:count], weight, bias, residual[:count], kernels.matmul_scratch())
        assert np.isnan(room[[0, -1]]).all()
        return room[1:-1]

    many = forward(rows)
    np.testing.assert_allclose(many, x.astype(np.float64) @ weight.T + bias + residual, rtol=1e-4, atol=1e-3)
    for count in (1, 7, 8, 9, 16, 17, 24, 25, 32, 33, 40, 41):
        assert forward(count).tobytes() == many[:count].tobytes()


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"),
    [
        (45, 96, 100), (45, 1000, 100), (130, 96, 500), (97, 800, 61), (1000, 1024, 256), (900, 1500, 300),
        (256, 256, 128), (256, 128, 128), (256, 131, 99), (300, 64, 900),
    ],
)  # fmt: skip
def test_products_have_the_same_bits_in_any_number_of_parts(rows, inputs, outputs):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((rows, inputs), np.float32), rng.standard_normal((outputs, inputs), np.float32)
    dout, residual = rng.standard_normal((rows, outputs), np.float32), rng.standard_normal((rows, inputs), np.float32)
    results = []
    for parts in (1, 2, 3, 5, 7, 9, 16, 61):  # more than there are tiles, too
        scratch = np.empty((parts, kernels.matmul_scratch().shape[1]), np.float32)
        out, dx, dweight, dbias = nan(rows, outputs), nan(rows, inputs), nan(outputs, inputs), nan(outputs)
        kernels.linear_forward(out, x, weight, dout[0], dout, scratch)
        kernels.linear_backward(dx, dweight, dbias, dout, x, weight, residual, False, scratch)
        results.append([array.tobytes() for array in (out, dx, dweight, dbias)])
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("is_half", [False, True])
def test_what_is_no_number_stays_none(backend, is_half):
    """Among the keys: all that see it show it, forward, on the cache, and in lse."""
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((40, 48), np.float32)
    qkv[3, 16 + 5] = np.nan
    out, lse, starts = nan(40, 16), np.zeros((40, 1), np.float32), np.array([0, 40], np.int32)
    scratch = kernels.attention_scratch(16)
    with np.errstate(invalid="ignore"):
        backend.attention_forward(out, lse, qkv, starts, 1, 1, 0.25, scratch)
        assert np.isnan(out[3:]).all() and np.isnan(lse[3:]).all()
        assert np.isfinite(out[:3]).all() and np.isfinite(lse[:3]).all()
        kind = np.uint16 if is_half else np.float32
        keys, values = np.zeros((1, 1, 3, 16, 16), kind), np.zeros((1, 1, 48, 16), kind)
        backend.kv_cache_write(keys, values, qkv, np.arange(40, dtype=np.int32), 1, 1)
        cache = keys, values, np.zeros((1, 1), np.int32), np.zeros(1, np.int32)
        backend.attention_prefill(out, qkv, *cache, starts, np.zeros(1, np.int32), 1, 1, 0.25, scratch)
        assert np.isnan(out[3:]).all() and np.isfinite(out[:3]).all()
        room = kernels.decode_scratch(1, 1, 1, 16)
        for length in (3, 4, 40):
            row = np.ones((1, 16), np.float32)
            backend.attention_decode(row, qkv[39:], *cache, np.array([length], np.int32), 1, 1, 0.25, room)
            assert np.isnan(row).all() == (length > 3)


@pytest.mark.parametrize("name", ["gelu", "gelu_tanh", "silu", "relu"])
def test_derivatives_far_from_zero(name):
    """Where powers of x are too large for a float32, as they are in the twin."""
    x = np.array([[-3e38, -1e20, -1e15, -50, 50, 1e15, 1e20, 3e38]], np.float32)
    dx = nan(*x.shape)
    getattr(kernels, f"{name}_backward")(dx, np.ones_like(x), x)
    np.testing.assert_allclose(dx, x > 0, atol=1e-6)


def test_silu_keeps_its_digits_far_below_zero(backend):
    x = np.linspace(-80, -1, 100, dtype=np.float32)[None]
    out = nan(*x.shape)
    backend.silu_forward(out, x)
    exact = x.astype(np.float64) / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(out, exact, rtol=1e-5)
    gated = nan(*x.shape)
    backend.swiglu_forward(gated, np.concatenate([x, np.ones_like(x)], axis=1))
    np.testing.assert_allclose(gated, exact, rtol=1e-5)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (40, 70), (200, 900)])
def test_the_gradient_of_a_weight_that_no_row_has_met(backend, accumulate, outputs, inputs):
    dweight, dbias = np.full((outputs, inputs), 7, np.float32), np.full(outputs, 7, np.float32)
    weight, none = np.ones_like(dweight), np.empty((0, 0), np.float32)
    backend.linear_backward(
        nan(0, inputs), dweight, dbias, nan(0, outputs), nan(0, inputs), weight, none, accumulate,
        kernels.matmul_scratch(),
    )  # fmt: skip
    assert (dweight == 7 * accumulate).all()
    assert (dbias == 7 * accumulate).all()


@pytest.mark.parametrize("kv_heads", [1, 2, 3])
def test_attention_of_a_sequence_of_any_length(kv_heads):
    """However its keys are cut among threads, each gradient is written, and is the twin's."""
    size, heads = 4, 2 * kv_heads
    rng = np.random.default_rng(kv_heads)
    room, scratch = nan(1400, kernels.attention_pieces(heads * size)), kernels.attention_scratch(size)
    for length in range(1, 1400, 97):
        qkv = rng.standard_normal((length, (heads + 2 * kv_heads) * size), np.float32)
        dout = rng.standard_normal((length, heads * size), np.float32)
        starts = np.array([0, length], np.int32)
        results = []
        for side in (kernels, reference):
            out, lse, dqkv = nan(*dout.shape), nan(length, heads), nan(*qkv.shape)
            side.attention_forward(out, lse, qkv, starts, heads, kv_heads, 0.5, scratch)
            side.attention_backward(dqkv, dout, out, lse, qkv, starts, heads, kv_heads, 0.5, room[:length], scratch)
            results.append(dqkv)
        np.testing.assert_allclose(*results, rtol=1e-4, atol=1e-4, err_msg=f"of {length} tokens")


@pytest.mark.parametrize("size", [1, 100, 1e4, 1e6])
def test_backward_finds_the_probabilities_of_large_scores(backend, size):
    """Of rows that see but themselves they are 1, so that dv is dout, whatever the score is."""
    rng = np.random.default_rng(0)
    qkv, dout = rng.standard_normal((200, 48), np.float32), rng.standard_normal((200, 16), np.float32)
    qkv[:, :16] *= np.float32(size)
    starts, scratch = np.arange(201, dtype=np.int32), kernels.attention_scratch(16)
    out, lse, dqkv = nan(200, 16), nan(200, 1), nan(200, 48)
    backend.attention_forward(out, lse, qkv, starts, 1, 1, 1.0, scratch)
    room = nan(200, kernels.attention_pieces(16))
    backend.attention_backward(dqkv, dout, out, lse, qkv, starts, 1, 1, 1.0, room, scratch)
    np.testing.assert_array_equal(dqkv[:, 32:], dout)


def test_powers_of_two_that_are_not_normal_numbers_are_zero():
    """Attention's probabilities: a subnormal number slows some processors down a hundredfold."""
    qkv = np.zeros((4, 3), np.float32)
    qkv[:, 0], qkv[:, 1], qkv[:, 2] = 1, [0, -80, -87, -90], [1e-30, 1, 1, 1e30]
    out, lse, starts = nan(4, 1), nan(4, 1), np.array([0, 4], np.int32)
    kernels.attention_forward(out, lse, qkv, starts, 1, 1, 1.0, kernels.attention_scratch(1))
    values = np.array([1e-30, np.exp(-80.0), np.exp(-87.0), 0])
    np.testing.assert_allclose(out[:, 0], np.cumsum(values), rtol=1e-5)
    assert out[3] == out[2]


FEW_BITS = [kind for kind, (weights, _, _) in KINDS.items() if weights > 1]


def dots_and_weights(kind, x, outputs=7):
    """A kernel's dot products of rows x with random weights of a kind, and those weights."""
    weights, kinds = matrices(np.random.default_rng(kind), (kind,), (outputs,), x.shape[1])
    out = np.full((len(x), outputs), np.nan, np.float32)
    nothing, scratch = np.empty((0, 0), np.float32), kernels.packed_scratch(x.shape[1], len(x))
    kernels.packed_rows_forward(out, x, weights, kinds, np.empty(0, np.float32), nothing, scratch)
    return out, unpacked(weights[0], kind).astype(float)


@pytest.mark.parametrize("kind", FEW_BITS)
@pytest.mark.parametrize("size", [1.0, 1e-25, 1e25])
def test_x_beside_weights_of_a_few_bits_has_16_bits_at_least(kind, size):
    rng = np.random.default_rng(0)
    x = (size * rng.standard_normal((5, 512)) ** 5).astype(np.float32)  # some are a thousand times the others
    x[1, :256] = 0
    out, weights = dots_and_weights(kind, x)
    pieces = np.abs(x).reshape(5, 32, 16)
    largest = np.broadcast_to(pieces.max(axis=2, keepdims=True), pieces.shape).reshape(x.shape)
    allowed = (largest / 65534 + 1e-5 * np.abs(x)) @ np.abs(weights).T
    assert (np.abs(out - x.astype(float) @ weights.T) <= allowed).all()


@pytest.mark.parametrize("kind", FEW_BITS)
def test_rows_that_are_no_numbers_or_next_to_nothing(kind):
    x = np.ones((4, 512), np.float32)
    x[0, 37], x[1, 300], x[2] = np.nan, np.inf, 1e-38
    x[3] = 0
    out, _ = dots_and_weights(kind, x)
    assert not np.isfinite(out[:2]).any()
    assert (np.abs(out[2]) < 1e-30).all()
    assert (out[3] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_twin_unpacks_to_float32(kind):
    weights, _ = matrices(np.random.default_rng(kind), (kind,), (3,), 512)
    assert unpacked(weights[0], kind).dtype == np.float32
    assert unpacked(weights[0][:0], kind).shape == (0, 512)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_has_the_same_bits_beside_any_others(kind):
    columns = 512 if kind in FEW_BITS else 1100  # many: fewer rows are taken together
    x = np.random.default_rng(0).standard_normal((32, columns), dtype=np.float32)
    alone = np.concatenate([dots_and_weights(kind, row[None])[0] for row in x])
    for rows in (2, 3, 4, 7, 8, 15, 32):
        np.testing.assert_array_equal(dots_and_weights(kind, x[:rows])[0], alone[:rows], err_msg=f"{rows} rows")


def cache_of_halves(numbers):
    """float16 numbers (rows, 16), as the bits that a cache of one head and one page keeps, and back as float32."""
    rows = len(numbers)
    pages = -(-rows // 16) * 16
    keys, values = np.zeros((1, 1, pages // 16, 16, 16), np.uint16), np.zeros((1, 1, pages, 16), np.uint16)
    qkv = np.concatenate([np.zeros_like(numbers), numbers, numbers], axis=1)
    return keys, values, qkv


def test_a_cache_rounds_to_the_nearest_float16(backend):
    """Of all lengths that are near a float16's, or between two: normal, subnormal, too large, or no number."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    whole = halves.astype(np.float32)
    finite = whole[np.isfinite(whole)]
    bits = finite.view(np.int32)
    steps = np.concatenate([bits + step for step in (-1, 0, 1, 0x0FFF, 0x1000, 0x1001)]).view(np.float32)
    others = np.array([65519.99, 65520, 1e6, 3e38, 1e-8, 2.0**-25, 2.0**-25 * 1.001, 1e-40, 0, np.inf], np.float32)
    numbers = np.concatenate([steps[np.isfinite(steps)], others, -others])
    numbers = np.resize(numbers, (-(-numbers.size // 16), 16))
    keys, values, qkv = cache_of_halves(numbers)
    with np.errstate(over="ignore"):
        backend.kv_cache_write(keys, values, qkv, np.arange(len(numbers), dtype=np.int32), 1, 1)
        expected = numbers.astype(np.float16).view(np.uint16)
    np.testing.assert_array_equal(values[0, 0, : len(numbers)], expected)
    np.testing.assert_array_equal(keys[0, 0].swapaxes(1, 2).reshape(-1, 16)[: len(numbers)], expected)


@pytest.mark.parametrize("name", ["attention_decode", "attention_prefill"])
def test_every_float16_of_a_cache_is_read_as_what_it_is(backend, name):
    """A token alone is what attention gives. Infinite numbers and NaN stay what they are."""
    halves = np.arange(1 << 16, dtype=np.uint16).reshape(-1, 1, 1, 16)
    values = np.zeros((len(halves), 1, 16, 16), np.uint16)
    values[:, :, :1] = halves
    keys, rows = np.zeros((len(halves), 1, 1, 16, 16), np.uint16), np.arange(len(halves), dtype=np.int32)
    out, qkv = nan(len(halves), 16), np.ones((len(halves), 48), np.float32)
    cache = keys, values, rows[:, None], rows
    with np.errstate(invalid="ignore"):  # some are signalling NaN
        if name == "attention_decode":
            room = kernels.decode_scratch(len(halves), 1, 1, 16)
            backend.attention_decode(out, qkv, *cache, np.ones_like(rows), 1, 1, 0.25, room)
        else:
            starts, before = np.arange(len(halves) + 1, dtype=np.int32), np.zeros_like(rows)
            scratch = kernels.attention_scratch(16)
            backend.attention_prefill(out, qkv, *cache, starts, before, 1, 1, 0.25, scratch)
    np.testing.assert_array_equal(out, halves[:, 0, 0].view(np.float16).astype(np.float32))
