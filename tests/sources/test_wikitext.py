"""Markup becomes running text and nothing else."""

from __future__ import annotations

import bz2
from pathlib import Path

import pytest

from squeeze.sources import wikitext

PAGE = "<page><title>{title}</title><ns>{ns}</ns>{redirect}<revision><text>{text}</text></revision></page>"
LONG = "A sentence of plain prose. " * 50


def dump(path: Path, *pages: str) -> Path:
    namespace = "http://www.mediawiki.org/xml/export-0.10/"
    path.write_bytes(bz2.compress(f'<mediawiki xmlns="{namespace}">{"".join(pages)}</mediawiki>'.encode()))
    return path


@pytest.mark.parametrize(
    ("markup", "prose"),
    [
        ("'''Bold''' and ''italic'' words.", "Bold and italic words."),
        ("A [[cat]], two [[cat|cats]].", "A cat, two cats."),
        ("[[File:Cat.jpg|thumb|A [[cat]]]]Text [[Category:Cats]][[de:Katze]]", "Text"),
        ("See [http://example.org the page] and [http://example.org].", "See the page and."),
        ("Said.<ref name='a'>{{cite web|title=No}}</ref> More.<ref name='a' />", "Said. More."),
        ("Far: {{convert|5|km|mi}}, in {{lang|fr|français}}.", "Far: 5 km, in français."),
        ("Greek ({{IPA|x}}; {{lang-el|y}}) word.", "Greek word."),
        ("Before.\n{| class='wikitable'\n|-\n| cell\n|}\nAfter.", "Before.\nAfter."),
        ("List:\n* one\n# two\n; three\n: four\nEnd.", "List:\nEnd."),
        ("Water is H<sub>2</sub>O &amp; more.<!-- no --><br />New line.", "Water is H2O & more.\nNew line."),
        ("If <math>x^2</math> is so, then.", "If is so, then."),
        ("Intro.\n== Story ==\nTold.\n== See also ==\n* [[No]]\n== External links ==\nNo.", "Intro.\nStory\nTold."),
        ("Intro.\n== Empty ==\n=== Full ===\nTold.", "Intro.\nFull\nTold."),
        ("Broken.<ref>never [closed", "Broken.never [closed"),
    ],
)
def test_prose(markup: str, prose: str) -> None:
    assert wikitext.prose(markup) == prose


def test_articles_are_long_enough_and_no_redirects_or_talk(tmp_path: Path) -> None:
    path = dump(
        tmp_path / "dump.xml.bz2",
        PAGE.format(title="First", ns=0, redirect="", text=LONG),
        PAGE.format(title="Moved", ns=0, redirect='<redirect title="First" />', text=LONG),
        PAGE.format(title="Talk:First", ns=1, redirect="", text=LONG),
        PAGE.format(title="Stub", ns=0, redirect="", text="Short."),
        PAGE.format(title="Second", ns=0, redirect="", text=LONG),
    )
    assert list(wikitext.articles(path)) == [("First", LONG.strip()), ("Second", LONG.strip())]
