"""Training: it descends, it goes on where it was killed as if it had not been, and it says when it cannot."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from squeeze.core.errors import SqueezeError
from squeeze.models.architecture import blocks, last_hidden_state
from squeeze.techniques import training_loop
from squeeze.techniques.contract import Workplace
from squeeze.techniques.losses import next_token
from squeeze.techniques.training_loop import Plan, checkpointed, train
from squeeze.techniques.training_state import State
from tests.tiny import CAUSAL, tiny_model

TOKEN_IDS = torch.arange(15).reshape(5, 3)
PLAN = Plan(steps=12, windows=2, learning_rate=0.1)


class Killed(BaseException):
    """The process ends here."""


def trained(
    workplace: Workplace, kill_at: int | None = None, plan: Plan = PLAN
) -> tuple[nn.Parameter, list[list[int]]]:
    """A parameter that each step draws towards the tokens of its windows; the windows that each step saw."""
    parameter, seen = nn.Parameter(torch.zeros(3)), []

    def loss(token_ids: torch.Tensor) -> torch.Tensor:
        if len(seen) == kill_at:
            raise Killed
        seen.append(token_ids[:, 0].tolist())
        return ((parameter - token_ids.float().mean(0) / 15) ** 2).sum()

    train([parameter], loss, TOKEN_IDS, plan, title="made up", workplace=workplace)
    return parameter, seen


def test_it_descends_over_the_windows_in_their_order() -> None:
    parameter, seen = trained(Workplace())
    assert seen[:4] == [[0, 3], [6, 9], [12, 0], [3, 6]]
    assert len(seen) == PLAN.steps
    wanted = TOKEN_IDS.float().mean(0) / 15
    assert ((parameter - wanted).abs() < 0.2 * wanted).all()
    assert not parameter.requires_grad


def test_what_was_killed_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)
    undisturbed = Workplace()
    whole, seen = trained(undisturbed)
    with pytest.raises(Killed):
        trained(Workplace(tmp_path / "work"), kill_at=7)
    workplace = Workplace(tmp_path / "work")
    continued, seen_later = trained(workplace)
    assert seen_later == seen[7:]
    assert torch.equal(continued, whole)
    assert workplace.curve == undisturbed.curve
    assert workplace.seconds > workplace.reused_seconds > 0
    workplace.clear()
    assert list(tmp_path.iterdir()) == []


def test_what_comes_after_a_step_sees_its_gradient_and_may_change_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in its eighth step, it goes on from weights as they were changed after the seventh."""
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)

    def first_stays(workplace: Workplace, kill_at: int | None = None) -> tuple[nn.Parameter, list[int]]:
        parameter, steps, calls = nn.Parameter(torch.zeros(3)), [], count()

        def loss(token_ids: torch.Tensor) -> torch.Tensor:
            if next(calls) == kill_at:
                raise Killed
            return ((parameter - 1) ** 2).sum()

        def keep_first(done: int) -> None:
            steps.append(done)
            assert parameter.grad is not None
            assert (parameter.grad < 0).all()
            with torch.no_grad():
                parameter[0] = 0

        train([parameter], loss, TOKEN_IDS, PLAN, title="made up", workplace=workplace, after_step=keep_first)
        return parameter, steps

    whole, steps = first_stays(Workplace())
    assert steps == list(range(1, 13))
    assert whole[0] == 0
    assert (whole[1:] > 0.3).all()
    with pytest.raises(Killed):
        first_stays(Workplace(tmp_path), kill_at=7)
    continued, steps = first_stays(Workplace(tmp_path))
    assert steps == list(range(8, 13))
    assert torch.equal(continued, whole)


def test_checkpoints_are_spaced_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained(Workplace(tmp_path))
    assert list(tmp_path.iterdir()) == []
    saved, clock = [], count(step=25)  # seconds, each time that somebody looks
    monkeypatch.setattr(training_loop, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(State, "save", lambda state, _: saved.append(state.steps))
    trained(Workplace(tmp_path))
    assert saved == [3, 6, 9, 12]


def test_the_seconds_of_all_that_were_killed_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)
    clock = count()  # a second passes each time that somebody looks
    monkeypatch.setattr(training_loop, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    workplaces = [Workplace(tmp_path) for _ in range(3)]
    for workplace in workplaces:
        with pytest.raises(Killed):
            trained(workplace, kill_at=3)
    none, one, two = (workplace.reused_seconds for workplace in workplaces)
    assert (none, two) == (0, 2 * one)
    assert one > 3


def test_two_trainings_of_one_step_have_checkpoints_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)
    short = Plan(steps=3, windows=1, learning_rate=0.5)
    wholes = [trained(Workplace(), plan=plan)[0] for plan in (short, PLAN)]
    workplace = Workplace(tmp_path)
    trained(workplace, plan=short)
    with pytest.raises(Killed):
        trained(workplace, kill_at=7)
    again = Workplace(tmp_path)
    assert torch.equal(trained(again, plan=short)[0], wholes[0])
    second, seen = trained(again)
    assert torch.equal(second, wholes[1])
    assert len(seen) == PLAN.steps - 7
    assert [point.step for point in again.curve] == [*range(1, 16)]
    assert again.trainings == 2


class Meter:
    """Counts a joule each time that it is stopped."""

    def __init__(self, joules: float | None = 0.0) -> None:
        self.joules, self.runs = joules, False

    def start(self) -> None:
        self.runs = True

    def stop(self) -> None:
        if self.runs and self.joules is not None:
            self.joules += 1.0
        self.runs = False


def test_joules_are_counted_of_killed_processes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)
    with pytest.raises(Killed):
        trained(Workplace(tmp_path, Meter()), kill_at=7)
    workplace = Workplace(tmp_path, Meter())
    trained(workplace)
    assert workplace.joules == PLAN.steps + 1  # one for each checkpoint, and one at the end


def test_joules_that_nobody_counted_are_not_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_loop, "SAVE_EVERY", 0.0)
    for meter in (None, Meter(joules=None)):
        workplace = Workplace(None, meter)
        trained(workplace)
        assert workplace.joules is None
    with pytest.raises(Killed):
        trained(Workplace(tmp_path), kill_at=7)
    workplace = Workplace(tmp_path, Meter())
    trained(workplace)
    assert workplace.joules is None, "the first seven steps were not counted"


@torch.no_grad()
def test_it_is_adam_with_the_joint_gradient_shortened() -> None:
    """Kingma & Ba 2014, algorithm 1, without any decay, written out; the caller keeps no gradients."""
    first, second, plan = nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([3.0])), Plan(6, 1, 0.1)

    def loss(token_ids: torch.Tensor) -> torch.Tensor:
        return (first**2).sum() + 0.1 * (second - token_ids[0, 0]) ** 2

    values = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    mean, square = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for step in range(plan.steps):
        token = float(TOKEN_IDS[step % len(TOKEN_IDS), 0])
        gradient = torch.cat([2 * values[:2], 0.2 * (values[2:] - token)])
        gradient /= max(1.0, float(gradient.norm()))
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        unbiased = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
        values -= plan.rate(step) * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    train([first, second], loss, TOKEN_IDS, plan, title="made up", workplace=Workplace())
    assert torch.cat([first, second]).tolist() == pytest.approx(values.tolist(), rel=1e-4)


def test_the_rate_rises_and_falls() -> None:
    plan = Plan(steps=20, windows=1, learning_rate=1.0)
    rates = [plan.rate(step) for step in range(20)]
    assert rates[:3] == pytest.approx([0.5, 0.95, 0.9])
    assert rates[-1] == pytest.approx(0.05)
    assert Plan(1, 1, 0.5).rate(0) == 0.5


def test_schedules_begin_alike_and_end_as_they_are_called() -> None:
    cosine, constant = (Plan(20, 1, 1.0, schedule=name) for name in ("cosine", "constant"))
    assert [cosine.rate(step) for step in (0, 10, 15)] == pytest.approx([0.5, 0.5, 0.1464466], abs=1e-6)
    assert [constant.rate(step) for step in (0, 1, 19)] == [0.5, 1.0, 1.0]


def learned(plan: Plan, name: str = "llama") -> tuple[dict[str, torch.Tensor], list[float | None]]:
    """The weights of a tiny model after training its linear layers on six windows, and the loss of each step."""
    (model, parameters), workplace = trainable(name), Workplace()
    rows = torch.randint(256, (6, 16), generator=torch.Generator().manual_seed(0))
    train(parameters, lambda token_ids: next_token(model, token_ids), rows, plan, title="it", workplace=workplace)
    return model.state_dict(), [point.loss for point in workplace.curve]


def trainable(name: str) -> tuple[nn.Module, list[nn.Parameter]]:
    model = tiny_model(name)
    return model, [parameter for block in blocks(model) for parameter in block.parameters() if parameter.ndim == 2]


def test_the_same_training_gives_the_same_weights_to_the_last_bit() -> None:
    plan = Plan(4, 3, 1e-3, at_once=2)
    (one, losses), (other, same_losses) = learned(plan), learned(plan)
    assert losses == same_losses
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("at_once", [1, 4])
def test_gradients_of_parts_add_up_to_those_of_all_windows(at_once: int) -> None:
    """Of unequal ones, too: four windows and two."""
    (whole, losses), (parts, part_losses) = learned(Plan(3, 6, 1e-2)), learned(Plan(3, 6, 1e-2, at_once=at_once))
    before = tiny_model("llama").state_dict()
    assert max(float((before[key] - whole[key]).abs().max()) for key in whole) > 1e-2
    assert max(float((parts[key] - whole[key]).abs().max()) for key in whole) < 1e-3
    assert part_losses == pytest.approx(losses, rel=1e-5)


def test_no_more_windows_are_computed_at_once_than_the_plan_allows() -> None:
    seen: list[int] = []
    parameter = nn.Parameter(torch.zeros(3))

    def loss(token_ids: torch.Tensor) -> torch.Tensor:
        seen.append(len(token_ids))
        return parameter.sum()

    train([parameter], loss, TOKEN_IDS, Plan(2, 5, 0.1, at_once=2), title="it", workplace=Workplace())
    assert seen == 2 * [2, 2, 1]


@pytest.mark.parametrize("name", CAUSAL)
def test_checkpointed_blocks_keep_their_inputs_alone_and_change_nothing(name: str) -> None:
    model, parameters = trainable(name)
    for parameter in parameters:
        parameter.requires_grad_()
    rows = torch.randint(256, (2, 64), generator=torch.Generator().manual_seed(0))

    def run() -> tuple[float, list[torch.Tensor], int]:
        kept: list[int] = []

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = last_hidden_state(model, input_ids=rows, use_cache=False).square().mean()
        return loss.item(), list(torch.autograd.grad(loss, parameters)), sum(kept)

    value, gradients, kept = run()
    with checkpointed(blocks(model)):
        same_value, same_gradients, kept_less = run()
    assert same_value == value
    assert all(torch.equal(one, other) for one, other in zip(gradients, same_gradients, strict=True))
    assert kept_less < kept / 3
    assert run()[2] == kept, "afterwards all is as it was"
    assert not any("forward" in block.__dict__ for block in blocks(model))


def test_a_loss_that_is_not_finite_ends_it_with_advice() -> None:
    parameter, plan = nn.Parameter(torch.zeros(1)), Plan(3, 1, 0.1)
    with pytest.raises(SqueezeError, match=r"the loss is nan in step 1 of 3.*lower learning_rate, now 0.1"):
        train([parameter], lambda _: (parameter / 0).sum(), TOKEN_IDS, plan, title="it", workplace=Workplace())


def test_without_windows_it_says_what_to_name() -> None:
    empty = torch.empty((0, 0), dtype=torch.int64)
    with pytest.raises(SqueezeError, match="name a calibration"):
        train([nn.Parameter(torch.zeros(1))], torch.sum, empty, PLAN, title="it", workplace=Workplace())


def test_a_person_hears_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    trained(Workplace())
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("made up: step 1 of 12, loss ")
    assert lines[-1].startswith("made up: step 12 of 12, loss ")
    assert len(lines) == 2
