"""A low-rank addition to a linear map (Hu et al. 2021, arXiv:2106.09685).

    hidden = scale * x @ a.T         out += hidden @ b.T
    backward, where mine are the O columns of dout from `first` on, to which the map adds in forward:
    dhidden = scale * mine @ b       db += mine.T @ hidden       da += dhidden.T @ x       dx += dhidden @ a
"""


def lora_forward(out, hidden, x, a, b, first, scale, scratch):
    """Add the low-rank map of each row.

    out     (N, W)  columns from `first` on are added to
    hidden  (N, R)  written: scale * x @ a.T
    x       (N, I)
    a, b    (R, I), (O, R)
    """
    hidden[...] = scale * (x @ a.T)
    out[:, first : first + len(b)] += hidden @ b.T


def lora_backward(dx, da, db, dhidden, dout, hidden, x, a, b, first, scale, scratch):
    """Gradients of lora_forward.

    dx      (N, I)  added to
    da, db  (R, I), (O, R)  added to
    dhidden (N, R)  overwritten
    dout    (N, W)
    """
    mine = dout[:, first : first + len(b)]
    dhidden[...] = scale * (mine @ b)
    db += mine.T @ hidden
    da += dhidden.T @ x
    dx += dhidden @ a
