"""Options that all client verbs share, and how they become a connected client."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

if TYPE_CHECKING:
    from cutlayer.client.connect import Client, Options
    from cutlayer.client.sampling import Sampling
    from cutlayer.wire.transport import Connect


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ConnectOptions:
    """Where the server is and what this side holds."""

    server: str
    """URL of the server: wss://HOST:PORT, or ws://HOST:PORT on loopback."""
    model: str | None = None
    """Local model; default: the pulled model of the server's name."""
    cut: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None
    """Insist on this cut A:B; default: the server's."""
    keys: Path | None = None
    """Directory with ca.pem, client.pem and client.key (default: $CUTLAYER_KEYS)."""
    token: Path | None = None
    """File with the bearer token the server wants (default: $CUTLAYER_TOKEN_FILE)."""
    dtype: str | None = None
    """float32, bfloat16 or float16; default: the server's."""
    codec: str | None = None
    """How hidden states travel: fp32, bf16, fp16, int8 or int4; default: as the dtype, without loss."""
    keep_warm: float = 60.0
    """Seconds after each message during which small pings (66 kB a minute) keep TCP's window open for the next; 0 for none,
    e.g. on metered lines."""
    congestion: str | None = None
    """TCP congestion control of what is sent, e.g. bbr on lossy lines; default: cubic where permitted."""
    device: str = "cpu"
    """Where this side's layers run."""
    defence: str = "none"
    """What is done to hidden states before they leave: none, gaussian:sigma=S, gaussian:epsilon=E,delta=D,clip=C."""
    speculate: str | None = None
    """Guess at the next tokens, so that one round trip brings several: auto, off, lookup, recycling, model:path=DIR, …;
    default: auto over 10 ms and more, off nearer by and under a defence, for every guess is one more hidden state that leaves."""
    pad_drafts: int = 0
    """Send so many rows in every step of an answer, that its size tells an onlooker nothing; 0 sends as many as pay."""

    def options(self) -> Options:
        """As the Python API takes them."""
        from cutlayer.client.connect import Options

        return Options(
            model=self.model,
            cut=self.cut,
            dtype=self.dtype,
            codec=self.codec,
            device=self.device,
            defence=self.defence,
            speculate=self.speculate,
            pad_drafts=self.pad_drafts,
        )

    def credentials(self) -> dict[str, Path | None]:
        """Keyword arguments for `connect` and `dialler`."""
        return {
            "keys": self.keys or _from_environment("CUTLAYER_KEYS"),
            "token": self.token or _from_environment("CUTLAYER_TOKEN_FILE"),
        }

    def dialler(self) -> Connect:
        """What opens connections to the server."""
        from cutlayer.client.connect import dialler

        return dialler(self.server, **self.credentials(), congestion=self.congestion, keep_warm_s=self.keep_warm)

    def connect(self, connect: Connect | None = None) -> Client:
        """Connect, with a word on stderr while weights load.

        Args:
            connect: opens connections; None is `dialler`.
        """
        from rich.console import Console

        console = Console(stderr=True)
        with console.status("connecting and loading this side's layers"):
            from cutlayer.client.connect import Client

            client = Client(connect or self.dialler(), self.options())
        if client.cut.head_layers == 0 and self.cut is None:
            sys.stderr.write(
                f"cutlayer: warning: cut {client.cut} leaves only the embedding on this machine; the server can look up "
                "every token of the prompt. Pass --cut to choose knowingly.\n"
            )
        return client


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How tokens are chosen."""

    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together have this probability."""
    min_p: float = 0.0
    """Keep tokens at least this likely relative to the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1, tokens seen so far become less likely."""
    seed: int | None = None
    """Makes sampling repeatable."""

    def sampling(self) -> Sampling:
        """As the Python API takes them, checked."""
        from cutlayer.client.sampling import Sampling

        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        ).checked()


def _from_environment(name: str) -> Path | None:
    value = os.environ.get(name)
    return Path(value) if value else None
