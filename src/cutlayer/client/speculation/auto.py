"""What is used by default: lookup, recycling and, where there is one, a draft head, in one tree.

    auto                        lookup, recycling, and the model's table and head if there are any, see `find_table`, `find_head`
    auto:head=FILE              this draft head; `none` for none
    auto:profile=NAME           learned candidates outlive the session, see `profile.py`

The priors were fitted once, by maximum likelihood, to answers of SmolLM2-135M to 30 prompts that no benchmark uses; each
session goes on from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cutlayer.client.speculation.drafted import Drafted
from cutlayer.client.speculation.head.file import find_head
from cutlayer.client.speculation.lookup import Lookup
from cutlayer.client.speculation.mixed import Mixed
from cutlayer.client.speculation.recycling import NONE, Options, Prior, recycled
from cutlayer.client.speculation.source import Weighed
from cutlayer.client.speculation.speculator import SPECULATORS
from cutlayer.registry import Spec

if TYPE_CHECKING:
    from cutlayer.client.speculation.speculator import Speculator
    from cutlayer.client.trusted import Trusted

_LOOKUP: Final = Prior(0.9, -3.0)
# Of a context of two tokens that came before in the text, lookup says the same and says it better.
_LEARNED: Final = (Prior(0.05, 0.0), Prior(0.45, -1.5))
_TABLE: Final = (Prior(0.25, -0.6), Prior(0.4, 0.0))
_HEAD: Final = Prior(0.8, -1.0)
_HEAD_DEPTH: Final = "3"
_DOUBT: Final = 1.7


class _Options(Options, forbid_unknown_fields=True):
    head: str | None = None


class _Auto:
    def build(self, spec: Spec, trusted: Trusted) -> Speculator:
        """See `Kind.build`."""
        options = spec.read(_Options)
        sources = [Weighed(Lookup(), *_LOOKUP), *recycled(options, trusted, _LEARNED, _TABLE)]
        file = find_head(trusted) if options.head is None else options.head
        if file in (None, NONE):
            return Mixed(sources, _DOUBT)
        head = SPECULATORS.get("head").build(Spec("head", {"path": str(file), "depth": _HEAD_DEPTH}), trusted)
        # What the prompt would tell it is worth less than the output head for every row of it costs.
        return Mixed(sources, _DOUBT, slow=[Weighed(Drafted(head), *_HEAD)])


KIND: Final = _Auto()
