"""Token recycling: what the model said when a context was last verified is guessed when the context comes again.

    recycling                   contexts of one and two tokens, a tree grown best first
    recycling:tree=static       as published, see `template.py`
    recycling:profile=NAME      learned candidates outlive the session, see `profile.py`
    recycling:table=FILE        below them a table made once from the model's own text, see `table.py`; `none` for none

Without `table` the one of the model is taken if there is any, see `find_table`.

Source: Luo et al. 2024 (arXiv 2408.08696), which keys by one token, keeps the last candidates alone and sends one fixed tree.
Here longer contexts speak too, candidates are averaged with those of before, and probabilities decide the tree.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from cutlayer.client.speculation.candidates import Candidates
from cutlayer.client.speculation.contexts import LONGEST, LongestKnown, Order
from cutlayer.client.speculation.mixed import Mixed
from cutlayer.client.speculation.profile import ProfileCandidates
from cutlayer.client.speculation.source import Weighed
from cutlayer.client.speculation.table import find_table, shared_table
from cutlayer.client.speculation.template import StaticRecycling
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cutlayer.client.speculation.speculator import Speculator
    from cutlayer.client.trusted import Trusted
    from cutlayer.registry import Spec

NONE: Final = "none"


class Prior(NamedTuple):
    """What a source is believed at first, see `Weighed`."""

    weight: float
    doubt: float


_LEARNED: Final = (Prior(0.5, -2.0), Prior(0.5, -1.4))
_TABLE: Final = (Prior(0.3, -0.6), Prior(0.4, 0.0))
_DOUBT: Final = 1.85


class Options(msgspec.Struct, forbid_unknown_fields=True):
    """What is remembered, and where."""

    profile: str | None = None
    table: str | None = None


class _Options(Options, forbid_unknown_fields=True):
    tree: Literal["grown", "static"] = "grown"


def recycled(options: Options, trusted: Trusted, learned: Sequence[Prior], table: Sequence[Prior]) -> list[Weighed]:
    """The sources: contexts of `LONGEST` tokens first.

    Args:
        options: which profile and table.
        trusted: the model.
        learned: priors of the candidates, by length of context, longest first.
        table: priors of the table: of its longest context known, and of the last token.

    Raises:
        InputError: the profile has no name that can be, or the table cannot be used.
    """
    fingerprint, vocabulary = trusted.info.fingerprint, trusted.parts.head.embedding().shape[0]
    candidates = (
        Candidates(LONGEST)
        if options.profile is None
        else ProfileCandidates(LONGEST, options.profile, fingerprint, vocabulary)
    )
    sources = [Weighed(Order(candidates, LONGEST - i), *prior) for i, prior in enumerate(learned)]
    file = find_table(fingerprint) if options.table is None else Path(options.table).expanduser()
    if file is not None and options.table != NONE:
        fixed = shared_table(file, fingerprint, vocabulary)
        longer, single = table
        sources += [Weighed(LongestKnown(fixed), *longer), Weighed(Order(fixed, 1), *single)]
    return sources


class _Recycling:
    def build(self, spec: Spec, trusted: Trusted) -> Speculator:
        """See `Kind.build`."""
        options = spec.read(_Options)
        if options.tree == "static":
            if options.profile or options.table:
                raise InputError(f"{spec}: the published form has neither profile nor table")
            return StaticRecycling()
        return Mixed(recycled(options, trusted, _LEARNED, _TABLE), _DOUBT)


KIND: Final = _Recycling()
