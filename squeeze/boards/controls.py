"""Set trained rows beside their control: the uncompressed model, trained on the same tokens for as many steps.

Without it nobody can tell what a row owes to its method from what it owes to the text that it has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from squeeze.records.items import unpacked
from squeeze.records.record import Status
from squeeze.records.statistics import accuracy_change, perplexity_ratio
from squeeze.request.cell import CONTROL

if TYPE_CHECKING:
    import pandas as pd

NONE = "none"
OVER, OVER_ANSWERS = "perplexity_over_control", "acc_over_control"
BOUNDS = ("low", "high", "p_value")
SCORES = ("perplexity", "perplexity_ood")
OF_ANSWERS = ("control_acc_pooled", OVER_ANSWERS, *(f"{OVER_ANSWERS}_{bound}" for bound in BOUNDS))


def joined(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame itself or, where rows are trained, one with the figures of their control beside theirs.

    frame: rows in order of time; read are ``training`` (``Cell.training``), family, status, fingerprint, attempt, the
    perplexities and ``block_nll``, of classifiers acc_pooled and ``item_correct``. The control of a row is the newest
    ok one with its training and fingerprint.

    Columns: control, its attempt or "none"; control_perplexity, control_perplexity_ood; perplexity_over_control, the
    ratio, with its 95 % interval and p-value, paired by block of tokens. Where classifiers are trained OF_ANSWERS, too:
    acc_over_control is the difference of accuracies, paired by item. Missing in rows that are not trained.
    """
    is_control = frame["family"] == CONTROL
    trained = frame["training"].notna() & ~is_control
    if not trained.any():
        return frame
    ok = frame[is_control & (frame["status"] == Status.OK)]
    controls: dict[Any, Any] = {(row["training"], row["fingerprint"]): row for _, row in ok.iterrows()}
    read = ("training", "fingerprint", "block_nll", "item_correct")
    rows = zip(trained, *(frame[name] for name in read), strict=True)
    found = [
        _beside(nll, answers, controls.get((training, place))) if is_one else {}
        for is_one, training, place, nll, answers in rows
    ]
    names = [*(f"control_{name}" for name in SCORES), OVER, *(f"{OVER}_{bound}" for bound in BOUNDS)]
    names += [name for name in OF_ANSWERS if any(name in row for row in found)]
    columns: dict[str, Any] = {name: [float(row.get(name, "nan")) for row in found] for name in names}
    columns["control"] = [row.get("control") for row in found]
    return frame.assign(**columns)


def _beside(block_nll: Any, answers: str, control: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a trained row's control adds to it."""
    if control is None:
        return {"control": NONE}
    scores = {f"control_{name}": control[name] for name in SCORES if name in control}
    found = {"control": control["attempt"], **scores}
    if len(block_nll) and len(block_nll) == len(control["block_nll"]):
        ratio = perplexity_ratio(block_nll, control["block_nll"])
        known = {f"{OVER}_{bound}": getattr(ratio, bound) for bound in BOUNDS if ratio.p_value is not None}
        found |= {OVER: ratio.value, **known}
    if answers and answers.partition(":")[0] == control["item_correct"].partition(":")[0]:
        change = accuracy_change(unpacked(answers), unpacked(control["item_correct"]))
        figures = (control.get("acc_pooled", float("nan")), change.value, *(getattr(change, bound) for bound in BOUNDS))
        found |= dict(zip(OF_ANSWERS, figures, strict=True))
    return found
