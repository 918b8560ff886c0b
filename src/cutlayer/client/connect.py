"""`connect` and the `Client` it returns: the synchronous API.

with cutlayer.connect("wss://gpu.example:8443", keys="keys/client") as client:
    print(client.generate("What is the capital of France?").result().text)
"""

from __future__ import annotations

import math
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from cutlayer.client.decoder import Decoder
from cutlayer.client.generation import Generation, Request
from cutlayer.client.remote import Patience, RemoteBody
from cutlayer.client.sampling import Sampler, Sampling
from cutlayer.client.speculation.drafting import MOST_NODES, Drafting
from cutlayer.client.speculation.speculator import build_speculator
from cutlayer.client.trusted import Trusted
from cutlayer.defences.defence import Defence, build_defence
from cutlayer.errors import InputError
from cutlayer.text.tokenizer import Message
from cutlayer.types import Secret
from cutlayer.wire.tls import client_context, read_token_file, url_policy
from cutlayer.wire.websocket import WebSocketTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from cutlayer.client.sampling import TokenMask
    from cutlayer.wire.frames import InfoReply
    from cutlayer.wire.transport import Connect, PeerSecurity

_MAX_MESSAGE_BYTES: Final = 64 << 20
"""From a server: twice what 512 positions of hidden size 16,384 take in fp32."""

_LEAST_WAIT_S: Final = 0.01
"""Nearer servers answer so soon that guesses save little, and each would still be one more hidden state for them to read."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a client works; all have defaults."""

    model: str | None = None
    """Local model: a pulled name, a directory or ``hf:ORG/NAME``. None: the pulled model of the server's name."""
    cut: str | None = None
    """Insist on this cut. None: the server's."""
    dtype: str | None = None
    """Compute dtype of head and tail. None: the server's."""
    codec: str | None = None
    """How hidden states travel. None: as the dtype, without rounding."""
    device: str = "cpu"
    defence: str = "none"
    speculate: str | None = None
    """How to guess at the next tokens, ``NAME[:KEY=VALUE,…]`` or ``off``. None: ``auto`` where a round trip spends 10 ms or more
    on the way, and ``off`` elsewhere and under a defence, for every guess is one more hidden state that leaves."""
    pad_drafts: int = 0
    """Rows that every step of an answer carries, filled up with arbitrary tokens; 0 sends as many as pay."""
    patience: Patience = Patience()


class Client:
    """Head, tail and one session on a server.

    Args:
        connect: opens a transport.
        options: see `Options`.
        trusted: weights already loaded for this server; None loads them.

    Raises:
        ConnectionLostError: the server cannot be reached.
        RemoteError: it refuses this client or runs another model or cut.
        ModelNotFoundError: the model is not on this machine.
    """

    def __init__(self, connect: Connect, options: Options | None = None, trusted: Trusted | None = None) -> None:
        self.options = chosen = options or Options()
        self._connect = connect
        self._remote = RemoteBody(connect, chosen.patience)
        try:
            self.trusted = trusted or Trusted(
                self._remote.info(), chosen.model, chosen.cut, chosen.dtype, chosen.codec, chosen.device
            )
            self.info: InfoReply = self.trusted.info
            self.directory = self.trusted.directory
            self.cut = self.trusted.cut
            self.tokenizer = self.trusted.tokenizer
            self.dtype = self.trusted.dtype
            self.parts = self.trusted.parts
            self.codec = self.trusted.codec
            # A secret of its own: noise shared between sessions would tell the server which of them sent the same words.
            self.defence: Defence = build_defence(chosen.defence, Secret(secrets.token_bytes(32)), self.parts.head)
            self._remote.open(self.info.fingerprint, self.cut, self.codec, self.info.hidden_size)
            self._decoder = Decoder(self.parts, self._remote, self.defence, self.trusted.turn)
            self._drafting = self._new_drafting()
        except BaseException:
            self._remote.close()
            raise

    def another(self) -> Client:
        """A further session on the same weights, with its own connection, caches and defence secret.

        Raises:
            ConnectionLostError: the server cannot be reached.
            RemoteError: it has no room, or runs another model or cut by now.
        """
        return Client(self._connect, self.options, self.trusted)

    def probe(self) -> InfoReply:
        """Ask the server over a connection of its own what it runs, whatever this session is doing.

        Raises:
            WireError: it does not answer.
        """
        remote = RemoteBody(self._connect, self.options.patience)
        try:
            return remote.info()
        finally:
            remote.close()

    @property
    def max_positions(self) -> int:
        """Tokens this session may hold."""
        return self._remote.max_positions

    @property
    def held(self) -> Sequence[int]:
        """Token ids whose positions the session holds and need not be sent again."""
        return self._decoder.ids

    @property
    def released(self) -> int:
        """Positions this session has sent so far, those sent again after a rollback included."""
        return self._decoder.released

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def generate(
        self,
        prompt: str | Sequence[Message] | Sequence[int],
        *,
        max_tokens: int = 256,
        sampling: Sampling | None = None,
        stop: Sequence[str] = (),
        raw: bool = False,
        ignore_eos: bool = False,
        logprobs: int | None = None,
        prompt_logprobs: bool = False,
        mask: TokenMask | None = None,
        speculate: bool = True,
    ) -> Generation:
        """Answer a prompt; iterate over the returned `Generation` or take its `result`.

        Positions this client's session already holds (an earlier turn, a shared system prompt) are not sent again.

        Args:
            prompt: a question, a conversation, or token ids.
            max_tokens: the answer's longest length; 0 is allowed with `prompt_logprobs`.
            sampling: how tokens are chosen; None is greedy.
            stop: strings that end the answer and are not part of it.
            raw: send a string as it is, without the chat template.
            ignore_eos: go on after the model's end-of-sequence token.
            logprobs: report each token's log-probability and that many of the likeliest; None reports none.
            prompt_logprobs: report them of the prompt too. All of it is sent, whatever the session holds.
            mask: which tokens may come, asked before every choice.
            speculate: False sends one token at a time, whatever the client's options say.

        Raises:
            InputError: the prompt is empty, does not fit, or an option is out of range.
        """
        if max_tokens < (0 if prompt_logprobs else 1):
            raise InputError(f"max tokens must be at least 1, not {max_tokens}")
        request = Request(
            prompt=self.encode(prompt, raw=raw),
            max_tokens=max_tokens,
            stop_ids=frozenset() if ignore_eos else self.tokenizer.stop_ids,
            stop=tuple(stop),
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
        )
        return self._begin(request, Sampler(sampling or Sampling(), mask), self._drafting if speculate else None)

    def prefill(self, prompt: Sequence[int]) -> Generation:
        """Send what this session lacks of a prompt and generate nothing: a later `generate` that begins so has less to send.

        Args:
            prompt: token ids. Where the session holds all of them, nothing is sent and nothing rolled back.

        Raises:
            InputError: the prompt does not fit.
        """
        request = Request(prompt=list(prompt), max_tokens=0, stop_ids=frozenset(), stop=())
        return self._begin(request, Sampler(Sampling()), self._drafting)

    def prime(self, messages: Sequence[Message], *, cancelled: Callable[[], bool] = lambda: False) -> int:
        """Send what is certain of a conversation whose last message is still being written, so that `generate` has less to send.

        What is written differently in the end is rolled back; the server has seen it then.

        Args:
            messages: the last one as far as it is written; see `Tokenizer.certain`.
            cancelled: asked before each chunk is sent.

        Returns:
            Tokens sent.

        Raises:
            InputError: it does not fit the session, or the template refuses it.
            CancelledError: `cancelled` said so; what was sent stays.
        """
        rest = self._decoder.reuse(self.tokenizer.certain(messages), least=0)
        if rest:
            self._decoder.extend(rest, cancelled=cancelled)
        return len(rest)

    def forget(self) -> None:
        """Roll the session back to nothing; the next prompt is sent whole."""
        self._decoder.rollback(0)

    def encode(self, prompt: str | Sequence[Message] | Sequence[int], *, raw: bool = False) -> list[int]:
        """Token ids of a prompt, as `generate` would send them through the head."""
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt) if raw else self.tokenizer.render([Message("user", prompt)])
        messages = [item for item in prompt if isinstance(item, Message)]
        if len(messages) == len(prompt):
            return self.tokenizer.render(messages)
        return [_token_id(item) for item in prompt]

    def security(self) -> PeerSecurity:
        """How the connection is protected."""
        return self._remote.security()

    def close(self) -> None:
        """Free the server's memory and disconnect."""
        if self._drafting is not None:
            self._drafting.close()
        self._remote.close()

    def _begin(self, request: Request, sampler: Sampler, drafting: Drafting | None) -> Generation:
        if len(request.prompt) > self._remote.max_positions:
            raise InputError(
                f"the prompt has {len(request.prompt)} tokens, the session holds {self._remote.max_positions}; "
                "shorten it or raise the server's --max-positions"
            )
        labels = {"defence": self.defence.describe(), "cut": str(self.cut)}
        return Generation(request, self._decoder, sampler, self.tokenizer, self._remote.traffic, drafting, labels)

    def _new_drafting(self) -> Drafting | None:
        chosen, padded = self.options.speculate, self.options.pad_drafts
        if not 0 <= padded <= MOST_NODES + 1:
            raise InputError(f"drafts can be padded to at most {MOST_NODES + 1} rows, not {padded}; 0 does not pad")
        least_wait = 0.0
        if chosen is None:
            chosen, least_wait = ("auto", _LEAST_WAIT_S) if self.options.defence == "none" else ("off", 0.0)
        if chosen == "off":
            if padded:
                raise InputError("there are no drafts to pad: speculation is off")
            return None
        vocabulary = len(self.parts.head.embedding())
        return Drafting(build_speculator(chosen, self.trusted), vocabulary, padded, least_wait)

    def abort(self) -> None:
        """Disconnect for good, from another thread; a waiting `generate` raises ConnectionLostError."""
        self._remote.abort()


def connect(
    url: str,
    *,
    keys: str | Path | None = None,
    token: str | Path | None = None,
    congestion: str | None = None,
    keep_warm_s: float = 0.0,
    options: Options | None = None,
) -> Client:
    """Connect to a server and load this side's layers.

    Args:
        url: ``wss://host:port``, or ``ws://host:port`` on loopback.
        keys: directory made by ``cutlayer keys`` with ``ca.pem``, ``client.pem`` and ``client.key``.
        token: file holding a bearer token.
        congestion: TCP congestion control of what is sent; None is cubic where the kernel permits, see `wire/tcp.py`.
        keep_warm_s: for how long after a message small pings keep TCP's window open for the next, see `KeepWarm`.
        options: see `Options`.

    Raises:
        InsecureError: ``ws://`` beyond loopback, or a certificate that does not verify.
        ConnectionLostError: the server cannot be reached.
    """
    return Client(dialler(url, keys=keys, token=token, congestion=congestion, keep_warm_s=keep_warm_s), options)


def dialler(
    url: str,
    *,
    keys: str | Path | None = None,
    token: str | Path | None = None,
    congestion: str | None = None,
    keep_warm_s: float = 0.0,
) -> Connect:
    """A function that opens a new connection to `url` each time it is called.

    Raises:
        InputError: `keep_warm_s` is no number of seconds.
        InsecureError: see `connect`.
    """
    url_policy(url)
    if not 0 <= keep_warm_s < math.inf:
        raise InputError(f"keeping warm for {keep_warm_s:g} s; give a number of 0 or more")
    context = client_context(Path(keys) if keys else None) if url.startswith("wss://") else None
    secret = read_token_file(Path(token)) if token else None
    return lambda: WebSocketTransport(
        url, context, secret, _MAX_MESSAGE_BYTES, congestion=congestion, keep_warm_s=keep_warm_s
    )


def _token_id(item: object) -> int:
    if isinstance(item, bool) or not isinstance(item, int):
        raise InputError(f"a prompt is a string, messages or token ids, not {type(item).__name__}")
    return item
