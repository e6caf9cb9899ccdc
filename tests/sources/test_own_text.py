"""A text of the user's own is taken in: named by its content, kept as it was, and told to nobody."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from squeeze.artifacts.keys import artifact_key
from squeeze.core import cache
from squeeze.core.errors import IntegrityError, SqueezeError
from squeeze.models.tiny import byte_tokenizer
from squeeze.request.cell import Cell
from squeeze.request.expand import cells
from squeeze.sources import overlap, own_questions, own_text
from squeeze.sources.corpora import calibration_tokens, text
from squeeze.sources.identity import calibration_hash
from squeeze.sources.withheld import SHARED, places
from tests.planted import place

TEXT = "A text of my own, naïvely told.\n" * 200
REQUEST = ["model=tiny_llama", "technique=gptq", "calibration.samples=4", "calibration.window=32"]


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my notes.txt"
    path.write_text(TEXT)
    return path


def planned(corpus: str) -> Cell:
    (cell,) = cells([*REQUEST, f"calibration.corpus='{corpus}'"])
    return cell


def test_a_cell_names_the_content_and_not_the_file(notes: Path) -> None:
    cell = planned("file:my notes.txt")
    assert cell.calibration["corpus"] == f"sha256:{hashlib.sha256(TEXT.encode()).hexdigest()}"
    assert cell.label == "tiny_llama-gptq-4-g64-my_notes"
    assert "notes.txt" not in str(cell.to_json())
    notes.rename(notes.with_name("elsewhere.txt"))
    other = planned(f"file:{notes.with_name('elsewhere.txt')}")
    assert (other.key, artifact_key(other)) == (cell.key, artifact_key(cell)), "a name changes nothing"


def test_another_content_is_another_cell_another_artifact_and_the_first_is_still_there(notes: Path) -> None:
    before = planned("file:my notes.txt")
    notes.write_text(TEXT + "One more line.\n")
    after = planned("file:my notes.txt")
    assert before.key != after.key
    assert artifact_key(before) != artifact_key(after)
    assert calibration_hash(before.calibration) != calibration_hash(after.calibration)
    notes.unlink()
    assert text(before.calibration["corpus"]) == TEXT
    assert text(after.calibration["corpus"]) == TEXT + "One more line.\n"


def test_windows_are_drawn_from_it(notes: Path) -> None:
    windows = calibration_tokens(planned("file:my notes.txt").calibration, byte_tokenizer())
    ids = torch.tensor(byte_tokenizer()(TEXT)["input_ids"])
    assert windows.shape == (4, 32)
    assert all(torch.equal(window, ids[start : start + 32]) for window in windows for start in [_start(ids, window)])


def _start(ids: torch.Tensor, window: torch.Tensor) -> int:
    return next(start for start in range(0, len(ids), 32) if torch.equal(ids[start : start + 32], window))


def test_a_choice_of_the_users_own_keeps_its_name(notes: Path, tmp_path: Path) -> None:
    place(tmp_path / "conf", "calibration", "mine", "corpus: 'file:my notes.txt'\nsamples: 4\nwindow: 32\nseed: 0\n")
    (cell,) = cells(["model=tiny_llama", "technique=gptq", "calibration=mine"], tmp_path / "conf")
    assert cell.label.endswith("-mine")
    assert cell.key == planned("file:my notes.txt").key


def test_a_cell_can_be_named_again_by_its_hash_while_the_cache_has_the_text(notes: Path, tmp_path: Path) -> None:
    cell = planned("file:my notes.txt")
    assert planned(cell.calibration["corpus"]).key == cell.key
    (tmp_path / "cache").rename(tmp_path / "lost")
    with pytest.raises(
        SqueezeError, match=r"the text sha256:\w+\.\.\. is in the cache no more; name it again, as file:"
    ):
        text(cell.calibration["corpus"])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone.txt", r"gone\.txt cannot be read \(No such file or directory\), expected a file"),
        (".", "is a directory, expected a regular file"),
        ("fifo", "fifo is a FIFO, expected a regular file"),
        ("endless", "is a device, expected a regular file"),
        ("large", r"large has 70,000,000 bytes, expected at most 67,108,864"),
        ("latin", r"latin: no UTF-8 text \(byte 2\); save it in UTF-8"),
        ("blank", "blank: empty, expected a text"),
    ],
)
def test_what_is_no_text_is_refused(name: str, words: str, notes: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", 70_000_000)
    (tmp_path / "latin").write_bytes("naïve".encode("latin-1"))
    (tmp_path / "blank").write_text(" \n")
    with pytest.raises(SqueezeError, match=words):
        planned(f"file:{name}")


@pytest.mark.parametrize(
    ("corpus", "title"),
    [("c4", "c4"), ("file:texts/my notes.txt", "my_notes"), ("file:~/.hidden", "hidden"), ("file:…", "text")],
)
def test_labels_can_hold_its_title(corpus: str, title: str) -> None:
    assert own_text.title(corpus) == title


def test_a_build_may_read_the_own_text_that_it_is_calibrated_on_and_no_other(notes: Path, tmp_path: Path) -> None:
    (tmp_path / "scored.txt").write_text("Something else to be scored on.\n")
    calibrating, scored = (own_text.taken_in(f"file:{path}") for path in (notes, tmp_path / "scored.txt"))
    for room in SHARED:
        (tmp_path / "cache" / room).mkdir(exist_ok=True)
    closed = {place.name for place in places({"source": "random:llama"}, {"corpus": calibrating}) if place.exists()}
    assert Path(own_text.place(scored)).name in closed
    assert Path(own_text.place(calibrating)).name not in closed


def test_calibration_on_what_is_scored_is_refused_for_own_texts_and_questions_too(notes: Path, tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(400)]
    notes.write_text(" ".join(words))
    other = tmp_path / "other.txt"
    other.write_text(" ".join(reversed(words)))
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_text(json.dumps({"context": " ".join(words[:50]), "choices": [" a", " b"], "gold": 0}))
    own, unlike = (own_text.taken_in(f"file:{path}") for path in (notes, other))
    task = own_questions.taken_in(f"file:{quiz}")
    for scored, asked in ((own, []), (unlike, [task])):
        protocol = {"perplexity": {"corpus": scored, "tokens": 100}, "items": None}
        with pytest.raises(IntegrityError, match=r"at most 1% may: calibrate on another text"):
            overlap.check({"corpus": own}, protocol, asked=asked)
        overlap.check({"corpus": unlike}, {**protocol, "perplexity": {"corpus": own, "tokens": 100}}, asked=[])
