"""Both sides of a comparison begin alike; what another interpreter's libraries left behind is no setting."""

from __future__ import annotations

from squeeze.runner.alike import unlike


def begun(**settings: str) -> list[dict[str, dict[str, str]]]:
    return [{"state": {name.replace("_", " ", 1): value for name, value in settings.items()}}]


def test_each_setting_that_differs_is_named() -> None:
    one, other = begun(threads="2", variable_OMP_NUM_THREADS="a"), begun(threads="4", variable_OMP_NUM_THREADS="b")
    assert unlike(one, other) == ["threads", "variable OMP_NUM_THREADS"]
    assert unlike(one, begun(threads="2")) == ["variable OMP_NUM_THREADS"]
    assert unlike(one, one) == []


def test_of_another_interpreter_only_variables_count_that_set_something() -> None:
    one = begun(threads="2", variable_OMP_NUM_THREADS="a", variable_SOME_LIBRARY="x")
    other = begun(threads="2", variable_OMP_NUM_THREADS="b")
    assert unlike(one, other) == ["variable OMP_NUM_THREADS", "variable SOME_LIBRARY"]
    assert unlike(one, other, elsewhere=True) == ["variable OMP_NUM_THREADS"]
    assert unlike(begun(threads="2"), begun(threads="4"), elsewhere=True) == ["threads"]
