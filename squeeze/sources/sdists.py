"""Fetch members of pinned source archives as files: nothing is installed, imported, built or run.

`pip download` runs the set-up code of a source archive, to learn what it depends on, and has no option that keeps it
from that. So the archive is asked of the package index itself, by the protocol that every index speaks (PEP 503): a
page of links for each project, one for each of its files. Which index that is, pip says: the one that it is set to use,
by PIP_INDEX_URL or its configuration, else its own default.
"""

from __future__ import annotations

import ast
import base64
import gzip
import html
import http.client
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import urllib.error
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit, urlunsplit
from urllib.request import HTTPRedirectHandler, HTTPSHandler, Request, build_opener

from squeeze.core import cache
from squeeze.core.errors import IntegrityError, SqueezeError, TransientError, hint
from squeeze.core.hashing import digest
from squeeze.core.progress import Advance, progress
from squeeze.sources.wheels import NO_NETWORK, REQUIREMENT, check_pinned, check_safe, only_file

INSIDE = "!/"  # parts the name of an archive within the archive from that of its member
ENDING = ".tar.gz"
PATIENCE = 60.0  # seconds that the index may take for an answer
PIECE = 1 << 20  # bytes
ACCEPTED = "application/vnd.pypi.simple.v1+html, text/html;q=0.9, */*;q=0.1"

LINK = re.compile(r"""<a\s[^>]*?href\s*=\s*["']([^"']+)["'][^>]*>\s*([^<]+?)\s*</a>""", re.IGNORECASE)
SEPARATORS = re.compile(r"[-_.]+")
INDEX_IN_HELP = re.compile(r"--index-url <url>.*?\(default\s+(\S+?)\)", re.DOTALL)
DAMAGED = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError)


def member(requirement: str, archive_sha256: str, name: str, member_sha256: str | None) -> Path:
    """Return the file ``name`` out of the source archive of ``NAME==VERSION``, verified, in the cache.

    name: the path in the archive, its top folder included; ``INNER.tar.gz!/PATH`` for a file of an archive in it.
    Raises SqueezeError for a requirement without an exact version, no network, a member that is not there, no file, or
    not safe; IntegrityError, with both hashes, where the archive or the member is not the pinned one.
    """
    names = name.split(INSIDE)
    for part in names:
        check_safe(part)
    file_name = PurePosixPath(names[-1]).name

    def extract(folder: Path) -> None:
        with archive(requirement, archive_sha256).open("rb") as whole:
            _extract(whole, requirement, names, folder / file_name)
        if member_sha256 is not None:
            check_pinned(folder / file_name, member_sha256)

    pinned = digest([requirement, archive_sha256, name, member_sha256])
    return cache.sealed(f"members/{file_name}-{pinned[:16]}", extract) / file_name


def archive(requirement: str, expected_sha256: str) -> Path:
    """Return the source archive itself, in the cache; it is downloaded once."""
    if not REQUIREMENT.fullmatch(requirement):
        raise SqueezeError(f"pypi-sdist:{requirement}: expected NAME==VERSION, such as vaderSentiment==3.3.2")

    def download(folder: Path) -> None:
        with progress(f"fetching {requirement}") as advance, _in_one_line(requirement):
            settings = _pip_settings()
            with _opened(_address(requirement, settings), settings) as source:
                _save(source, folder / f"{requirement}{ENDING}", advance)
        check_pinned(only_file(folder), expected_sha256)

    return only_file(cache.sealed(f"wheels/{requirement}-{expected_sha256[:16]}", download))


def _address(requirement: str, settings: Mapping[str, str]) -> str:
    """Return where the index says that the archive of NAME==VERSION lies."""
    name, _, version = requirement.partition("==")
    page = f"{_index(settings).rstrip('/')}/{_normal(name)}/"
    with _opened(page, settings) as source:
        found = {html.unescape(text): html.unescape(link) for link, text in LINK.findall(source.read().decode())}
    archives = [file for file in found if file.endswith(ENDING)]
    for file in archives:
        project, _, its_version = file.removesuffix(ENDING).rpartition("-")
        if (_normal(project), its_version) == (_normal(name), version):
            return urldefrag(urljoin(page, found[file])).url
    wanted = f"{name}-{version}{ENDING}"
    raise SqueezeError(f"pypi-sdist:{requirement}: the package index has no {wanted}; {hint(wanted, archives)}")


def _index(settings: Mapping[str, str]) -> str:
    """Return the address of the index that pip is set to use, else of its own default, which its help names."""
    for chosen in (":env:.index-url", "download.index-url", "global.index-url"):
        if chosen in settings:
            return settings[chosen]
    found = INDEX_IN_HELP.search(_pip("download", "--help"))
    if found is None:
        raise SqueezeError("pip names no package index; set PIP_INDEX_URL to the address of one")
    return found[1]


def _pip_settings() -> dict[str, str]:
    """Return what pip is set to by its configuration and the environment: ``global.cert`` -> its value, ..."""
    pairs = (line.partition("=") for line in _pip("config", "list").splitlines())
    return {name: str(ast.literal_eval(value)) for name, _, value in pairs if value[:1] in ("'", '"')}


def _pip(*arguments: str) -> str:
    """Return what a command of pip's prints, no line of it broken."""
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "1000"}, check=False)
    return done.stdout


def _opened(address: str, settings: Mapping[str, str]) -> http.client.HTTPResponse:
    """Ask for an address of http or https, with the user and password that it may hold; return the answer.

    Where it leads on to another server, user and password stay behind: that may be anybody's.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https"):
        raise SqueezeError(
            f"a package index of {parts.scheme or 'no scheme'} cannot be asked for a source archive, expected http or "
            "https; set PIP_INDEX_URL"
        )
    request = Request(urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])), headers={"Accept": ACCEPTED})
    if parts.username:
        secret = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(secret.encode()).decode()}")
    certificates = settings.get(":env:.cert") or settings.get("global.cert")
    secure = HTTPSHandler(context=ssl.create_default_context(cafile=certificates))
    answer: http.client.HTTPResponse = build_opener(secure, _Onward).open(request, timeout=PATIENCE)
    return answer


class _Onward(HTTPRedirectHandler):
    """Follow where an index leads on to, with user and password as long as it is the same server."""

    def redirect_request(self, req: Request, *arguments: Any) -> Request | None:
        onward = super().redirect_request(req, *arguments)
        if onward is not None and (onward.type, onward.host) == (req.type, req.host):
            for name, secret in req.unredirected_hdrs.items():
                onward.add_unredirected_header(name, secret)
        return onward


def _save(source: http.client.HTTPResponse, path: Path, advance: Advance) -> None:
    """Write an answer's body to a file. Raises IncompleteRead where the connection ends before it does."""
    done = 0
    with path.open("wb") as sink:
        while piece := source.read(PIECE):
            sink.write(piece)
            done += len(piece)
            advance(done)
    if source.length:  # so many bytes are to come still: read in pieces, it ends without a word
        raise http.client.IncompleteRead(b"", source.length)


@contextmanager
def _in_one_line(requirement: str) -> Iterator[None]:
    """Raise what the network answers as one line, without the address: it may hold a password."""
    try:
        yield
    except urllib.error.HTTPError as error:
        message = f"pypi-sdist:{requirement}: the package index answers {error.code} ({error.reason})"
        raise (TransientError if error.code >= 500 else SqueezeError)(message) from error
    except http.client.IncompleteRead as error:
        raise TransientError(
            f"pypi-sdist:{requirement}: the package index's answer ended early, expected all of it; ask again"
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise TransientError(
            f"pypi-sdist:{requirement}: {NO_NETWORK}: the package index cannot be reached; connect once, afterwards the"
            " cache serves it"
        ) from error


def _extract(whole: IO[bytes], title: str, names: Sequence[str], target: Path) -> None:
    """Copy one file out of a tar archive, or out of the archive in it that the names before the last lead to."""
    try:
        with tarfile.open(fileobj=whole, mode="r:gz") as tar:
            entries: dict[str, Any] = {entry.name.removeprefix("./"): entry for entry in tar if entry.isfile()}
            if names[0] not in entries:
                raise SqueezeError(f"{title} has no file {names[0]!r}; {hint(names[0], entries)}")
            source = tar.extractfile(entries[names[0]])
            assert source is not None  # it is a file
            if len(names) > 1:
                _extract(source, names[0], names[1:], target)
                return
            with target.open("wb") as sink:
                shutil.copyfileobj(source, sink, length=PIECE)
    except DAMAGED as error:
        raise IntegrityError(f"{title}: no readable archive ({type(error).__name__}); give another member") from error


def _normal(name: str) -> str:
    """Return a project's name as indexes spell it (PEP 503)."""
    return SEPARATORS.sub("-", name).lower()
