"""Linear maps whose weights stay in a file's format. Blocks are ggml's (github.com/ggml-org/ggml, ggml-quants.c).

    out = x @ weight.T + bias + residual        dx = dout @ weight + residual

A row is cut into blocks. d, m and dmin are float16, one per block; sc and mn are integers, one per group of weights
in a block; q is one per weight:

    Q8_0        32 weights    d * q            q: int8
    Q4_0, Q5_0  32 weights    d * (q - 8)      q: 4 bits;    d * (q - 16)    q: 5 bits
    Q4_1, Q5_1  32 weights    d * q + m        q: 4 bits;    the same        q: 5 bits
    Q4_K, Q5_K  8 groups of 32 weights    d * sc * q - dmin * mn    sc, mn: 6 bits; q: 4 or 5 bits
    Q6_K        16 groups of 16 weights   d * sc * (q - 32)         sc: int8; q: 6 bits

Each function says how the bits of its block are arranged. Products and sums are float32, in this order, so unpacked
weights equal those of llama.cpp's reference to the last bit.
"""

import numpy as np


def half(data):
    """float16 as (n, 2) bytes -> (n, 1) float32."""
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)


def nibbles(data):
    """(n, b) bytes -> (n, 2b) numbers: the lower halves of all bytes, then the upper."""
    return np.concatenate([data & 15, data >> 4], axis=1)


def fifth_bits(data):
    """(n, 4) bytes -> (n, 32): 16 if bit i is set, else 0, to be combined with the lower four bits of weight i."""
    return np.unpackbits(data, axis=1, bitorder="little") << np.uint8(4)


def f32(data):
    return data.view("<f4")


def f16(data):
    return data.view("<f2").astype(np.float32)


def bf16(data):
    return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)


def q8_0(data):
    """d, 32 int8."""
    return half(data[:, :2]) * data[:, 2:].view(np.int8).astype(np.float32)


def q4_0(data):
    """d, 16 bytes: weights 0 to 15 in the lower halves, 16 to 31 in the upper."""
    return half(data[:, :2]) * (nibbles(data[:, 2:]).astype(np.float32) - np.float32(8))


def q4_1(data):
    """d, m, and as Q4_0."""
    return half(data[:, :2]) * nibbles(data[:, 4:]).astype(np.float32) + half(data[:, 2:4])


def q5_0(data):
    """d, 4 bytes of fifth bits, and as Q4_0."""
    q = nibbles(data[:, 6:]) | fifth_bits(data[:, 2:6])
    return half(data[:, :2]) * (q.astype(np.float32) - np.float32(16))


def q5_1(data):
    """d, m, 4 bytes of fifth bits, and as Q4_0."""
    q = nibbles(data[:, 8:]) | fifth_bits(data[:, 4:8])
    return half(data[:, :2]) * q.astype(np.float32) + half(data[:, 2:4])


def scales(data):
    """d * sc and dmin * mn, (n, 8, 1) each, from the first 16 bytes of Q4_K and Q5_K: d, dmin, 12 of 6-bit numbers.

    Of the twelve: sc of groups 0 to 3 is the lower six bits of bytes 0 to 3, mn those of bytes 4 to 7. For groups 4 to
    7, bytes 8 to 11 hold the lower four bits, sc in the lower halves and mn in the upper; the upper two bits of bytes 0
    to 3 (sc) and 4 to 7 (mn) are the rest.
    """
    first, second, third = data[:, 4:8], data[:, 8:12], data[:, 12:16]
    scale = np.concatenate([first & 63, third & 15 | (first >> 6) << 4], axis=1)
    least = np.concatenate([second & 63, third >> 4 | (second >> 6) << 4], axis=1)
    products = half(data[:, :2]) * scale.astype(np.float32), half(data[:, 2:4]) * least.astype(np.float32)
    return products[0][:, :, None], products[1][:, :, None]


def groups_of_nibbles(data):
    """(n, 128) bytes -> (n, 8, 32): each 32 bytes hold two groups, first the lower halves, then the upper."""
    pairs = data.reshape(-1, 4, 1, 32)
    return np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(-1, 8, 32)


def q4_k(data):
    """Scales, 128 bytes of weights."""
    scale, least = scales(data)
    return (scale * groups_of_nibbles(data[:, 16:]).astype(np.float32) - least).reshape(-1, 256)


def q5_k(data):
    """Scales, 32 bytes of fifth bits (bit g of byte i for weight i of group g), 128 bytes of the lower four bits."""
    scale, least = scales(data)
    fifth = data[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    q = groups_of_nibbles(data[:, 48:]) | fifth << 4
    return (scale * q.astype(np.float32) - least).reshape(-1, 256)


def q6_k(data):
    """128 bytes of lower four bits, 64 bytes of upper two bits, 16 int8 scales, d.

    Each half of the block has 64 of the former bytes, 32 of the latter, and four rows of 32 weights. The lower halves
    of bytes 0 to 31 and 32 to 63 are rows 0 and 1, the upper halves rows 2 and 3. Bits 2r and 2r + 1 of the 32 bytes
    are the upper two of row r.
    """
    low = data[:, :128].reshape(-1, 2, 1, 2, 32)
    low = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    high = data[:, 128:192].reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    scale = half(data[:, 208:]) * data[:, 192:208].view(np.int8).astype(np.float32)
    q = (low | high << 4).reshape(-1, 16, 16).astype(np.float32) - np.float32(32)
    return (scale[:, :, None] * q).reshape(-1, 256)


# number of a kind -> weights of a block, bytes of a block, and its function: (n, bytes) -> (n, weights)
KINDS = {
    0: (1, 4, f32),
    1: (1, 2, f16),
    30: (1, 2, bf16),
    8: (32, 34, q8_0),
    2: (32, 18, q4_0),
    3: (32, 20, q4_1),
    6: (32, 22, q5_0),
    7: (32, 24, q5_1),
    12: (256, 144, q4_k),
    13: (256, 176, q5_k),
    14: (256, 210, q6_k),
}


def unpacked(weight, kind):
    """float32 (O, I) from bytes (O, bytes of a row)."""
    rows, size = weight.shape
    weights, block, unpack = KINDS[kind]
    return unpack(weight.reshape(-1, block)).reshape(rows, size // block * weights)


def stacked(weights, kinds):
    """The matrices, unpacked and stacked; empty ones are left out."""
    return np.concatenate([unpacked(w, k) for w, k in zip(weights, kinds, strict=True) if w.size])


def packed_rows_forward(out, x, weights, kinds, bias, residual, scratch):
    """Map each row of x.

    out       (N, O)  written
    x         (N, I)
    weights   three uint8 matrices (O_i, bytes of a row); absent ones are empty
    kinds     the numbers of their kinds, as in KINDS (ggml's)
    bias      (O,), or empty for none
    residual  (N, O), or empty for none
    """
    packed_forward(out, x, weights, kinds, bias, residual, scratch)


def packed_forward(out, x, weights, kinds, bias, residual, scratch):
    """As packed_rows_forward."""
    product = x @ stacked(weights, kinds).astype(x.dtype).T
    if bias.size:
        product += bias
    if residual.size:
        product += residual
    out[...] = product


def packed_backward(dx, dout, weights, kinds, residual, scratch):
    """The gradient of packed_forward with respect to x.

    dx        (N, I)  overwritten
    dout      (N, O)
    residual  (N, I) gradient that reaches x by another path, or empty for none
    """
    product = dout @ stacked(weights, kinds).astype(dout.dtype)
    if residual.size:
        product += residual
    dx[...] = product


def packed_embedding_forward(out, ids, weight, kind):
    """out (N, C) = rows ids (N,) of a table weight (V, bytes of a row), unpacked."""
    out[...] = unpacked(weight[ids], kind)
