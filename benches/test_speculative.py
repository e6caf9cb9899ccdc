"""Hold what is said by guessing against plain greedy decoding, in every process, and time both by kind of prompt.

It comes after the peaks of memory, which two generations at a time would raise. Of rows that guess nothing there is
nothing to do.
"""

import pytest

from squeeze.probes import drafting
from squeeze.probes.latency import Prompts
from squeeze.probes.samples import Samples
from squeeze.runner.jobs.job import Job
from squeeze.runtimes.contract import Engine, drafts
from squeeze.sources.prompts import KINDS, prompt


@pytest.mark.kind("causal_lm")
def test_what_was_timed_is_plain_decoding(engine: Engine, prompts: Prompts, samples: Samples, batch: int) -> None:
    """Decode behind the prompt of decoding once more, without guesses: the same tokens."""
    if not drafts(engine):
        return
    with samples.stage("drafting"):
        said = samples.values["generated"][str(batch)]
        drafting.check_timed(engine, prompts.draw("decode", batch, 0), said, f"the timed prompt, batch {batch}")


@pytest.mark.kind("causal_lm")
def test_kinds_of_prompts(job: Job, engine: Engine, samples: Samples) -> None:
    """Decode behind one prompt of each kind, another one in each round, with guesses and without."""
    if not drafts(engine):
        return
    corpus, device = job.cell.protocol["perplexity"]["corpus"], job.cell.runtime["device"]
    with samples.stage("drafting"):
        texts = {kind: prompt(kind, job.round, engine.tokenizer, corpus).to(device) for kind in KINDS}
        drafting.warm(engine, texts[KINDS[0]])
        for number, (kind, text) in enumerate(texts.items()):
            drafted_first = (job.round + number) % 2 == 1
            what = f"prompt {job.round + 1} of kind {kind}"
            found = drafting.side_by_side(engine, text, what, samples.clock, drafted_first=drafted_first)
            samples.put_entry("drafting", kind, found.figures())
