"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864).

    (a, b) -> (a cos - b sin, a sin + b cos)        for each pair (a, b) of a head's D numbers
    pairs: (i, i + D/2), or (2i, 2i+1) if interleaved, for i < D/2, each with its own angle
Backward is the rotation by the negative angle: the inverse of a rotation is its transpose.
"""


def rope_forward(qkv, cos, sin, positions, heads, interleaved):
    """Rotate queries and keys in place.

    qkv        (N, W)    the first heads * D columns are rotated
    cos, sin   (T, D/2)  of position times frequency, for each position and pair
    positions  (N,) int32 in [0, T)
    heads      number of query and key heads together
    """
    half = cos.shape[1]
    x = qkv[:, : heads * 2 * half].reshape(len(qkv), heads, 2 * half)  # a view: writes reach qkv
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    c, s = cos[positions, None], sin[positions, None]  # (N, 1, D/2)
    a[...], b[...] = a * c - b * s, a * s + b * c


def rope_backward(dqkv, cos, sin, positions, heads, interleaved):
    """From the gradient of the rotated columns that of the unrotated ones, in place; arguments as in rope_forward."""
    rope_forward(dqkv, cos, -sin, positions, heads, interleaved)
