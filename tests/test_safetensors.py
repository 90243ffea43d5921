"""Safetensors files: read as the package of that name reads them, and written so that it does."""

import json
import struct

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import Memory, damaged

from fastllm import FormatError
from fastllm.formats.safetensors_file import (
    ITEM_SIZES,
    TensorToWrite,
    read_safetensors,
    read_shards,
    write_safetensors,
)

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half é": np.arange(4, dtype=np.float16),
    "scalar": np.array(3.5, np.float32),
    "empty": np.empty((0, 7), np.float32),
    "mask": np.ones((2, 2), np.bool_),
    "count": np.array([1, 2], np.int64),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


def pack(header, body=b"", length=None):
    """A file with a header of JSON or bytes."""
    data = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(data) if length is None else length) + data + body


def entry(begin, end, shape=None, dtype="U8"):
    return {"dtype": dtype, "shape": [end - begin] if shape is None else shape, "data_offsets": [begin, end]}


def test_what_the_package_wrote(path):
    safetensors.numpy.save_file(ARRAYS, path, metadata={"format": "pt"})
    tensors = read_safetensors(path)
    assert tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        tensor = tensors[name]
        assert tensor.shape == array.shape
        assert tensor.data.tobytes() == array.tobytes()
        assert not tensor.data.flags.writeable
        assert not tensor.data.flags.owndata
    assert [tensors[name].dtype for name in ARRAYS] == ["F32", "F16", "F32", "F32", "BOOL", "I64"]


def test_what_the_package_reads(path):
    floats = {name: array for name, array in ARRAYS.items() if array.dtype in (np.float32, np.float16)}
    names = {"float32": "F32", "float16": "F16"}

    def halves(array):
        data = np.frombuffer(array.tobytes(), np.uint8)
        return lambda: iter([data[:4], data[4:]])

    write_safetensors(
        path,
        [TensorToWrite(name, names[array.dtype.name], array.shape, halves(array)) for name, array in floats.items()],
    )
    back = safetensors.numpy.load_file(path)
    assert back.keys() == floats.keys()
    for name, array in floats.items():
        np.testing.assert_array_equal(back[name], array)
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0  # so that readers need not copy


def test_an_empty_file_of_tensors(path):
    path.write_bytes(pack({}))
    assert read_safetensors(path) == {}


NESTED = b'{"a":' * 100_000
ONE = entry(0, 4)


@pytest.mark.parametrize(
    ("data", "received"),
    [
        (b"", "got 0 bytes"),
        (b"\x02", "got 1 bytes"),
        (pack({})[:9], "got 9 bytes"),
        (pack({}, length=2**64 - 1), "got 10 bytes"),
        (pack(b" {}"), "got 11 bytes"),
        (pack(b"[]"), "got 10 bytes"),
        (pack(b"{]"), "must be JSON in UTF-8"),
        (pack(b'{"\xff": 1}'), "must be JSON in UTF-8"),
        (pack(NESTED), "must be JSON in UTF-8; got "),
        (pack(b'{"a": NaN}'), "the number NaN"),
        (pack(b'{"a": ' + b"9" * 10_000 + b"}"), "must be JSON in UTF-8"),
        (pack(b'{"a": {"dtype": "U8", "shape": [], "shape": [0], "data_offsets": [0, 0]}}'), "the key 'shape' twice"),
        (pack(b'{"a": 1, "a": 2}'), "the key 'a' twice"),
        (pack({"a": 5}), "tensor 'a' must have dtype, shape and data_offsets; got {}"),
        (pack({"a": {**ONE, "dtype": 3}}, bytes(4)), "tensor 'a' must have dtype"),
        (pack({"a": {**ONE, "shape": None}}, bytes(4)), "tensor 'a' must have dtype"),
        (pack({"a": {**ONE, "shape": [True]}}, bytes(4)), "tensor 'a' must have dtype"),
        (pack({"a": {**ONE, "shape": [4.0]}}, bytes(4)), "tensor 'a' must have dtype"),
        (pack({"a": {**ONE, "shape": [-4]}}, bytes(4)), "tensor 'a' must have dtype"),
        (pack({"a": {**ONE, "shape": [1] * 9}}, bytes(4)), "tensor 'a' must have dtype"),
        (pack({"a": {**ONE, "shape": [2**70]}}, bytes(4)), "tensor 'a' must have dtype"),
        (pack({"a": {**ONE, "data_offsets": [0]}}, bytes(4)), "tensor 'a' must have dtype"),
        (pack({"a": {**ONE, "data_offsets": [4, 0]}}, bytes(4)), "bytes 4 to 0"),
        (pack({"a": {**ONE, "data_offsets": [0, 2**62]}}, bytes(4)), f"bytes 0 to {2**62}"),
        (pack({"a": {**ONE, "shape": [2**40, 2**40, 2**40, 0, 5]}}, bytes(4)), "of the size that its type and shape"),
        (pack({"a": {**ONE, "shape": [2**62] * 8}}, bytes(4)), "of the size that its type and shape"),
        (pack({"a": entry(0, 4, [4], "F32")}, bytes(4)), "of the size that its type and shape say"),
        (pack({"a": entry(0, 4)}, bytes(3)), "within 3 bytes"),
        (pack({"a": entry(0, 4)}, bytes(5)), "must fill the file; got 5 bytes for 4"),
        (pack({"a": entry(1, 4)}, bytes(4)), "without gap or overlap; got 'a' at 1 after an end at 0"),
        (pack({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6)), "without gap or overlap; got 'b' at 2"),
        (pack({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)), "without gap or overlap; got 'b' at 0"),
        (pack({"a": entry(0, 2), "b": entry(3, 6)}, bytes(6)), "without gap or overlap; got 'b' at 3"),
        (struct.pack("<Q", 1 << 25) + b"{" + bytes(1 << 25), f"at most {1 << 24} bytes"),
    ],
)
def test_a_damaged_file_is_named_with_what_is_wrong(path, data, received):
    path.write_bytes(data)
    with pytest.raises(FormatError) as caught:
        read_safetensors(path)
    message = str(caught.value)
    assert str(path) in message
    assert received in message
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))


def test_every_fault_is_one_for_the_package_too(path):
    """The rules are safetensors' own: the package refuses the same files."""
    for body, header in ((5, {"a": entry(0, 4)}), (4, {"a": entry(1, 4)}), (6, {"a": entry(0, 4), "b": entry(2, 6)})):
        path.write_bytes(pack(header, bytes(body)))
        with pytest.raises(safetensors.SafetensorError):
            safetensors.numpy.load_file(path)


def test_types_that_are_not_known_may_be_there(path):
    path.write_bytes(pack({"a": entry(0, 3, [6], "F4"), "b": entry(3, 5)}, bytes(5)))
    assert read_safetensors(path)["a"].dtype == "F4"


# Several files


def shards(folder, weight_map, files):
    for name, names in files.items():
        safetensors.numpy.save_file({key: ARRAYS[key] for key in names}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


ONE_FILE, OTHER = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
MAP = {"a": ONE_FILE, "mask": ONE_FILE, "scalar": OTHER}
FILES = {ONE_FILE: ["a", "mask"], OTHER: ["scalar"]}


def test_a_model_in_several_files(tmp_path):
    tensors = read_shards(shards(tmp_path, MAP, FILES))
    assert tensors.keys() == MAP.keys()
    for name, tensor in tensors.items():
        assert tensor.data.tobytes() == ARRAYS[name].tobytes()


@pytest.mark.parametrize(
    ("weight_map", "files", "received"),
    [
        (None, FILES, "got none"),
        ({"a": 1}, FILES, "got none"),
        ({**MAP, "x": "../other.safetensors"}, FILES, "must name .safetensors files beside it; got '../other"),
        ({**MAP, "x": "/etc/passwd"}, FILES, "beside it; got '/etc/passwd'"),
        ({**MAP, "x": "/etc/a.safetensors"}, FILES, "beside it; got '/etc/a.safetensors'"),
        ({**MAP, "x": "C:a.safetensors"}, FILES, "beside it; got 'C:a.safetensors'"),
        ({**MAP, "x": "a\\b.safetensors"}, FILES, "beside it; got"),
        *[({**MAP, "x": f"a{c}.safetensors"}, FILES, "beside it; got") for c in ("\0", "\n", "\ud800")],
        ({**MAP, "x": ""}, FILES, "beside it; got ''"),
        (MAP, {ONE_FILE: ["a", "mask"]}, f"{OTHER} must exist"),
        ({**MAP, "count": OTHER}, FILES, "1 missing or unknown, 'count'"),
        (MAP, {**FILES, OTHER: ["scalar", "count"]}, "1 missing or unknown, 'count'"),
        ({**MAP, "mask": OTHER}, FILES, "1 missing or unknown, 'mask'"),
    ],
)
def test_wrong_indexes_are_named(tmp_path, weight_map, files, received):
    index = shards(tmp_path, weight_map, files)
    with pytest.raises(FormatError) as caught:
        read_shards(index)
    assert received in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert str(caught.value).isprintable()


# Any damage

WHOLE = safetensors.numpy.save(ARRAYS)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("damaged") / "model.safetensors"


def read_or_refuse(file, data):
    """Only FormatError may come out of a file, or tensors that lie in it."""
    file.write_bytes(data)
    try:
        with Memory(1 << 20):
            tensors = read_safetensors(file)
    except FormatError:
        return
    assert sum(tensor.data.size for tensor in tensors.values()) < len(data)
    for tensor in tensors.values():
        if tensor.dtype in ITEM_SIZES:
            assert np.prod(tensor.shape, dtype=object) * ITEM_SIZES[tensor.dtype] == tensor.data.size


@given(data=damaged(WHOLE) | st.binary(max_size=100))
@settings(max_examples=300)
def test_no_damage_breaks_the_reader(file, data):
    read_or_refuse(file, data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 9) | st.sampled_from([2**62, 2**64, 0.5, "F32", "U8", "é"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=5,
)
COUNTS = st.lists(st.integers(0, 9), max_size=3)
ENTRY = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["U8", "F32", "F4"]), "shape": COUNTS | JSON, "data_offsets": COUNTS | JSON}
)


@given(header=st.dictionaries(st.text(max_size=3), ENTRY | JSON, max_size=3), size=st.integers(0, 12))
def test_no_header_breaks_the_reader(file, header, size):
    read_or_refuse(file, pack(header, bytes(size)))
