"""Relative paths in parameters stay inside the project."""

import pytest

from othink_pipeline.core.paths import check_path


@pytest.mark.parametrize(
    "path",
    ["data//06_models/", "data/../models", "..data", "/scratch/../models", "a~b"],
)
def test_a_path_inside_or_absolute_is_given_back_as_it_is(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize("path", ["..", "data/../../models"])
def test_a_path_that_climbs_out_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"must not climb out of the project .* absolute path"):
        check_path(path)


@pytest.mark.parametrize("path", [" ", "a\0b", "~/models"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="must be a path"):
        check_path(path)
