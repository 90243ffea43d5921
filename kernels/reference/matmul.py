"""Matrix product (BLAS level 3 GEMM: Dongarra et al. 1990, doi:10.1145/77626.79170).

    out = op(a) @ op(b) [+ out]        op(m) is m or its transpose
"""


def matmul(out, a, b, transpose_a, transpose_b, accumulate, scratch):
    """Multiply two matrices.

    out  (M, N)  written, or added to if accumulate
    a    (M, K), or (K, M) if transpose_a
    b    (K, N), or (N, K) if transpose_b
    """
    product = (a.T if transpose_a else a) @ (b.T if transpose_b else b)
    out[...] = out + product if accumulate else product
