"""The documentation: no dead link, examples that work, a reference that holds all that the code has."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import reference
from squeeze.boards.glossary import TERMS
from squeeze.cli import app
from squeeze.core.errors import Unsupported
from squeeze.layers.contract import float_linears
from squeeze.models import architecture
from squeeze.request.axes import AXES
from squeeze.techniques.calibration import CalibrationText
from tests.tiny import tiny_subject

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
LINK = re.compile(r"\]\(([^)#\s]+)")
BUILT = ROOT / "docs" / "reference"  # by `nox -s docs`


def block(page: str, language: str) -> str:
    text = (ROOT / "docs" / page).read_text()
    return text.split(f"```{language}\n", 1)[1].split("```", 1)[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_is_dead(page: Path) -> None:
    links = [link for link in LINK.findall(page.read_text()) if "://" not in link]
    targets = [(page.parent / link).resolve() for link in links]
    assert [str(target) for target in targets if not target.exists() and BUILT not in target.parents] == []


def test_every_page_is_in_the_contents() -> None:
    listed = {f"{name}.md" for name in re.findall(r"^[\w/]+$", (ROOT / "docs" / "index.md").read_text(), re.MULTILINE)}
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if ROOT / "docs" in page.parents}
    assert {page for page in pages if not page.startswith("reference/")} - listed == {"index.md"}


def test_the_technique_of_the_how_to_compresses() -> None:
    space: dict[str, Any] = {"__name__": __name__}
    exec(compile(block("howto/technique.md", "python"), "halve.py", "exec", dont_inherit=True), space)
    settings = yaml.safe_load(block("howto/technique.md", "yaml"))["steps"][0]
    assert settings.pop("_target_") == "halve.Halve"
    subject = tiny_subject("llama")
    name = float_linears(subject.model)[0]
    before = architecture.weight(subject.model.get_submodule(name)).clone()
    made = space["Halve"](**settings).apply(subject, CalibrationText.empty())
    assert architecture.weight(made.model.get_submodule(name)).equal(before / 2)
    with pytest.raises(Unsupported):
        space["Halve"](share=2.0).apply(subject, CalibrationText.empty())


def test_the_reference_holds_every_command_axis_and_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["reference.py", str(tmp_path)])
    reference.main()
    commands, axes, columns = ((tmp_path / f"{name}.md").read_text() for name in ("commands", "axes", "columns"))
    assert all(f"## squeeze {name}\n" in commands for name in app.commands)
    assert "| `--yes` | Do not ask, though OVERRIDES name nothing. |" in commands
    assert all(f"| `{axis.name}` | " in axes for axis in AXES)
    assert "`tiny`" in axes
    assert all(f"| `{name}` | {term.words}" in columns for name, term in TERMS.items())


def test_what_the_package_brings_is_not_ignored_by_git() -> None:
    """Else neither a clone nor a wheel had it."""
    files = [str(path) for path in (ROOT / "squeeze" / "sources" / "packaged").rglob("*") if path.is_file()]
    assert len(files) == 4
    if (ROOT / ".git").exists():
        assert subprocess.run(["git", "-C", str(ROOT), "check-ignore", *files], stdout=subprocess.PIPE).stdout == b""
