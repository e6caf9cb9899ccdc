"""Keep out of records what they must not tell, and off the terminal what would steer it.

What they must not tell: secrets, absolute paths, the name of the user.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from squeeze.records.record import Record

# A text without any of these holds no SECRET; looking for them first makes a thousand records take no second.
MARKS = (
    *("hf_", "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "AKIA", "xox", "PRIVATE KEY"),
    *("TOKEN", "SECRET", "PASSW", "API_KEY", "APIKEY", "token=", "secret=", "password=", "passwd=", "key=", "Bearer"),
)
# Tokens that services give out, recognised by their prefix; private keys; what a variable so called was set to.
SECRET = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[\w-]{20,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{20,}"
    r"|\bAKIA[A-Z0-9]{16}\b|\bxox[abpr]-[\w-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY)\w*\\?[\"']?\s*[=:]\s*\\?[\"']?[\w./+-]{8,}"
    r"|(?:token|secret|password|passwd|api_?key)=[\w./+-]{8,}|\bBearer [\w./+-]{8,}"
)
# Controls, what turns the direction of text or has no width, halves of a pair of surrogates: no name needs them.
STEERING = (
    r"\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    r"\ud800-\udfff\U000e0000-\U000e007f"
)
STEERS = re.compile(f"[{STEERING}]")
# What colours a terminal, moves its cursor, or names its window: a whole sequence, so that nothing of it remains.
SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?)")
WINDOWS_PATH = re.compile(r"\b[A-Za-z]:\\\\?\w+\\")
SHOWN = 6  # characters of a secret that a finding repeats


def leaks(record: Record, text: str) -> Iterator[str]:
    """Yield each kind of thing in a record that should not be there. text: the record's JSON as it lies in the file."""
    if any(mark in text for mark in MARKS) and (secret := SECRET.search(text)):
        yield f"holds what looks like a secret ({secret.group()[:SHOWN]}...); revoke it, then delete the record"
    path = ABSOLUTE_PATH.search(text) or (WINDOWS_PATH.search(text) if ":\\" in text else None)
    if path:
        yield f"holds an absolute path ({path.group()})"
    free = " ".join([record.reason, *record.log_tail.split()])
    if not path and public(free) != line(free):
        yield "its reason or log_tail holds the name of the user"


def line(text: str) -> str:
    """Return one printable line: what a file or its name says may neither steer a terminal nor break a table."""
    plain = SEQUENCE.sub("", text)
    return " ".join("".join(letter if letter.isprintable() else " " for letter in plain).split())


ABSOLUTE_PATH = re.compile(r"(?<![\w:/.])~?(?:/[\w.+@%=-]+)+/([\w.+@%=-]+)")


def public(text: str) -> str:
    """Return the text as a `line`, without absolute paths (the last part of each stays) and the user's name."""
    text = ABSOLUTE_PATH.sub(r"\1", line(text))
    user = Path.home().name
    return text if user in {"", "root"} else re.sub(rf"\b{re.escape(user)}\b", "user", text)
