"""Batches: packed, joined, in order, and windows of a stream."""

from itertools import chain

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_dialogues import example

from fastllm.datasets import Example, Examples, PackedBatch, TokenStream, join, pack, write_token_file
from fastllm.tokenizers import ByteTokenizer


def test_packing():
    batch = pack([example(1, 2, 3), example(7), example(4, 5)])
    assert batch.tokens.tolist() == [1, 2, 3, 7, 4, 5]
    assert batch.targets.tolist() == [2, 3, 4, 8, 5, 6]
    assert batch.starts.tolist() == [0, 3, 4, 6]
    assert batch.tokens.dtype == batch.targets.dtype == batch.starts.dtype == np.int32


@given(
    st.lists(st.lists(st.sampled_from([-1, 0, 5]), min_size=1, max_size=4), min_size=1, max_size=9),
    st.integers(1, 12),
)
def test_parts_of_a_batch_sum_up_to_it(targets, parts):
    batch = pack([Example(np.arange(len(t), dtype=np.int32), np.array(t, np.int32)) for t in targets])
    pieces = list(batch.split(parts))
    assert len(pieces) <= parts
    assert len(pieces) == 1 or all(piece.target_count for piece in pieces)
    assert sum(piece.target_count for piece in pieces) == batch.target_count
    kept = [piece.targets.tolist() for piece in pieces]
    assert [t for piece in kept for t in piece if t >= 0] == [t for t in batch.targets.tolist() if t >= 0]
    for piece in pieces:
        assert piece.starts[0] == 0
        assert piece.starts[-1] == len(piece.tokens) == len(piece.targets)
        assert (piece.tokens[piece.starts[:-1]] == 0).all()  # whole sequences, which begin with 0 here


@pytest.mark.parametrize(("length", "sizes"), [(0, [3, 3, 2]), (6, [3, 6]), (7, [7, 2]), (9, [7, 2]), (10, [10])])
def test_joined_examples_keep_to_a_length_and_lose_nothing(length, sizes):
    examples = [example(1, 2, 3), example(4, 5, 6), example(7, 8)]
    joined = join(examples, length)
    assert [len(e.tokens) for e in joined] == sizes
    targets = np.concatenate([e.targets for e in joined])
    assert targets[targets >= 0].tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    dataset = Examples(examples, 3, seed=1, join=length)
    assert dataset.batch(0).target_count == 8


def test_an_example_that_ends_with_no_target_is_joined_as_it_is():
    """Its last token is unknown: there is no id to read before the next example."""
    (one,) = join([Example(np.array([1, 2]), np.array([2, -1])), Example(np.array([3]), np.array([4]))], 9)
    assert one.tokens.tolist() == [1, 2, 3]
    assert one.targets.tolist() == [2, -1, 4]


def test_an_example_longer_than_a_batch_is_a_batch_by_itself(monkeypatch):
    monkeypatch.setattr("fastllm.datasets.ROWS", 4)
    dataset = Examples([example(*range(5)), example(1), example(2, 3, 4), example(4, 5)])
    assert [batch.tokens.tolist() for batch in dataset.in_order()] == [[0, 1, 2, 3, 4], [1, 2, 3, 4], [4, 5]]


# Order


def tokens_of(dataset, steps):
    return [dataset.batch(step).tokens.tolist() for step in steps]


@pytest.mark.parametrize("rows", [1, 3, 7, 8, 100])
def test_an_epoch_sees_every_example_once(rows):
    dataset = Examples([example(i) for i in range(7)], rows, seed=5)
    assert dataset.steps_per_epoch == -(-7 // rows)
    for epoch in range(3):
        steps = range(epoch * dataset.steps_per_epoch, (epoch + 1) * dataset.steps_per_epoch)
        assert sorted(chain.from_iterable(tokens_of(dataset, steps))) == list(range(7))


def test_order_follows_from_seed_and_step():
    examples = [example(i) for i in range(20)]
    forward = tokens_of(Examples(examples, 3, seed=1), range(21))
    assert tokens_of(Examples(examples, 3, seed=1), range(20, -1, -1)) == forward[::-1]
    assert forward[:7] != forward[7:14] != forward[14:]
    assert tokens_of(Examples(examples, 3, seed=2), range(21)) != forward


def test_in_order_gives_everything_once():
    examples = [example(i) for i in range(150)]
    tokens = [batch.tokens for batch in Examples(examples, 3, seed=1).in_order()]
    np.testing.assert_array_equal(np.concatenate(tokens), np.arange(150))


# A stream of tokens


@pytest.mark.parametrize(("size", "length"), [(2, 1), (2, 5), (3, 1), (10, 4), (10, 9), (100, 7)])
def test_windows_of_a_stream(size, length):
    """Each target is the token after; every token that has a follower is reached."""
    dataset = TokenStream(np.arange(size, dtype=np.uint16), length, rows_per_update=4, seed=3)
    assert dataset.length == min(length, size - 1)
    seen = set()
    for step in range(200):
        batch = dataset.batch(step)
        np.testing.assert_array_equal(batch.targets, batch.tokens + 1)
        assert 1 <= len(batch.starts) - 1 <= 4
        assert (np.diff(batch.starts) == dataset.length).all()
        assert batch.tokens.dtype == batch.targets.dtype == batch.starts.dtype == np.int32
        seen |= set(batch.tokens.tolist())
    assert seen == set(range(size - 1))


@pytest.mark.parametrize(
    ("size", "length", "rows"),
    [(2, 5, 4), (12, 4, 3), (12, 4, 1), (13, 4, 2), (258, 256, 16), (512, 256, 2), (999, 7, 9)],
)
def test_an_epoch_of_a_stream_holds_all_of_it(size, length, rows):
    """Each token with its target, in windows that are adjacent except at the edges, where they overlap."""
    dataset = TokenStream(np.arange(size), length, rows, seed=3)
    orders = []
    for epoch in range(9):
        steps = range(epoch * dataset.steps_per_epoch, (epoch + 1) * dataset.steps_per_epoch)
        batches = [dataset.batch(step) for step in steps]
        assert [len(batch.starts) - 1 for batch in batches[:-1]] == [rows] * (len(batches) - 1)
        assert 1 <= len(batches[-1].starts) - 1 <= rows
        assert set(np.concatenate([batch.targets for batch in batches])) == set(range(1, size))
        first = np.concatenate([batch.tokens[batch.starts[:-1]] for batch in batches])
        places = np.sort(first)
        assert (np.diff(places) <= dataset.length).all()
        assert np.count_nonzero(np.diff(places) != dataset.length) <= 3  # what is moved to an edge
        assert len(first) * dataset.length < size + 2 * dataset.length
        orders.append(tuple(first))
    assert size < 999 or len(set(orders)) == len(orders)


def test_a_text_of_one_window_is_seen_once_an_epoch():
    assert [TokenStream(np.arange(size), 4, 1).steps_per_epoch for size in (2, 5, 6)] == [1, 1, 3]


@pytest.mark.parametrize(
    "tokens", [np.array([0.6, 1.9, 2]), np.array([np.nan, 1, 2]), np.zeros((3, 2), np.int32), np.array(["a", "b"])]
)
def test_a_stream_of_what_are_no_ids(tokens):
    with pytest.raises(TypeError, match="tokens must be a row of whole numbers; got shape"):
        TokenStream(tokens, 4)


@pytest.mark.parametrize(("dtype", "wrong"), [(np.int64, 2**32 + 5), (np.int64, -(2**40)), (np.uint32, 2**31)])
def test_ids_that_int32_cannot_hold(dtype, wrong):
    stream = TokenStream(np.array([wrong, 1, 2, 3, 4], dtype), 4, 1)
    with pytest.raises(ValueError, match=f"must fit into int32; got {wrong}"):
        stream.batch(0)


def test_a_stream_follows_from_seed_and_step():
    tokens = np.arange(1000, dtype=np.uint16)
    forward = tokens_of(TokenStream(tokens, 8, 2, seed=1), range(10))
    assert tokens_of(TokenStream(tokens, 8, 2, seed=1), range(9, -1, -1)) == forward[::-1]
    assert tokens_of(TokenStream(tokens, 8, 2, seed=2), range(10)) != forward


@pytest.mark.parametrize(("size", "length"), [(2, 1), (9, 4), (10, 4), (1000, 3)])
def test_validation_windows_stand_side_by_side(size, length):
    tokens = np.concatenate([b.tokens for b in TokenStream(np.arange(size), length).in_order()])
    np.testing.assert_array_equal(tokens, np.arange(len(tokens)))
    assert len(tokens) == size - 1


def test_a_token_file_holds_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr("fastllm.tokenizers.base.PIECE", 5)  # so that there are several
    text = "one\ntwo three\n\nfour and a long line without an end\nüñ水"
    tokenizer = ByteTokenizer.build([text])
    tokens = write_token_file(tmp_path / "text.npy", text, tokenizer)
    assert isinstance(tokens, np.memmap)
    assert tokens.dtype == np.uint16
    assert tokenizer.decode(tokens) == text


@pytest.mark.parametrize(("size", "kind"), [(1 << 16, np.uint16), ((1 << 16) + 1, np.int32)])
def test_ids_of_large_vocabularies_are_kept_whole(tmp_path, size, kind):
    class Large:
        vocab_size = size

        def encode(self, text):
            return np.array([0, size - 1], np.int32)

    tokens = write_token_file(tmp_path / "text.npy", "a text", Large())
    assert (tokens.tolist(), tokens.dtype) == ([0, size - 1], kind)


def test_lists_are_taken_too():
    stream = TokenStream([1, 2, 3] * 50, 8, 2)
    assert stream.batch(0).tokens.shape == (16,)
    assert PackedBatch([1, 2, 3], [2, 3, -1], [0, 3]).target_count == 2
    two = PackedBatch([1, 2, 3, 4], [2, 3, 4, 5], [0, 2, 4])
    assert [part.starts.tolist() for part in two.split(2)] == [[0, 2], [0, 2]]
    joined = Examples([Example([1, 2, 3], [2, 3, 4])] * 4, 2, join=60).batch(0)
    assert joined.tokens.tolist() == [1, 2, 3, 4, 1, 2, 3]
    assert joined.targets.tolist() == [2, 3, 4, -1, 2, 3, 4]


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_parts_begin_at_their_first_sequence(parts):
    batch = PackedBatch(np.arange(8), np.arange(8), np.array([1, 3, 6]))  # rows before and behind are nobody's
    split = list(batch.split(parts))
    assert np.concatenate([part.tokens for part in split]).tolist() == [1, 2, 3, 4, 5]
    assert all(part.starts[0] == 0 and part.starts[-1] == len(part.tokens) for part in split)


@pytest.mark.parametrize("parts", [1, 2])
def test_parts_without_a_target_are_left_out(parts):
    batch = PackedBatch(np.arange(4), np.array([-1, -1, -1, 3]), np.array([0, 2, 3]))
    assert list(batch.split(parts)) == []


@pytest.mark.parametrize("name", ["seed", "rows_per_update"])
def test_what_is_no_whole_number(name):
    tokens = np.arange(9)
    for make in (lambda **options: Examples([example(1, 2)], **options), lambda **o: TokenStream(tokens, 3, **o)):
        with pytest.raises(TypeError, match=f"{name} must be a whole number; got"):
            make(**{"rows_per_update": 1, name: 1.5})
        assert make(**{"rows_per_update": 1, name: np.int64(1)}).batch(0).target_count > 0
