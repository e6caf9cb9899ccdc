"""Explain the columns of leaderboard.csv, one line each: for ``squeeze show`` and for the reference of the docs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

WHOLE = "whole"  # the unit of counts


class Term(NamedTuple):
    """Say what a column holds. unit: what follows its value; "" for words, shares and ratios."""

    words: str
    unit: str = ""


def _memory(step: str, of: str) -> dict[str, Term]:
    return {
        f"{step}_peak_bytes": Term(f"peak memory of a process {of}; on CUDA, what torch allocated there", "bytes"),
        f"{step}_host_peak_bytes": Term(f"peak memory of the host's process {of}, on CUDA", "bytes"),
        f"{step}_peak_anon_bound_bytes": Term(f"peak of its own memory {of}, files left out, at most", "bytes"),
        f"{step}_rss_anon_bytes": Term(f"own memory {of}, at its end", "bytes"),
        f"{step}_rss_file_bytes": Term(f"mapped files in memory {of}, at its end", "bytes"),
        f"{step}_cuda_reserved_bytes": Term(f"what torch reserved on the device {of}", "bytes"),
        f"{step}_cuda_device_bytes": Term(f"what the device held more than before {of}", "bytes"),
    }


# By what they are about, in the order in which people ask.
GROUPS: Mapping[str, Mapping[str, Term]] = {
    "place on the board": {
        "rank": Term("1 + how many rows are shown better in perplexity", WHOLE),
        "rank_low": Term("the same as rank", WHOLE),
        "rank_high": Term("how many rows are not shown worse", WHOLE),
        "group": Term("rows of one letter are not told apart"),
        "coverage": Term("how many of the technique's cells on this board are ok"),
    },
    "size": {
        "bytes": Term("of the weight files", "bytes"),
        "bytes_on_disk": Term("of all files of the artifact", "bytes"),
        "effective_bits": Term("8 x bytes / parameters: scales, zeros, masks and embeddings included", "bits"),
        "block_effective_bits": Term("the same of the matrices that are compressed", "bits"),
        "running_bits": Term("that the code of a weight takes in memory while it runs", "bits"),
        "compression_ratio": Term("how many times as small as float32"),
        "compressed_share": Term("share of the parameters that the technique compressed"),
        "adapter_bytes": Term("of an adapter beside its base; more adapters need no other base", "bytes"),
        "cache_bytes_per_token": Term("that all layers keep of one token", "bytes"),
        "draft_bytes": Term("of a draft beside the model that it guesses for", "bytes"),
        "visual_tokens": Term("of a picture, as the first block reads it", WHOLE),
        "visual_tokens_kept": Term("of these, whose keys and values a block keeps, the mean of all blocks"),
        "bytes_real": Term("whether it is small on disk"),
        "memory_real": Term("whether it is small in memory while it runs"),
        "compute_real": Term("whether low-bit or skipped arithmetic runs, rather than dequantise-and-multiply"),
        "sparsity": Term("share of weights that are zero, recounted"),
        "input_sparsity": Term("share of the block multiplications that meet a zero made in a layer's input, counted"),
        "layers_kept": Term("share of the uncompressed model's blocks, counted; of rows that have fewer"),
        "channels_kept": Term("share of the channels of its MLPs, counted"),
        "heads_kept": Term("share of its heads, counted by their channels"),
        "hidden_kept": Term("share of its hidden size, counted"),
    },
    "speed": {
        "decode_tokens_per_s": Term("tokens decoded, one request at a time", "a second"),
        "decode_speedup": Term("how many times as fast it decodes as the uncompressed model", "times"),
        "drafting_speedup": Term("how many times as fast it decodes as without guesses, by kind of prompt", "times"),
        "accepted_tokens": Term("guessed tokens that are accepted a step, on average; one more is its own", "tokens"),
        "acceptance": Term("share of guessed tokens that are accepted"),
        "ttft_ms": Term("time to the first token", "ms"),
        "ttft_speedup": Term("how many times as fast to the first token as the uncompressed model", "times"),
        "encode_ms": Term("from token ids to their classes, of a classifier", "ms"),
        "items_per_s": Term("texts classified, one at a time", "a second"),
        "encode_speedup": Term("how many times as fast it classifies as the uncompressed model", "times"),
        "itl_p50_ms": Term("from a token to the next, median of each process", "ms"),
        "itl_p95_ms": Term("from a token to the next, 95th percentile of each process", "ms"),
        "itl_p99_ms": Term("from a token to the next, 99th percentile of each process", "ms"),
        "load_seconds": Term("from a process that has imported everything to a model that answers", "s"),
        "mbu": Term("share of the machine's read bandwidth that decoding uses"),
        "mfu": Term("share of the machine's peak arithmetic that the prompt uses"),
        "energy_j_per_token": Term("joules a decoded token, by the machine's own counters", "J"),
        "first_step_seconds": Term("of a process's first decoding step: where a graph is compiled, all of that", "s"),
        "speed_baseline": Term("dtype of the uncompressed model that speeds are compared with: the faster one"),
        "baseline_runtime": Term("that it runs in, where the row's own is another"),
        "cost_per_mtok": Term("price of a million tokens written, at --price an hour"),
        "cost_per_mtok_prefill": Term("price of a million tokens read, at --price an hour"),
    },
    "quality": {
        "perplexity": Term("of a token of the protocol's text"),
        "perplexity_delta": Term("change from the uncompressed model's of the same dtype, paired"),
        "perplexity_ood": Term("on text outside the domain of calibration"),
        "perplexity_ood_delta": Term("its change from the uncompressed model's"),
        "perplexity_held_out": Term("on other text of the kind that rows are ranked by; of baselines and better rows"),
        "perplexity_held_out_delta": Term("its change from the uncompressed model's"),
        "bits_per_byte": Term("loss in bits a byte of text, whatever the tokens"),
        "acc_pooled": Term("share of right answers, all tasks' items together"),
        "acc_pooled_delta": Term("its change from the uncompressed model's"),
        "retained_accuracy": Term("share of the accuracy that is kept at least (one-sided 95 %)"),
        "kl_divergence": Term("from the uncompressed model's predictions", "nats a token"),
        "kl_median": Term("the same, median over tokens", "nats"),
        "kl_p90": Term("the same, 90th percentile", "nats"),
        "kl_p99": Term("the same, 99th percentile", "nats"),
        "kl_confident": Term("the same where the uncompressed model is at least 0.9 sure", "nats a token"),
        "kl_likely": Term("the same where it is 0.5 to 0.9 sure", "nats a token"),
        "kl_unsure": Term("the same where it is less sure", "nats a token"),
        "kl_floor": Term("the uncompressed model from itself in another rounding: below it is no loss", "nats a token"),
        "kl_floor_median": Term("the same, median over tokens", "nats"),
        "kl_floor_p99": Term("the same, 99th percentile", "nats"),
        "top1_agreement": Term("share of tokens where both predict the same one"),
        "top1_floor": Term("the same of the uncompressed model with itself in another rounding"),
        "divergent_share": Term("share of tokens of greedy continuations that are not the uncompressed model's"),
        "divergent_floor": Term("the same of the uncompressed model with itself"),
        "first_divergence": Term("tokens before the first that differs, median over prompts", "tokens"),
        "repetition": Term("share of 4-grams in its continuations that their text had before"),
        "baseline_repetition": Term("the same of the uncompressed model"),
        "control": Term("attempt of its control: the uncompressed model trained on the same tokens"),
        "control_perplexity": Term("of its control"),
        "control_perplexity_ood": Term("of its control, on other text"),
        "perplexity_over_control": Term("ratio of its perplexity to its control's", "times"),
        "control_acc_pooled": Term("share of right answers of its control"),
        "acc_over_control": Term("its share of right answers less its control's"),
        "batch_dependent": Term("whether its scores depend on what else is in the batch"),
        "scored_as": Term("the forward that was scored, where it is not the one that was timed"),
        "scored_difference": Term("largest difference of a token's score between the two", "nats"),
        "greedy_agreement": Term("share of 512 positions where the runtime and eager find one token likeliest"),
        "greedy_within_rounding": Term("the same, where eager finds the runtime's token as likely but for rounding"),
        "parity_difference": Term("largest difference of a token's log-probability between the two", "nats"),
        "parity_kl": Term("of eager's predictions from the runtime's, on one artifact", "nats a token"),
        "decode_gap": Term("how far what was decoded lies below what the scored forward chooses", "deviations"),
        "decode_gap_allowed": Term("how far rounding explains", "deviations"),
        "causal_difference": Term("largest change of a token's score when other tokens follow it", "nats"),
    },
    "memory": {
        **_memory("load", "while loading"),
        **_memory("prefill", "while reading the prompt"),
        **_memory("decode", "while decoding"),
        **_memory("quality", "while scoring"),
        "context_fixed_bytes": Term(
            "peak of a process with no prompt at all, from a line through two lengths", "bytes"
        ),
        "context_bytes_per_token": Term("what that peak grows by with each token of the prompt that is held", "bytes"),
        "context_tokens_held": Term("tokens from which on it does not grow, of a cache that forgets", "tokens"),
        "max_context_estimated": Term("longest prompt that fits --memory: computed, not run", "tokens"),
        "positions": Term("that the model has", WHOLE),
    },
    "what it took": {
        "build_seconds": Term("of building it, calibration included", "s"),
        "build_seconds_marginal": Term("the same with the shared passes over the calibration text in the cache", "s"),
        "build_peak_bytes": Term("peak memory of the building process", "bytes"),
        "training_tokens": Term("of text that its steps were trained on, counted each time that they were read", WHOLE),
        "trainable_parameters": Term("that training changes, the most of any step", WHOLE),
        "trainable_share": Term("share of all parameters that training changes, where an adapter is trained"),
        "training_seconds": Term("of its optimizers' steps, killed builds' too; looks at held-out text left out", "s"),
        "training_joules": Term("of the same, by the machine's own counters, whoever used it", "J"),
        "process_overhead_seconds": Term("of a process's start, imports and collecting", "s"),
    },
    "what was asked": {
        "model": Term("name of the model"),
        "technique": Term("name of the technique"),
        "family": Term("of the technique"),
        "label": Term("name of the row; cells that would share one have what differs behind an @"),
        "dtype": Term("of the uncompressed weights"),
        "bits": Term("of a code"),
        "group_size": Term("weights that share a scale"),
        "levels": Term("of a grid of integers", WHOLE),
        "protocol": Term("name of the protocol"),
        "device": Term("it was measured on"),
        "runtime": Term("name of the runtime, where a table has rows of several"),
    },
    "how it went": {
        "status": Term("ok, unsupported, out_of_memory, timeout, crashed, diverged or invalid"),
        "stage": Term("in which it failed"),
        "reason": Term("why it failed"),
        "flags": Term("what must be known of it; `squeeze board` says them in words"),
        "verdict_reason": Term("why a verdict is ?"),
        "margins": Term("differences that verdicts count as none"),
        "inspected": Term("what was seen of an engine that torch cannot look into"),
        "isolation": Term("process: official; shared: `pytest benches`, no verdict on speed"),
        "timing": Term("interleaved, sequential or partly interleaved"),
        "rounds_ended": Term("why no further rounds were timed"),
        "prompts_left_out": Term("lengths of the curve that are not timed, and why"),
        "noise_floor": Term("against what the floors were taken"),
        "decode_difference": Term("largest relative difference of a layer's outputs between decoding and scoring"),
        "energy": Term("whether the machine counts its energy"),
        "training_energy": Term("whether the machine that trained it counts its energy"),
        "gomp_spincount": Term("how long OpenMP's threads spun, waiting"),
    },
    "identity": {
        "fingerprint": Term("sha256 of the machine and the software that measured"),
        "beside": Term("fingerprint of the eager rows that it was timed beside; of tables with several runtimes"),
        "board": Term("rows of one may be compared"),
        "key": Term("sha256 of the request"),
        "artifact_key": Term("sha256 of what the build depends on"),
        "attempt": Term("at measuring it"),
        "finished": Term("when"),
        "price_per_hour": Term("--price, which costs were computed with"),
        "memory_budget_bytes": Term("--memory, which the longest context was computed with", "bytes"),
    },
}
TERMS: Mapping[str, Term] = {name: term for group in GROUPS.values() for name, term in group.items()}
# The same words of classifiers, whose unit is a text.
OF_CLASSIFIERS: Mapping[str, Term] = {
    "kl_divergence": Term("from the uncompressed model's class probabilities", "nats a text"),
    "kl_median": Term("the same, median over texts", "nats"),
    "top1_agreement": Term("share of texts that both put into one class"),
    "batch_dependent": Term("whether its answers depend on what else is in the batch"),
}
BATCH = re.compile(r"(.+)_b(\d+)")
LENGTH = re.compile(r"(ttft_ms|ttft_speedup|cost_per_mtok_prefill)_at_(\d+)")
KIND = re.compile(r"(drafting_speedup|accepted_tokens|acceptance)_((?!low|high)[a-z]+)")
TASK = re.compile(r"acc_(\w+?)(_delta)?")
# What is known of a figure besides its value, in columns of their own.
PARTS: Mapping[str, str] = {
    "low": "lower end of the 95 % interval; of times and memory, the least of the rounds",
    "high": "upper end of it, the greatest of the rounds",
    "p_value": "of no difference, before correction for the board",
    "n": "independent units behind it",
    "stderr": "standard error",
    "verdict": "faster, slower, better, worse, equal, undecided or ?, corrected (Holm) for the board",
    "within": "how far from no difference it may lie, where it is equal or undecided",
    "detectable": "the smallest difference that such a measurement shows in 80 % of tries",
}


def term(column: str) -> Term | None:
    """Return what a column holds: one of TERMS, of a batch size, of a prompt's length or kind, or of a task.

    None for one that nobody explained.
    """
    if column in TERMS:
        return TERMS[column]
    if (found := BATCH.fullmatch(column)) and (known := TERMS.get(found[1])):
        return known._replace(words=f"{known.words}; {found[2]} requests at a time")
    if found := LENGTH.fullmatch(column):
        return (known := TERMS[found[1]])._replace(words=f"{known.words}; of a prompt of {found[2]} tokens")
    if found := KIND.fullmatch(column):
        return (known := TERMS[found[1]])._replace(words=f"{known.words}; of prompts of kind {found[2]}")
    if found := TASK.fullmatch(column):
        return Term(f"{'change of the ' if found[2] else ''}share of right answers in {found[1]}")
    return None


def group_of(column: str) -> str:
    """Return the group of a column in GROUPS; tasks are of quality, and what nobody explained of how it went."""
    found = BATCH.fullmatch(column) or LENGTH.fullmatch(column) or KIND.fullmatch(column)
    plain = found[1] if found else column
    named = next((name for name, terms in GROUPS.items() if plain in terms), None)
    return named or ("quality" if TASK.fullmatch(column) else "how it went")
