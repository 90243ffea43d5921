"""llama2.c's checkpoints: every tensor gets its name; a damaged or foreign file gives one clear error."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm import FormatError, Model
from fastllm.formats.llama2c import read_llama2c
from fastllm.parameters import Parameters

INT32 = st.integers(-(2**31), 2**31 - 1)
WIDTH, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCABULARY, CONTEXT = SIZES = (12, 10, 2, 3, 1, 7, 5)
HEAD_SIZE = WIDTH // HEADS

rng = np.random.default_rng(0)
TENSORS = [
    (name, rng.standard_normal(shape, np.float32))
    for name, shape in [
        ("embedding.token.weight", (VOCABULARY, WIDTH)),
        ("attention_norm.weight", (LAYERS, WIDTH)),
        ("attention.query.weight", (LAYERS, WIDTH, WIDTH)),
        ("attention.key.weight", (LAYERS, KV_HEADS * HEAD_SIZE, WIDTH)),
        ("attention.value.weight", (LAYERS, KV_HEADS * HEAD_SIZE, WIDTH)),
        ("attention.output.weight", (LAYERS, WIDTH, WIDTH)),
        ("feed_forward_norm.weight", (LAYERS, WIDTH)),
        ("feed_forward.gate.weight", (LAYERS, HIDDEN, WIDTH)),
        ("feed_forward.down.weight", (LAYERS, WIDTH, HIDDEN)),
        ("feed_forward.up.weight", (LAYERS, HIDDEN, WIDTH)),
        ("final_norm.weight", (WIDTH,)),
        ("cosines", (CONTEXT, HEAD_SIZE // 2)),
        ("sines", (CONTEXT, HEAD_SIZE // 2)),
        ("head.weight", (VOCABULARY, WIDTH)),
    ]
]


def checkpoint(*, tied=False, sizes=SIZES):
    """The bytes of a file with these tensors, whose header says sizes."""
    *others, vocabulary, context = sizes
    header = struct.pack("<7i", *others, vocabulary if tied else -vocabulary, context)
    arrays = [array for name, array in TENSORS if not (tied and name == "head.weight")]
    return header + b"".join(array.tobytes() for array in arrays)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("llama2c") / "model.bin"


@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_gets_its_name(path, tied):
    path.write_bytes(checkpoint(tied=tied))
    config, parameters = read_llama2c(path)
    assert config.rope_interleaved
    assert config.tied_head is tied
    assert parameters.keys() == Parameters(config).keys()
    for name, array in TENSORS:
        if name in parameters:
            np.testing.assert_array_equal(parameters[name], array, err_msg=name)
        for layer in range(LAYERS):
            if (ours := f"blocks.{layer}.{name}") in parameters:
                np.testing.assert_array_equal(parameters[ours], array[layer], err_msg=ours)


def test_a_model_runs_on_it(path):
    path.write_bytes(checkpoint())
    config, parameters = read_llama2c(path)
    model = Model(config, backend="numpy")
    model.parameters.load(parameters)
    assert np.isfinite(model.forward(np.arange(CONTEXT))).all()


def test_the_file_is_mapped_and_stays_as_it_is(path):
    path.write_bytes(checkpoint())
    _, parameters = read_llama2c(path)
    for array in parameters.values():
        assert not array.flags.owndata
        assert not array.flags.writeable


@pytest.mark.parametrize(
    ("data", "received"),
    [
        (b"", "got 0"),
        (checkpoint()[:27], "got 27"),
        (checkpoint()[:28], "got 28"),
        (checkpoint()[:-1], f"got {len(checkpoint()) - 1}"),
        (checkpoint() + b"\0", f"got {len(checkpoint()) + 1}"),
        (b"24ka" + checkpoint()[4:], "later one"),
        (checkpoint(sizes=(0, *SIZES[1:])), "got 0"),
        (checkpoint(sizes=(WIDTH, HIDDEN, -1, *SIZES[3:])), "got -1"),
        (checkpoint(sizes=(WIDTH, HIDDEN, LAYERS, 5, *SIZES[4:])), "(12, 5)"),
        (checkpoint(sizes=(WIDTH, HIDDEN, LAYERS, HEADS, 2, *SIZES[5:])), "(3, 2)"),
        (checkpoint(sizes=(*SIZES[:5], 0, CONTEXT)), "got 0"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(path, data, received):
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        read_llama2c(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert received in message
    assert "\n" not in message


def test_a_missing_file_is_an_os_error(path):
    with pytest.raises(FileNotFoundError):
        read_llama2c(path.with_name("absent.bin"))


def read_or_refuse(path, data):
    """Only FormatError may come out of a file, or a model that is whole."""
    path.write_bytes(data)
    try:
        config, parameters = read_llama2c(path)
    except FormatError:
        return
    Parameters(config).load({name: np.nan_to_num(array) for name, array in parameters.items()})


@given(data=st.data())
def test_no_truncation_passes(path, data):
    whole = checkpoint(tied=data.draw(st.booleans(), "tied"))
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1), "length")])
    with pytest.raises(FormatError):
        read_llama2c(path)


@given(header=st.tuples(*[INT32 | st.integers(-2, 13)] * 7))
def test_no_header_breaks_the_reader(path, header):
    read_or_refuse(path, struct.pack("<7i", *header) + checkpoint()[28:])


@given(field=st.integers(0, 6), value=INT32, tied=st.booleans())
def test_no_single_wrong_size_breaks_the_reader(path, field, value, tied):
    data = bytearray(checkpoint(tied=tied))
    struct.pack_into("<i", data, 4 * field, value)
    read_or_refuse(path, bytes(data))


@given(data=st.binary(max_size=200))
def test_no_foreign_file_breaks_the_reader(path, data):
    read_or_refuse(path, data)
