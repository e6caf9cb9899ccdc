"""Check the values of a configuration. Each error names the field, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from squeeze.core.errors import SqueezeError, hint, shown
from squeeze.request import axes, runtimes
from squeeze.request.axes import DEVICE, DTYPE, THREADS
from squeeze.request.cell import DRAFT
from squeeze.request.rules import (
    ABOVE_ZERO,
    BOOLEAN,
    EVEN,
    NAME,
    POSITIVE,
    SCALAR,
    TEXT,
    Rule,
    at_least,
    at_most,
    check_value,
    matching,
    one_of,
    or_null,
    several,
)
from squeeze.sources import classification, corpora, own_questions, sentiment, tasks, trained

MOST_STEPS = 64  # of a technique
ACCURACY, CLASSIFIER = "accuracy", "classifier"  # how its rows are ranked, and the kind of model
RANKED_BY = ("perplexity", "bits_per_byte", ACCURACY)  # a record keeps the losses or answers that comparing these needs


Schema = Mapping[str, "Rule | Schema"]


def check_axis(name: str, value: Any) -> None:
    """Check one scalar of config.yaml, or the field of a step that has its name; other names may have any scalar."""
    check_value(name, value, axes.rules().get(name.rpartition(".")[2], SCALAR))


def check_group(group: str, node: Any) -> None:
    """Check one resolved choice of a group: its fields are exactly those that are known, each with a value allowed."""
    required, optional = SCHEMAS[group]
    if group == "runtime" and isinstance(node, Mapping):
        _check_fields(group, {name: node[name] for name in node if name in required}, required, optional)
        runtimes.check_fields(node)
        return
    _check_fields(group, node, required, optional)
    if group == "protocol":
        _check_protocol(node)
    if group == "model":
        _check_pinned(node)
    if group == "technique":
        for name in ("steps", DRAFT):
            if len(node.get(name, ())) > MOST_STEPS:
                raise SqueezeError(f"technique.{name}: {len(node[name]):,} steps, expected at most {MOST_STEPS}")
    if group == "calibration":
        _check_not_scored(node["corpus"])


def known_texts() -> list[str]:
    """Return the corpora of conf/task/ that perplexity can be measured on."""
    return tasks.texts()


def known_tasks() -> list[str]:
    """Return the tasks of conf/task/ that are scored by the item."""
    return tasks.questions()


def _check_fields(where: str, node: Any, required: Schema, optional: Schema) -> None:
    if not isinstance(node, Mapping):
        raise SqueezeError(f"{where}: {shown(node)} is not allowed; expected the fields {', '.join(required)}")
    known = {**required, **optional}
    for name, value in node.items():
        if name not in known:
            raise SqueezeError(f"unknown field {f'{where}.{name}'!r}; {hint(name, known)}")
        rule = known[name]
        if isinstance(rule, Rule):
            check_value(f"{where}.{name}", value, rule)
        else:
            _check_fields(f"{where}.{name}", value, rule, {})
    for name in required:
        if name not in node:
            raise SqueezeError(f"{where}.{name} is missing; expected {_allowed(required[name])}")


def _allowed(rule: Rule | Schema) -> str:
    return rule.allowed if isinstance(rule, Rule) else f"the fields {', '.join(rule)}"


def _check_protocol(protocol: Mapping[str, Any]) -> None:
    for name in protocol.keys() & {"perplexity", "perplexity_ood"}:
        text = protocol[name]
        for field, bound in (("window", "tokens"), ("stride", "window")):
            if text[bound] is not None:
                check_value(f"protocol.{name}.{field}", text[field], at_most(text[bound], f"its {bound}"))
        if not text["corpus"].startswith(("file:", "sha256:")):
            _check_known(f"protocol.{name}.corpus", text["corpus"], known_texts())
    if (most := protocol.get("most_rounds")) is not None:
        fewest = protocol["rounds"]
        check_value("protocol.most_rounds", most, Rule(f"at least its rounds, {fewest}", lambda value: value >= fewest))
    for task in protocol["tasks"]:
        if task.startswith("file:") or own_questions.is_own(task):
            continue
        _check_known("protocol.tasks", task, [*known_tasks(), *classification.SETS])
    _check_known("protocol.ranked_by", protocol["ranked_by"], RANKED_BY)
    _check_one_kind(protocol)


def check_suits(model: Mapping[str, Any], protocol: Mapping[str, Any]) -> None:
    """Check that a protocol asks of a model what its kind can answer: sets of labelled texts of classifiers alone."""
    name, kind, asks_classes = protocol["name"], model["kind"], bool(_sets(protocol))
    if kind == CLASSIFIER and not asks_classes:
        raise SqueezeError(
            f"protocol.tasks: {shown(protocol['tasks'])} of protocol {name!r} ask nothing of {model['name']}, a"
            f" classifier; expected one of {', '.join(classification.SETS)}: choose protocol=classify"
        )
    if asks_classes and kind != CLASSIFIER:
        raise SqueezeError(
            f"protocol.tasks: {', '.join(_sets(protocol))} of protocol {name!r} is for models of kind {CLASSIFIER}, and"
            f" {model['name']} is of kind {kind}: choose another protocol, such as protocol=smoke"
        )


def _sets(protocol: Mapping[str, Any]) -> list[str]:
    """Return those of a protocol's tasks that are sets of labelled texts."""
    return [task for task in protocol["tasks"] if task in classification.SETS]


def _check_one_kind(protocol: Mapping[str, Any]) -> None:
    """Check that classifiers' tasks stand alone, and that they and no others are ranked by accuracy."""
    tasks_asked, sets = protocol["tasks"], _sets(protocol)
    if sets and len(sets) < len(tasks_asked):
        other = next(task for task in tasks_asked if task not in sets)
        raise SqueezeError(
            f"protocol.tasks: {sets[0]} is for classifiers and {other} for language models; expected one kind of tasks"
            " in a protocol"
        )
    if bool(sets) is not (protocol["ranked_by"] == ACCURACY):
        raise SqueezeError(
            f"protocol.ranked_by: {protocol['ranked_by']!r} is not allowed for the tasks {shown(tasks_asked)}; expected"
            f" {ACCURACY} for {', '.join(classification.SETS)}, and for nothing else"
        )


def _check_not_scored(corpus: str) -> None:
    if corpus in known_texts():
        others = ", ".join(sorted(corpora.CORPORA.keys() - set(known_texts())))
        raise SqueezeError(
            f"calibration.corpus: {corpus!r} is refused, perplexity is measured on it; expected another text, such as "
            f"{others}"
        )


def _check_known(where: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise SqueezeError(f"{where}: {shown(value)} is not allowed; {hint(value, known)}")


def _check_pinned(model: Mapping[str, Any]) -> None:
    needed = PINNED.get(trained.base(model)["source"].partition(":")[0], ())
    for name in needed:
        if name not in model:
            raise SqueezeError(
                f"model.{name} is missing: {model['source']} must be pinned to {_allowed(_OPTIONAL[name])}"
            )
    own = trained.is_trained(model)
    if own != ("fine_tuning" in model):
        raise SqueezeError(
            f"model.fine_tuning is {'missing' if own else 'given'}, the source is {model['source']}; a source"
            f" {trained.PREFIX}SOURCE has it, and no other"
        )
    if own and model["kind"] != "classifier":
        raise SqueezeError(f"model.kind: {model['kind']!r} is not allowed; only a classifier is fine-tuned here")


# What a source cannot do without.
PINNED = {"hf": ("revision",), "pypi": ("wheel_sha256",), "packaged": ("sha256",), "random": ("seed",)}
MODEL_PINS: Mapping[str, Rule] = {
    "revision": matching("a commit of 40 hex digits", r"[0-9a-f]{40}"),
    "wheel_sha256": matching("a sha256 of 64 hex digits", r"[0-9a-f]{64}"),
    "sha256": matching("a sha256 of 64 hex digits", r"[0-9a-f]{64}"),
}

_MODEL: Schema = {
    "name": NAME,
    "source": matching(
        "pypi:NAME==VERSION, hf:ORG/NAME, file:PATH, packaged:NAME, random:ARCHITECTURE, or trained:SOURCE",
        r"(trained:)?(pypi|hf|file|packaged|random):.+",
    ),
    "kind": one_of("causal_lm", "encoder", "classifier", "vision_language"),
    "dtype": DTYPE,
}

# How squeeze trains a classifier itself. batch: sentences. tokens: of a sentence, at most.
_FINE_TUNING: Schema = {
    "corpus": one_of(sentiment.CORPUS),
    "epochs": POSITIVE,
    "batch": POSITIVE,
    "tokens": POSITIVE,
    "learning_rate": ABOVE_ZERO,
    "seed": at_least(0),
}

_OPTIONAL: Schema = {"member": TEXT, "seed": at_least(0), "fine_tuning": _FINE_TUNING, **MODEL_PINS}

_STEPS = Rule("a list of steps", lambda value: isinstance(value, list))
_TECHNIQUE: Schema = {"name": NAME, "family": NAME, "steps": _STEPS}

CORPUS = matching("a corpus, file:PATH, or sha256:HEX", r"[A-Za-z0-9][\w.-]*|file:.+|sha256:[0-9a-f]{64}")
_CALIBRATION: Schema = {
    "name": NAME,
    "corpus": CORPUS,
    "samples": POSITIVE,
    "window": POSITIVE,
    "seed": at_least(0),
}

_RUNTIME_TARGET = matching(
    "FILE.CLASS of squeeze/runtimes, such as eager.Eager, or PLUGIN:FILE.CLASS", r"([\w-]+:)?[a-z]\w*\.[A-Z]\w*"
)
_RUNTIME: Schema = {"name": NAME, "device": DEVICE, "threads": THREADS, "_target_": _RUNTIME_TARGET}

_LIMIT: Schema = {
    "seconds": ABOVE_ZERO,
    "bytes": POSITIVE,
}

_TEXT_WINDOWS: Schema = {"corpus": CORPUS, "tokens": or_null(POSITIVE), "window": POSITIVE, "stride": POSITIVE}

# Of first tokens by the length of the prompt. repeats: of each length, in every process; pairs have it on average.
_TTFT_CURVE: Schema = {
    "prompt_tokens": several("a list of different positive integers", POSITIVE, least=1),
    "repeats": EVEN,
}

_GENERATIONS: Schema = {"prompts": POSITIVE, "tokens": POSITIVE}

_PROTOCOL: Schema = {
    "name": NAME,
    "rounds": EVEN,  # over pairs, the second in the opposite order of the first, drift favours nobody
    "block": POSITIVE,
    "seed": at_least(0),
    "latency": {
        "prompt_tokens": POSITIVE,
        "decode_tokens": POSITIVE,
        "prefill_repeats": POSITIVE,
        "batch_sizes": several("a list of different positive integers", POSITIVE, least=1),
        "warmup_rounds": at_least(0),
        "turn_tokens": POSITIVE,
    },
    "perplexity": _TEXT_WINDOWS,
    "tasks": several("a list of different tasks", matching("a task, or file:PATH", r"[A-Za-z0-9][\w.-]*|file:.+")),
    "items": or_null(POSITIVE),
    "token_budget": POSITIVE,
    "ranked_by": NAME,
    "limits": {"build": _LIMIT, "quality": _LIMIT, "latency": _LIMIT},
}

# group -> (fields it must have, fields it may have)
SCHEMAS: Mapping[str, tuple[Schema, Schema]] = {
    "model": (_MODEL, _OPTIONAL),
    "technique": (_TECHNIQUE, {"calibrated": BOOLEAN, DRAFT: _STEPS}),
    "calibration": (_CALIBRATION, {}),
    "runtime": (_RUNTIME, {}),  # and what its class declares
    "protocol": (
        _PROTOCOL,
        {
            "perplexity_ood": _TEXT_WINDOWS,
            "generations": _GENERATIONS,
            "most_rounds": EVEN,
            "ttft_curve": _TTFT_CURVE,
        },
    ),
}
