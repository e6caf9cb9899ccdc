"""Say what neurons and heads are worth: coupled groups of weights, that only go together.

- "first_order" (Ma, Fang, Wang 2023, "LLM-Pruner: On the Structural Pruning of Large Language Models",
  arXiv:2305.11627, section 3.2): how much the loss L would change without the group, to the first order: |sum w dL/dw|
  over its weights w, biases among them. The paper takes such a value of each matrix's part in the group, and adds them
  up; here signs meet before, since the parts go together. The paper takes one small batch; here the sum is taken for
  each window of the text, and the mean of its absolute values is the score: over much text like that a model was
  trained on, the mean gradient is near nothing, and so would be its product with any weights.
- "wanda" (Sun, Liu, Bair, Kolter 2023, arXiv:2306.11695, eq. 1, summed over the group): sum |w_ij| |x_j|.
- "magnitude": sum |w|.

Gradients of weights are never made: where y = W x + b, the sum of w dL/dw over row i, its bias included, is the sum of
y_i dL/dy_i over tokens, and that over column j is the sum of x_j dL/dx_j. So activations of a few windows are all that
is held beside the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from squeeze.core.errors import SqueezeError, Unsupported
from squeeze.models import architecture
from squeeze.models.layout import Coupled
from squeeze.techniques.contract import Calibration, Labelled
from squeeze.techniques.losses import next_token

CRITERIA = ("first_order", "wanda", "magnitude")
MOST_TOKENS = 16_384  # that are looked at: the first windows; LLM-Pruner takes ten of 128 tokens
TOKENS = 1024  # that go through the model at once; what they leave in all blocks is held for the gradients
SENTENCES = 32  # likewise, of a classifier
MOST_SENTENCES = 1024  # that are looked at: the first ones


def check_criterion(model: nn.Module, calibration: Calibration, by: str) -> None:
    """Check, before any work, that the model and the text have what a criterion reads.

    Raises Unsupported for another criterion and, for "first_order", for a model without a head, or a classifier whose
    text has no classes; SqueezeError where there are no tokens.
    """
    if by not in CRITERIA:
        raise Unsupported(f"there is no criterion {by!r}; expected one of {', '.join(CRITERIA)}")
    if by == "first_order" and architecture.is_classifier(model):
        if calibration.labelled is None:
            raise Unsupported("first_order needs the loss of a classifier, and this text has no classes; take by=wanda")
    elif by == "first_order":
        architecture.head(model)
        if calibration.token_ids.numel() == 0:
            raise SqueezeError("first_order needs text, found no tokens; name a calibration with a corpus")


def importance(model: nn.Module, coupled: Coupled, width: int, calibration: Calibration, by: str) -> list[Tensor]:
    """Return what each group is worth in each block: (groups,) float64, in no unit that blocks share.

    coupled: what the groups run between. width: inputs of its reader that make a group: 1 for neurons,
    ``layout.group_size`` for heads. by: one of CRITERIA; see ``check_criterion``.
    """
    if by == "first_order":
        return first_order(model, coupled, width, calibration)
    if by == "magnitude":
        return [magnitude(block, coupled, width) for block in architecture.blocks(model)]
    return [
        magnitude(block, coupled, width, {name: seen.norms for name, seen in inputs.items()})
        for _, block, inputs in calibration.input_statistics(model)
    ]


def magnitude(block: nn.Module, coupled: Coupled, width: int, norms: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return sum |w_ij| n_j over the weights of each group of a block: (groups,) float64.

    norms: n, (in_features,) of each layer by name; None: ones.
    """

    def weighed(name: str) -> Tensor:
        sizes = architecture.weight(block.get_submodule(name)).abs().double()
        return sizes if norms is None else sizes * norms[name].double()

    total = weighed(coupled.reader).sum(dim=0).view(-1, width).sum(dim=1)
    for name in coupled.makers:
        total += _by_group(weighed(name).sum(dim=1)[None], len(total), coupled.sections)[0]
    return total


def first_order(model: nn.Module, coupled: Coupled, width: int, calibration: Calibration) -> list[Tensor]:
    """Return the mean over windows, or sentences, of |sum w dL/dw| of each group of each block: (groups,) float64.

    L: of a window, the mean negative log-likelihood of its tokens; of a sentence, that of its class.
    """
    groups = [
        architecture.weight(block.get_submodule(coupled.reader)).shape[1] // width
        for block in architecture.blocks(model)
    ]
    totals = [torch.zeros(count, dtype=torch.float64) for count in groups]
    looked_at = 0
    for texts, loss in _losses(model, calibration):
        looked_at += texts
        for total, sums in zip(totals, _sums(model, coupled, groups, texts, loss), strict=True):
            total += texts * sums.abs().sum(dim=0).cpu()  # the loss is the mean of theirs
    return [total / looked_at for total in totals]


def _sums(
    model: nn.Module, coupled: Coupled, groups: Sequence[int], texts: int, loss: Callable[[], Tensor]
) -> Iterator[Tensor]:
    """Yield, block after block, the sums of w dL/dw of each text and group: (texts, groups) float64."""
    with torch.enable_grad(), _watched(model, coupled) as seen:
        value = loss()
    names = (*coupled.makers, coupled.reader)
    found = iter(torch.autograd.grad(value, [each[name] for each in seen for name in names]))
    for each, count in zip(seen, groups, strict=True):
        total = torch.zeros((texts, count), dtype=torch.float64, device=value.device)
        for name in names:
            products = each[name].detach().double() * next(found)
            of_texts = products.reshape(texts, -1, products.shape[-1]).sum(dim=1)
            total += _by_group(of_texts, count, 1 if name == coupled.reader else coupled.sections)
        yield total


@contextmanager
def _watched(model: nn.Module, coupled: Coupled) -> Iterator[list[dict[str, Tensor]]]:
    """Note, of each block, what its makers put out and its reader reads, in a graph that begins with the embeddings.

    Forwards without gradients, such as those that look at how a model makes its logits, are none of the loss.
    """
    seen: list[dict[str, Tensor]] = [{} for _ in architecture.blocks(model)]

    def begin(_: nn.Module, __: Any, output: Tensor) -> None:
        output.requires_grad_()

    def made(noted: dict[str, Tensor], name: str, _: nn.Module, __: Any, output: Tensor) -> None:
        if output.requires_grad:
            noted[name] = output

    def read(noted: dict[str, Tensor], _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].requires_grad:
            noted[coupled.reader] = inputs[0]

    handles = [model.get_input_embeddings().register_forward_hook(begin)]  # type: ignore[operator]
    for block, noted in zip(architecture.blocks(model), seen, strict=True):
        handles += [
            block.get_submodule(name).register_forward_hook(partial(made, noted, name)) for name in coupled.makers
        ]
        handles.append(block.get_submodule(coupled.reader).register_forward_pre_hook(partial(read, noted)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _losses(model: nn.Module, calibration: Calibration) -> Iterator[tuple[int, Callable[[], Tensor]]]:
    """Yield how many windows, or sentences, are looked at together, and what computes the mean of their losses."""
    labelled = calibration.labelled
    if architecture.is_classifier(model) and labelled is not None:
        for numbers in torch.split(torch.arange(len(labelled.labels))[:MOST_SENTENCES], SENTENCES):
            yield len(numbers), partial(_of_classes, model, labelled.rows(numbers))
        return
    token_ids = calibration.token_ids
    token_ids = token_ids[: max(MOST_TOKENS // token_ids.shape[1], 1)]
    for windows in torch.split(token_ids, max(TOKENS // token_ids.shape[1], 1)):
        yield len(windows), partial(next_token, model, windows)


def _of_classes(model: nn.Module, sentences: Labelled) -> Tensor:
    logits: Tensor = model(input_ids=sentences.input_ids, attention_mask=sentences.attention_mask).logits
    return F.cross_entropy(logits.float(), sentences.labels)


def _by_group(outputs: Tensor, groups: int, sections: int) -> Tensor:
    """Sum over the neighbours that make each group, in all sections: (n, sections * groups * size) -> (n, groups)."""
    return outputs.reshape(len(outputs), sections, groups, -1).sum(dim=(1, 3))
