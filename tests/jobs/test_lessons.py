"""A course says how long lessons go on, and nothing that it says is passed over."""

import re
from typing import Any

import pytest

from innerspace.jobs.dictionaries.lessons import Course
from innerspace.learn.fit import FitConfig
from innerspace.recipes import gpt2_small, pythia_70m, stories_pareto, tinystories_1m


def test_the_steps_are_those_of_the_tokens() -> None:
    config = Course(tokens=1001, fit=FitConfig(rate=0.5, accumulate=2)).config(50, seed=3)
    assert (config.steps, config.seed, config.rate, config.accumulate) == (11, 3, 0.5, 2)


def test_steps_that_go_with_the_tokens_may_be_said() -> None:
    assert Course(tokens=1001, fit=FitConfig(steps=21)).config(50, seed=0).steps == 21
    assert gpt2_small.job.course.config(8 * 1024, seed=0).steps == 25_000


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"fit": FitConfig(steps=20)}, "1,001 tokens are 21 steps of 1 × 50, and fit.steps is 20"),
        ({"fit": FitConfig(seed=4)}, "not fit.seed to 4"),
        ({"tokens": 0}, "at least 1"),
        ({"restart": -1}, "restart 0"),
    ],
)
def test_what_would_have_no_effect_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        Course(**({"tokens": 1001} | changes)).config(50, seed=0)


@pytest.mark.parametrize("recipe", [gpt2_small, pythia_70m, stories_pareto, tinystories_1m])
def test_courses_go_to_json_and_back(recipe: Any) -> None:
    course = recipe.job.course
    assert Course.from_json(course.to_json()) == course
