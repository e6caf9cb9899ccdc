"""What a module is made of is read from its source, without importing it."""

from __future__ import annotations

from pathlib import Path

import pytest

from squeeze.artifacts.code_version import closure, imported, libraries


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = tmp_path / "pack"
    files = {
        "__init__.py": "__version__ = '1'\nimport never_imported\n",
        "steps/__init__.py": "",
        "steps/one.py": "import numpy as np\nfrom pack import shared\nfrom pack.steps.two import thing\n",
        "steps/two.py": "import json\nfrom . import near\nfrom ..deep import value\n\ndef f():\n    import torch.nn\n",
        "steps/near.py": "from importlib.util import find_spec\nfind_spec('bitsandbytes')\n",
        "shared.py": "from pack.steps.one import ring\n",
        "deep.py": "value = 1\n",
        "unused.py": "import pandas\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_closure_follows_imports_of_every_form(package: Path) -> None:
    files = closure(["pack.steps.one"], {"pack": package})
    assert list(files) == ["pack.deep", "pack.shared", "pack.steps.near", "pack.steps.one", "pack.steps.two"]
    assert files["pack.deep"] == package / "deep.py"


def test_the_package_itself_counts_only_where_its_own_names_are_imported(package: Path) -> None:
    (package / "deep.py").write_text("from pack import __version__\n")
    assert "pack" in closure(["pack.deep"], {"pack": package})


def test_libraries_are_those_of_others(package: Path) -> None:
    assert libraries(closure(["pack.steps.one"], {"pack": package}), {"pack": package}) == {
        "numpy",
        "torch",
        "bitsandbytes",
    }


def test_an_unknown_module_is_an_error(package: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"pack\.absent"):
        closure(["pack.absent"], {"pack": package})


def test_this_very_package_is_read_without_torch() -> None:
    assert "squeeze.core.errors" in closure(["squeeze.artifacts.format"])
    assert "torch" in libraries(closure(["squeeze.artifacts.format"]))


def test_a_module_is_made_of_several_packages(package: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "mine.py").write_text("import scipy\nfrom pack.deep import value\nfrom third import thing\n")
    packages = {"pack": package, "plugin": other}
    files = closure(["plugin.mine"], packages)
    assert files == {"pack.deep": package / "deep.py", "plugin.mine": other / "mine.py"}
    assert libraries(files, packages) == {"scipy", "third"}


def test_a_package_that_is_not_named_is_not_read(package: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no module json\.decoder in pack"):
        closure(["json.decoder"], {"pack": package})


def test_names_that_a_file_imports(package: Path) -> None:
    assert set(imported("pack.steps.one", package / "steps" / "one.py")) == {
        "numpy",
        "pack.shared",
        "pack.steps.two.thing",
    }
