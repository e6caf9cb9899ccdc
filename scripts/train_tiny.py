"""Train the model that the package ships for first runs, squeeze/sources/packaged/tiny: minutes on one core.

A Llama of 0.3 M parameters with 512 byte-level tokens, trained on wikipedia_train, of which no article is evaluated.
The same on one kind of processor, with one version of torch; elsewhere as good. Prints what conf/model/tiny.yaml pins.
"""

import argparse
import math
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from squeeze.core.hashing import folder_digest
from squeeze.core.paths import PACKAGE
from squeeze.sources import corpora

END, PAD = "<|endoftext|>", "<|pad|>"
VOCABULARY = 512
LONGEST = 2048  # tokens
PHASES = ((256, 16, 500), (1024, 4, 250))  # tokens of a window, windows a step, steps: short windows are cheaper
LEARNING_RATE, WARM_UP = 6e-3, 30
SEED = 0


def main() -> None:
    """Train, save in bfloat16, and print the perplexity on other articles and the hash of the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=PACKAGE / "sources" / "packaged" / "tiny")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    text = corpora.text("wikipedia_train")
    tokenizer = trained_tokenizer(text)
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    print(f"{len(text):,} characters, {len(ids):,} tokens, unigram perplexity {unigram(ids):.1f}", flush=True)
    model = LlamaForCausalLM(config(tokenizer))
    print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters", flush=True)
    train(model, ids)
    model.eval().bfloat16().save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    held_out = corpora.tokens("wikipedia_eval", tokenizer, 8192).view(8, 1024)
    with torch.no_grad():
        print(f"perplexity on wikipedia_eval {math.exp(loss(model, held_out)):.2f}")
    print(f"sha256: {folder_digest(out)}")


def trained_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of VOCABULARY tokens, the two special ones first."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(text.split("\n"), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=END, eos_token=END, pad_token=PAD, model_max_length=LONGEST
    )


def config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return the shape: groups of 64 divide every input width."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LONGEST,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def train(model: LlamaForCausalLM, ids: torch.Tensor) -> None:
    """Run AdamW over windows at random places, its rate falling from LEARNING_RATE to nothing as a cosine does."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.05)
    steps = sum(count for _, _, count in PHASES)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda at: min(1.0, (at + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * at / steps))
    )
    for window, batch, count in PHASES:
        for step in range(count):
            starts = torch.randint(len(ids) - window, (batch,))
            found = loss(model, torch.stack([ids[start : start + window] for start in starts.tolist()]))
            optimizer.zero_grad()
            found.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if step % 50 == 0:
                print(f"windows of {window}, step {step} of {count}: loss {found.item():.3f}", flush=True)


def loss(model: LlamaForCausalLM, windows: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of the tokens that windows, (batch, length), predict: nats."""
    logits = model(windows).logits[:, :-1].float()
    return cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


def unigram(ids: torch.Tensor) -> float:
    """Return the perplexity of knowing only how often each token occurs."""
    shares = torch.bincount(ids, minlength=VOCABULARY).double() / len(ids)
    return math.exp(-torch.special.xlogy(shares, shares).sum().item())


if __name__ == "__main__":
    main()
