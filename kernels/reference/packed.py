"""Linear maps of weights as files keep them. Blocks as in ggml (github.com/ggml-org/ggml, ggml-quants.c).

    out = x @ weight.T + bias + residual        dx = dout @ weight + residual
"""

import numpy as np


def halves(blocks, first):
    """The float16 at bytes first, first + 1 of each block, (..., 1)."""
    return blocks[..., first : first + 2].copy().view(np.float16).astype(np.float32)


def nibbles(q):
    """Lower four bits of all bytes, then upper four: (..., 2 n) int32 from (..., n)."""
    return np.concatenate([q & 15, q >> 4], axis=-1).astype(np.int32)


def fifth_bits(blocks, first):
    """The 32 bits at bytes first .. first + 3, each worth 16."""
    return 16 * np.unpackbits(blocks[..., first : first + 4], axis=-1, bitorder="little").astype(np.int32)


def scales_and_minima(blocks):
    """The eight 6-bit pairs of Q4_K and Q5_K: (..., 8, 1) each."""
    a, b, c = (blocks[..., i : i + 4] for i in (4, 8, 12))
    s = np.concatenate([a & 63, (c & 15) | (a >> 6 << 4)], axis=-1)
    t = np.concatenate([b & 63, (c >> 4) | (b >> 6 << 4)], axis=-1)
    return s[..., None].astype(np.float32), t[..., None].astype(np.float32)


def q4_k(blocks, fifth):
    """The 256 weights of Q4_K, or of Q5_K with its fifth bits (..., 8, 32); the four others are the last 128 bytes."""
    s, t = scales_and_minima(blocks)
    q = nibbles(blocks[..., -128:].reshape(*blocks.shape[:-1], 4, 32)).reshape(*blocks.shape[:-1], 8, 32) + fifth
    d, m = halves(blocks, 0)[..., None], halves(blocks, 2)[..., None]
    return (d * s * q - m * t).reshape(*blocks.shape[:-1], 256)


def q5_k(blocks):
    bits = np.unpackbits(blocks[..., 16:48], axis=-1, bitorder="little").reshape(*blocks.shape[:-1], 32, 8)
    return q4_k(blocks, 16 * bits.swapaxes(-1, -2).astype(np.int32))


def q6_k(blocks):
    low = blocks[..., :128].reshape(*blocks.shape[:-1], 2, 2, 32)  # half, which 32 bytes, byte
    low = np.stack([low & 15, low >> 4], axis=-3).reshape(*blocks.shape[:-1], 2, 4, 32)
    high = blocks[..., 128:192].reshape(*blocks.shape[:-1], 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    q = (low | high << 4).astype(np.int32).reshape(*blocks.shape[:-1], 16, 16) - 32
    s = blocks[..., 192:208].view(np.int8)[..., None].astype(np.float32)
    return (halves(blocks, 208)[..., None] * s * q).reshape(*blocks.shape[:-1], 256)


# number of a kind -> bytes of a block, and its weights from blocks (..., bytes)
KINDS = {
    0: (4, lambda b: b.view(np.float32)),
    1: (2, lambda b: b.view(np.float16).astype(np.float32)),
    30: (2, lambda b: (b.view(np.uint16).astype(np.uint32) << 16).view(np.float32)),
    8: (34, lambda b: halves(b, 0) * b[..., 2:].view(np.int8)),
    2: (18, lambda b: halves(b, 0) * (nibbles(b[..., 2:]) - 8)),
    3: (20, lambda b: halves(b, 0) * nibbles(b[..., 4:]) + halves(b, 2)),
    6: (22, lambda b: halves(b, 0) * (nibbles(b[..., 6:]) + fifth_bits(b, 2) - 16)),
    7: (24, lambda b: halves(b, 0) * (nibbles(b[..., 8:]) + fifth_bits(b, 4)) + halves(b, 2)),
    12: (144, lambda b: q4_k(b, 0)),
    13: (176, q5_k),
    14: (210, q6_k),
}


def unpacked(weight, kind):
    """float32 (O, I) from bytes (O, bytes of a row)."""
    size, weights = KINDS[kind]
    return weights(weight.reshape(len(weight), -1, size)).reshape(len(weight), -1)


def stacked(weights, kinds):
    """The matrices that are there, one above the other."""
    return np.concatenate([unpacked(w, k) for w, k in zip(weights, kinds, strict=True) if w.size])


def packed_rows_forward(out, x, weights, kinds, bias, residual, scratch):
    """Map each row of x.

    out       (N, O)  written
    x         (N, I)
    weights   three uint8 matrices (O_i, bytes of a row); empty where there is none
    kinds     their kinds, ggml's numbers
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
    """The gradient by x.

    dx        (N, I)  overwritten
    dout      (N, O)
    residual  (N, I) gradient arriving at x by another way, or empty for none
    """
    product = dout @ stacked(weights, kinds).astype(dout.dtype)
    if residual.size:
        product += residual
    dx[...] = product


def packed_embedding_forward(out, ids, weight, kind):
    """out (N, C) = rows ids (N,) of a packed table."""
    out[...] = unpacked(weight[ids], kind)
