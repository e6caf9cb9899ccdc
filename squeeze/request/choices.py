"""List and read the YAML files that can be chosen: those of conf/, of installed plugins, of a user's own folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from squeeze.core import paths
from squeeze.core.errors import SqueezeError, hint, shown
from squeeze.core.plugins import installed
from squeeze.request.plain_yaml import read_plain

GROUPS = ("model", "technique", "calibration", "runtime", "protocol")
SWEEP = "sweep"


@dataclass(frozen=True)
class Choices:
    """Find YAML files in folders laid out as GROUP/NAME.yaml; the first one holds config.yaml."""

    folders: tuple[Path, ...]

    @classmethod
    def within(cls, conf_dir: Path | None) -> Choices:
        """Return squeeze's choices, the plugins', and those of ``conf_dir``: alone, if it has a config.yaml.

        A plugin's config.yaml, and its conf/task, are not read.
        """
        plugged = (folder for plugin in installed().values() if (folder := plugin.folder / "conf").is_dir())
        if conf_dir is None:
            return cls((paths.conf(), *plugged))
        if not conf_dir.is_dir():
            raise SqueezeError(f"{conf_dir}: no such folder of configuration files")
        own = conf_dir.resolve()
        if "${" in str(own):  # Hydra would put something else in its place
            raise SqueezeError(f"{own}: a path with '${{' in it is not read; rename the folder")
        return cls((own,) if os.path.lexists(own / "config.yaml") else (paths.conf(), *plugged, own))

    def names(self, group: str) -> list[str]:
        """Return the names that can be chosen in a group, sorted; none for what is no group."""
        if group not in (*GROUPS, SWEEP):
            return []
        return sorted({path.stem for folder in self.folders for path in (folder / group).glob("*.yaml")})

    def read(self, group: str, name: str) -> dict[str, Any]:
        """Return the data of one choice, checked to be plain, interpolations unresolved.

        Raises SqueezeError when there is no such choice, or two, or when the file may not be used (``read_plain``).
        """
        names = self.names(group)
        if name not in names:
            raise SqueezeError(f"unknown {group} {shown(name)}; {hint(name, names)}")
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise SqueezeError(f"{group} {name!r}: rename the file; expected letters, digits, '_' and '-'")
        files = [path for folder in self.folders if os.path.lexists(path := folder / group / f"{name}.yaml")]
        if len(files) > 1:
            raise SqueezeError(f"{group} {name!r} is both {files[0]} and {files[1]}; rename yours")
        data = read_plain(files[0])
        if not isinstance(data, dict) or "defaults" in data:
            raise SqueezeError(f"{files[0]}: expected a mapping without a defaults list (only config.yaml has one)")
        return data

    @cached_property
    def scalars(self) -> dict[str, Any]:
        """Return the scalars of config.yaml, which every choice may read as ``${name}``."""
        return {str(name): value for name, value in self._config.items() if name != "defaults"}

    @cached_property
    def defaults(self) -> dict[str, str]:
        """Return the choice that config.yaml makes in each group.

        Raises SqueezeError unless its defaults list names each group once and nothing else.
        """
        path = self.folders[0] / "config.yaml"
        entries = self._config.get("defaults") if "hydra" not in self._config else None
        chosen = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        defaults = {str(group): str(name) for entry in chosen for group, name in entry.items()}
        if [*defaults] != [*GROUPS] or entries != ["_self_", *({group: name} for group, name in defaults.items())]:
            raise SqueezeError(f"{path}: expected 'defaults', a list of _self_ and one each of {', '.join(GROUPS)}")
        return defaults

    @cached_property
    def _config(self) -> dict[str, Any]:
        data = read_plain(self.folders[0] / "config.yaml")
        return data if isinstance(data, dict) else {}
