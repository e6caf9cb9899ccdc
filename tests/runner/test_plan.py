import pytest

from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.request.cell import Cell
from squeeze.runner import plan

CELLS = [Cell(model={"name": "m"}, technique={"name": "t", "steps": [{"bits": bits}]}) for bits in (8, 4)]


def test_a_plan_comes_back_as_it_was(tmp_path):
    plan.save(CELLS, tmp_path / "new" / "results")
    assert plan.load(tmp_path / "new" / "results") == CELLS


def test_without_a_run_there_is_nothing_to_resume(tmp_path):
    with pytest.raises(SqueezeError, match="nothing to resume; start with `squeeze run`"):
        plan.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[{", b"[1]", b"3", b'[{"colour": 1}]', b"\xff", b"[" * 100_000])
def test_a_damaged_plan_is_refused(tmp_path, content):
    (tmp_path / plan.NAME).write_bytes(content)
    with pytest.raises(IntegrityError, match="is no plan of cells"):
        plan.load(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SqueezeError, match=r"cannot be written: .*; choose another --results"):
        plan.save(CELLS, tmp_path / "file" / "results")
