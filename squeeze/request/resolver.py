"""Resolve one point of a grid, its choices and scalars, to its cell; every value is made concrete."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from squeeze.core.environment import default_device, usable_threads
from squeeze.core.errors import SqueezeError, hint, shown
from squeeze.request.cell import CALIBRATED_ONLY, DRAFT, Cell
from squeeze.request.choices import GROUPS, SWEEP, Choices
from squeeze.request.overrides import Setting, edited, is_addition
from squeeze.request.plain_yaml import INTERPOLATION
from squeeze.request.schema import check_axis, check_group, check_suits
from squeeze.request.steps import Target, check_family, check_step
from squeeze.sources import checkpoint, own_questions, own_text

REPLICATE = "replicate"
MISSING = "???"  # OmegaConf's word for a value that must still be given
T = TypeVar("T")
Point = Mapping[str, Any]  # key of a setting -> the one value that it has here


@dataclass(frozen=True)
class Resolver:
    """Make cells of points; see ``squeeze.request`` for why it is not Hydra that makes them.

    scalars: those of config.yaml. defaults: the choice that it makes in each group. choices: group -> name -> the data
    of that YAML file. Interpolations are unresolved in all of them.
    """

    scalars: Mapping[str, Any]
    defaults: Mapping[str, str]
    choices: Mapping[str, Mapping[str, Any]]
    _made: dict[str, Any] = field(default_factory=dict)
    _read: set[str] = field(default_factory=lambda: {REPLICATE})  # scalars; a cell itself has its replicate

    @classmethod
    def compose(cls, choices: Choices, wanted: Mapping[str, Sequence[str]]) -> Resolver:
        """Compose config.yaml with the ``wanted`` names of each group: one composition serves all points.

        Raises SqueezeError for an unknown name and for a file that cannot be used.
        """
        names = {group: {*wanted.get(group, ()), choices.defaults[group]} for group in GROUPS}
        config = _composed(choices, names)
        scalars = {name: value for name, value in config.items() if name not in (*GROUPS, "choices")}
        return cls(scalars, choices.defaults, config["choices"])

    def unread(self, keys: Iterable[str]) -> list[str]:
        """Return those of the settings' keys that are scalars which no choice of any cell made so far reads."""
        return sorted(key for key in keys if key not in self._read and key.partition(".")[0] not in GROUPS)

    def check_keys(self, settings: Mapping[str, Setting]) -> None:
        """Raise SqueezeError for a setting of something that is neither a scalar of config.yaml nor in a group."""
        for setting in settings.values():
            name, *rest = setting.path
            if name not in GROUPS and (rest or not (name in self.scalars or is_addition(setting))):
                raise SqueezeError(f"unknown option {name!r}; {hint(name, [*self.scalars, *GROUPS, SWEEP])}")

    def cell(self, settings: Mapping[str, Setting], point: Point) -> Cell:
        """Return the cell of one point of the grid that the settings span.

        Raises SqueezeError for a value that is not allowed.
        """
        scalars = self.scalars
        for key, value in point.items():
            if settings[key].path[0] not in GROUPS:
                scalars = edited(scalars, settings[key], value)
        for name, value in scalars.items():
            check_axis(name, value)
        groups = {group: self._group(group, settings, point, scalars) for group in GROUPS}
        check_suits(groups["model"], groups["protocol"])
        technique = {**groups["technique"]}
        calibrated, protocol = technique.pop("calibrated", False), groups["protocol"]
        uncalibrated = {name: value for name, value in protocol.items() if name not in CALIBRATED_ONLY}
        return Cell(
            model=groups["model"],
            technique=technique,
            calibration=groups["calibration"] if calibrated else {},
            runtime=groups["runtime"],
            protocol=protocol if calibrated else uncalibrated,
            replicate=scalars.get(REPLICATE, 0),
        )

    def _group(
        self, group: str, settings: Mapping[str, Setting], point: Point, scalars: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Edit, resolve and check a group's choice: each different one once, however many cells share it."""
        choice = point.get(group, self.defaults[group])
        edits = [(settings[key], value) for key, value in point.items() if key.startswith(f"{group}.")]
        data = {"name": choice, **self.choices[group][choice]}
        if group == "calibration" and isinstance(corpus := point.get("calibration.corpus"), str):
            data["name"] = own_text.title(corpus)  # the choice's name is that of its own text
        template = self._once((group, choice, edits), lambda: _template(group, data, edits))
        self._read.update(template.reads)
        read = [(name, scalars.get(name)) for name in template.reads]
        return self._once(
            (group, choice, edits, read), lambda: _concrete(group, _resolved(template.node, scalars, group))
        )

    def _once(self, identity: object, make: Callable[[], T]) -> T:
        """Return what was made for this identity before, or make it.

        It is told by its repr: values may be lists, and 1, 1.0 and true, which are equal, are not the same.
        """
        key = repr(identity)
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made


class Template(NamedTuple):
    """Hold a choice with its edits, interpolations unresolved, and the names of the scalars that it reads."""

    node: Any
    reads: Sequence[str]


def _template(group: str, choice: Mapping[str, Any], edits: Sequence[tuple[Setting, Any]]) -> Template:
    tree: Any = {group: choice}
    for setting, value in edits:
        tree = edited(tree, setting, value)
    return Template(tree[group], sorted(set(_reads(tree[group]))))


def _resolved(node: Any, axes: Mapping[str, Any], where: str) -> Any:
    """Return a copy of ``node`` with each ``${name}`` replaced by that scalar: plain JSON data.

    Raises SqueezeError, naming the place, for what is not such data and for any other interpolation.
    """
    if isinstance(node, dict):
        return {str(name): _resolved(item, axes, f"{where}.{name}") for name, item in node.items()}
    if isinstance(node, list):
        return [_resolved(item, axes, f"{where}.{index}") for index, item in enumerate(node)]
    if isinstance(node, str) and "${" in node:
        match = INTERPOLATION.fullmatch(node)
        if match is None or match[1] not in axes:
            raise SqueezeError(f"{where}: {shown(node)} is refused; only these may be read: {', '.join(axes)}")
        return _scalar(axes[match[1]], where)
    return _scalar(node, where)


def _scalar(value: Any, where: str) -> Any:
    """Return a JSON scalar, unchanged. Raises SqueezeError for anything else, and for what is still to be given."""
    if isinstance(value, str):
        allowed = "${" not in value and value != MISSING
    else:
        allowed = value is None or (isinstance(value, int | float) and abs(value) < 2**63)
    if not allowed:
        raise SqueezeError(
            f"{where}: {shown(value)} is not allowed; expected a number below 2**63, a text, true, false or null"
        )
    return value


def _reads(node: Any) -> Iterator[str]:
    """Yield the names of the scalars that a tree reads."""
    if isinstance(node, dict | list):
        for item in node.values() if isinstance(node, dict) else node:
            yield from _reads(item)
    elif isinstance(node, str) and (match := INTERPOLATION.fullmatch(node)):
        yield match[1]


def _concrete(group: str, node: Any) -> dict[str, Any]:
    """Check a resolved choice, and make it concrete.

    In a runtime, ``auto`` becomes a device and null the threads that may be used. Texts and questions of the user's own
    are taken in, a model of theirs is looked at.
    """
    check_group(group, node)
    if group == "technique":
        steps, targets = _steps(node["steps"], "technique.steps")
        check_family(node["family"], targets)
        draft = {DRAFT: _steps(node[DRAFT], f"technique.{DRAFT}")[0]} if DRAFT in node else {}
        return {**node, "steps": steps, **draft}
    if group == "runtime":
        device = default_device() if node["device"] == "auto" else node["device"]
        return {**node, "device": device, "threads": node["threads"] or usable_threads()}
    if group == "model":
        checkpoint.check_given(node)
    if group == "calibration":
        return {**node, "corpus": own_text.taken_in(node["corpus"])}
    if group == "protocol":
        texts = {name: node[name] for name in ("perplexity", "perplexity_ood") if name in node}
        own = {name: {**text, "corpus": own_text.taken_in(text["corpus"])} for name, text in texts.items()}
        return {**node, **own, "tasks": [own_questions.taken_in(task) for task in node["tasks"]]}
    return dict(node)


def _steps(steps: Sequence[Mapping[str, Any]], where: str) -> tuple[list[dict[str, Any]], list[Target]]:
    """Return steps as cells have them, and what they name. Raises SqueezeError for one that may not be made."""
    targets = [check_step(step, f"{where}.{index}") for index, step in enumerate(steps)]
    pairs = enumerate(zip(steps, targets, strict=True))
    return [_step(step, target, f"{where}.{index}") for index, (step, target) in pairs], targets


def _step(step: Mapping[str, Any], target: Target, where: str) -> dict[str, Any]:
    """Return the step in the one spelling that cells have for it.

    Its target is the short name, and what the class declares a float is one: ``sparsity=0`` and ``sparsity=0.0`` are
    the same cell. Raises SqueezeError for a value that is not allowed.
    """
    for name, value in step.items():
        check_axis(f"{where}.{name}", value)
    floats = {name: float(step[name]) for name in target.floats & step.keys() if type(step[name]) is int}
    return {**step, **floats, "_target_": target.found.name}


def _composed(choices: Choices, wanted: Mapping[str, set[str]]) -> dict[str, Any]:
    """Return config.yaml, interpolations unresolved, with every wanted choice under ``choices.GROUP.NAME``."""
    pairs = [(group, name) for group, names in wanted.items() for name in sorted(names)]
    for group, name in pairs:
        choices.read(group, name)
    overrides = [f"+{group}@choices.{group}.{name}={name}" for group, name in pairs]
    main, *further = choices.folders
    overrides += [f"hydra.searchpath=['{_quoted(folder)}']" for folder in further]
    try:
        with initialize_config_dir(str(main), version_base="1.3"):
            config = OmegaConf.to_container(compose("config", overrides), resolve=False)
    except (HydraException, OmegaConfBaseException, RecursionError) as error:
        raise SqueezeError(f"cannot compose the configuration: {' '.join(str(error).split())}") from error
    return {str(name): value for name, value in config.items()} if isinstance(config, dict) else {}


def _quoted(folder: Path) -> str:
    """Return a folder as it stands between single quotes in Hydra's grammar."""
    return f"file://{folder}".replace("'", "\\'")
