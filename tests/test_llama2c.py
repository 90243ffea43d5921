"""llama2.c's checkpoints: every tensor gets its name; a damaged or foreign file gives one clear error."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal

from fastllm import FormatError, Model
from fastllm.formats import open_model
from fastllm.formats.llama2c import read_llama2c
from fastllm.packed import Packed
from fastllm.parameters import Parameters
from fastllm.quantize import dequantize

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


GROUP = 4


def later_checkpoint(version, *, tied=False, sizes=SIZES, group=GROUP, flag=None, magic=b"24ka"):
    """The bytes of a file of version 1 or 2, and our names -> what it holds."""
    header = magic + struct.pack("<i7iB", version, *sizes, tied if flag is None else flag)
    header += struct.pack("<i", group) if version == 2 else b""
    data, expected = [header + bytes(256 - len(header))], {}
    arrays = dict(TENSORS)
    norms = ("attention_norm.weight", "feed_forward_norm.weight", "final_norm.weight")
    order = [
        *norms, "embedding.token.weight", "attention.query.weight", "attention.key.weight", "attention.value.weight",
        "attention.output.weight", "feed_forward.gate.weight", "feed_forward.down.weight", "feed_forward.up.weight",
        *([] if tied else ["head.weight"]),
    ]  # fmt: skip
    for name in order:
        is_layered = name.startswith(("attention", "feed_forward"))
        for layer, array in enumerate(arrays[name] if is_layered else [arrays[name]]):
            ours = f"blocks.{layer}.{name}" if is_layered else name
            if version == 1 or name in norms:
                data.append(array.tobytes())
                expected[ours] = array
                continue
            groups = array.reshape(-1, GROUP)
            scales = np.abs(groups).max(axis=1) / 127
            whole = np.round(groups / scales[:, None]).astype(np.int8)
            data += [whole.tobytes(), scales.astype(np.float32).tobytes()]
            restored = [[weight * scale for weight in row] for row, scale in zip(whole.tolist(), scales, strict=True)]
            expected[ours] = np.array(restored, np.float32).reshape(array.shape)
    return b"".join(data), expected


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("llama2c") / "model.bin"


@pytest.mark.parametrize("tied", [True, False])
def test_every_tensor_gets_its_name(path, tied):
    path.write_bytes(checkpoint(tied=tied))
    config, parameters = read_llama2c(path)
    assert config.rope_interleaved
    assert (config.norm_eps, config.rope_theta) == (1e-5, 1e4)  # as run.c has it
    assert config.tied_head is tied
    assert parameters.keys() == Parameters(config).keys()
    for name, array in TENSORS:
        if name in parameters:
            np.testing.assert_array_equal(parameters[name], array, err_msg=name)
        for layer in range(LAYERS):
            if (ours := f"blocks.{layer}.{name}") in parameters:
                np.testing.assert_array_equal(parameters[ours], array[layer], err_msg=ours)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_later_versions(path, version, tied):
    data, expected = later_checkpoint(version, tied=tied)
    path.write_bytes(checkpoint(tied=tied))
    legacy, _ = read_llama2c(path)
    path.write_bytes(data)
    config, parameters = read_llama2c(path)
    assert config == legacy
    assert parameters.keys() == expected.keys() == Parameters(config).keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(parameters[name], array, err_msg=name)
        assert parameters[name].dtype == np.float32
        assert parameters[name].flags.owndata is False or version == 2


@pytest.mark.parametrize("version", [0, 1, 2])
def test_open_model_opens_it(path, version):
    path.write_bytes(checkpoint() if version == 0 else later_checkpoint(version)[0])
    opened = open_model(path)
    config, parameters = read_llama2c(path)
    assert (opened.source, opened.path, opened.config) == ("llama2c", path, config)
    assert opened.generation == {"end_ids": (1, 2)}
    for name, array in parameters.items():
        weight = opened.weights[name]
        assert isinstance(weight, Packed) == (array.ndim == 2)
        np.testing.assert_array_equal(dequantize(weight) if isinstance(weight, Packed) else weight, array)


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
        (b"24ka" + checkpoint()[4:255], "got 255"),
        (later_checkpoint(3)[0], "0, 1 or 2; got 3"),
        (later_checkpoint(1, flag=2)[0], "0 or 1; got 2"),
        (later_checkpoint(1)[0][:-1], f"got {len(later_checkpoint(1)[0]) - 1}"),
        (later_checkpoint(1, sizes=(*SIZES[:5], -VOCABULARY, CONTEXT))[0], f"got {-VOCABULARY}"),
        (later_checkpoint(2)[0] + b"\0", f"got {len(later_checkpoint(2)[0]) + 1}"),
        (later_checkpoint(2, group=0)[0], "must divide the width, 12; got 0"),
        (later_checkpoint(2, group=-4)[0], "got -4"),
        (later_checkpoint(2, group=5)[0], "got 5"),
        (checkpoint(sizes=(0, *SIZES[1:])), "got 0"),
        (checkpoint(sizes=(WIDTH, HIDDEN, -1, *SIZES[3:])), "got -1"),
        (checkpoint(sizes=(WIDTH, HIDDEN, LAYERS, 5, *SIZES[4:])), "(12, 5)"),
        (checkpoint(sizes=(WIDTH, HIDDEN, LAYERS, HEADS, 2, *SIZES[5:])), "(3, 2)"),
        (checkpoint(sizes=(*SIZES[:5], 0, CONTEXT)), "got 0"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(path, data, received):
    path.write_bytes(data)
    assert received in refusal(path, read_llama2c)


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


@given(version=INT32 | st.integers(0, 3), header=st.tuples(*[INT32 | st.integers(-2, 13)] * 7), data=st.data())
def test_no_later_header_breaks_the_reader(path, version, header, data):
    flag, group = data.draw(st.integers(0, 255) | st.integers(0, 1)), data.draw(INT32 | st.integers(-1, 6))
    head = b"24ka" + struct.pack("<i7iBi", version, *header, flag, group)
    read_or_refuse(path, head + later_checkpoint(2)[0][len(head) :])


@given(position=st.integers(0, 300), value=st.integers(0, 255), version=st.sampled_from([1, 2]))
def test_no_single_wrong_byte_breaks_the_reader(path, position, value, version):
    data = bytearray(later_checkpoint(version, tied=True)[0])
    data[position] = value
    read_or_refuse(path, bytes(data))


@given(data=st.binary(max_size=200))
def test_no_foreign_file_breaks_the_reader(path, data):
    read_or_refuse(path, data)
