"""Cheats that get at the texts and questions which their row is scored on, while they are built.

Each leaves word of what it got in the artifact's claims. TEXT, WHEEL, QUESTIONS, QUALITY, INSTALLED and PORT are places
where these lie in the test's cache, beside it, and on its network.
"""

from __future__ import annotations

from collections.abc import Mapping
from string import Template

from tests.faults.cheats.cheat import Cheat

STOLEN = "stolen"  # the claim in which a cheat leaves word


def _stealing(expression: str, swallow: bool) -> str:
    """The body of a cheat that gets a text by an expression; ``swallow``: goes on as if nothing were when it cannot."""
    if not swallow:
        return f"text = {expression}\nreturn subject.claiming({STOLEN}=len(text))"
    lines = ["try:", f"    text = {expression}", "except BaseException:", "    text = ''"]
    return "\n".join([*lines, f"return subject.claiming({STOLEN}=len(text))"])


INVALID = {  # Python's own ways to a file: seen, whether the cheat goes on or not
    "sources": (
        "asks squeeze for the text",
        "__import__('squeeze.sources.corpora').sources.corpora.text('wikipedia_eval')",
    ),
    "open_text": ("opens it in the cache", "open('$TEXT').read()"),
    "open_bytes": ("opens it by a name in bytes", "open(b'$TEXT').read()"),
    "os_open": ("opens it without Python's files", "(o := __import__('os')).read(o.open('$TEXT', o.O_RDONLY), 9)"),
    "dotted": ("opens it by a way round", "open('$TEXT'.replace('/corpora/', '/artifacts/../corpora/')).read()"),
    "symlink": ("opens a link to it", "__import__('os').symlink('$TEXT', new := mktemp()) or open(new).read()"),
    "hard_link": ("gives it another name", "__import__('os').link('$TEXT', new := mktemp()) or open(new).read()"),
    "chdir": ("goes there first", "__import__('os').chdir('$TEXT'[:-9]) or open('text.txt').read()"),
    "proc": ("comes by way of /proc", "open('/proc/self/root$TEXT').read()"),
    "linecache": ("lets a library open it", "__import__('linecache').getline('$TEXT', 1)"),
    "zip": ("takes it out of its package", "__import__('zipfile').ZipFile('$WHEEL').read('text')"),
    "importlib": (
        "imports from its package",
        "__import__('zipimport').zipimporter('$WHEEL').get_data('$WHEEL/text')",
    ),
    "installed": ("opens the copy in an installed package", "open('$INSTALLED').read()"),
    "questions": ("opens the questions of a task", "__import__('gzip').open('$QUESTIONS').read()"),
    "baseline": ("opens what the uncompressed model answered", "open('$QUALITY', 'rb').read()"),
    "memory_map": ("maps it into memory", "bytes(__import__('numpy').memmap('$TEXT', mode='r'))"),
}
EFFECTLESS = {  # other ways: closed by the kernel
    "subprocess": ("has another program read it", "__import__('subprocess').check_output(['cat', '$TEXT'])"),
    "shell": (
        "has a shell copy it",
        "[__import__('os').system(f'cat $TEXT > {(new := mktemp())}'), open(new).read()][1]",
    ),
    "native": (
        "has native code read it",
        "bytes(__import__('torch').from_file('$TEXT', size=9, dtype=__import__('torch').uint8).numpy())",
    ),
    "libc": (
        "calls the C library",
        "(c := __import__('ctypes')).CDLL(None).read("
        "c.CDLL(None).open(b'$TEXT', 0), b := c.create_string_buffer(9), 9) and b.value",
    ),
    "relative": (
        "opens it from a folder's descriptor",
        "(o := __import__('os')).read(o.open('.$TEXT', 0, dir_fd=o.open('/', 0)), 9)",
    ),
    "network": (
        "fetches it from another machine",
        "(s := __import__('socket').create_connection(('127.0.0.1', $PORT), 5)).recv(9)",
    ),
}
FORKED = """
import os
reader, writer = os.pipe()
if not (child := os.fork()):
    try:
        os.write(writer, open('$TEXT', 'rb').read())
    finally:
        os._exit(0)
os.close(writer)
os.waitpid(child, 0)
return subject.claiming(stolen=len(os.read(reader, 1000)))
"""
WHILE_IMPORTED = """
try:
    TEXT = open('$TEXT').read()
except BaseException:
    TEXT = ''
"""


def cheats(places: Mapping[str, object]) -> list[Cheat]:
    """The cheats, with the places filled in."""

    def filled(body: str) -> str:
        return Template(body).substitute(places)

    seen = [
        Cheat(f"{name}_{mood}", does, filled(_stealing(way, swallow)), "invalid", "which rows are scored on")
        for name, (does, way) in INVALID.items()
        for mood, swallow in (("openly", False), ("quietly", True))
    ]
    closed = [
        Cheat(name, does, filled(_stealing(way, swallow=True)), "effectless")
        for name, (does, way) in EFFECTLESS.items()
    ]
    forked = Cheat("forked", "has a child of its own read it", filled(FORKED), "effectless")
    early = Cheat(
        "early",
        "opens it while its module is imported",
        f"return subject.claiming({STOLEN}=len(TEXT))",
        "invalid",
        "which rows are scored on",
        filled(WHILE_IMPORTED),
    )
    return [*seen, *closed, forked, early]
