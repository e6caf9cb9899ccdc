"""Count what is left of a model in one that was cut from it: blocks, channels, heads, hidden size.

Counted is what the artifact's own layers have, and what those of the uncompressed model have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from squeeze.layers.contract import distinct_share
from squeeze.models import architecture
from squeeze.models.layout import LAYOUTS, SHARES, sizes

ROUNDED = 1e-3  # of a share


def shares(model: nn.Module, baseline: nn.Module) -> dict[str, float]:
    """Return the share that is left of each size, by claim; sizes that are the uncompressed model's are left out.

    Of architectures whose layers are not known, blocks alone are counted. baseline: its shapes alone are read.
    """
    own, whole = _counted(model), _counted(baseline)
    found = {claim: own[name] / whole[name] for claim, (name, _) in SHARES.items() if name in own.keys() & whole.keys()}
    return {claim: share for claim, share in found.items() if share != 1}


def mismatches(found: Mapping[str, float], claims: Mapping[str, Any]) -> list[str]:
    """Return the claims that do not hold, with both numbers; found: see ``shares``."""
    return [
        f"claimed {claims[claim]:.1%} of the {words}, found {found.get(claim, 1.0):.1%}"
        for claim, (_, words) in SHARES.items()
        if claim in claims and abs(claims[claim] - found.get(claim, 1.0)) > ROUNDED
    ]


def unshared(model: nn.Module, claims: Mapping[str, Any]) -> list[str]:
    """Return the claim of sharing that does not hold: matrices within the blocks are counted by where they lie."""
    if "weights_kept" not in claims or abs(claims["weights_kept"] - (found := distinct_share(model))) <= ROUNDED:
        return []
    return [f"claimed {claims['weights_kept']:.1%} of the blocks' weights, stored once each, found {found:.1%}"]


def _counted(model: nn.Module) -> dict[str, int]:
    config: Any = model.config
    if config.model_type in LAYOUTS:
        return asdict(sizes(model))
    return {"layers": len(architecture.blocks(model))}
