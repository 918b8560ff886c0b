"""A victim and the server that watches it, at one cut with one defence: where observations and threats come from.

    scene = Scene.load("smollm2-135m", cut="2:-2", defence="gaussian:relative=0.8")
    observation = scene.observe(ids)                               # what the server holds of one prompt
    threat = scene.threat(auxiliary=ids_of_the_attackers_text)     # what it knows besides

The hidden states go through the defence and the codec exactly as `client` sends them, without a network between.

Notation: N sessions, T positions, D hidden size, S sequences.
"""

from __future__ import annotations

import hashlib
import secrets
from functools import cache
from typing import TYPE_CHECKING, Final

import torch

from cutlayer.attacks.attack import Auxiliary, Observation, Threat
from cutlayer.defences.defence import build_channel, build_defence
from cutlayer.defences.positions import History
from cutlayer.errors import InputError
from cutlayer.models.family import read_config
from cutlayer.models.locate import locate
from cutlayer.models.parts import load_client
from cutlayer.types import Cut, Secret
from cutlayer.wire.codecs import CODECS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from cutlayer.attacks.attack import Knowledge
    from cutlayer.attacks.prior import Prior
    from cutlayer.defences.defence import Defence
    from cutlayer.models.parts import ClientParts, Head

_BATCH: Final = 32
"""Sequences per forward when the attacker runs its own text."""


class Scene:
    """One setting.

    Args:
        directory: model directory.
        cut: where it is cut.
        parts: the client's layers.
        defence: specification.
        codec: name.
    """

    def __init__(
        self, directory: Path, cut: Cut, parts: ClientParts, defence: str = "none", codec: str = "fp32"
    ) -> None:
        self.directory = directory
        self.cut = cut
        self.parts = parts
        self.defence = defence
        self.codec = CODECS.get(codec)
        self.channel = build_channel(defence, parts.head, self.codec.precision)

    @classmethod
    def load(cls, model: str, cut: str, defence: str = "none", codec: str = "fp32", device: str = "cpu") -> Scene:
        """Load the client's layers of a model, in float32.

        Raises:
            ModelNotFoundError: no such model.
            CutError: no such cut.
            InputError: the defence's options are wrong.
        """
        directory = locate(model)
        layers = Cut.parse(cut, read_config(directory).num_hidden_layers)
        return cls(directory, layers, load_client(directory, layers, torch.float32, device), defence, codec)

    def under(self, defence: str, codec: str | None = None) -> Scene:
        """The same cut with another defence; layers are shared."""
        return Scene(self.directory, self.cut, self.parts, defence, codec or self.codec.name)

    @property
    def head(self) -> Head:
        """The client's first layers."""
        return self.parts.head

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """Hidden states [S, T, D] of token ids [S, T], float32 on the CPU."""
        with torch.inference_mode():
            hidden: torch.Tensor = self.head(ids.to(self.head.embedding().device), self.head.new_cache())
        return hidden.float().cpu()

    def release(self, hidden: torch.Tensor, ids: Sequence[int], secret: Secret) -> torch.Tensor:
        """What a server decodes of hidden states [R, D] of the last R of `ids` that one session sends, [R, D] float32."""
        return self._sent(build_defence(self.defence, secret, self.head), hidden, ids)

    def observe(self, ids: Sequence[int], sessions: Sequence[Secret] | None = None) -> Observation:
        """What the server holds of a prompt.

        Args:
            ids: the prompt's tokens.
            sessions: secrets of the sessions it was sent in; None is one, with a fresh secret.

        Raises:
            InputError: no tokens or no session.
        """
        secrets_ = [Secret(secrets.token_bytes(32))] if sessions is None else sessions
        if not ids or not secrets_:
            raise InputError("an observation needs at least one token and one session")
        hidden = self.hidden(torch.tensor([list(ids)]))[0]  # [T, D]
        return Observation(torch.stack([self.release(hidden, ids, secret) for secret in secrets_]))

    def auxiliary(
        self,
        ids: torch.Tensor,
        repeats: int = 1,
        seed: int = 0,
        hidden: torch.Tensor | None = None,
        progress: Callable[[float], None] = lambda share: None,
    ) -> Auxiliary:
        """The attacker's own text through this setting, under secrets of its own.

        Args:
            ids: [S, T].
            repeats: sessions each sequence is sent in.
            seed: of the attacker's secrets.
            hidden: [S, T, D] if already computed for this cut.
            progress: told the share done.
        """
        # One session takes all sequences, because noise is another after another prefix.
        defences = [build_defence(self.defence, attacker_secret(seed, 0, i), self.head) for i in range(repeats)]
        rows = torch.empty(*ids.shape, self.head.embedding().shape[1])
        for start in range(0, len(ids), _BATCH):
            batch = ids[start : start + _BATCH]
            states = self.hidden(batch) if hidden is None else hidden[start : start + _BATCH]  # [B, T, D]
            for i, (state, own) in enumerate(zip(states, batch.tolist(), strict=True), start=start):
                if self._lossless:
                    rows[i] = state
                else:
                    sent = torch.stack([self._sent(defence, state, own) for defence in defences])  # [N, T, D]
                    rows[i] = self.channel.estimate(sent)
            progress(min(1.0, (start + _BATCH) / len(ids)))
        return Auxiliary(ids, rows)

    def threat(
        self,
        auxiliary: Auxiliary | None = None,
        prior: Prior | None = None,
        knowledge: Knowledge = "W2",
        repeats: int = 1,
        seed: int = 0,
    ) -> Threat:
        """What the server knows besides what it observes.

        Under W0 it has neither token table nor layers; W1 (private fine-tune of a public base) needs another `Scene`'s head
        and is built by replacing `head`.
        """
        weights = knowledge != "W0"
        session = cache(lambda key: build_defence(self.defence, attacker_secret(seed, key, 0), self.head))
        return Threat(
            knowledge=knowledge,
            channel=self.channel,
            embedding=self.head.embedding() if weights else None,
            head=self.head if weights else None,
            auxiliary=auxiliary,
            prior=prior,
            simulate=None
            if self._lossless
            else lambda hidden, ids: self.auxiliary(ids, repeats, seed, hidden).released,
            release=None if self._lossless else lambda hidden, ids, key: self._sent(session(key), hidden, ids),
            repeats=repeats,
            seed=seed,
        )

    @property
    def _lossless(self) -> bool:
        """Whether hidden states leave exactly as they are."""
        return self.defence == "none" and self.codec.name == "fp32"

    def _sent(self, defence: Defence, hidden: torch.Tensor, ids: Sequence[int]) -> torch.Tensor:
        history, before = History(), len(ids) - len(hidden)
        history.extend(0, ids[:before])
        released = defence.release(hidden, history.extend(before, ids[before:]))
        return self.codec.decode(self.codec.encode(released), hidden.shape[-1]).float()


def attacker_secret(seed: int, key: int, session: int) -> Secret:
    """A session secret of the attacker's own; reproducible, because nothing of the attacker's is to be protected."""
    return Secret(f"attacker {seed} {key} {session}".encode().ljust(32, b"."))


def victim_secret(seed: int, prompt: str, session: int) -> Secret:
    """Secret of a measured session. It repeats, as a measurement should; nothing leaves this process under it.

    Args:
        seed: of the pass.
        prompt: id of the prompt.
        session: number among those the prompt is sent in.
    """
    return Secret(hashlib.blake2b(f"victim\0{seed}\0{prompt}\0{session}".encode(), digest_size=32).digest())
