"""What every runtime in conf/runtime/ owes: transformers' own tokens, and a plain loop's logits.

Those that lie in an environment of their own have tests of their own.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from squeeze.artifacts import format as artifact
from squeeze.core import paths
from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.request.expand import cells
from squeeze.request.plain_yaml import read_plain
from squeeze.runtimes import contract, environments
from squeeze.runtimes.compiled import Compiled
from squeeze.runtimes.eager import Eager
from tests.engines import opaque
from tests.tiny import tiny_subject

CHOICES = {path.stem: read_plain(path) for path in sorted((paths.conf() / "runtime").glob("*.yaml"))}
NAMES = [name for name, choice in CHOICES.items() if environments.of(choice) is None]
OF_ENCODERS = [name for name in NAMES if name != "lean"]  # which runs Llamas alone
TOKEN_IDS = torch.randint(0, 256, (2, 18), generator=torch.Generator().manual_seed(1))
PROMPT, DECODED = 12, 6
PUBLISHED = Path(__file__).parents[2] / "results" / "published"


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured as for any compiler, and run as captured: no minute of code generation."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def loaded(name: str, architecture: str, folder: Path) -> Any:
    """A tiny model, saved, and loaded by the runtime of that name."""
    (cell,) = cells(["model=tiny_llama", "technique=none", f"runtime={name}", "device=cpu", "threads=1"])
    artifact.save(tiny_subject(architecture), folder)
    return contract.of(cell.runtime).load(folder)


@pytest.fixture(scope="module", params=NAMES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny Llama in each runtime: captured once, for texts of one length."""
    return loaded(request.param, "llama", tmp_path_factory.mktemp("artifact"))


def test_it_generates_what_transformers_does(engine: Any) -> None:
    prompt, generation = TOKEN_IDS[:, :PROMPT], engine.begin(PROMPT + DECODED)
    first = generation.prefill(prompt)
    later = [generation.decode() for _ in range(DECODED)]
    assert all(token.shape == (2, 1) for token in (first, *later))
    greedy = GenerationConfig(do_sample=False, max_new_tokens=1 + DECODED, pad_token_id=0)
    expected = tiny_subject("llama").model.generate(prompt, generation_config=greedy)[:, PROMPT:]
    assert generation.token_ids() == torch.cat([first, *later], dim=1).tolist() == expected.tolist()
    assert len(expected.unique()) > 2, "a model that repeats one token would show nothing"
    assert generation.bytes_per_token > 0


def test_its_log_probabilities_are_those_of_a_plain_loop(engine: Any) -> None:
    model, expected = tiny_subject("llama").model, torch.empty(2, 17)
    for row, tokens in enumerate(TOKEN_IDS):
        for place in range(17):
            logits = model(tokens[None, : place + 1], use_cache=False).logits[0, -1]
            expected[row, place] = logits.log_softmax(-1)[tokens[place + 1]]
    found = engine.log_probabilities(TOKEN_IDS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_its_logits_are_those_of_a_plain_forward(engine: Any) -> None:
    found = engine.logits(TOKEN_IDS[:, :17])
    assert (found.dtype, found.shape) == (torch.float32, (2, 17, 260))
    expected = tiny_subject("llama").model(TOKEN_IDS[:, :17], use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert engine.exact is True


@pytest.mark.parametrize("name", OF_ENCODERS)
def test_it_runs_encoders_and_counts_its_bytes(name: str, tmp_path: Path) -> None:
    engine = loaded(name, "bert", tmp_path)
    torch.testing.assert_close(engine.encode(TOKEN_IDS), tiny_subject("bert").model(TOKEN_IDS).last_hidden_state)
    held = {
        tensor.data_ptr(): tensor.nbytes
        for tensor in (*engine.subject.model.parameters(), *engine.subject.model.buffers())
    }
    assert engine.bytes_held == sum(held.values()) > 100_000
    assert engine.tokenizer("a")["input_ids"]


@pytest.mark.parametrize("name", NAMES)
def test_a_text_beyond_the_model_is_refused_with_both_numbers(name: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"2048 positions.*need 3016"):
        loaded(name, "llama", tmp_path / "causal").begin(3016)
    with pytest.raises(Unsupported, match=r"2048 positions.*need 2049"):
        loaded(name, "llama", tmp_path / "causal").logits(torch.zeros(1, 2049, dtype=torch.int64))


@pytest.mark.parametrize("name", OF_ENCODERS)
def test_so_is_one_beyond_an_encoder(name: str, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"2048 positions.*need 3000"):
        loaded(name, "bert", tmp_path / "encoder").encode(torch.zeros(1, 3000, dtype=torch.int64))


@pytest.mark.parametrize("name", NAMES)
def test_whose_forward_scores_text_is_a_runtimes_name(name: str, tmp_path: Path) -> None:
    assert loaded(name, "llama", tmp_path).scored_as in {"itself", *NAMES} - {name}


def test_who_compiles_and_what_shows_a_model_is_told() -> None:
    machine = {"device": "cuda", "threads": 1}
    of = {name: {**machine, "_target_": name} for name in ("eager.Eager", "compiled.Compiled", "vllm.Vllm")}
    assert [contract.compiles(runtime) for runtime in of.values()] == [False, True, True]
    assert contract.compiles({**of["eager.Eager"], "attention": "flex_attention"})
    assert contract.shows_model(Eager("cpu", 1).engine(tiny_subject("llama")))
    assert not contract.shows_model(opaque(tiny_subject("llama")))


def test_runtimes_of_old_records_are_found() -> None:
    old = {"name": "some", "device": "cpu", "threads": 3}
    assert contract.of({**old, "compile": False}) == Eager("cpu", 3) == contract.of({**old, "_target_": "eager.Eager"})
    assert contract.of({**old, "compile": True}) == Compiled("cpu", 3)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"attention": "sdpa"}, r"'lean.Lean' is refused: its class has no field attention; expected device, threads"),
        ({"threads": None}, r"'lean.Lean' is refused: its class needs threads; expected device, threads"),
    ],
)
def test_fields_that_are_not_those_of_its_class_are_refused(fields: dict[str, Any], reason: str) -> None:
    """As a record may have them, which no request has checked."""
    runtime = {"name": "lean", "_target_": "lean.Lean", "device": "cpu", "threads": 1, **fields}
    with pytest.raises(SqueezeError, match=reason):
        contract.of({name: value for name, value in runtime.items() if value is not None})


def test_every_published_row_still_has_its_runtime() -> None:
    """So that it can be measured again."""
    rows = [json.loads(path.read_text()) for path in PUBLISHED.glob("*/records/*.json")]
    assert {type(contract.of(row["cell"]["runtime"])) for row in rows} == {Eager, Compiled}


@pytest.mark.promise(15)
@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "eager.EagerEngine",
        "eager.Path",
        "eager.nothing",
        "kv_cache.States",
        "contract.Runtime",
        "eager",
        "",
        "squeeze.runtimes.eager.Eager",
        "../eager.Eager",
        "generation.GreedyGeneration",
    ],
)
def test_nothing_but_our_runtimes_is_made(target: str) -> None:
    with pytest.raises(SqueezeError, match="is refused"):
        contract.of({"name": "own", "_target_": target, "device": "cpu", "threads": 1})
