"""Damage to a file's bytes, for tests of readers."""

import tracemalloc

from hypothesis import strategies as st

# Where lengths, counts and offsets go over the edges of their types.
EXTREMES = [0, 1, 2**7, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


@st.composite
def damaged(draw, data):
    """The bytes with one to three faults: cut off, bits turned, numbers replaced, pieces doubled, moved or new."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        fault = draw(st.sampled_from(["cut", "turn", "number", "double", "new", "remove"]))
        if fault == "cut":
            del data[at:]
        elif fault == "turn" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif fault == "number":
            size = draw(st.sampled_from([4, 8]))
            data[at : at + size] = (draw(st.sampled_from(EXTREMES)) % (1 << 8 * size)).to_bytes(size, "little")
        elif fault == "double":
            end = draw(st.integers(at, len(data)))
            data[at:at] = data[at:end]
        elif fault == "new":
            data[at:at] = draw(st.binary(max_size=12))
        else:
            del data[at : at + draw(st.integers(1, 16))]
    return bytes(data)


class Memory:
    """with Memory(most): asserts that the block never has more than `most` bytes allocated at a time."""

    def __init__(self, most):
        self.most = most

    def __enter__(self):
        tracemalloc.start()

    def __exit__(self, *caught):
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak <= self.most, f"{peak} bytes were taken"
