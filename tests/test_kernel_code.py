"""What the compiler made of the kernels: arithmetic in float32, where float32 is meant.

A literal such as 0.5 makes the arithmetic around it float64, at half the speed. No result shows it, so this
reads the compiled code. Matrix product and RoPE work on float32 vectors by name and are left out.
"""

import compileall
import gc
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core.codegen import JITCodeLibrary
from numba.core.registry import cpu_target

from fastllm.kernels import disk_cache, jit
from fastllm.kernels.disk_cache import _CacheFiles
from fastllm.kernels.llvm import LANES
from fastllm.kernels.simd import PROBE_SUMS, multiply_add_rounds, pointer

# Kernel -> why it computes in float64 at all.
MEANT = {
    "adamw": "beta^step and what else is one number a call",
    "cross_entropy_forward": "log(total) + top - logit, once a row",
    "cross_entropy_forward_backward": "log(total) + top - logit, once a row",
    "dropout_forward": "1 / (1 - probability), one number a call",
    "lion": "1 - beta and decay * rate, numbers a call",
    "squared_norm": "a sum over all parameters of a model",
}
IN_VECTORS = {"squared_norm"}

# Numba shows the code of what it compiles, not of what it reads from the disk: so a process with an empty cache.
SCRIPT = r"""
import json, re, sys
import numpy as np
from fastllm import kernels
from fastllm.kernels.cases import CASES, with_scratch

arithmetic = re.compile(r" = f(?:add|sub|mul|div|rem|neg) [^\n]*\b(double|x double>) ")
found = {}
share = int(sys.argv[1])
for name, case in list(CASES.items())[share::2]:
    function = getattr(kernels, name)
    if hasattr(function, "inspect_llvm"):
        inputs = with_scratch(case.build(np.random.default_rng(0), **case.sizes[0]), kernels)
        function(*inputs.values())
        code = "\n".join(function.inspect_llvm().values())
        found[name] = sorted({match[1] for match in arithmetic.finditer(code)})
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def doubles(tmp_path_factory):
    """The float64 operands, scalars or vectors, in each kernel's code."""
    settings = {"NUMBA_CACHE_DIR": str(tmp_path_factory.mktemp("cache")), "PYTHONPATH": str(Path(__file__).parents[1])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(share)], env=os.environ | settings, stdout=subprocess.PIPE, text=True
        )
        for share in range(2)
    ]  # each half, at once: it takes the time of compiling everything
    found = {name: kinds for process in processes for name, kinds in json.loads(process.communicate()[0]).items()}
    assert [process.returncode for process in processes] == [0, 0]
    return found


def test_float64_is_used_where_it_is_meant(doubles):
    assert len(doubles) > 20
    assert {name for name, kinds in doubles.items() if kinds} == MEANT.keys()


def test_loops_compute_in_float32(doubles):
    assert {name for name, kinds in doubles.items() if "x double>" in kinds} == IN_VECTORS


def test_the_probe_multiplies_and_adds_as_often_as_it_counts():
    """An accumulator that begins at its fixed point would be left out, and the machine's peak would seem higher."""

    @numba.njit
    def rounds(out, count):
        multiply_add_rounds(pointer(out), count)

    out = np.zeros(LANES, np.float32)
    rounds(out, 3)
    expected = sum(2 + (number + 1) / 8 for number in range(PROBE_SUMS))  # each halves its distance to 2
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    [code] = rounds.inspect_llvm().values()
    assert len(re.findall(r"= (?:tail )?call <\d+ x float> @llvm\.fma", code)) >= PROBE_SUMS


SMALL = """
import numpy as np
from fastllm.kernels import softmax_forward
out = np.empty((1, 4), np.float32)
softmax_forward(out, np.zeros((1, 4), np.float32))
print(out.tolist())
"""


def run_small(cache, script=SMALL, root=Path(__file__).parents[1]):
    """A process with this folder for kernels, which ends well; what it says on stderr."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[[0.25, 0.25, 0.25, 0.25]]\n"), done.stderr
    return done.stderr


def test_a_damaged_cache_is_compiled_anew(tmp_path):
    """As a power cut leaves it. Whoever comes then has it from the disk again."""

    assert run_small(tmp_path) == ""
    for ending, size in (("nbi", 0), ("nbi", 100), ("nbc", 0), ("nbc", 2000)):
        for path in tmp_path.rglob(f"*.{ending}"):
            os.truncate(path, size)
        assert "a compiled kernel on disk is damaged" in run_small(tmp_path)
    assert run_small(tmp_path) == ""
    for path in tmp_path.rglob("*.nbi"):
        index = bytearray(path.read_bytes())
        index[index.index(b"\x80\x04", 2) + 1] ^= 0x10  # a bit of the number of pickle's protocol
        path.write_bytes(index)
    assert "a compiled kernel on disk is damaged" in run_small(tmp_path)
    assert run_small(tmp_path) == ""
    for path in tmp_path.rglob("*.nbc"):
        code = bytearray(path.read_bytes())
        code[len(code) // 2] ^= 0x10  # in the machine code
        path.write_bytes(code)
    assert "a compiled kernel on disk is damaged" in run_small(tmp_path)
    assert run_small(tmp_path) == ""


NO_MEMORY = """
import pickle
def loads(data):
    raise MemoryError("no memory")
pickle.loads = loads
"""


@pytest.mark.parametrize(
    ("settings", "script", "said"),
    [({"NUMBA_THREADING_LAYER": "none"}, SMALL, "layer requested 'none'"), ({}, NO_MEMORY + SMALL, "no memory")],
)
def test_what_else_goes_wrong_while_a_kernel_is_read_leaves_the_cache(tmp_path, settings, script, said):
    assert run_small(tmp_path) == ""
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.nb?")}
    environment = {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[1]), **settings}
    done = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert "damaged" not in done.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.nb?")} == before


def test_processes_that_compile_a_kernel_at_once_do_not_mix_it_up(tmp_path, monkeypatch):
    """For different arguments: both have read an index without either; one writes everything while the other does."""
    first, second = (_CacheFiles(str(tmp_path), "kernel", "stamp") for _ in range(2))
    monkeypatch.setattr(second, "_load_index", dict)
    save_data = first._save_data

    def save_between(name, data):
        second.save("its arguments", "its machine code")
        save_data(name, data)

    monkeypatch.setattr(first, "_save_data", save_between)
    first.save("arguments", "machine code")
    reader = _CacheFiles(str(tmp_path), "kernel", "stamp")
    assert [reader.load(key) for key in ("arguments", "its arguments")] == ["machine code", "its machine code"]


def test_what_another_version_of_numba_writes_is_not_taken_for_ones_own(tmp_path, monkeypatch):
    """Though it ends before it has written the index."""
    _CacheFiles(str(tmp_path), "kernel", "stamp").save("arguments", "machine code")
    other = _CacheFiles(str(tmp_path), "kernel", "stamp")
    monkeypatch.setattr(other, "_version", "another")
    monkeypatch.setattr(other, "_save_index", lambda overloads: None)
    other.save("arguments", "its machine code")
    assert _CacheFiles(str(tmp_path), "kernel", "stamp").load("arguments") == "machine code"


STAMP = """
from numba.core import caching
caching._SourceFileBackedLocatorMixin.get_source_stamp = lambda locator: {}
"""


def test_the_time_of_a_source_does_not_matter(tmp_path):
    """To older versions of Numba it does, and a container's image may keep it but to a second."""
    assert run_small(tmp_path, STAMP.format((1.25, 100)) + SMALL) == ""
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.nb?")}
    assert run_small(tmp_path, STAMP.format((1.0, 100)) + SMALL) == ""
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.nb?")} == before


READ_ONLY = """
import tempfile
def refuse(*arguments, **options):
    raise OSError(30, "Read-only file system")
tempfile.TemporaryFile = refuse
"""


def test_a_cache_that_can_only_be_read_serves(tmp_path):
    """As in a container whose image includes the compiled kernels."""

    def files():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    said = run_small(tmp_path, READ_ONLY + SMALL)
    assert "compiled kernels can't be kept on disk" in said  # there is nothing to read
    assert run_small(tmp_path) == ""
    before = files()
    assert before
    assert run_small(tmp_path, READ_ONLY + SMALL) == ""
    other = SMALL.replace("import softmax_forward", "import softmax_forward, relu_forward as relu")
    said = run_small(tmp_path, READ_ONLY + other + "relu(out, out)")
    assert said.count("RuntimeWarning: kernels that aren't in ") == 1
    assert files() == before


def test_the_folder_stays_where_it_is_when_the_process_goes_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    elsewhere = f"import os, fastllm.kernels\nos.mkdir('elsewhere')\nos.chdir('elsewhere')\n{SMALL}"
    environment = os.environ | {"NUMBA_CACHE_DIR": "relative", "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", elsewhere], env=environment, check=True)
    assert list((tmp_path / "relative").rglob("*.nbc"))
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(("setting", "value"), [("OPT", 1), ("LOOP_VECTORIZE", 0), ("BOUNDSCHECK", 1)])
def test_kernels_compiled_with_other_settings_have_a_folder_of_their_own(monkeypatch, setting, value):
    """Else whoever once compiled without optimisation would keep those kernels, whatever the settings are then."""
    before = disk_cache._digest([])
    monkeypatch.setattr(numba.config, setting, value)
    assert disk_cache._digest([]) != before


def test_a_setting_that_says_off_and_none_at_all_share_a_folder(monkeypatch):
    digests = set()
    for value in (None, 0):
        monkeypatch.setattr(numba.config, "BOUNDSCHECK", value)
        digests.add(disk_cache._digest([]))
    assert len(digests) == 1


def test_without_sources_kernels_run_and_are_not_kept(tmp_path):
    """Where only .pyc files are installed, nothing tells one version's kernels from another's."""
    root = Path(__file__).parents[1]
    ignored = shutil.ignore_patterns("cases", "reference", "__pycache__")
    shutil.copytree(root / "kernels", tmp_path / "fastllm" / "kernels", ignore=ignored)
    shutil.copy(root / "fastllm" / "__init__.py", tmp_path / "fastllm")
    assert compileall.compile_dir(tmp_path / "fastllm", quiet=1, legacy=True)
    for path in tmp_path.rglob("*.py"):
        path.unlink()
    said = run_small(tmp_path / "cache", root=tmp_path)
    assert said.count("RuntimeWarning: ") == 1
    assert "can't be kept on disk (no sources" in said
    assert not list(tmp_path.rglob("*.nb?"))


def test_a_kernel_that_cannot_be_kept_is_used_all_the_same(monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_CacheFiles, "save", full)
    monkeypatch.setattr(disk_cache, "_keeps_all", True)

    @jit.kernel
    def times(x, y):
        return x * y

    with pytest.warns(RuntimeWarning, match="compiled kernels could not be kept on disk .*No space left"):
        assert times(2, 21) == 42
    assert not disk_cache.keeps_kernels()
    assert times(2.0, 21.0) == 42  # and nothing is said again


def test_machine_code_is_made_of_what_runs(monkeypatch):
    """Not of an inlined function, the body of a parallel loop or its wrapper."""
    made, make = [], JITCodeLibrary._finalize_specific
    monkeypatch.setattr(JITCodeLibrary, "_finalize_specific", lambda self: (made.append(self.name), make(self)))
    monkeypatch.setattr(disk_cache, "_CACHE", None)

    @jit.inline
    def twice(x):
        return x + x

    @jit.kernel(parallel=True)
    def all_twice(out, x):
        for i in jit.prange(x.shape[0]):
            out[i] = twice(x[i])

    x = np.arange(5, dtype=np.float32)
    out = np.empty_like(x)
    all_twice(out, x)
    assert out.tolist() == [0, 2, 4, 6, 8]
    assert made == ["test_machine_code_is_made_of_what_runs.<locals>.all_twice"]


def test_a_function_of_a_chunk_is_compiled_once(monkeypatch):
    """The loop's variable is an int64 and a uint64 for Numba, and a number that is written out has its own type."""
    monkeypatch.setattr(disk_cache, "_CACHE", None)

    @jit.inline
    def write(out, chunk, chunks, value):
        out[chunk] = chunks + value

    @jit.kernel(parallel=True)
    def write_all(out):
        write(out, 0, 1, 2)
        for chunk in jit.prange(1, out.shape[0]):
            write(out, chunk=chunk, chunks=np.int32(3), value=chunk)

    out = np.zeros(4, np.int64)
    write_all(out)
    assert out.tolist() == [3, 4, 5, 6]
    counters = {kinds[1:3] for kinds in write.signatures}
    assert counters == {(numba.int64, numba.int64)}
    assert len({kinds[3] for kinds in write.signatures}) > 1  # others have their own types


def test_numba_is_left_as_it_was():
    """Others in the process use it, too, and a kernel may not compile."""

    @jit.kernel
    def refused():
        return undefined  # noqa: F821

    with pytest.raises(numba.TypingError, match="undefined"):
        refused()
    assert gc.isenabled()
    assert type(cpu_target.target_context.codegen().create_library("another's")) is JITCodeLibrary


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+sse2,+avx,+avx2,+fma"}, "8 True True False"),
        ({"NUMBA_CPU_NAME": "alderlake", "NUMBA_CPU_FEATURES": "+sse2,+avx,+avx2,+fma,+avxvnni"}, "8 True True True"),
        ({"NUMBA_CPU_NAME": "sandybridge", "NUMBA_CPU_FEATURES": "+sse2,+avx,-avx2,-fma"}, "8 False False False"),
        ({"NUMBA_CPU_NAME": "nehalem", "NUMBA_CPU_FEATURES": "+sse2"}, "4 False True False"),
        ({"NUMBA_CPU_NAME": "generic"}, "4 False False False"),
        ({"NUMBA_ENABLE_AVX": "0"}, "4 * True False"),  # as Numba decides for some virtual machines
    ],
    ids=["haswell", "alderlake", "sandybridge", "nehalem", "generic", "without AVX"],
)
def test_instructions_are_those_that_numba_compiles_for(settings, expected):
    """Of one that it was told not to use, LLVM ends the process."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("features of x86")
    script = "from fastllm.kernels.llvm import *; print(LANES, HAS_FMA, HAS_WORD_PRODUCTS, HAS_WORD_SUMS)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_CPU")} | settings
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    lanes, fma, *products = found.stdout.split()
    wanted_lanes, wanted_fma, *wanted = expected.split()
    assert (lanes, products) == (wanted_lanes, wanted)
    assert wanted_fma in ("*", fma)
