"""The lean path: transformers' own tokens, no farther from exact sums than eager is, and no byte of weights more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from squeeze.artifacts import format as artifact
from squeeze.core.errors import Unsupported
from squeeze.layers import kernels
from squeeze.layers.affine import fit
from squeeze.layers.contract import compressed_layers
from squeeze.models.architecture import last_hidden_state
from squeeze.models.subject import Subject
from squeeze.probes import held
from squeeze.probes.scoring import Row, predict
from squeeze.runtimes.eager import Eager, EagerEngine
from squeeze.runtimes.generation import log_probability
from squeeze.runtimes.lean import Lean, LeanEngine
from squeeze.runtimes.lean_products import Apart, Packed
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.contract import Technique
from squeeze.techniques.inference.kivi import KIVI
from squeeze.techniques.pruning.flap import FLAP
from squeeze.techniques.pruning.heads import Heads
from squeeze.techniques.pruning.layer_drop import LayerDrop
from squeeze.techniques.pruning.slicegpt import SliceGPT
from squeeze.techniques.quantization.rtn import RoundToNearest
from squeeze.techniques.sharing.shared_blocks import SharedBlocks
from tests.kernels import KERNELS
from tests.students import subject_of
from tests.tiny import tiny_subject

TEXT = CalibrationText(torch.randint(256, (4, 32), generator=torch.Generator().manual_seed(2)))
TOKEN_IDS = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(1))
PROMPT, DECODED = 12, 12
GRID = fit(torch.ones(64, 64, dtype=torch.bfloat16), 4, 32, symmetric=True)
WIDE = {"hidden_size": 128, "intermediate_size": 256}  # heads of 32: all rows fill whole blocks of the kernels

SHAPES: list[dict[str, Any]] = [
    {},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": 1, "head_dim": 32},
    {"attention_bias": True, "mlp_bias": True, "rms_norm_eps": 0.01},
    {"tie_word_embeddings": True, "hidden_act": "gelu"},
    {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0}},
]
ROUNDED: list[Technique | None] = [
    None,
    RoundToNearest(4, 32, symmetric=True),
    RoundToNearest(4, 32, symmetric=False),
    RoundToNearest(3, 64, symmetric=True, embed_bits=8),
    RoundToNearest(8, None, symmetric=True),
    RoundToNearest(8, 32, symmetric=True),
]
CUT: list[Technique] = [
    Heads(0.5, "wanda"),
    FLAP(0.6, "adaptive"),
    LayerDrop(0.5, "every_other"),
    SharedBlocks(),
]


def lean(subject: Subject) -> LeanEngine:
    return Lean("cpu", 1).engine(subject)


def both(subject: Subject, folder: Path) -> tuple[EagerEngine, LeanEngine]:
    """The same artifact, loaded by either runtime."""
    artifact.save(subject, folder)
    return Eager("cpu", 1).load(folder), Lean("cpu", 1).load(folder)


def applied(technique: Technique | None, dtype: str = "bfloat16", **sizes: Any) -> Subject:
    subject = subject_of("llama", dtype, **sizes)
    return subject if technique is None else technique.apply(subject, TEXT)


def generated(engine: Any, prompt: torch.Tensor) -> list[list[int]]:
    generation = engine.begin(prompt.shape[1] + DECODED)
    generation.prefill(prompt)
    for _ in range(DECODED):
        generation.decode()
    return generation.token_ids()  # type: ignore[no-any-return]


@torch.inference_mode()
def exact(folder: Path) -> torch.Tensor:
    """The log-probabilities of an artifact's own weights, all sums and roundings in float32."""
    model = artifact.load(folder, prepare=False).model.float()
    for layer in compressed_layers(model):
        layer.dtype = torch.float32  # type: ignore[attr-defined]
    return log_probability(model(TOKEN_IDS[:, :-1]).logits, TOKEN_IDS[:, 1:])


@pytest.mark.parametrize("sizes", SHAPES, ids=lambda sizes: ",".join(sizes) or "plain")
def test_in_float32_tokens_are_eagers(sizes: dict[str, Any], tmp_path: Path) -> None:
    eager, own = both(subject_of("llama", **sizes), tmp_path)
    expected = generated(eager, TOKEN_IDS[:, :PROMPT])
    assert generated(own, TOKEN_IDS[:, :PROMPT]) == expected
    found = own.log_probabilities(TOKEN_IDS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, eager.log_probabilities(TOKEN_IDS), rtol=0, atol=1e-5)
    if not sizes:
        assert len({*expected[0], *expected[1]}) > 2, "a model that repeats one token would show nothing"


@pytest.mark.parametrize("technique", CUT, ids=lambda each: type(each).__name__)
def test_models_with_other_blocks_are_read_as_they_are(technique: Technique, tmp_path: Path) -> None:
    eager, own = both(applied(technique, "float32", num_key_value_heads=4), tmp_path)
    torch.testing.assert_close(own.log_probabilities(TOKEN_IDS), eager.log_probabilities(TOKEN_IDS), rtol=0, atol=1e-5)
    assert generated(own, TOKEN_IDS[:, :PROMPT]) == generated(eager, TOKEN_IDS[:, :PROMPT])


@pytest.mark.parametrize("technique", ROUNDED)
def test_it_is_no_farther_from_exact_sums_than_eager(technique: Technique | None, tmp_path: Path) -> None:
    eager, own = both(applied(technique, **WIDE), tmp_path)
    expected = exact(tmp_path)
    for rows in (TOKEN_IDS, TOKEN_IDS[:1, :20]):  # more rows than a kernel for few takes, and fewer
        true = expected[: len(rows), : rows.shape[1] - 1]
        errors = [float((engine.log_probabilities(rows) - true).norm()) for engine in (eager, own)]
        assert 0 < errors[1] < 1.5 * errors[0]


@pytest.mark.parametrize("technique", ROUNDED)
def test_all_that_it_can_reach_is_what_eager_holds(technique: Technique | None, tmp_path: Path) -> None:
    """Joined weights are not there twice, wherever they may lie."""
    eager, own = both(applied(technique, **WIDE), tmp_path)
    assert own.bytes_held == eager.bytes_held
    closed = held.closed()
    reached = [sum(held.blocks(engine, closed).values()) for engine in (eager, own)]
    assert reached[1] < reached[0] + 0.02 * eager.bytes_held


@pytest.mark.parametrize(("technique", "kind"), [(ROUNDED[1], Packed), (None, None)])
def test_what_reads_the_same_inputs_is_joined(technique: Technique | None, kind: type | None, tmp_path: Path) -> None:
    _, own = both(applied(technique, **WIDE), tmp_path)
    if kind is Packed and kernels.arrange(torch.zeros(64, 64, dtype=torch.uint8), GRID, torch.bfloat16) is None:
        pytest.skip("this CPU has no kernel for packed weights")
    made = [product for block in own.lean.blocks for product in (block.qkv, block.gate_up)]
    assert not any(isinstance(product, Apart) for product in made)
    assert kind is None or all(isinstance(product, kind) for product in made)


@pytest.mark.parametrize("technique", ROUNDED)
def test_its_model_still_runs_by_itself(technique: Technique | None, tmp_path: Path) -> None:
    eager, own = both(applied(technique, **WIDE), tmp_path)
    with torch.inference_mode():
        expected, found = (engine.subject.model(TOKEN_IDS).logits for engine in (eager, own))
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))


@pytest.mark.parametrize(("technique", "dtype"), [(None, "float32"), (None, "bfloat16"), (ROUNDED[1], "bfloat16")])
def test_a_step_gives_what_the_whole_text_gives(technique: Technique | None, dtype: str, tmp_path: Path) -> None:
    _, engine = both(applied(technique, dtype, **WIDE), tmp_path)
    model, places = engine.lean, range(PROMPT, TOKEN_IDS.shape[1])
    with torch.inference_mode():
        cache = model.cache(2, TOKEN_IDS.shape[1])
        begun = model.read(TOKEN_IDS[:, :PROMPT], cache)
        steps = [model.step(TOKEN_IDS[:, place : place + 1], cache, place)[:, None] for place in places]
        whole = model.read(TOKEN_IDS)
    bound = (1e-5 if dtype == "float32" else 4e-2) * float(whole.abs().max())
    torch.testing.assert_close(torch.cat([begun, *steps], dim=1), whole, rtol=0, atol=bound)


def test_continuations_of_one_context_are_blind_to_one_another() -> None:
    """Text is scored as transformers scores it, in packed rows with a mask and positions, too."""
    subject = tiny_subject("llama")
    rows = [Row((5, 6, 7), ((8, 9, 10), (11, 12)), (0, 1)), Row((1, 2), ((3,), (4, 5, 6), (7, 8)), (2, 3, 4))]
    expected = predict(subject.model, rows, last_hidden_state)
    found = predict(subject.model, rows, lean(subject).states)
    torch.testing.assert_close(found.hidden, expected.hidden, rtol=1e-4, atol=1e-5)
    plain = [Row((5, 6, 7), ((8, 9, 10, 11, 12),), (0,))]
    expected, found = predict(subject.model, plain), predict(subject.model, plain, lean(subject).states)
    torch.testing.assert_close(found.hidden, expected.hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("technique", KERNELS, ids=lambda each: type(each).__name__)
def test_layers_without_a_product_of_their_own_run_as_they_are(technique: Technique, tmp_path: Path) -> None:
    dtype = "float32" if type(technique).__name__ == "TorchDynamic" else "bfloat16"
    eager, own = both(applied(technique, dtype), tmp_path)
    apart = own.log_probabilities(TOKEN_IDS) - eager.log_probabilities(TOKEN_IDS)
    assert float(apart.abs().mean()) < 0.05
    assert len(set(generated(own, TOKEN_IDS[:, :PROMPT])[0])) > 1


def test_logits_are_those_of_each_position_in_float32() -> None:
    subject = tiny_subject("llama", "bfloat16")
    logits = lean(subject).logits(TOKEN_IDS)
    assert (logits.shape, logits.dtype) == ((2, 40, 260), torch.float32)
    found = log_probability(logits[:, :-1], TOKEN_IDS[:, 1:])
    torch.testing.assert_close(found, lean(subject).log_probabilities(TOKEN_IDS), rtol=0, atol=0.1)  # of 16 bits


def test_generations_keep_what_is_theirs() -> None:
    engine = lean(tiny_subject("llama"))
    first, second = engine.begin(PROMPT + 2), engine.begin(PROMPT + 2)
    for generation in (first, second):
        generation.prefill(TOKEN_IDS[:, :PROMPT])
    first.decode()
    second.decode()
    first.decode()
    assert first.token_ids()[0][:2] == second.token_ids()[0]
    assert first.bytes_per_token == 2 * 2 * 2 * 16 * 4  # blocks; keys, values; heads; channels: as long as it may be
    assert second.bytes_per_token == first.bytes_per_token * (PROMPT + 2) / (PROMPT + 1)  # there is room for one more
    with pytest.raises(IndexError, match="room for 14 tokens, 15 are asked for"):
        first.decode()


def test_angles_are_found_once() -> None:
    engine, lengths = lean(tiny_subject("llama")), []
    rotary = engine.lean.rotary.module
    rotary.register_forward_pre_hook(lambda _, given: lengths.append(given[1].shape[1]))
    for _ in range(2):
        generated(engine, TOKEN_IDS[:, :PROMPT])
    assert lengths == [PROMPT + DECODED]


def test_decode_needs_a_prefill() -> None:
    with pytest.raises(IndexError):
        lean(tiny_subject("llama")).begin(4).decode()


@pytest.mark.parametrize(
    ("subject", "reason"),
    [
        (lambda: tiny_subject("gpt2"), "this is a GPT2LMHeadModel; use runtime=eager"),
        (lambda: tiny_subject("llama_classifier"), "this is a LlamaForSequenceClassification"),
        (lambda: KIVI(4, 8).apply(tiny_subject("llama"), TEXT), "its own cache"),
        (lambda: SliceGPT(0.75).apply(tiny_subject("llama"), TEXT), "a sliced model"),
        (
            lambda: subject_of("llama", rope_parameters={"rope_type": "dynamic", "rope_theta": 100.0, "factor": 2.0}),
            "angles of 'dynamic' depend on a text's length",
        ),
    ],
)
def test_what_it_does_not_compute_as_transformers_does_is_refused(subject: Any, reason: str) -> None:
    with pytest.raises(Unsupported, match=reason):
        lean(subject())


def test_a_norm_that_is_not_known_is_refused() -> None:
    subject = tiny_subject("llama")
    subject.model.model.layers[1].input_layernorm = torch.nn.RMSNorm(64)
    with pytest.raises(Unsupported, match="knows nothing of RMSNorm"):
        lean(subject)


def test_it_encodes_nothing() -> None:
    with pytest.raises(Unsupported, match="use runtime=eager"):
        lean(tiny_subject("llama")).encode(TOKEN_IDS)
