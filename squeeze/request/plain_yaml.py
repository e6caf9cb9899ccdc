"""Read a YAML file that may come from anyone: plain data only, and nothing that means other than it looks."""

import io
import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from squeeze.core.errors import SqueezeError, shown
from squeeze.core.given import read_given

# YAML 1.1 reads 0123 as 83, off as false and 1:30 as 90.
_MISREAD = re.compile(r"[-+]?0[0-9_]+|(?i:yes|no|on|off)|[-+]?[0-9]+(:[0-5]?[0-9])+")

# What a hostile file may not exceed, so that it exhausts neither the parsers nor who waits for them.
_LARGEST = 32 * 1024  # bytes, some ten times the largest choice of conf/; the parsers together take a second for it
_DEEPEST = 20  # lists and mappings within each other
_HUGE = re.compile(r"[-+]?([0-9][0-9_]{19,}|0[xob][0-9A-Fa-f_]{17,})")  # integers, 2**63 and beyond

# The only interpolation there is: one scalar of config.yaml. No resolver ever runs, so none can read a secret.
INTERPOLATION = re.compile(r"\$\{([A-Za-z]\w*)\}")


def read_plain(path: Path) -> Any:
    """Return the data of a YAML file: plain dicts, lists and scalars, interpolations left as they are.

    Raises SqueezeError, naming file and line, for what is no regular file, for a large or broken one, for duplicate
    keys, tags, anchors, deep nesting, control characters, huge integers, interpolations other than ``${name}``, and for
    scalars that YAML 1.1 takes for another value than a reader would.
    """
    content = read_given(path, _LARGEST)
    try:
        text = content.decode()
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            _check_event(event, depth, f"{path}:{event.start_mark.line + 1 if event.start_mark else 1}")
        return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    except OSError as error:
        raise SqueezeError(f"{path}: holds no YAML mapping") from error  # so OmegaConf says it
    except UnicodeDecodeError as error:
        raise SqueezeError(f"{path}: no UTF-8 text (byte {error.start:,}); save it in UTF-8") from error
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
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
    if not "".join(event.value.split()).isprintable():
        raise SqueezeError(f"{place}: {shown(event.value)} holds control characters; remove them")
    if event.style is None and _HUGE.fullmatch(event.value):
        raise SqueezeError(f"{place}: a number of {len(event.value):,} digits; expected one below 2**63")
    if event.style is None and _MISREAD.fullmatch(event.value):
        raise SqueezeError(
            f"{place}: {event.value!r} is ambiguous in YAML; quote it, or write true, false or a decimal"
        )
    if "${" in event.value and not INTERPOLATION.fullmatch(event.value):
        raise SqueezeError(
            f"{place}: {shown(event.value)} is refused; only ${{name}} of a scalar of config.yaml may be read"
        )
