"""Every format that people can ask for is found by its name, and takes an artifact and a folder."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from squeeze.artifacts.exports import by_name
from squeeze.commands.export import READERS


@pytest.mark.parametrize("layout", READERS)
def test_a_format_is_found_by_its_name(layout: str) -> None:
    source, folder, *options = inspect.signature(by_name.writer(layout)).parameters.values()
    assert (source.name, folder.name) == ("source", "folder")
    assert all(option.default is not inspect.Parameter.empty for option in options)
    assert by_name.module(layout).rpartition(".")[2] == layout.replace("-", "_")


def test_a_program_says_in_a_line_why_it_wrote_nothing(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"no readable artifact\.json") as ended:
        by_name.main("gptq", str(tmp_path), str(tmp_path / "exported"))
    assert "\n" not in str(ended.value)
    assert not (tmp_path / "exported").exists()
