"""Compare our training loop with transformers.Trainer: the same model, tokens, optimizer, schedule, on the CPU.

Each trainer runs in processes of its own: twice whole, once killed halfway, once from there to the end. Printed are the
seconds from the start of a process to its first step (without loading model and text), the median seconds of a step,
the peak memory of the process, whether two runs give the same weights to the last bit, and whether the killed one does.

    python scripts/trainers.py --model smollm2_135m --steps 32
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

OURS, THEIRS = "training_loop", "transformers.Trainer"
WEIGHTS = "weights.safetensors"
MB = 1e6


def main() -> None:
    """Print the comparison, or be one of its processes (``--one``)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="of conf/model; in float32 (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--windows", type=int, default=1, help="of 512 tokens in each step (default: %(default)s)")
    parser.add_argument("--one", choices=[OURS, THEIRS], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--saves", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--kill-at", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run_one(options)))
        return
    with TemporaryDirectory() as folder:
        found = {trainer: compared(trainer, Path(folder), options) for trainer in (OURS, THEIRS)}
        print("\n".join(table(found)))
        print(f"largest difference of a weight between the two: {difference(Path(folder)):.2e}")


def compared(trainer: str, folder: Path, options: argparse.Namespace) -> dict[str, str]:
    """Return a trainer's figures by their headings."""
    one, two, resumed = (folder / f"{trainer}_{name}" for name in ("one", "two", "resumed"))
    runs = [started(trainer, place, options) for place in (one, two)]
    killed = started(trainer, resumed, options, "--saves", "--kill-at", str(options.steps // 2))
    assert killed is None, "it was to be killed"
    continued = started(trainer, resumed, options, "--saves")
    assert runs[0] is not None
    assert runs[1] is not None
    assert continued is not None
    same = runs[0]["weights"] == runs[1]["weights"]
    whole = continued["weights"] == runs[0]["weights"] and continued["steps"] < options.steps
    return {
        "start-up, s": f"{min(run['start_up'] for run in runs if run):.2f}",
        "a step, s": f"{min(run['step'] for run in runs if run):.4f}",
        "peak, MB": f"{max(run['peak'] for run in runs if run) / MB:.0f}",
        "two runs equal": "yes" if same else "no",
        "killed run equal": "yes" if whole else "no",
        "steps after the kill": f"{continued['steps']} of {options.steps}",
    }


def started(trainer: str, folder: Path, options: argparse.Namespace, *more: str) -> dict[str, Any] | None:
    """Run a process; return what it found, or None where it was killed, as it was told to be."""
    folder.mkdir(exist_ok=True)
    size = ("--model", options.model, "--steps", str(options.steps), "--windows", str(options.windows))
    command = [sys.executable, __file__, "--one", trainer, "--folder", str(folder), *size, *more]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode == -signal.SIGKILL:
        return None
    if done.returncode:
        raise SystemExit(f"{trainer} ended with exit code {done.returncode}; what it said stands above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def table(found: dict[str, dict[str, str]]) -> list[str]:
    """Return a Markdown table, a column a trainer."""
    lines = [f"| | {' | '.join(found)} |", f"| :-- {'| --: ' * len(found)}|"]
    return [*lines, *(f"| {row} | {' | '.join(each[row] for each in found.values())} |" for row in found[OURS])]


def difference(folder: Path) -> float:
    """Return the largest difference between the weights that both trainers end with."""
    from safetensors.torch import load_file

    one, other = (load_file(folder / f"{trainer}_one" / WEIGHTS) for trainer in (OURS, THEIRS))
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def run_one(options: argparse.Namespace) -> dict[str, Any]:
    """Train in this process; return the figures of it, and the sha256 of the weights."""
    import torch
    from safetensors.torch import save_file

    from squeeze.core.hashing import sha256
    from squeeze.core.process import age, settle
    from squeeze.models import architecture
    from squeeze.models.load import load_baseline
    from squeeze.probes.memory import resident
    from squeeze.request.expand import cells
    from squeeze.sources.corpora import calibration_tokens

    (cell,) = cells([f"model={options.model}", "technique=finetune", "dtype=float32", "device=cpu"])
    settle(cell.runtime, 0)
    begun = time.monotonic()
    subject = load_baseline(cell.model)
    rows = calibration_tokens(cell.calibration, subject.tokenizer)
    loading = time.monotonic() - begun
    names = [f"{name}.weight" for name in architecture.block_linears(subject.model)]
    parameters = [subject.model.get_parameter(name) for name in names]
    begins: list[float] = []

    def note(*_: Any) -> None:
        if torch.is_grad_enabled():  # a step's, not one that looks at how the model makes its logits
            if len(begins) == options.kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            begins.append(age())

    architecture.base_model(subject.model).register_forward_pre_hook(note)
    trains: Callable[..., None] = ours if options.one == OURS else theirs
    trains(subject.model, parameters, rows, options)
    ended = age()
    save_file(
        {name: parameter.detach() for name, parameter in zip(names, parameters, strict=True)},
        options.folder / WEIGHTS,
    )
    paces = [after - before for before, after in zip(begins, [*begins[1:], ended], strict=True)]
    return {
        "start_up": begins[0] - loading,
        "step": statistics.median(paces[1:-1] or paces),
        "peak": resident().peak,
        "steps": len(begins),
        "weights": sha256(options.folder / WEIGHTS),
    }


def ours(model: Any, parameters: Sequence[Any], rows: Any, options: argparse.Namespace) -> None:
    """Train with our loop."""
    from squeeze.techniques import training_loop
    from squeeze.techniques.contract import Workplace
    from squeeze.techniques.losses import next_token

    training_loop.SAVE_EVERY = 0.0  # seconds: a checkpoint after each step, where any is kept
    workplace = Workplace(options.folder / "work" if options.saves else None)
    training_loop.train(
        parameters, partial(next_token, model), rows, _plan(options), title="ours", workplace=workplace
    )


def theirs(model: Any, parameters: Sequence[Any], rows: Any, options: argparse.Namespace) -> None:
    """Train with transformers' trainer, by the same optimizer and schedule, on the same windows in the same order."""
    import torch
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainingArguments

    class InOrder(Trainer):
        def _get_train_sampler(self, *_: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    plan = _plan(options)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: plan.rate(min(step, plan.steps - 1)))
    order = torch.arange(plan.steps * plan.windows) % len(rows)
    work = options.folder / "work"
    arguments = TrainingArguments(
        output_dir=str(work), max_steps=plan.steps, per_device_train_batch_size=plan.windows, max_grad_norm=1.0,
        use_cpu=True, seed=0, report_to="none", disable_tqdm=True, logging_strategy="no", dataloader_pin_memory=False,
        save_strategy="steps" if options.saves else "no", save_steps=1, save_total_limit=2,
    )  # fmt: skip
    trainer = InOrder(
        model=model,
        args=arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in rows[order]],
        optimizers=(optimizer, schedule),
    )
    trainer.train(resume_from_checkpoint=True if list(work.glob("checkpoint-*")) else None)


def _plan(options: argparse.Namespace) -> Any:
    from squeeze.techniques.training_loop import Plan

    return Plan(options.steps, options.windows, learning_rate=4e-4)


if __name__ == "__main__":
    main()
