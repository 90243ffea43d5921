"""Selecting rows of a matrix, and the gradient of that.

    out = x[rows]
    dx[rows] = dout        0 in the other rows
"""


def gather_rows(out, x, rows):
    """Copy rows.

    out   (R, C)  written
    x     (N, C)
    rows  (R,) int32 in [0, N)
    """
    out[...] = x[rows]


def scatter_rows(dx, dout, rows):
    """Gradient of gather_rows.

    dx    (N, C)  overwritten
    dout  (R, C)
    rows  (R,) int32 in [0, N), ascending and distinct
    """
    dx[...] = 0
    dx[rows] = dout
