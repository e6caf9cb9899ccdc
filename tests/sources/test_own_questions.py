"""Questions of the user's own are data: checked line by line, named by their content, kept as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from squeeze.core import cache
from squeeze.core.errors import SqueezeError
from squeeze.request.cell import Cell
from squeeze.request.expand import cells
from squeeze.sources import own_questions
from squeeze.sources.questions import questions

QUIZ: list[dict[str, Any]] = [
    {"context": "Rome is in", "choices": [" Italy", " Spain"], "gold": 0},
    {"context": "Two and two is", "choices": [" three", " four", " five"], "gold": 1},
]


@pytest.fixture
def quiz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my quiz.jsonl"
    path.write_text("\n".join(map(json.dumps, QUIZ)) + "\n\n")
    return path


def planned(task: str) -> Cell:
    (cell,) = cells(["model=tiny_llama", "technique=none", f"protocol.tasks=[piqa,'{task}']"])
    return cell


def test_a_cell_names_the_content_and_keeps_it(quiz: Path) -> None:
    before = planned("file:my quiz.jsonl")
    house, own = before.protocol["tasks"]
    assert house == "piqa"
    assert own.startswith("own_my_quiz_")
    quiz.write_text(json.dumps({**QUIZ[0], "gold": 1}))
    after = planned("file:my quiz.jsonl")
    assert before.key != after.key
    quiz.unlink()
    assert planned(own).key == before.key
    assert questions(member=own, sha256="")["test"].to_list() == [
        {"contexts": ["Rome is in"] * 2, "continuations": [" Italy", " Spain"], "gold": 0},
        {"contexts": ["Two and two is"] * 3, "continuations": [" three", " four", " five"], "gold": 1},
    ]
    assert len(questions(member=own, sha256="", items=1)["test"]) == 1
    assert questions(member=after.protocol["tasks"][1], sha256="")["test"][0]["gold"] == 1


def test_what_the_cache_has_lost_is_asked_for(quiz: Path, tmp_path: Path) -> None:
    name = own_questions.taken_in("file:my quiz.jsonl")
    (tmp_path / "cache").rename(tmp_path / "lost")
    with pytest.raises(SqueezeError, match=f"the questions of {name} are in the cache no more; name their file again"):
        own_questions.path(name)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "no questions, expected lines such as"),
        ("{", ":1: not readable as JSON in UTF-8"),
        ("[" * 100_000, ":1: not readable as JSON"),
        ("3", ":1: 3, expected an object of choices, context, gold"),
        ('{"context": "a", "choices": ["b", "c"]}', "expected an object of choices, context, gold"),
        (
            '{"context": "{{7*7}}", "choices": ["b", "c"], "gold": 0, "doc_to_text": "!function os.system"}',
            "an object of",
        ),
        ('{"context": "", "choices": ["b", "c"], "gold": 0}', ":1: context '', expected a text"),
        ('{"context": "a", "choices": ["b"], "gold": 0}', ":1: choices .*, expected a list of 2 to 100 texts"),
        ('{"context": "a", "choices": ["b", ""], "gold": 0}', "expected a list of 2 to 100 texts"),
        ('{"context": "a", "choices": "bc", "gold": 0}', "expected a list of 2 to 100 texts"),
        ('{"context": "a", "choices": ["b", "c"], "gold": 2}', ":1: gold 2, expected a choice's number, 0 to 1"),
        ('{"context": "a", "choices": ["b", "c"], "gold": true}', ":1: gold True, expected a choice's number"),
        ('{"context": "\\ud800", "choices": ["b", "c"], "gold": 0}', ":1: half a character"),
    ],
)
def test_what_is_no_question_is_refused_with_its_line(line: str, words: str, quiz: Path) -> None:
    quiz.write_text(line)
    with pytest.raises(SqueezeError, match=words) as caught:
        planned("file:my quiz.jsonl")
    assert "my quiz.jsonl" in str(caught.value)
    assert len(str(caught.value)) < 600
