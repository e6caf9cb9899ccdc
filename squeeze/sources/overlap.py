"""Refuse calibration on what is scored, and on near copies of it: the words that both texts have in a row.

Words are compared without case, punctuation and white space, eight in a row. Eight is few enough that a copy with every
tenth word changed still shows, and enough that honest texts hardly share any: of the sequences of the calibration texts
shipped, 0.008 % stand in any evaluation text or task shipped (BoolQ's passages, which are Wikipedia, too), where five
words in a row give 0.5 %, and thirteen none at all, of honest texts and of many near copies.

    share of the calibration text's sequences that stand in a scored text: it was copied from there
    share of what is scored that stands in the calibration text: it was copied into there, however much lies around it
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from squeeze.core import cache
from squeeze.core.errors import IntegrityError
from squeeze.core.hashing import digest, sha256
from squeeze.sources import classification, corpora, own_questions, question_file, tasks, wheels
from squeeze.sources.word_rows import WORDS, Hashes, sequences

MOST_SHARED = 0.01  # a hundred times what honest texts share
CHARACTERS_A_TOKEN = 5  # of English, rounded up: the beginning of a text that so many tokens are
FORMAT = 1  # part of the key: raise it when sequences are hashed in another way

Known = tuple[str, str]  # the name of a text, and its sha256


def check(calibration: Mapping[str, Any], protocol: Mapping[str, Any], *, asked: Iterable[str] = ()) -> None:
    """Raise IntegrityError, with the share found and that allowed, where a row would be calibrated on what scores it.

    calibration: a cell's; an empty one reads nothing. protocol: its perplexity and perplexity_ood texts, and items.
    asked: its tasks, where the model answers any; those whose questions are neither pinned nor the user's own are
    passed over. Texts must have been fetched. The hashes of each text are kept in the
    cache; held against nine tasks and two texts, a calibration text then takes half a second, once a run.
    """
    if not calibration:
        return
    name = str(calibration["corpus"])
    if name in tasks.texts():
        raise IntegrityError(
            f"calibration on {name}: perplexity is measured on it, 100% of it would be known and at most "
            f"{MOST_SHARED:.0%} may be; calibrate on another text"
        )
    texts = (protocol.get(part) for part in ("perplexity", "perplexity_ood"))
    scored = [(text["corpus"], text["tokens"]) for text in texts if text]
    scored += [(task, protocol["items"]) for task in asked if _is_task(task)]
    for what, amount in scored:
        of_calibration, of_scored = shares(name, what, amount)
        if max(of_calibration, of_scored) > MOST_SHARED:
            raise IntegrityError(
                f"calibration on {Path(name).name}: {of_calibration:.2%} of its sequences of {WORDS} words stand in "
                f"{what}, and {of_scored:.2%} of what is scored of {what} stands in it; at most {MOST_SHARED:.0%} may: "
                "calibrate on another text"
            )


def shares(calibration: str, scored: str, amount: int | None) -> tuple[float, float]:
    """Return which share of a calibration text stands in a scored one, and which share of what is scored in it.

    calibration: a corpus, or the path of a text. scored: a corpus or a task, of which ``amount`` tokens or questions
    are scored (None: all).
    """
    return _shares((calibration, _identity(calibration)), (scored, _identity(scored)), amount)


@lru_cache(maxsize=256)
def _shares(calibration: Known, scored: Known, amount: int | None) -> tuple[float, float]:
    own = _kept(calibration, None, lambda: [corpora.text_or_file(calibration[0])])
    whole, part = (_kept(scored, most, partial(_pieces, scored[0], most)) for most in (None, amount))
    return _share(own, whole), _share(part, own)


def _share(of: Hashes, within: Hashes) -> float:
    """Return which share of the hashes ``of`` a text are ``within`` another's; both are sorted."""
    if not (len(of) and len(within)):
        return 0.0
    places = np.searchsorted(within, of).clip(max=len(within) - 1)
    return float((within[places] == of).mean())


def _kept(text: Known, amount: int | None, pieces: Callable[[], Iterable[str]]) -> Hashes:
    """Return the hashes of a text, or of its beginning, computed once for each state of it."""
    name, identity = text

    def write(folder: Path) -> None:
        np.save(folder / "hashes.npy", sequences(pieces()))

    key = digest([FORMAT, WORDS, amount, identity])[:16]
    folder = cache.sealed(f"ngrams/{Path(name).stem}-{key}", write)
    hashes: Hashes = np.load(folder / "hashes.npy", mmap_mode="r", allow_pickle=False)
    return hashes


def _identity(name: str) -> str:
    """Hash (sha256) a text, labelled texts or the questions of a task, as they lie here now."""
    if name in classification.SETS:
        return classification.content_hash(name)
    if _is_task(name):
        return sha256(_questions(name))
    return hashlib.sha256(corpora.text_or_file(name).encode()).hexdigest()


def _pieces(scored: str, amount: int | None) -> Iterator[str]:
    """Yield what is scored: the beginning of a text, labelled texts, or questions with each of their choices."""
    if scored in classification.SETS:
        yield from classification.items(scored, amount)[0]
        return
    if not _is_task(scored):
        yield corpora.text_or_file(scored)[: None if amount is None else CHARACTERS_A_TOKEN * amount]
        return
    yield from question_file.asked(_questions(scored), amount)


def _is_task(name: str) -> bool:
    return name in tasks.pins() or name in classification.SETS or own_questions.is_own(name)


def _questions(task: str) -> Path:
    if own_questions.is_own(task):
        return own_questions.path(task)
    return wheels.member(*tasks.QUESTIONS, *tasks.pins()[task])
