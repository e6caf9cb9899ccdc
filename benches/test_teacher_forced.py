"""Hold what was decoded, or classified, while the clock ran against the model that is scored, in every process.

It comes after the peaks of memory, which it would raise.
"""

import pytest

from squeeze.probes import encoded, first_tokens, rounding, teacher_forced
from squeeze.probes.latency import Prompts
from squeeze.probes.samples import Samples
from squeeze.runtimes.contract import Engine, TorchEngine, shows_model

ROWS = 2  # of a batch, at most: they take turns over the rounds, and nothing tells a forward which


@pytest.mark.kind("causal_lm")
def test_decoded_is_scored(engine: Engine, prompts: Prompts, samples: Samples, batch: int) -> None:
    """Read the prompt of decoding and all tokens behind it; and one of the prompts of prefill, with its first token."""
    generated, firsts = samples.values["generated"][str(batch)], samples.values["firsts"][str(batch)]
    chance = prompts.chance("checked", batch)
    rows = sorted(chance.sample(range(batch), min(ROWS, batch)))
    number = chance.randrange(len(firsts))
    with samples.stage("teacher_forced"):
        read, begun = prompts.draw("decode", batch, 0), prompts.draw("prefill", batch, number)
        decoded = [teacher_forced.gaps(engine, read[row], generated[row]) for row in rows]
        first = [teacher_forced.gaps(engine, begun[row], firsts[number][row : row + 1]) for row in rows[:1]]
    samples.put_entry("gaps", f"token_s/{batch}", decoded)
    samples.put_entry("gaps", f"ttft_s/{batch}", first)
    samples.values["coarse"] = teacher_forced.is_coarse(engine)


@pytest.mark.kind("causal_lm")
def test_first_token_by_length_is_scored(engine: Engine, prompts: Prompts, samples: Samples) -> None:
    """Read one prompt of each length of the curve with its first token, in parts: no call is as long as the timed one.

    So what leaves out work of long calls says other tokens here. A cache of its own has its own parts, and an engine
    that torch cannot look into reads each prompt at once.
    """
    timed = samples.values.get(first_tokens.FIRSTS, {})
    if not timed:
        return
    states = rounding.in_parts if shows_model(engine) and engine.subject.cache is None else None
    chance = prompts.chance("checked", first_tokens.PART)
    gaps = []
    with samples.stage("teacher_forced"):
        for tokens, firsts in timed.items():
            number = chance.randrange(len(firsts))
            asked = first_tokens.of_length(prompts, int(tokens)).draw(first_tokens.use(int(tokens)), 1, number)
            gaps += teacher_forced.gaps(engine, asked[0], firsts[number : number + 1], states)
    samples.put_entry("gaps", f"{first_tokens.TIMES}/1", [gaps])


@pytest.mark.kind("classifier")
def test_classified_is_scored(engine: TorchEngine, prompts: Prompts, samples: Samples, batch: int) -> None:
    """Read once more the texts of one of the calls that were timed; nothing tells a forward which."""
    answers = samples.values["answers"][str(batch)]
    number = prompts.chance("checked", batch).randrange(len(answers))
    with samples.stage("teacher_forced"):
        found = encoded.apart(engine, prompts.draw("encode", batch, number), answers[number])
    samples.put_entry("encode_apart", str(batch), found)
