"""Finding the pinned file the way this machine's pip would."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import httpx2
import pytest

from cutlayer.errors import DownloadError
from cutlayer.store.index import IndexSettings, find_file, pip_settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def client() -> Iterator[httpx2.Client]:
    with httpx2.Client(timeout=5) as opened:
        yield opened


def html(site, entry, fragment: str = "") -> None:
    link = f'<a href="../../files/{entry.source.wheel}{fragment}" data-requires-python="&gt;=3">x</a>'
    site.offer("/simple/tiny-model/", f"<!DOCTYPE html><body>{link}</body>".encode(), "text/html; charset=utf-8")


def test_pip_is_asked_for_its_files_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "pip.conf"
    written.write_text("[global]\nindex-url = http://files/simple\nextra-index-url = http://more/simple\ntimeout = 7\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(written))
    monkeypatch.setenv("PIP_INDEX_URL", "http://variable/simple")
    monkeypatch.setenv("PIP_PROXY", "http://proxy:3128")
    settings = pip_settings()
    assert settings.index_url == "http://variable/simple"
    assert settings.extra_index_urls == ["http://more/simple"]
    assert settings.timeout == 7
    assert settings.proxy == "http://proxy:3128"


def test_without_configuration_pip_knows_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_INDEX_URL")
    assert pip_settings().index_url.startswith("https://")


def test_broken_pip_configuration_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = tmp_path / "pip.conf"
    written.write_text("no section")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(written))
    with pytest.raises(DownloadError, match=r"pip could not be asked.*pip config list"):
        pip_settings()


def test_no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(DownloadError, match="nonexistent"):
        pip_settings()


def test_json_index(index, entry, client) -> None:
    settings = IndexSettings(index_url=f"{index.url}/simple")
    assert find_file(entry.source, settings, client) == f"{index.url}/files/{entry.source.wheel}"


def test_html_index(index, entry, client) -> None:
    html(index, entry, f"#sha256={entry.source.wheel_sha256}")
    settings = IndexSettings(index_url=f"{index.url}/simple/")
    assert find_file(entry.source, settings, client) == f"{index.url}/files/{entry.source.wheel}"


def test_a_page_that_lists_another_digest_is_passed_over(index, entry, client) -> None:
    html(index, entry, "#sha256=" + "0" * 64)
    settings = IndexSettings(index_url=f"{index.url}/simple")
    with pytest.raises(DownloadError, match=r"sha256=0000.*not the pinned one"):
        find_file(entry.source, settings, client)


def test_second_index_is_asked_when_the_first_fails(index, entry, client) -> None:
    settings = IndexSettings(index_url="http://127.0.0.1:1/simple", extra_index_urls=[f"{index.url}/simple"])
    assert find_file(entry.source, settings, client).startswith(index.url)


def test_directories_of_this_machine_come_first(index, entry, client, tmp_path: Path) -> None:
    links = tmp_path / "wheels"
    links.mkdir()
    (links / entry.source.wheel).write_bytes(entry.wheel)
    settings = IndexSettings(index_url=f"{index.url}/simple", find_links=[str(links)])
    assert find_file(entry.source, settings, client) == (links / entry.source.wheel).as_uri()
    assert index.asked == []


def test_no_index_asks_no_index(index, entry, client) -> None:
    settings = IndexSettings(index_url=f"{index.url}/simple", no_index=True)
    with pytest.raises(DownloadError, match="no index configured"):
        find_file(entry.source, settings, client)
    assert index.asked == []


def test_every_reason_is_named(site, entry, client, tmp_path: Path) -> None:
    site.offer("/broken/tiny-model/", b"{}", "application/vnd.pypi.simple.v1+json")
    settings = IndexSettings(
        index_url=f"{site.url}/simple",
        extra_index_urls=[f"{site.url}/broken", tmp_path.as_uri()],
        find_links=[str(tmp_path)],
    )
    with pytest.raises(DownloadError) as caught:
        find_file(entry.source, settings, client)
    message = str(caught.value)
    assert "answered HTTP 404" in message
    assert "'files'" in message
    assert "does not list it" in message
    assert "No such file" in message


def test_credentials_go_to_the_index_host_only(index, entry, client) -> None:
    login = index.url.replace("http://", "http://user:s3cret@")
    settings = IndexSettings(index_url=f"{login}/simple")
    assert find_file(entry.source, settings, client) == f"{login}/files/{entry.source.wheel}"
    assert index.authorisations[-1].startswith("Basic ")
    elsewhere = f'<a href="http://elsewhere/{entry.source.wheel}">x</a>'
    index.offer("/simple/tiny-model/", elsewhere.encode(), "text/html")
    assert find_file(entry.source, settings, client) == f"http://elsewhere/{entry.source.wheel}"


def test_settings_do_not_show_credentials() -> None:
    settings = IndexSettings(index_url="https://user:s3cret@host/simple", proxy="http://me:s3cret@proxy")
    assert "s3cret" not in repr(settings)
