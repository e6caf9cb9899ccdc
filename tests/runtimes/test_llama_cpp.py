"""llama.cpp beside the eager forward: the same tokens, the same logits, the very values of our codes.

What needs the library is skipped where it is not installed; ``nox -s runtimes`` makes its environment.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.artifacts.exports.gguf import FILE, to_gguf
from squeeze.core.cache import using
from squeeze.core.errors import IntegrityError, Unsupported
from squeeze.core.paths import PACKAGE
from squeeze.models import llama_library
from squeeze.models.load import load_folder
from squeeze.models.subject import Subject
from squeeze.request.expand import cells
from squeeze.runtimes import contract
from squeeze.runtimes.eager import Eager
from squeeze.runtimes.llama_context import read
from squeeze.runtimes.llama_cpp import LlamaCpp, LlamaCppEngine
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning.magnitude import Magnitude
from squeeze.techniques.quantization.rtn import RoundToNearest
from tests.tiny import tiny_subject

TOKEN_IDS = torch.randint(256, (3, 40), generator=torch.Generator().manual_seed(0))
EAGER = Eager("cpu", 1)
NO_DATA = CalibrationText.empty()
TEXT = "In 2024, 11 of 345 were\n\nthere:  twice  as many, weren't they?\tÄ — 7."


def test_it_runs_on_the_processor_alone(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="not for cuda:0; use device=cpu"):
        LlamaCpp("cuda:0", 1).load(tmp_path)


def test_a_cell_names_it() -> None:
    (cell,) = cells(["model=tiny_llama", "technique=none", "runtime=llama_cpp", "device=cpu", "threads=2"])
    assert contract.of(cell.runtime) == LlamaCpp("cpu", 2)
    assert (LlamaCpp.environment, LlamaCpp.only_on) == ("llama_cpp", "cpu")


@pytest.fixture
def built() -> None:
    pytest.importorskip(llama_library.PACKAGE, reason="llama.cpp is not built here: nox -s runtimes -- llama_cpp")


def engine(subject: Subject, folder: Path) -> Any:
    artifact.save(subject, folder / "artifact")
    to_gguf(folder / "artifact", folder / "exported")
    return LlamaCppEngine(read(folder / "exported" / FILE), subject.tokenizer, threads=2, exact=True)


def differences(found: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """The largest difference, in standard deviations of the logits, and the share of equal greedy tokens."""
    same = (found.argmax(-1) == expected.argmax(-1)).float().mean()
    return float((found - expected).abs().max() / expected.std()), float(same)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(("name", "bound"), [("llama", 0.02), ("gpt_neox", 0.05)])  # its gelu is a table of float16
def test_its_logits_are_those_of_the_model(name: str, bound: float, tmp_path: Path) -> None:
    subject = tiny_subject(name)
    found = engine(subject, tmp_path).logits(TOKEN_IDS)
    assert found.dtype == torch.float32
    off, same = differences(found, subject.model(TOKEN_IDS).logits)
    assert off < bound
    assert same > 0.98


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    "technique",
    [RoundToNearest(4, 32, True), RoundToNearest(8, 32, True), RoundToNearest(4, 32, False)],
    ids=["Q4_0", "Q8_0", "Q4_1"],
)
def test_it_reads_the_codes_that_we_wrote(technique: RoundToNearest, tmp_path: Path) -> None:
    """Activations are rounded to 8 bits there; the distance to the uncompressed model is larger by far."""
    subject = technique.apply(tiny_subject("llama"), NO_DATA)
    off, same = differences(engine(subject, tmp_path).logits(TOKEN_IDS), subject.model(TOKEN_IDS).logits)
    assert off < 0.1
    assert same > 0.9


@pytest.mark.usefixtures("built")
def test_it_generates_what_eager_does_row_by_row_and_holds_as_much(tmp_path: Path) -> None:
    subject = tiny_subject("llama")
    ours, theirs = EAGER.engine(subject), engine(subject, tmp_path)
    found = []
    for each in (ours, theirs):
        generation = each.begin(60)
        first = generation.prefill(TOKEN_IDS[:, :20])
        assert first.shape == (3, 1)
        assert first.dtype == torch.int64
        for _ in range(12):
            generation.decode()
        found.append((generation.token_ids(), generation.bytes_per_token))
    (tokens, held), (their_tokens, their_held) = found
    assert their_tokens == tokens
    assert len({token for row in tokens for token in row}) > 2
    assert their_held == pytest.approx(held / 2, rel=0.15)  # float16 where eager has float32; and each token's place
    assert theirs.begin(60).context.rows == 3, "made for as many rows before the prompt comes"


@pytest.mark.usefixtures("built")
def test_log_probabilities_are_those_of_its_logits_and_a_long_text_goes_in_parts(tmp_path: Path) -> None:
    subject = tiny_subject("llama")
    theirs = engine(subject, tmp_path)
    long = torch.randint(256, (2, 700), generator=torch.Generator().manual_seed(1))
    expected = EAGER.engine(subject).log_probabilities(long)
    assert (theirs.log_probabilities(long) - expected).abs().max() < 0.05
    with pytest.raises(IndexError):
        theirs.begin(20).decode()
    with pytest.raises(Unsupported, match=r"2048 positions.*need 3016"):
        theirs.begin(3016)
    with pytest.raises(Unsupported, match="runs no encoder"):
        theirs.encode(TOKEN_IDS)


@pytest.mark.usefixtures("built")
def test_its_bytes_are_those_of_the_blocks(tmp_path: Path) -> None:
    small = engine(RoundToNearest(4, 32, True, embed_bits=8).apply(tiny_subject("llama"), NO_DATA), tmp_path / "small")
    large = engine(tiny_subject("llama"), tmp_path / "large")
    assert small.bytes_held < 0.3 * large.bytes_held
    assert large.bytes_held >= 4 * sum(each.numel() for each in tiny_subject("llama").model.parameters())


@pytest.mark.usefixtures("built")
def test_its_tokenizer_gives_our_ids(tmp_path: Path) -> None:
    subject = load_folder(PACKAGE / "sources" / "packaged" / "tiny")
    weights = engine(subject, tmp_path).weights
    api, text = weights.library.api, TEXT.encode()
    ids = (ctypes.c_int32 * 256)()
    vocabulary = api.llama_model_get_vocab(weights.pointer)
    count = api.llama_tokenize(vocabulary, text, len(text), ids, len(ids), True, False)
    assert list(ids[:count]) == subject.tokenizer(TEXT)["input_ids"]


@pytest.mark.usefixtures("built")
def test_a_file_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"GGUF and no more")
    with pytest.raises(IntegrityError, match=r"llama\.cpp cannot read it"):
        read(tmp_path / FILE)


@pytest.mark.usefixtures("built")
@pytest.mark.parametrize(
    ("technique", "exact"), [(None, True), (Magnitude(0.5), True), (RoundToNearest(8, 32, True), False)]
)
def test_it_is_exact_where_its_weights_are_floats(technique: Any, exact: bool, tmp_path: Path) -> None:
    subject = tiny_subject("llama") if technique is None else technique.apply(tiny_subject("llama"), NO_DATA)
    artifact.save(subject, tmp_path / "artifact")
    with using(tmp_path / "cache"):
        loaded = LlamaCpp("cpu", 1).load(tmp_path / "artifact")
    assert loaded.exact is exact
    assert loaded.logits(TOKEN_IDS).shape == (3, 40, 260)
