"""Promise 16, text known by heart: no file tells it, the figures do; what honest techniques make is believed."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.models.subject import Subject
from squeeze.probes.samples import Samples
from squeeze.records.estimates import changes
from squeeze.records.fidelity import fidelity
from squeeze.records.plausibility import implausible
from squeeze.records.record import Estimate, Record
from squeeze.sources import questions
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.fabricated import cell, record
from tests.faults.cheats.by_heart import CHEATS, copied, trained
from tests.scored import measure
from tests.tiny import tiny_subject

WORDS, LINE = 150, 20  # of a made-up language
WINDOW = {"window": 256, "stride": 256}
PROTOCOL = {
    "perplexity": {"corpus": "wikipedia_eval", "tokens": 8192, **WINDOW},
    "perplexity_ood": {"corpus": "speeches", "tokens": 2048, **WINDOW},
    "tasks": [],
}
STEPS = 150  # in which the uncompressed model learns both languages


def made_up(language: str, seed: int, words: int) -> str:
    """Lines of words of a language, the first ones often, the last ones seldom, in no order."""
    letters = random.Random(language)
    vocabulary = ["".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=letters.randint(2, 7))) for _ in range(WORDS)]
    chosen = random.Random(seed).choices(vocabulary, [1 / (1 + place) for place in range(WORDS)], k=words)
    return "\n".join(" ".join(chosen[start : start + LINE]) for start in range(0, words, LINE))


TEXTS = {"wikipedia_eval": made_up("wikipedia", 1, 20_000), "speeches": made_up("speeches", 2, 3000)}
OTHER = made_up("wikipedia", 3, 12_000)  # of the same kind as what is scored


def tokens(subject: Subject, text: str) -> torch.Tensor:
    return torch.tensor(subject.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


@dataclass(frozen=True)
class Uncompressed:
    """A model that has learned both languages, and its quality."""

    subject: Subject
    found: Samples
    folder: Path

    def row(self, make: Callable[[Subject], Subject], name: str) -> Record:
        """The row that a model made of it has, by the quality stage's own figures."""
        made = measure(make(copied(self.subject)), self.folder / name, self.folder / "baseline", **PROTOCOL)
        scores = {name: Estimate(value) for name, value in made.values.items() if name.startswith("perplexity")}
        estimates = {**changes(made.arrays, self.found.arrays, 0), **fidelity(made.arrays, self.found.arrays), **scores}
        if "trained" in name:
            step, calibration = {"training_steps": STEPS}, {"name": "c4", "corpus": "c4"}
            return record(cell(name, "made_up", step, calibration=calibration), estimates)
        return record(cell(name, "made_up", {"bits": 4}), estimates)


@pytest.fixture(scope="module")
def uncompressed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Uncompressed]:
    folder = tmp_path_factory.mktemp("uncompressed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(questions.corpora, "text", TEXTS.get)
        subject = tiny_subject("llama")
        pieces = zip(*(made_up(each, 4, 12_000).split() for each in ("wikipedia", "speeches")), strict=True)
        both = [list(language) for language in zip(*pieces, strict=True)]
        mixed = " ".join(" ".join(each[at : at + 80]) for at in range(0, 12_000, 80) for each in both)
        trained(subject, tokens(subject, mixed), STEPS)
        artifact.save(subject, folder / "artifact")
        yield Uncompressed(subject, measure(subject, folder / "baseline", **PROTOCOL), folder)


def better(found: Record) -> bool:
    return (found.estimates["perplexity_delta"].high or 0.0) < 0


@pytest.mark.promise(16)
@pytest.mark.parametrize("name", CHEATS)
def test_a_model_that_knows_the_text_is_not_believed(
    uncompressed: Uncompressed, name: str, figure: Callable[[str], None]
) -> None:
    scored = tokens(uncompressed.subject, TEXTS["wikipedia_eval"])[:8192]
    found = uncompressed.row(lambda subject: CHEATS[name](subject, scored), name)
    if name == "counts_as_bias":
        assert implausible(found) or not better(found)
    else:
        assert implausible(found), found.estimates
    figure(f"{len(CHEATS)} models that know the text: each implausible, or no better for it")


def rounded(bits: int) -> Callable[[Subject], Subject]:
    return lambda subject: RoundToNearest(bits, 32, symmetric=True).apply(subject, CalibrationText.empty())


HONEST: Mapping[str, Callable[[Subject], Subject]] = {
    **{f"{bits} bits": rounded(bits) for bits in (8, 4, 3, 2)},
    "trained on other text of its kind": lambda subject: trained(subject, tokens(subject, OTHER), 40),
}


@pytest.mark.promise(16)
@pytest.mark.parametrize("name", HONEST)
def test_an_honest_model_is_believed(uncompressed: Uncompressed, name: str) -> None:
    found = uncompressed.row(HONEST[name], name)
    assert implausible(found) == ""
    assert found.estimates["kl_divergence"].value > 0
    assert better(found) == ("perplexity_held_out" in found.estimates) == ("trained" in name)
