"""Where one may listen and where one may connect."""

from __future__ import annotations

import pytest

from cutlayer.errors import InputError, InsecureError
from cutlayer.wire.policy import Endpoint, is_loopback
from cutlayer.wire.tls import listen_policy, url_policy

LOOPBACK = ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost", "LOCALHOST", "::ffff:127.0.0.1"]
ELSEWHERE = [
    "0.0.0.0",  # noqa: S104
    "::",
    "",
    "10.0.0.1",
    "192.168.1.2",
    "8.8.8.8",
    "gpu.example",
    "localhost.example",
    "127.1",
    "::ffff:8.8.8.8",
]


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_needs_nothing(host: str) -> None:
    assert is_loopback(host)
    listen_policy(host, tls=False, authenticated=False)


@pytest.mark.parametrize("host", ELSEWHERE)
def test_elsewhere_needs_both(host: str) -> None:
    assert not is_loopback(host)
    listen_policy(host, tls=True, authenticated=True)
    with pytest.raises(InsecureError, match="without TLS"):
        listen_policy(host, tls=False, authenticated=True)
    with pytest.raises(InsecureError, match="without TLS"):
        listen_policy(host, tls=False, authenticated=False)
    with pytest.raises(InsecureError, match="without authentication"):
        listen_policy(host, tls=True, authenticated=False)


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("wss://gpu.example:8443", ("wss", "gpu.example", 8443, "")),
        ("WSS://GPU.example:8443/A/b", ("wss", "gpu.example", 8443, "/A/b")),
        ("wss://10.0.0.7:443/", ("wss", "10.0.0.7", 443, "/")),
        ("wss://[2001:db8::1]:1", ("wss", "2001:db8::1", 1, "")),
        ("ws://127.0.0.1:8080", ("ws", "127.0.0.1", 8080, "")),
        ("ws://127.9.9.9:8080", ("ws", "127.9.9.9", 8080, "")),
        ("ws://[::1]:8080/x", ("ws", "::1", 8080, "/x")),
        ("ws://localhost:8080", ("ws", "localhost", 8080, "")),
    ],
)
def test_good_urls(url: str, endpoint: tuple[str, str, int, str]) -> None:
    checked = url_policy(url)
    assert checked == Endpoint(*endpoint)
    assert url_policy(str(checked)) == checked
    assert checked.secure == url.lower().startswith("wss")


@pytest.mark.parametrize(
    "url",
    [
        "ws://gpu.example:80",
        "ws://10.0.0.1:80",
        "ws://0.0.0.0:80",
        "ws://127.1:80",
        "ws://[::]:80",
    ],
)
def test_unencrypted_urls_of_other_machines(url: str) -> None:
    with pytest.raises(InsecureError, match="use wss://"):
        url_policy(url)


@pytest.mark.parametrize(
    "url", ["wss://user:hunter2@gpu.example:1", "wss://hunter2@gpu.example:1", "ws://u:hunter2@localhost:1/x"]
)
def test_credentials_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InsecureError, match="credentials") as caught:
        url_policy(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gpu.example:8443",
        "https://gpu.example:8443",
        "file:///etc/passwd",
        "wss://gpu.example",
        "ws://localhost.:80",
        "wss://gpu.example:",
        "wss://gpu.example:0",
        "wss://gpu.example:99999",
        "wss://gpu.example:x",
        "wss://:8443",
        "wss://[::1",
        "wss://[::1%25eth0]:1",
        "wss://gpu.example:1?q=1",
        "wss://gpu.example:1?",
        "wss://gpu.example:1#f",
        "wss://gpu.example:1/a b",
        "wss://gpu.example:1/a\n",
        " wss://gpu.example:1",
        "wss://gpu.exa\tmple:1",
        "wss://gpu example:1",
        "wss://gpu.example:1/%0d%0a",
        "wss://bücher.example:1",
    ],
)
def test_malformed_urls(url: str) -> None:
    with pytest.raises(InputError, match="the form is wss://HOST:PORT"):
        url_policy(url)
