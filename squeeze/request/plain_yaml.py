"""Read a YAML file that may come from anyone: plain data only, and nothing that means other than it looks."""

import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from squeeze.core.errors import SqueezeError

# YAML 1.1 reads 0123 as 83, off as false and 1:30 as 90.
_MISREAD = re.compile(r"[-+]?0[0-9_]+|(?i:yes|no|on|off)|[-+]?[0-9]+(:[0-5]?[0-9])+")

_DEEPEST = 20  # of lists and mappings within each other: a hostile file must not exhaust the parser

# The only interpolation there is: one scalar of config.yaml. No resolver ever runs, so none can read a secret.
INTERPOLATION = re.compile(r"\$\{([A-Za-z]\w*)\}")


def read_plain(path: Path) -> Any:
    """Return the data of a YAML file: plain dicts, lists and scalars, interpolations left as they are.

    Raises SqueezeError, naming file and line, for a broken file, for duplicate keys, tags, anchors, deep nesting,
    interpolations other than ``${name}``, and for scalars that YAML 1.1 takes for another value than a reader would.
    """
    try:
        depth = 0
        for event in yaml.parse(path.read_text(encoding="utf-8"), yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            _check_event(event, depth, f"{path}:{event.start_mark.line + 1 if event.start_mark else 1}")
        return OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except OSError as error:
        raise SqueezeError(f"{path}: {error.strerror or 'holds no YAML mapping'}") from error
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise SqueezeError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error


def _check_event(event: yaml.Event, depth: int, place: str) -> None:
    if depth > _DEEPEST:
        raise SqueezeError(f"{place}: nested more than {_DEEPEST} deep")
    if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
        raise SqueezeError(f"{place}: anchors and aliases are not read; write the value out")
    if tag := getattr(event, "tag", None):
        raise SqueezeError(f"{place}: the tag {tag!r} is refused; only plain values are read")
    if not isinstance(event, yaml.ScalarEvent):
        return
    if event.style is None and _MISREAD.fullmatch(event.value):
        raise SqueezeError(
            f"{place}: {event.value!r} is ambiguous in YAML; quote it, or write true, false or a decimal"
        )
    if "${" in event.value and not INTERPOLATION.fullmatch(event.value):
        raise SqueezeError(
            f"{place}: {event.value!r} is refused; only ${{name}} of a scalar of config.yaml may be read"
        )
