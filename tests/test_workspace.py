"""Memory for activations: views of what is in use, whatever sizes batches have had."""

import numpy as np

from fastllm.layers.workspace import Workspace


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
    taken, version = workspace.nbytes, workspace.version
    workspace.recordings["one"] = "pass"
    for rows in range(1, 50):
        workspace.resize(rows, keep=True)
        assert len(stream.array) == rows
    assert (workspace.nbytes, workspace.version) == (taken, version)
    assert workspace.recordings
    workspace.resize(51, keep=True)
    assert workspace.version > version
    assert not workspace.recordings


def test_who_comes_late_is_shown_too():
    workspace = Workspace()
    workspace.rows("stream", 4)
    workspace.resize(3, keep=True)
    late = workspace.rows("stream", 4)
    workspace.resize(2, keep=True)
    workspace.resize(3, keep=True)
    assert late.array.shape == (3, 4)
