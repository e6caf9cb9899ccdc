"""Promise 16, evaluation text: a build that reaches for it gets nothing, and its row is none."""

from __future__ import annotations

import gzip
import json
import os
import socket
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from squeeze.core import landlock
from squeeze.core.cache import VARIABLE, sealed
from squeeze.records.record import Status
from squeeze.request.cell import Cell
from squeeze.runner.jobs import outcome
from squeeze.runner.jobs.executor import worker_command
from squeeze.runner.jobs.job import Job
from squeeze.runner.jobs.launcher import WORKER, Launcher, Task
from squeeze.runner.jobs.limits import Limits
from squeeze.sources import corpora
from tests.faults.cheats.cheat import Cheat, cell, plant
from tests.faults.cheats.evaluation_text import STOLEN, cheats
from tests.faults.sweeps import RUNTIME

SECRET = "What is scored.\n"
LIMITS = Limits(seconds=120, bytes=4 * 2**30)
CALIBRATION = {"name": "c4", "corpus": "c4", "samples": 2, "window": 16, "seed": 0}
needs_landlock = pytest.mark.skipif(
    landlock._call(landlock.CREATE_RULESET, None, 0, landlock.VERSION) < landlock.CONNECTS,
    reason="the kernel has no Landlock of version 4",
)


@dataclass
class Workshop:
    """Builds cells in processes of the worker, in a cache with an evaluation text, a wheel and questions."""

    folder: Path
    launcher: Launcher
    places: Mapping[str, object]
    count: int = 0

    def build(self, cell: Cell) -> dict[str, Any]:
        """What became of it: the artifact's build.json, or why there is none."""
        self.count += 1
        folder = self.folder / "builds" / str(self.count)
        folder.mkdir(parents=True)
        job = Job(cell, folder / "artifact", "build", folder)
        (folder / "job.json").write_text(json.dumps(job.to_json()))
        [end] = self.launcher.run([Task(folder / "job.json", folder / "log", LIMITS)])
        failure = outcome.judge(end, folder, LIMITS, "build")
        if failure is not None:
            return {"status": failure.status, "reason": failure.reason}
        return json.loads((job.artifact / "build.json").read_bytes())  # type: ignore[no-any-return]


def _stock(cache: Path, site: Path) -> dict[str, object]:
    """Fill a cache, and the folder of an installed package, with what rows are scored on; where each lies."""

    def write(name: str, content: bytes) -> Callable[[Path], None]:
        return lambda folder: (folder / name).write_bytes(content) and None

    scored, honest = corpora.folder("wikipedia_eval"), corpora.folder("c4")
    assert scored.is_relative_to(cache)
    sealed(f"corpora/{honest.name}", write("text.txt", b"An honest text, of which there is enough. " * 40))
    zipped = cache / "package.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("text", SECRET)
    installed = site / str(corpora.CORPORA["wikipedia_eval"].source["member"])
    installed.parent.mkdir(parents=True)
    installed.write_text(SECRET)
    return {
        "TEXT": sealed(f"corpora/{scored.name}", write("text.txt", SECRET.encode())) / "text.txt",
        "WHEEL": sealed("wheels/gensim==4.4.0-91a7fa5e814e7b1b", write("gensim.whl", zipped.read_bytes()))
        / "gensim.whl",
        "QUESTIONS": sealed("members/requests.jsonl.gz-0", write("r.gz", gzip.compress(SECRET.encode()))) / "r.gz",
        "QUALITY": sealed("quality/0", write("samples.npz", SECRET.encode())) / "samples.npz",
        "INSTALLED": installed,
    }


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("workshop")
    cache, site = folder / "cache", folder / "site"
    cache.mkdir()
    with pytest.MonkeyPatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as server:
        patch.setenv(VARIABLE, str(cache))
        places = {**_stock(cache, site), "PORT": server.getsockname()[1]}
        threading.Thread(target=_serve, args=(server,), daemon=True).start()
        plant(cheats(places), site)
        paths = os.pathsep.join(map(str, (Path(__file__).parents[3], site)))
        command = worker_command(WORKER, RUNTIME)
        with Launcher(folder / "worker.log", {VARIABLE: str(cache), "PYTHONPATH": paths}, command) as launcher:
            yield Workshop(folder, launcher, places)


def _serve(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.sendall(SECRET.encode())


def names() -> list[str]:
    return [each.name for each in cheats(Counter(["TEXT", "WHEEL", "QUESTIONS", "QUALITY", "INSTALLED", "PORT"]))]


def found(workshop: Workshop, name: str) -> Cheat:
    return next(each for each in cheats(workshop.places) if each.name == name)


@needs_landlock
@pytest.mark.promise(16)
@pytest.mark.parametrize("name", names())
def test_a_build_that_reaches_for_what_is_scored_gets_nothing(
    workshop: Workshop, name: str, figure: Callable[[str], None]
) -> None:
    figure(f"{len(names())} builds that reach for what is scored: none gets it, those that Python sees are invalid")
    cheat = found(workshop, name)
    result = workshop.build(cheat.cell)
    if cheat.caught == "invalid":
        assert result.get("status") is Status.INVALID, result
        assert cheat.words in result["reason"]
    else:
        assert result.get("status", Status.CRASHED) is Status.CRASHED
        assert not result.get("claims", {}).get(STOLEN), result


HONEST = {
    "rtn": {"_target_": "rtn.RoundToNearest", "bits": 4, "group_size": 32, "symmetric": True},
    "finetune": {"_target_": "finetune.Finetune", "training_steps": 1, "windows": 1, "learning_rate": 0.001},
    "wanda": {"_target_": "wanda.Wanda", "sparsity": 0.5, "run": None, "sequential": False},
}


@pytest.mark.promise(16)
@pytest.mark.parametrize("name", HONEST)
def test_honest_techniques_have_all_that_they_need(workshop: Workshop, name: str) -> None:
    calibration = {} if name == "rtn" else CALIBRATION
    result = workshop.build(cell(HONEST[name], calibration=calibration))
    assert "claims" in result, result
