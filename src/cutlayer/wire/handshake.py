"""What a failed TLS handshake means, in words and with the remedy.

Footgun: under TLS 1.3 a client's handshake is complete before the server has looked at the client's certificate. Its refusal
arrives with the first read, so that must be covered too.
"""

from __future__ import annotations

import ssl
from typing import Final

from cutlayer.errors import ConnectionLostError, InsecureError, RemoteCode, RemoteError, WireError

# OpenSSL's X509_V_ERR_… codes (x509_vfy.h) → what to do
_VERIFY_REMEDIES: Final[dict[int, str]] = {
    9: "it is not valid yet; compare the clocks of both machines",
    10: "it has expired; its operator must make new ones with `cutlayer keys create`",
    18: "it is not from the CA in this client's ca.pem; use the keys folder that was made with the server's",
    19: "it is not from the CA in this client's ca.pem; use the keys folder that was made with the server's",
    20: "it is not from the CA in this client's ca.pem; use the keys folder that was made with the server's",
    26: "it is no server's certificate; the other side may be an impostor",
    62: "it was made for other names; connect by one of them, or make one with `cutlayer keys create DIR --host NAME`",
    64: "it was made for other addresses; connect by one of them, or make one with `cutlayer keys create DIR --host IP`",
}

# Alerts (RFC 8446, section 6.2) by which a server refuses a client's certificate
_ALERTS: Final[dict[str, str]] = {
    "CERTIFICATE_REQUIRED": "it wants a client certificate; pass --keys DIR/client",
    "UNKNOWN_CA": "this client's certificate is from another CA; use the keys folder that was made with the server's",
    "DECRYPT_ERROR": "this client's certificate is from another CA; use the keys folder that was made with the server's",
    "CERTIFICATE_EXPIRED": "this client's certificate has expired by the server's clock",
    "BAD_CERTIFICATE": "this client's certificate does not verify there",
    "CERTIFICATE_UNKNOWN": "this client's certificate does not verify there",
    "UNSUPPORTED_CERTIFICATE": "this client's certificate is not one for clients",
}


def explain(error: ssl.SSLError, peer: str) -> InsecureError | WireError:
    """The error to raise in place of `error`.

    Args:
        error: from a handshake with, or the first read from, a server.
        peer: the server, as its user named it.

    Returns:
        `InsecureError` if the server's certificate does not verify, `RemoteError` if the server refused ours, and
        `ConnectionLostError` otherwise.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        remedy = _VERIFY_REMEDIES.get(error.verify_code)
        return InsecureError(
            f"the certificate of {peer} does not verify: {error.verify_message}" + (f"; {remedy}" if remedy else "")
        )
    reason = error.reason or ""
    alert = reason.partition("_ALERT_")[2]  # OpenSSL puts SSLV3, TLSV1 or TLSV13 before it, whatever the version
    if alert in _ALERTS:
        return RemoteError(RemoteCode.UNAUTHORISED, _ALERTS[alert])
    if reason == "WRONG_VERSION_NUMBER":
        return ConnectionLostError(f"{peer} answers without TLS; is the server started with --keys?")
    if "PROTOCOL_VERSION" in reason or reason == "UNSUPPORTED_PROTOCOL":
        return ConnectionLostError(f"{peer} offers no TLS 1.3, which cutlayer requires; is a proxy in between?")
    return ConnectionLostError(f"TLS with {peer} failed: {reason or error}")
