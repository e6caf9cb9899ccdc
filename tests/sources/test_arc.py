"""The text of one task: each question once, with its right answer, and none that gives away what is scored."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from squeeze.sources import arc, tasks
from squeeze.sources.arc import answered, apart, unscored
from squeeze.sources.question_file import asked

WHAT = "What is the name of the process in which plants make sugar?"
OWN = "Which of these would a student use to measure the mass of a small stone?"


def requests(number: int, query: str, choices: list[str], gold: int) -> list[dict[str, Any]]:
    document = {"query": f"Question: {query}\nAnswer:", "choices": choices, "gold": gold}
    context = f"Question: another\nAnswer: yes\n\n{document['query']}"
    return [
        {"doc_id": number, "doc": document, "request": {"context": context, "continuation": f" {choice}"}}
        for choice in choices
    ]


def written(folder: Path, name: str, *of: list[dict[str, Any]]) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress("\n".join(json.dumps(each) for group in of for each in group).encode()))
    return path


def test_each_question_comes_once_with_its_right_answer_alone(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "own.gz",
        requests(0, WHAT, ["respiration", "photosynthesis"], 1),
        requests(1, OWN, ["a balance", "a ruler", "a clock"], 0),
        requests(tasks.NORMALISATION, OWN, ["a balance"], 0),
    )
    assert list(answered(path)) == [
        f"Question: {WHAT}\nAnswer: photosynthesis",
        f"Question: {OWN}\nAnswer: a balance",
    ]
    assert [piece.rpartition("Answer:")[2] for piece in asked(path)] == [
        *(" respiration", " photosynthesis"),
        *(" a balance", " a ruler", " a clock"),
    ]


@pytest.mark.parametrize(
    ("text", "stays"),
    [
        (f"Question: {WHAT}\nAnswer: photosynthesis", False),
        ("By IN WHICH, plants: make sugar? And why, in water of the sea?", True),  # five words in a row
        ("the NAME of the process, in which plants: are green", False),  # eight
        ("Question: What do most animals need to live?\nAnswer: food", True),
        ("Which is food?\nAnswer: bread", False),  # too short to tell
    ],
)
def test_what_shares_eight_words_in_a_row_goes(text: str, stays: bool) -> None:
    assert list(apart([text], [f"Question: {WHAT}\nAnswer: respiration"])) == [text] * stays


def test_the_text_is_held_against_each_task_of_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = {
        name: written(tmp_path, f"{name}.gz", requests(0, query, ["yes", "no"], 0))
        for name, query in (("arc_challenge", WHAT), ("arc_easy", "nothing"), ("sciq", "nothing"))
    }
    pins = {tasks.pins()[name][0]: path for name, path in scored.items()}
    monkeypatch.setattr(arc.wheels, "member", lambda *asked: pins[asked[2]])
    own = written(tmp_path, "own.gz", requests(0, WHAT, ["growth"], 0), requests(1, OWN, ["a balance"], 0),
                  requests(2, OWN.replace("small", "large"), ["a balance"], 0))  # fmt: skip
    first, second = (f"Question: {query}\nAnswer: a balance" for query in (OWN, OWN.replace("small", "large")))
    assert unscored(own) == f"{first}\n\n{second}\n"
