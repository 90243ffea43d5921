"""Memory for activations: views of what is in use, whatever sizes batches have had."""

import numpy as np
import pytest

from fastllm.layers.workspace import Workspace
from fastllm.memory import aligned


def test_views_are_of_the_memory_in_use():
    workspace = Workspace()
    narrow, wide = workspace.rows("stream", 4), workspace.rows("stream", 8)
    workspace.resize(2, keep=True)
    workspace.resize(5, keep=True)  # takes memory anew
    largest = narrow.array, wide.array
    for rows in (2, 5, 3, 2):
        workspace.resize(rows, keep=True)
        for activation, whole in zip((narrow, wide), largest, strict=True):
            assert len(activation.array) == rows
            assert np.shares_memory(activation.array, whole)
        assert not np.shares_memory(narrow.array, wide.array)


def test_without_a_backward_to_come_one_name_is_one_memory():
    workspace = Workspace()
    narrow, wide = workspace.rows("stream", 4), workspace.rows("stream", 8)
    for rows, keep in ((3, True), (3, False), (2, True), (3, False), (3, True), (9, False), (3, False)):
        workspace.resize(rows, keep)
        assert narrow.array.shape == (rows, 4)
        assert wide.array.shape == (rows, 8)
        assert np.shares_memory(narrow.array, wide.array) != keep


def test_smaller_batches_take_no_memory():
    workspace = Workspace()
    stream = workspace.rows("stream", 4)
    workspace.resize(50, keep=True)
    taken = workspace.nbytes
    workspace.recordings[workspace.place] = {("one",): "pass"}
    for rows in range(1, 50):
        workspace.resize(rows, keep=True)
        assert len(stream.array) == rows
    assert workspace.nbytes == taken
    assert workspace.recordings
    workspace.resize(51, keep=True)
    assert not workspace.recordings


def test_a_full_memory_leaves_room_for_smaller_batches(monkeypatch):
    workspace = Workspace()
    activations = [workspace.rows(name, 4) for name in "abc"]
    workspace.resize(5, keep=True)
    taken = []

    def full(shape, dtype):
        taken.append(shape)
        if shape[0] > 100 and len(taken) > 2:
            raise MemoryError
        return aligned(shape, dtype)

    monkeypatch.setattr("fastllm.layers.workspace.aligned", full)
    with pytest.raises(MemoryError):
        workspace.resize(1000, keep=True)
    assert workspace.nbytes == 0
    for rows in (5, 7, 1):
        workspace.resize(rows, keep=True)
        assert [len(activation.array) for activation in activations] == [rows] * 3
    assert workspace.nbytes < 1000


def test_who_comes_late_is_shown_too():
    workspace = Workspace()
    workspace.rows("stream", 4)
    workspace.resize(3, keep=True)
    late = workspace.rows("stream", 4)
    workspace.resize(2, keep=True)
    workspace.resize(3, keep=True)
    assert late.array.shape == (3, 4)
