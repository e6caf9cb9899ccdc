"""Turn a dump of Wikipedia's markup into prose."""

from __future__ import annotations

import bz2
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ITEM = "\0"  # stands at the start of a line that was an item of a list
NOT_PROSE = (ITEM, *"*#:;|!{}", "[[")  # lists; rows of tables and links that nothing closes
SHORTEST_ARTICLE = 1000  # characters of prose; below lie disambiguation pages and stubs

DROPPED_TAGS = frozenset(
    {"ref", "references", "table", "gallery", "math", "timeline", "source", "code", "imagemap", "chem"}
)
LIST_TAGS = frozenset({"li", "dd", "dt"})
WORD = re.compile(r"[^\W\d_]{2}")
# Links that show no text of their own: images, categories, other languages.
HIDDEN_LINK = re.compile(r"\s*(file|image|category|media|[a-z]{2,3}(-[a-z]+)?)\s*:", re.IGNORECASE)
# Templates whose text belongs to the sentence, with the place of that text among their parameters.
SPOKEN_TEMPLATES = {"lang": 1, "transl": 1, "nowrap": 0, "nobr": 0, "small": 0, "smaller": 0, "as of": 0, "angbr": 0}
MEASURES = frozenset({"convert", "cvt"})  # {{convert|5|km}}: "5 km"
# Sections at the end of an article that list things instead of telling them.
APPENDICES = frozenset(
    {
        *(
            "see also",
            "references",
            "notes",
            "notes and references",
            "footnotes",
            "citations",
            "sources",
            "works cited",
        ),
        *("external links", "further reading", "bibliography", "general references", "filmography", "discography"),
    }
)
# What dropped templates and references leave behind: "( , ; )", " ,", doubled blanks.
TIDIES = (
    (re.compile(r"<ref[^>]*>.*?</ref>|</?[a-z][^>]*>|__[A-Z]+__"), ""),  # tags that nothing closes are left unparsed
    (re.compile(r"\(\s*[,;:.\s]*\)"), ""),
    (re.compile(r"\(\s*[,;:]\s*"), "("),
    (re.compile(r"[ \t\xa0]+"), " "),
    (re.compile(r" +([,.;:)])"), r"\1"),
)


def articles(dump: Path) -> Iterator[tuple[str, str]]:
    """Yield title and prose of each article of a MediaWiki XML dump (bz2), in the order of the dump.

    Redirects, other namespaces and articles shorter than ``SHORTEST_ARTICLE`` are left out; of the rest, the running
    text is kept: no references, tables, images, lists, formulas or appendices.
    """
    with bz2.open(dump) as file:
        for _, page in ElementTree.iterparse(file):
            if not page.tag.endswith("}page"):
                continue
            if page.findtext("{*}ns") == "0" and page.find("{*}redirect") is None:
                text = prose(page.findtext("{*}revision/{*}text") or "")
                if len(text) >= SHORTEST_ARTICLE:
                    yield page.findtext("{*}title") or "", text
            page.clear()


def prose(markup: str) -> str:
    """Return the running text of one article: paragraphs and headings, one a line."""
    import mwparserfromhell

    lines = (_tidy(line) for line in _text(mwparserfromhell.parse(markup)).splitlines())
    kept = _without_appendices([line for line in lines if WORD.search(line) and not line.startswith(NOT_PROSE)])
    return "\n".join(line.strip("= ") if _heading(line) else line for line in kept)


def _text(code: Any) -> str:
    return "".join(_node_text(node) for node in code.nodes)


def _node_text(node: Any) -> str:
    match type(node).__name__:
        case "Text":
            return str(node.value)
        case "HTMLEntity":
            return str(node.normalize())
        case "Heading":
            return f"\n== {_text(node.title).strip()} ==\n"
        case "Wikilink":
            return "" if HIDDEN_LINK.match(str(node.title)) else _text(node.text or node.title)
        case "ExternalLink":
            return _text(node.title) if node.title is not None else ""
        case "Tag":
            return _tag_text(node)
        case "Template":
            return _template_text(node)
    return ""  # comments, arguments


def _tag_text(node: Any) -> str:
    tag = str(node.tag).strip().lower()
    if tag in DROPPED_TAGS:
        return ""
    if tag in LIST_TAGS:
        return ITEM
    return "\n" if tag == "br" else _text(node.contents)


def _template_text(node: Any) -> str:
    name, values = (
        str(node.name).strip().lower(),
        [parameter.value for parameter in node.params if not parameter.showkey],
    )
    if name in MEASURES and len(values) >= 2:
        return f"{_text(values[0])} {_text(values[1])}"
    place = SPOKEN_TEMPLATES.get(name)
    return _text(values[place]) if place is not None and place < len(values) else ""


def _tidy(line: str) -> str:
    for pattern, replacement in TIDIES:
        line = pattern.sub(replacement, line)
    return line.strip()


def _heading(line: str) -> str | None:
    return line.strip("= ") if line.startswith("==") and line.endswith("==") else None


def _without_appendices(lines: list[str]) -> list[str]:
    """Cut at the first appendix; a heading under which nothing is left goes too."""
    headings = [_heading(line) for line in lines]
    end = next((i for i, heading in enumerate(headings) if heading and heading.lower() in APPENDICES), len(lines))
    return [line for i, line in enumerate(lines[:end]) if not headings[i] or (i + 1 < end and not headings[i + 1])]
