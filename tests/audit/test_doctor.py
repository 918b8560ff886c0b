"""The doctor on honest set-ups, and on servers and lines that are not as they should be."""

from __future__ import annotations

import json
import shutil
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

import cutlayer
from cutlayer.audit.measured import Measured
from cutlayer.audit.opened import layer_of, within
from cutlayer.audit.probe import make_probe, run_probe
from cutlayer.audit.stranger import Access, admits
from cutlayer.audit.traffic import check_frames
from cutlayer.errors import ConnectionLostError, InputError
from cutlayer.types import Cut
from cutlayer.wire.transport import PeerSecurity

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cutlayer.server.service import Service

CHECKS = {
    "generation",
    "frames",
    "outgoing bytes",
    "text",
    "token ids",
    "embeddings",
    "logits",
    "server tensors",
    "own tensors",
    "encryption",
    "authentication",
    "clock",
    "agreement",
    "round trip",
    "cut",
    "defence",
    "readability",
}
CONTENT = ("frames", "outgoing bytes", "text", "token ids", "logits", "server tensors", "own tensors")
SECRET = "Ada Lovelace lives at Foo Street 12 and owes 4711 crowns."


def saying(**claims: Any) -> Callable[[Service], None]:
    """A server that answers INFO with other claims."""

    def change(service: Service) -> None:
        service.info = msgspec.structs.replace(service.info, **claims)

    return change


def test_an_honest_set_up_passes(bench, finding) -> None:
    diagnosis = bench.examine()
    assert {found.name for found in diagnosis.findings} == CHECKS
    assert diagnosis.failed == []
    assert diagnosis.exit_code == 0
    for name in CONTENT:
        assert finding(diagnosis, name).status == "ok", finding(diagnosis, name)
    # In this random model two layers leave embeddings recognisable, and the doctor must not keep that to itself.
    assert finding(diagnosis, "embeddings").status == "warning"
    assert finding(diagnosis, "embeddings").evidence["share_identified_by_lookup"] > 0.05
    assert "embedding rows" in diagnosis.never_crossed
    assert finding(diagnosis, "outgoing bytes").evidence["rows_explained"] > 80
    assert finding(diagnosis, "text").evidence["patterns"] > 100
    assert finding(diagnosis, "token ids").evidence["patterns"] > 100
    assert finding(diagnosis, "logits").evidence["patterns"] == 18  # six answers, three float formats
    assert 0 < finding(diagnosis, "embeddings").evidence["closest_cosine"] < 0.999
    assert "no evidence" in diagnosis.caveat


@pytest.mark.parametrize(
    "options",
    [
        {"codec": "bf16"},
        {"codec": "int4"},
        {"codec": "fp16"},
        {"dtype": "bfloat16"},
        {"defence": "gaussian:sigma=0.5"},
        {"defence": "gaussian:epsilon=8,delta=1e-6,clip=2", "codec": "bf16"},
    ],
    ids=str,
)
def test_codecs_dtypes_and_defences_pass(bench, finding, options: dict[str, str]) -> None:
    diagnosis = bench.examine(options=options)
    assert diagnosis.failed == []
    if "defence" in options:
        assert finding(diagnosis, "defence").status == "ok"
        assert finding(diagnosis, "defence").evidence["largest_relative_change"] > 0.01
    if "dtype" in options:
        assert "dtype" in finding(diagnosis, "agreement").explanation
        assert finding(diagnosis, "agreement").status == "warning"


def test_a_prompt_longer_than_one_chunk_passes(bench) -> None:
    assert bench.examine(prompt="The quick brown fox jumps over the lazy dog. " * 5).failed == []


def test_a_base_model_without_template_passes(bench, tmp_path: Path) -> None:
    directory = tmp_path / "base"
    shutil.copytree(bench.directory, directory)
    for file in directory.glob("chat_template*"):
        file.unlink()
    bench.directory = directory
    assert bench.examine().failed == []


def test_a_run_whose_connection_broke_is_explained_too(bench, finding) -> None:
    class Breaking:
        """Breaks once, in the middle of the answer."""

        def __init__(self) -> None:
            self.left = 14
            self.server = bench.server()

        def __call__(self) -> Any:
            inner = self.server.connect()
            real = inner.recv

            def recv(timeout_s: float | None = None) -> bytes:
                self.left -= 1
                if self.left == 0:
                    inner.break_connection()
                return real(timeout_s)

            inner.recv = recv  # type: ignore[method-assign]
            return inner

    from cutlayer.audit.doctor import diagnose

    smooth = finding(bench.examine(max_tokens=16), "outgoing bytes").evidence
    diagnosis = diagnose(Breaking(), "ws://127.0.0.1:1", options=bench.options())
    assert diagnosis.failed == []
    broken = finding(diagnosis, "outgoing bytes").evidence
    assert broken["headers_explained"] == smooth["headers_explained"] + 2  # RESUME, and a STEP again


def test_the_users_own_prompt_is_nowhere_in_the_findings(bench) -> None:
    diagnosis = bench.examine(prompt=SECRET)
    assert diagnosis.canary is None
    report = msgspec.json.encode(diagnosis).decode()
    for word in ("Lovelace", "Street", "4711", "crowns"):
        assert word not in report


def test_a_random_canary_otherwise(bench) -> None:
    first, second = make_probe(), make_probe()
    assert first.canary
    assert first.canary in first.prompt
    assert first.canary != second.canary
    assert bench.examine().canary
    with pytest.raises(InputError, match="blank"):
        make_probe(" \n")


def test_findings_are_plain_json(bench) -> None:
    diagnosis = bench.examine()
    assert {found["name"] for found in json.loads(msgspec.json.encode(diagnosis))["findings"]} == CHECKS


def test_frames_that_were_not_recorded_fail(bench) -> None:
    run = run_probe(bench.server().connect, make_probe(), bench.options(), limit_bytes=8000)
    assert not run.complete
    found = check_frames(run, [])
    assert found.status == "fail"
    assert f"{run.missed.bytes:,}" in found.explanation


def test_nobody_there(bench) -> None:
    from cutlayer.audit.doctor import diagnose

    def connect() -> Any:
        raise ConnectionLostError("cannot connect to wss://example: refused")

    diagnosis = diagnose(connect, "wss://example:1")
    assert diagnosis.failed == ["connection"]
    assert diagnosis.exit_code == 1
    assert "refused" in diagnosis.findings[0].explanation


# --- the cut -------------------------------------------------------------------------------------------------------


def test_cut_at_zero_fails_and_says_why(bench, finding) -> None:
    diagnosis = bench.examine("0:-2")
    found = finding(diagnosis, "embeddings")
    assert found.status == "fail"
    assert diagnosis.exit_code == 1
    assert "k = 0" in found.explanation
    assert found.evidence["closest_cosine"] > 0.9999
    assert found.evidence["share_identified_by_lookup"] == 1
    assert found.evidence["rows_equal_to_an_embedding"] == found.evidence["rows"]
    assert "embedding rows; see above" in diagnosis.never_crossed


def test_cut_at_zero_under_heavy_noise_is_still_called_embeddings(bench, finding) -> None:
    found = finding(bench.examine("0:-2", options={"defence": "gaussian:sigma=30"}), "embeddings")
    assert found.status in {"warning", "fail"}
    assert "k = 0" in found.explanation


@pytest.mark.parametrize(("cut", "words"), [("1:-2", "k = 1"), ("2:6", "m = 0"), ("0:4", "k = 0")])
def test_shallow_cuts_are_warned_about(bench, finding, cut: str, words: str) -> None:
    found = finding(bench.examine(cut), "cut")
    assert found.status == "warning"
    assert words in found.explanation


def test_no_defence_is_warned_about(bench, finding) -> None:
    assert finding(bench.examine(), "defence").status == "warning"


def test_what_was_measured_at_this_setting_is_repeated(
    bench, finding, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = Measured(
        model=bench.directory.name,
        cut_start=2,
        defence="none",
        attack="search",
        token_accuracy=0.875,
        low=0.8,
        high=0.9,
        n=7,
        record="search",
    )
    monkeypatch.setattr("cutlayer.audit.measured.table", lambda: (entry,))
    found = finding(bench.examine(), "readability")
    assert found.status == "warning"
    assert "87.5 % (80–90 %)" in found.explanation
    defended = finding(bench.examine(options={"defence": "gaussian:sigma=0.5"}), "readability")
    assert defended.status == "warning"
    assert "Not measured for this setting" in defended.explanation


# --- what the server says of itself ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ("model.embed_tokens.weight", "embedding"),
        ("model.norm.weight", "final norm"),
        ("lm_head.weight", "output head"),
        ("model.layers.1.mlp.up_proj.weight", "layer 1 is the client's"),
        ("model.layers.4.mlp.up_proj.weight", "layer 4 is the client's"),
        ("something.else", "in no layer"),
    ],
)
def test_a_server_that_opened_more_than_its_part(bench, finding, tensor: str, words: str) -> None:
    def change(service: Service) -> None:
        saying(opened=[*service.info.opened, tensor], opened_count=service.info.opened_count + 1)(service)

    diagnosis = bench.examine(change=change)
    assert diagnosis.failed == ["server tensors"]
    explanation = finding(diagnosis, "server tensors").explanation
    assert tensor in explanation
    assert words in explanation


def test_a_server_that_counts_more_tensors_than_the_cut_has(bench, finding) -> None:
    diagnosis = bench.examine(change=saying(opened_count=1000))
    assert diagnosis.failed == ["server tensors"]


@pytest.mark.parametrize("claims", [{"opened": [], "opened_count": 0}, {"opened": []}], ids=str)
def test_a_server_that_does_not_name_its_tensors(bench, finding, claims: dict[str, Any]) -> None:
    assert finding(bench.examine(change=saying(**claims)), "server tensors").status == "warning"


def test_the_check_recommended_for_the_servers_word_works(bench, finding, tmp_path: Path) -> None:
    """The finding says: zero all other tensors in the server's copy, and answers must not change."""
    honest = bench.examine(prompt=SECRET)
    zeroed = tmp_path / "zeroed"
    shutil.copytree(bench.directory, zeroed)
    tensors = load_file(zeroed / "model.safetensors")
    kept = set(within(tensors, Cut(2, 4, 6)))
    save_file(
        {name: tensor if name in kept else torch.zeros_like(tensor) for name, tensor in tensors.items()},
        zeroed / "model.safetensors",
        metadata={"format": "pt"},
    )
    client_side, bench.directory = bench.directory, zeroed
    server = bench.server()
    bench.directory = client_side
    run = run_probe(server.connect, make_probe(SECRET), bench.options(), max_tokens=6)
    real = run_probe(bench.server().connect, make_probe(SECRET), bench.options(), max_tokens=6)
    assert run.failure is None
    assert run.answer_ids == real.answer_ids
    assert "zeros" in finding(honest, "server tensors").explanation


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.12.mlp.up_proj.weight", 12),
        ("gpt_neox.layers.3.attention.dense.bias", 3),
        ("layers.0.norm.weight", 0),
        ("model.embed_tokens.weight", None),
        ("model.norm.weight", None),
        ("model.sublayers.3.weight", None),
    ],
)
def test_layer_numbers(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer


@pytest.mark.parametrize(
    ("skew", "status", "word"), [(30, "warning", "ahead"), (-7, "warning", "behind"), (3, "ok", "ms")]
)
def test_clocks(bench, finding, monkeypatch: pytest.MonkeyPatch, skew: float, status: str, word: str) -> None:
    skewed = SimpleNamespace(time=lambda: time.time() + skew, monotonic=time.monotonic)
    monkeypatch.setattr("cutlayer.server.service.time", skewed)
    found = finding(bench.examine(), "clock")
    assert found.status == status
    assert word in found.explanation
    assert found.evidence["difference_s"] == pytest.approx(skew, abs=0.5)


def test_another_version_on_the_server(bench, finding) -> None:
    found = finding(bench.examine(change=saying(version="0.0.9")), "agreement")
    assert found.status == "warning"
    assert "0.0.9" in found.explanation
    assert cutlayer.__version__ in found.explanation


def test_a_codec_the_server_does_not_list(bench, finding) -> None:
    assert finding(bench.examine(change=saying(codecs=["bf16"])), "agreement").status == "fail"


def test_another_model_is_refused_before_anything_is_sent(bench) -> None:
    diagnosis = bench.examine(change=saying(fingerprint="0" * 32))
    assert diagnosis.failed == ["connection"]
    assert "nothing of the prompt left" in diagnosis.crossed


# --- the line --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("security", "server", "status"),
    [
        (PeerSecurity("none", "", "", ""), "ws://127.0.0.1:8410", "warning"),
        (PeerSecurity("none", "", "", ""), "ws://203.0.113.7:8410", "fail"),
        (PeerSecurity("none", "", "", ""), "wss://gpu.example:8410", "fail"),
        (PeerSecurity("TLSv1.2", "AES", "gpu.example", "ab" * 32), "wss://gpu.example:8410", "fail"),
        (PeerSecurity("TLSv1.3", "AES", "", ""), "wss://gpu.example:8410", "fail"),
        (PeerSecurity("TLSv1.3", "AES", "gpu.example", "ab" * 32), "wss://gpu.example:8410", "ok"),
    ],
)
def test_encryption(
    bench, finding, monkeypatch: pytest.MonkeyPatch, security: PeerSecurity, server: str, status: str
) -> None:
    monkeypatch.setattr("cutlayer.wire.memory.MemoryTransport.security", lambda self: security)
    diagnosis = bench.examine(server=server)
    found = finding(diagnosis, "encryption")
    assert found.status == status
    assert diagnosis.exit_code == (1 if status == "fail" else 0)
    if status == "ok":
        assert "gpu.example" in found.explanation
        assert security.fingerprint in found.explanation


@pytest.mark.parametrize(
    ("access", "status", "words"),
    [
        (Access("CN=ada", token=False, strangers_admitted=False), "ok", "CN=ada"),
        (Access("", token=True, strangers_admitted=False), "ok", "a token"),
        (Access("CN=ada", token=True, strangers_admitted=True), "warning", "everyone who reaches"),
        (Access("", token=False, strangers_admitted=True), "warning", "nothing"),
    ],
)
def test_authentication(bench, finding, access: Access, status: str, words: str) -> None:
    found = finding(bench.examine(server="wss://gpu.example:8443", access=lambda: access), "authentication")
    assert found.status == status
    assert words in found.explanation


def test_authentication_that_was_not_tried_is_no_success(bench, finding) -> None:
    assert finding(bench.examine(), "authentication").status == "warning"


def test_strangers(bench) -> None:
    def refuse() -> Any:
        raise ConnectionLostError("no certificate")

    assert admits(bench.server().connect)
    assert not admits(refuse)


def test_round_trip(bench, finding) -> None:
    evidence = finding(bench.examine(), "round trip").evidence
    assert 0 < evidence["fastest_ms"] <= evidence["p50_ms"] <= evidence["slowest_ms"]
