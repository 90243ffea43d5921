"""Every kernel against its twin, every backward twin against calculus, and the rules all kernels keep."""

import ast
import inspect
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from fastllm import kernels
from fastllm.kernels import reference
from fastllm.kernels.cases import CASES, SCRATCH_ARGUMENTS, with_scratch

SIZES = [
    pytest.param(case, size, id=f"{case.kernel}-{name}")
    for case in CASES.values()
    for name, size in [*enumerate(case.sizes), *case.realistic.items()]
]
ODD_SIZES = [
    pytest.param(case, size, id=f"{case.kernel}-{i}") for case in CASES.values() for i, size in enumerate(case.sizes)
]


def as_type(arguments, dtype):
    """A copy of the arguments whose float32 arrays have the given type."""

    def copy(value):
        if not isinstance(value, np.ndarray):
            return value
        return value.astype(dtype if value.dtype == np.float32 else value.dtype)

    return {name: copy(value) for name, value in arguments.items()}


def run(module, case, arguments):
    """Call the kernel of that name; what it wrote, and what it returned, by name."""
    returned = getattr(module, case.kernel)(*arguments.values())
    results = {name: arguments[name] for name in (*case.written, *case.updated)}
    return results if returned is None else results | {"returned": np.array(returned)}


def assert_close(results, expected, tolerance):
    """Each number within the tolerance of its size and of its array's root mean square.

    A lone number, which chance or cancellation may make small, is measured against 1 as well.
    """
    for name, right in expected.items():
        if right.dtype == np.int32:
            np.testing.assert_array_equal(results[name], right, err_msg=name)
            continue
        assert np.isfinite(right).all(), f"the float64 twin left {name} unwritten"
        typical = 1.0 if right.size <= 1 else np.sqrt(np.square(right).mean())
        np.testing.assert_allclose(results[name], right, rtol=tolerance, atol=tolerance * typical, err_msg=name)


def assert_inputs_unchanged(case, before, after):
    free = {*case.written, *case.updated, *SCRATCH_ARGUMENTS}
    for name in before.keys() - free:
        parts = zip(before[name], after[name], strict=True) if isinstance(before[name], tuple) else None
        for one, other in parts or [(before[name], after[name])]:
            np.testing.assert_array_equal(other, one, err_msg=f"{name} was written")


@pytest.mark.parametrize(("case", "size"), SIZES)
def test_kernel_equals_float64_twin(case, size):
    inputs = case.build(np.random.default_rng(0), **size)
    arguments = as_type(with_scratch(inputs, kernels), np.float32)
    results = run(kernels, case, arguments)
    expected = run(reference, case, as_type(inputs, np.float64))
    assert_close(results, expected, case.kernel_tolerance(size))
    assert_inputs_unchanged(case, inputs, arguments)


@pytest.mark.parametrize(("case", "size"), ODD_SIZES)
def test_float32_twin_equals_float64_twin(case, size):
    inputs = case.build(np.random.default_rng(0), **size)
    arguments = as_type(inputs, np.float32)
    results = run(reference, case, arguments)
    expected = run(reference, case, as_type(inputs, np.float64))
    assert_close(results, expected, case.tolerance(size))
    assert_inputs_unchanged(case, inputs, arguments)


@pytest.mark.parametrize(("case", "size"), SIZES)
def test_same_bits_on_any_number_of_threads(monkeypatch, case, size):
    """Kernels that have a row of scratch for each thread cut their work into as many parts, whoever does them."""
    assert numba.config.NUMBA_NUM_THREADS >= 2, "needs NUMBA_NUM_THREADS=2 or more; set it before numba loads"
    with monkeypatch.context() as patch:
        patch.setattr(numba.config, "NUMBA_NUM_THREADS", 8)
        inputs = with_scratch(case.build(np.random.default_rng(0), **size), kernels)
    threads = numba.get_num_threads()
    results = []
    try:
        for count, parts in [(1, 1), (2, 2), (2, 3), (2, 8)] if is_cut_by_scratch(inputs) else [(1, 0), (2, 0)]:
            numba.set_num_threads(count)
            arguments = as_type(inputs, np.float32)
            if parts:
                arguments["scratch"] = arguments["scratch"][:parts]
            results.append(run(kernels, case, arguments))
    finally:
        numba.set_num_threads(threads)
    for others in results[1:]:
        for name, one in results[0].items():
            assert one.tobytes() == others[name].tobytes(), name


def is_cut_by_scratch(arguments):
    scratch = arguments.get("scratch")
    return isinstance(scratch, np.ndarray) and len(scratch) == 8


# Backward against central differences of the float64 forward twin.

STEP = 1e-6
# The error of a central difference: STEP^2 for the third derivative, and 1e-16 / STEP for the rounding of the
# objective, a sum of up to a few thousand numbers of size one.
DIFFERENCE_TOLERANCE = 1e-6

# A gradient that arrives by another way is only added, and one that is there already is added to or not: such sizes
# are left to the tests above.
BACKWARD = [
    pytest.param(case, size, id=f"{case.kernel}-{i}")
    for case in CASES.values()
    for i, size in enumerate(case.sizes)
    if case.forward is not None and not size.get("residual") and size.get("accumulate", True)
]


def upstream_of(backward, arguments):
    """What the forward kernel writes, and the gradient of the objective by it."""
    if backward.forward == "cross_entropy_forward":
        return "losses", np.full(len(arguments["losses"]), arguments["scale"])
    output = "qkv" if backward.forward == "rope_forward" else "out"
    return output, arguments["d" + output].copy()


@pytest.mark.parametrize(("case", "size"), BACKWARD)
def test_backward_twin_is_the_derivative_of_forward(case, size):
    rng = np.random.default_rng(0)
    forward = CASES[case.forward]
    inputs = as_type(forward.build(rng, **size), np.float64)
    point = as_type(inputs, np.float64)
    run(reference, forward, point)
    # The same point: whatever backward takes by a name of forward's, input or saved result, is forward's.
    arguments = {name: point.get(name, value) for name, value in as_type(case.build(rng, **size), np.float64).items()}
    output, upstream = upstream_of(case, arguments)
    noise = {name: arguments[name].copy() for name in case.updated if name != "dqkv"}  # that is in place
    run(reference, case, arguments)

    def objective(name, shift):
        moved = as_type(inputs, np.float64)
        moved[name] += shift
        run(reference, forward, moved)
        return np.sum(upstream * moved[output])

    gradients = [
        name
        for name in (*case.written, *case.updated)
        if name.startswith("d") and name.removeprefix("d") not in forward.written  # no input, but what is on the way
    ]
    assert gradients
    for gradient in gradients:
        name = gradient.removeprefix("d")
        direction = rng.standard_normal(inputs[name].shape)
        slope = (objective(name, STEP * direction) - objective(name, -STEP * direction)) / (2 * STEP)
        expected = np.sum((arguments[gradient] - noise.get(gradient, 0)) * direction)
        assert slope == pytest.approx(expected, rel=DIFFERENCE_TOLERANCE, abs=DIFFERENCE_TOLERANCE), gradient


# What all kernels keep.


def parameter_names(function):
    return list(inspect.signature(getattr(function, "py_func", function)).parameters)


# No kernels.
SERVICES = {
    "Replay", "attention_pieces", "attention_scratch", "cache_directory", "calls_may_overlap", "decode_scratch",
    "keeps_kernels", "matmul_scratch", "packed_scratch", "watch_compilation",
}  # fmt: skip


def test_kernels_twins_and_cases_have_the_same_names():
    public = set(kernels.__all__) - SERVICES
    assert public == set(reference.__all__)
    assert public == set(CASES)


@pytest.mark.parametrize("name", reference.__all__)
def test_kernel_and_twin_take_the_same_arguments(name):
    names = parameter_names(getattr(reference, name))
    assert parameter_names(getattr(kernels, name)) == names
    case = CASES[name]
    assert list(case.build(np.random.default_rng(0), **case.sizes[0])) == names


@pytest.mark.parametrize("name", reference.__all__)
def test_kernel_and_twin_stand_in_files_of_one_name(name):
    twin = getattr(reference, name).__module__.rpartition(".")[2]
    assert getattr(kernels, name).__module__.rpartition(".")[2] == twin


TWIN_FILES = sorted(Path(reference.__file__).parent.glob("[!_]*.py"))


@pytest.mark.parametrize("path", TWIN_FILES, ids=lambda path: path.stem)
def test_twins_import_only_numpy(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "twins share nothing with each other"
            modules = [node.module]
        else:
            continue
        roots = {module.partition(".")[0] for module in modules}
        assert roots <= {"numpy", *sys.stdlib_module_names}
