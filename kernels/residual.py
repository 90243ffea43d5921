"""The sum of the residual stream, where no matrix product can add it on its way: out = a + b; da = db = dout."""

from .jit import chunk_count, inline, kernel, piece, prange


@inline
def _add(out, a, b, chunk, chunks):
    flat_out = piece(out.reshape(-1), chunk, chunks)
    flat_a, flat_b = piece(a.reshape(-1), chunk, chunks), piece(b.reshape(-1), chunk, chunks)
    for i in range(flat_out.shape[0]):
        flat_out[i] = flat_a[i] + flat_b[i]


@kernel(parallel=True)
def add(out, a, b):
    """out (N, C) = a + b; out may be a or b itself."""
    chunks = chunk_count(out.size)
    if chunks == 1:
        _add(out, a, b, 0, 1)
        return
    for chunk in prange(chunks):
        _add(out, a, b, chunk, chunks)
