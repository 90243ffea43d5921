"""Affine map of rows, weight stored (outputs, inputs) as in torch.nn.Linear.

    out     = x @ weight.T + bias + residual
    dx      = dout @ weight + residual
    dweight += dout.T @ x        dbias += sum over rows of dout
Back-propagation: Rumelhart, Hinton, Williams 1986, doi:10.1038/323533a0.
"""


def linear_forward(out, x, weight, bias, residual, scratch):
    """Map each row of x.

    out       (N, O)  written
    x         (N, I)
    weight    (O, I)
    bias      (O,), or empty for none
    residual  (N, O), or empty for none
    """
    product = x @ weight.T
    if bias.size:
        product += bias
    if residual.size:
        product += residual
    out[...] = product


def linear_backward(dx, dweight, dbias, dout, x, weight, residual, accumulate, scratch):
    """Gradients of linear_forward.

    dx        (N, I)  overwritten
    dweight   (O, I)  added to if accumulate, else overwritten
    dbias     (O,)    likewise; empty for none
    dout      (N, O)
    x         (N, I)
    weight    (O, I)
    residual  (N, I) gradient that reaches x by another path, or empty for none
    """
    product = dout @ weight
    if residual.size:
        product += residual
    dx[...] = product
    if not accumulate:
        dweight[...] = 0
        dbias[...] = 0
    dweight += dout.T @ x
    if dbias.size:
        dbias += dout.sum(axis=0)
