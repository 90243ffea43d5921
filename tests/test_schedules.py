"""Learning rates at the edges of each schedule."""

import math

import pytest

from fastllm.schedules import KINDS, Schedule


def rates(schedule):
    return [schedule(step) for step in range(schedule.steps)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule("constant", 2.0, steps=4), [2, 2, 2, 2]),
        (Schedule("constant", 2.0, steps=5, warmup=3), [2 / 3, 4 / 3, 2, 2, 2]),
        (Schedule("linear", 1.0, steps=5), [1, 0.75, 0.5, 0.25, 0]),
        (Schedule("linear", 1.0, steps=5, final=0.2), [1, 0.8, 0.6, 0.4, 0.2]),
        (Schedule("linear", 1.0, steps=5, warmup=2), [0.5, 1, 1, 0.5, 0]),
        (Schedule("cosine", 1.0, steps=5), [1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4, 0]),
        (Schedule("cosine", 1.0, steps=3, final=0.1), [1, 0.55, 0.1]),
        (Schedule("wsd", 1.0, steps=7, warmup=1, decay=4), [1, 1, 1, 0.75, 0.5, 0.25, 0]),
        (Schedule("wsd", 1.0, steps=3, decay=1), [1, 1, 0]),
        (Schedule("wsd", 1.0, steps=3, warmup=2, final=0.1, decay=1), [0.5, 1, 0.1]),
        (Schedule("wsd", 1.0, steps=5, warmup=2, final=0.1, decay=3), [0.5, 1, 0.7, 0.4, 0.1]),
        (Schedule("linear", 1.0, steps=3, warmup=2, final=0.1), [0.5, 1, 0.1]),
        (Schedule("cosine", 1.0, steps=3, warmup=3), [1 / 3, 2 / 3, 1]),
        (Schedule("linear", 1.0, steps=1), [1]),
        (Schedule("wsd", 1.0, steps=20, final=0.2), [1.0] * 16 + [0.8, 0.6, 0.4, 0.2]),  # a fifth is four steps
    ],
)
def test_values(schedule, expected):
    assert rates(schedule) == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 1), (3, 3), (10, 0), (10, 9), (1000, 100)])
def test_shape(kind, steps, warmup):
    """Up to the peak, which is reached, and never up again; between final and peak; the rest of steps stays."""
    schedule = Schedule(kind, 3e-4, steps, warmup, final=0 if kind == "constant" else 3e-5)
    values = rates(schedule)
    rising, falling = values[:warmup], values[warmup:]
    assert all(0 < rate <= 3e-4 for rate in values)
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert all(rate >= 3e-5 * (1 - 1e-12) for rate in falling)
    assert max(values) == 3e-4
    if kind != "constant" and steps - warmup > 1:
        assert values[-1] == pytest.approx(3e-5)
        assert schedule(steps + 10) == pytest.approx(3e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "step"}, "a schedule must be one of constant, linear, cosine, wsd; got 'step'"),
        *[({"peak": peak}, "a learning rate must be above 0 and finite") for peak in (0, -1e-3, math.inf, math.nan)],
        *[({"final": final}, "the final learning rate must be between 0 and the peak") for final in (-1, 2, math.nan)],
        ({"steps": 0}, "steps >= 1"),
        ({"steps": 5, "warmup": 6}, "warmup from 0 to steps; got steps=5, warmup=6"),
        ({"steps": 5, "warmup": -1}, "warmup from 0 to steps"),
        ({"kind": "wsd", "steps": 5, "warmup": 3, "decay": 3}, "decay must be from 1 to steps - warmup = 2; got 3"),
        ({"kind": "wsd", "steps": 5, "decay": 0}, "decay must be from 1"),
        ({"kind": "constant", "final": 0.1}, "a constant schedule has no final learning rate; got 0.1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message) as raised:
        Schedule(**{"peak": 1.0, **options})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd"])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (4, 4), (4, 3), (9, 2)])
def test_beyond_the_last_step_it_stays_final(kind, steps, warmup):
    assert [Schedule(kind, 1.0, steps, warmup, 0.1)(step) for step in (steps, steps + 5)] == [0.1, 0.1]


@pytest.mark.parametrize("options", [{"steps": 2.5}, {"steps": 9, "warmup": True}, {"steps": 9, "decay": 2.5}])
def test_steps_are_whole_numbers(options):
    with pytest.raises(TypeError, match="must be a whole number"):
        Schedule("wsd", 1.0, **options)
