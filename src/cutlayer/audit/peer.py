"""Who was at the other end, how the line was protected, and whether both sides agree on what they run."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Final

import cutlayer
from cutlayer.audit.finding import Finding
from cutlayer.errors import InputError, InsecureError
from cutlayer.models.locate import fingerprint
from cutlayer.wire import frames
from cutlayer.wire.policy import is_loopback, url_policy

if TYPE_CHECKING:
    from cutlayer.audit.finding import Evidence
    from cutlayer.audit.probe import ProbeRun
    from cutlayer.audit.stranger import Access

REQUIRED_TLS: Final = "TLSv1.3"
ACCEPTED_CLOCK_DIFFERENCE_S: Final = 5.0


def stays_here(server: str) -> bool:
    """Whether a server's address, as the user gave it, is on this machine."""
    try:
        return is_loopback(url_policy(server).host)
    except (InputError, InsecureError):
        return False


def check_encryption(run: ProbeRun, server: str) -> Finding:
    """TLS 1.3 with a verified server, except on loopback."""
    name, line = "encryption", run.security
    evidence: Evidence = {
        "protocol": line.protocol,
        "cipher": line.cipher,
        "server_subject": line.peer,
        "server_sha256": line.fingerprint,
    }
    if line.protocol == REQUIRED_TLS and line.fingerprint:
        return Finding(
            name,
            "ok",
            f"{line.protocol} with {line.cipher}; the server proved to be {line.peer!r}, certificate SHA-256 {line.fingerprint}.",
            evidence,
        )
    if stays_here(server) and line.protocol == "none":
        return Finding(
            name,
            "warning",
            "Not encrypted. The server is on this machine, so nothing was on a network, unless this port leads into a tunnel.",
            evidence,
        )
    return Finding(
        name,
        "fail",
        f"The line to {server} is protected by {line.protocol!r}, not {REQUIRED_TLS} with a certificate: others on the way can "
        "read hidden states. Use wss:// and --keys.",
        evidence,
    )


def check_authentication(access: Access | None, server: str) -> Finding:
    """Whether the server lets in only those it knows."""
    name = "authentication"
    if access is None:
        return Finding(name, "warning", "Not checked: no connection without credentials was tried.")
    shown = [f"certificate {access.certificate!r}"] if access.certificate else []
    shown += ["a token"] if access.token else []
    evidence: Evidence = {
        "client_certificate": access.certificate,
        "client_token": access.token,
        "strangers_admitted": access.strangers_admitted,
    }
    presented = f"This client presented {' and '.join(shown) or 'nothing'}"
    if not access.strangers_admitted:
        return Finding(name, "ok", f"{presented}; a connection without credentials was refused.", evidence)
    reach = "every process on this machine" if stays_here(server) else "everyone who reaches its port"
    return Finding(
        name,
        "warning",
        f"{presented}; a connection without credentials was let in too, so the server serves {reach}. "
        "Start it with --keys or --token.",
        evidence,
    )


def check_clock(run: ProbeRun) -> Finding:
    """Clocks within seconds of each other."""
    # The quickest exchange bounds the error best: it is at most half of its round trip.
    best = min(run.pings, key=lambda ping: ping.round_trip_s)
    evidence: Evidence = {
        "difference_s": round(best.offset_s, 4),
        "uncertainty_s": round(best.round_trip_s / 2, 4),
    }
    if abs(best.offset_s) > ACCEPTED_CLOCK_DIFFERENCE_S:
        return Finding(
            "clock",
            "warning",
            f"The server's clock is {abs(best.offset_s):,.1f} s {'ahead' if best.offset_s > 0 else 'behind'}; certificates "
            "and logs of the two machines will not agree. Synchronise them.",
            evidence,
        )
    return Finding("clock", "ok", f"The clocks differ by {abs(best.offset_s) * 1e3:.0f} ms.", evidence)


def check_agreement(run: ProbeRun) -> Finding:
    """Same protocol, model, cut and codec; and preferably the same version and dtype."""
    name, info, client = "agreement", run.info, run.client
    local = fingerprint(client.directory)
    evidence: Evidence = {
        "server_version": info.version,
        "client_version": cutlayer.__version__,
        "protocol": info.protocol,
        "model": info.model,
        "fingerprint": info.fingerprint,
        "cut": str(info.cut),
        "server_dtype": info.dtype,
        "client_dtype": client.dtype,
        "codec": client.codec.name,
    }
    must_agree: tuple[tuple[str, object, object], ...] = (
        ("protocol", info.protocol, frames.PROTOCOL),
        ("model fingerprint", info.fingerprint, local),
        ("cut", info.cut, client.cut),
        ("codec", client.codec.name in info.codecs, True),
    )
    wrong = [what for what, theirs, ours in must_agree if theirs != ours]
    if wrong:
        return Finding(name, "fail", f"Server and client disagree on {', '.join(wrong)}.", evidence)
    differs = [
        f"{what} (server {theirs}, client {ours})"
        for what, theirs, ours in (
            ("cutlayer version", info.version, cutlayer.__version__),
            ("dtype", info.dtype, client.dtype),
        )
        if theirs != ours
    ]
    if differs:
        return Finding(
            name, "warning", f"Both sides run the same model and cut, but differ in {', '.join(differs)}.", evidence
        )
    return Finding(
        name,
        "ok",
        f"Both sides run cutlayer {info.version}, protocol {info.protocol}, {info.model} ({info.fingerprint[:8]}), cut "
        f"{info.cut} of {info.cut.layers} in {info.dtype}, codec {client.codec.name}.",
        evidence,
    )


def check_round_trip(run: ProbeRun) -> Finding:
    """How long an empty exchange takes."""
    times = sorted(ping.round_trip_s * 1e3 for ping in run.pings)
    middle = statistics.median(times)
    return Finding(
        "round trip",
        "ok",
        f"An empty exchange takes {middle:.1f} ms (median of {len(times)}); every token needs at least one.",
        {
            "p50_ms": round(middle, 3),
            "fastest_ms": round(times[0], 3),
            "slowest_ms": round(times[-1], 3),
            "n": len(times),
        },
    )
