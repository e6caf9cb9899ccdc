"""What there is to choose from: the YAML files of conf/, and those of a user's own folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from squeeze.core import paths
from squeeze.core.errors import SqueezeError, hint
from squeeze.request.plain_yaml import vet

GROUPS = ("model", "technique", "calibration", "runtime", "protocol")
SWEEP = "sweep"


@dataclass(frozen=True)
class Choices:
    """Folders laid out as GROUP/NAME.yaml; the first one holds config.yaml."""

    folders: tuple[Path, ...]

    @classmethod
    def within(cls, conf_dir: Path | None) -> Choices:
        """The packaged choices, and those of ``conf_dir`` beside them (instead of them, if it has a config.yaml)."""
        if conf_dir is None:
            return cls((paths.conf(),))
        if not conf_dir.is_dir():
            raise SqueezeError(f"{conf_dir}: no such folder of configuration files")
        own = conf_dir.resolve()
        return cls((own,) if (own / "config.yaml").is_file() else (paths.conf(), own))

    def names(self, group: str) -> list[str]:
        """The names that can be chosen in a group, sorted; none for what is no group."""
        if group not in (*GROUPS, SWEEP):
            return []
        return sorted({path.stem for folder in self.folders for path in (folder / group).glob("*.yaml")})

    def read(self, group: str, name: str) -> dict[str, Any]:
        """The vetted data of one choice, interpolations unresolved.

        Raises SqueezeError when there is no such choice, or two, or when the file may not be used.
        """
        names = self.names(group)
        if name not in names:
            raise SqueezeError(f"unknown {group} {name!r}; {hint(name, names)}")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise SqueezeError(f"{group} {name!r}: rename the file; expected letters, digits, '_' and '-'")
        paths = [path for folder in self.folders if (path := folder / group / f"{name}.yaml").is_file()]
        if len(paths) != 1:
            raise SqueezeError(f"{group} {name!r} is both {paths[0]} and {paths[1]}; rename yours")
        data = vet(paths[0])
        if not isinstance(data, dict) or "defaults" in data:
            raise SqueezeError(f"{paths[0]}: expected a mapping without a defaults list (only config.yaml has one)")
        return data

    @cached_property
    def defaults(self) -> dict[str, str]:
        """The choice that config.yaml makes in each group.

        Raises SqueezeError unless its defaults list names each group once and nothing else.
        """
        path = self.folders[0] / "config.yaml"
        data = vet(path)
        entries = data.get("defaults") if isinstance(data, dict) and "hydra" not in data else None
        chosen = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        defaults = {str(group): str(name) for entry in chosen for group, name in entry.items()}
        if [*defaults] != [*GROUPS] or entries != ["_self_", *({group: name} for group, name in defaults.items())]:
            raise SqueezeError(f"{path}: expected 'defaults', a list of _self_ and one each of {', '.join(GROUPS)}")
        return defaults
