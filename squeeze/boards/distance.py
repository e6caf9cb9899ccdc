"""Print how far one model is from another, and write it as JSON: ``squeeze kld A B``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from squeeze.core.files import write_atomically
from squeeze.core.progress import console
from squeeze.records.distance import Distance, Guess, Layer, Worst
from squeeze.records.record import Estimate
from squeeze.records.sanitize import line
from squeeze.records.statistics import FEWEST_BLOCKS, TOKEN_BLOCK


def show(distance: Distance, json_file: Path | None = None) -> None:
    """Print the distance and, where a file is named, write it there as JSON."""
    out = console()
    out.print(_overall(distance))
    if distance.blocks < FEWEST_BLOCKS:
        blocks = f"{distance.blocks} blocks of {TOKEN_BLOCK} tokens"
        _note(out, f"no intervals: {blocks}, {FEWEST_BLOCKS} needed (--tokens 8192)")
    out.print(_worst(distance.worst))
    if distance.layers:
        out.print(_layers(distance.layers))
    else:
        _note(out, f"no comparison layer by layer: {distance.no_layers}")
    if json_file is not None:
        write_atomically(json_file, (json.dumps(distance.to_json(), indent=1, allow_nan=False) + "\n").encode())


def _overall(distance: Distance) -> Table:
    table = _table(f"A = {distance.a} (the reference), B = {distance.b}")
    for heading in ("", "value", "95 % interval"):
        table.add_column(heading, justify="right" if heading else "left", overflow="fold")
    for name, value, interval in _figures(distance):
        table.add_row(Text(name), value, interval)
    return table


def _figures(distance: Distance) -> Iterator[tuple[str, str, str]]:
    """Yield name, value and interval of each figure of the whole text."""
    windows = f"{distance.text}, windows of {distance.window:,}"
    yield line(f"tokens predicted ({windows})"), f"{distance.tokens:,}", ""
    yield "perplexity of A", f"{distance.perplexity_a:.4f}", ""
    yield "perplexity of B", f"{distance.perplexity_b:.4f}", ""
    yield (
        "perplexity of B / of A",
        f"{distance.perplexity_ratio.value:.4f}",
        _interval(distance.perplexity_ratio, ".4f"),
    )
    yield "KL(A || B), mean, nats", _nats(distance.kl.value), _interval(distance.kl, ".3g")
    for name, value in distance.kl_quantiles.items():
        yield f"    {name}", _nats(value), ""
    yield "same likeliest token", f"{distance.top1.value:.2%}", _interval(distance.top1, ".2%")


def _worst(worst: tuple[Worst, ...]) -> Table:
    table = _table("tokens that differ most (likeliest token, its probability; that of the token that follows)")
    for heading in ("KL", "context", "follows", "A", "B"):
        table.add_column(heading, justify="right" if heading == "KL" else "left", overflow="fold")
    for each in worst:
        cells = (line(f"... {each.context}"), _quoted(each.actual), _guess(each.a), _guess(each.b))
        table.add_row(_nats(each.kl), *(Text(cell) for cell in cells))
    return table


def _layers(layers: tuple[Layer, ...]) -> Table:
    alone = any(layer.alone for layer in layers)
    table = _table("hidden states of B against A's" + (", and of each block alone on A's" if alone else ""))
    headings = ["after", "error", "median token", "cosine"]
    headings += ["alone: error", "median token", "cosine"] if alone else []
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "after" else "right", overflow="fold")
    for layer in layers:
        errors = (layer.accumulated, layer.alone) if alone else (layer.accumulated,)
        cells: list[str] = []
        for each in errors:
            cells += (
                ["", "", ""]
                if each is None
                else [f"{each.error:.3%}", f"{each.median_error:.3%}", _cosine(each.cosine)]
            )
        table.add_row(Text(line(layer.name)), *cells)
    return table


def _table(title: str) -> Table:
    return Table(title=Text(line(title)), title_justify="left", box=SIMPLE_HEAD)


def _note(out: Console, text: str) -> None:
    out.print(Text(line(text), style="yellow"), soft_wrap=True)


def _interval(estimate: Estimate, form: str) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    return f"{estimate.low:{form}} to {estimate.high:{form}}"


def _nats(value: float) -> str:
    return f"{value:.3g}"


def _cosine(value: float) -> str:
    return f"{value:.5f}"


def _guess(guess: Guess) -> str:
    return f"{_quoted(guess.token)} {guess.probability:.1%} ({guess.of_actual:.2g})"


def _quoted(token: str) -> str:
    return line(repr(token))
