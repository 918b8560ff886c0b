"""A model split with a server, as a gateway serves it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cutlayer.audit.measured import statement_for
from cutlayer.gateway.grammar import Grammars
from cutlayer.gateway.served import Served

if TYPE_CHECKING:
    from cutlayer.client.connect import Client


def split(client: Client) -> Served:
    """What `client`, which the gateway owns from now on, is connected to."""
    vocabulary = client.parts.head.embedding().shape[0]
    return Served(
        session=client,
        name=client.directory.name,
        tokenizer=client.tokenizer,
        schemas=Grammars(client.tokenizer, vocabulary),
        vocabulary=vocabulary,
        max_positions=client.max_positions,
        fingerprint=client.info.fingerprint,
        cut=f"{client.cut} of {client.cut.layers}",
        defence=client.defence.describe(),
        statement=statement_for(client),
    )
