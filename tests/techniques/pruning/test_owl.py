"""OWL by hand, and the zeros that each block really gets: fewer where outliers are, as many in all."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from squeeze.core.errors import Unsupported
from squeeze.layers.contract import layer_specs
from squeeze.models import architecture
from squeeze.models.subject import Subject
from squeeze.techniques.calibration import CalibrationText
from squeeze.techniques.pruning.owl import allocated, block_shares, outlier_share
from squeeze.techniques.pruning.sparsegpt import SparseGPT
from squeeze.techniques.pruning.wanda import Wanda
from tests.tiny import ARCHITECTURES, tiny_model, tiny_subject

TOKEN_IDS = torch.randint(256, (6, 32), generator=torch.Generator().manual_seed(0))
CALIBRATION = CalibrationText(TOKEN_IDS)
WANDA = Wanda(0.5, None, sequential=True, allocation="owl", outlier=10.0, spread=0.125)
SPARSEGPT = SparseGPT(0.5, None, 0.01, sequential=True, allocation="owl", outlier=10.0, spread=0.125)


def with_outliers(name: str, block: int) -> Subject:
    """A tiny model one of whose blocks has a few weights that are far larger than the others."""
    subject = tiny_subject(name)
    for layer in architecture.linears(architecture.blocks(subject.model)[block]).values():
        architecture.weight(layer)[::8, ::8] *= 8
    return subject


def zeros(subject: Subject) -> list[tuple[int, int]]:
    """Zeros and weights of each block."""
    found = []
    for block in architecture.blocks(subject.model):
        weights = [module.dequantize() for module in block.modules() if hasattr(module, "dequantize")]
        found.append((sum(int((each == 0).sum()) for each in weights), sum(each.numel() for each in weights)))
    return found


def test_outliers_exceed_the_mean_of_all_scores_of_a_block() -> None:
    scores = [torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 9]]), torch.tensor([[3.0, 3, 1, 1]])]  # the mean is 2
    assert outlier_share(scores, 1.4) == pytest.approx(3 / 12)
    assert outlier_share(scores, 1.5) == pytest.approx(1 / 12)  # 3 does not exceed 3
    assert outlier_share(scores, 5) == 0


def test_shares_fall_with_outliers_about_the_total() -> None:
    assert allocated([0.1, 0.2, 0.3], [5, 5, 5], 0.5, 0.08) == pytest.approx([0.58, 0.5, 0.42])
    assert allocated([0.1, 0.1, 0.4], [5, 5, 5], 0.5, 0.08) == pytest.approx([0.54, 0.54, 0.42])
    assert allocated([0.1, 0.1], [5, 7], 0.6, 0.08) == [0.6, 0.6]
    assert allocated([0.1, 0.3], [5, 7], 0.6, 0.0) == [0.6, 0.6]


def test_the_mean_is_weighted_by_the_blocks_sizes_and_no_block_lies_beyond_the_spread() -> None:
    outliers, sizes = [0.02, 0.3, 0.05, 0.01], [100, 300, 50, 700]
    found = allocated(outliers, sizes, 0.7, 0.1)
    total = sum(share * size for share, size in zip(found, sizes, strict=True)) / sum(sizes)
    assert total == pytest.approx(0.7)
    assert max(abs(share - 0.7) for share in found) == pytest.approx(0.1)
    assert sorted(range(4), key=lambda place: found[place]) == [1, 2, 0, 3]


@pytest.mark.parametrize("technique", [WANDA, SPARSEGPT], ids=["wanda", "sparsegpt"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_block_with_outliers_keeps_more_and_the_total_stays(name: str, technique: Wanda | SparseGPT) -> None:
    for block in (0, 1):
        found = zeros(technique.apply(with_outliers(name, block), CALIBRATION))
        assert found[block][0] / found[block][1] == pytest.approx(0.375, abs=0.004)
        assert found[1 - block][0] / found[1 - block][1] == pytest.approx(0.625, abs=0.004)
        assert sum(count for count, _ in found) / sum(size for _, size in found) == pytest.approx(0.5, abs=0.002)


def test_inputs_count_as_weights_do() -> None:
    model = tiny_model("llama")
    assert block_shares(replace(WANDA, allocation="uniform"), model, CALIBRATION) == {
        "model.layers.0": 0.5,
        "model.layers.1": 0.5,
    }
    model.model.layers[1].input_layernorm.weight.data[:2] *= 50
    model.model.layers[1].post_attention_layernorm.weight.data[:2] *= 50
    assert block_shares(WANDA, model, CALIBRATION) == pytest.approx({"model.layers.0": 0.625, "model.layers.1": 0.375})


def test_the_claim_is_the_total() -> None:
    assert WANDA.apply(with_outliers("llama", 0), CALIBRATION).claims == {"sparsity": 0.5, "inputs": "sequential"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"allocation": "even"}, "no allocation 'even'; expected 'uniform' or 'owl'"),
        ({"run": 4}, "no whole number of 4 weights; use run=null or allocation=uniform"),
        ({"outlier": 0.0}, r"by 0\.0 times the mean; expected more than 0"),
        ({"sparsity": 0.95}, r"a sparsity of 0\.95 by 0\.125 to either side; expected 0 to 0\.05"),
        ({"sparsity": 0.0}, "expected 0 to 0"),
        ({"spread": -0.1}, r"by -0\.1 to either side; expected 0 to 0\.5"),
        ({"sparsity": 1.0, "spread": 0.0}, "expected 0 <= sparsity < 1"),
    ],
)
@pytest.mark.parametrize("technique", [WANDA, SPARSEGPT], ids=["wanda", "sparsegpt"])
def test_what_it_cannot_do_is_refused_before_any_work(
    technique: Wanda | SparseGPT, fields: dict[str, object], message: str
) -> None:
    subject = tiny_subject("llama")
    with pytest.raises(Unsupported, match=message):
        replace(technique, **fields).apply(subject, CALIBRATION)
    assert not layer_specs(subject.model)
