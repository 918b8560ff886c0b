"""A tiny obfuscated model in an engine that listens on loopback, and a gateway in front of it."""

from __future__ import annotations

import io
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from starlette.testclient import TestClient
from tests.gateway.conftest import PORT, Door
from tests.gateway.upstream.fake_engine import NAMES, FakeEngine
from transformers import AutoModelForCausalLM

from cutlayer.gateway.logs import request_logger
from cutlayer.gateway.service import Gateway, Limits
from cutlayer.gateway.upstream.obfuscated import obfuscated
from cutlayer.obfuscation.export import export
from cutlayer.obfuscation.keys import ClientKey, create_owner_key
from cutlayer.obfuscation.settings import choose

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from pathlib import Path


class Obfuscated(NamedTuple):
    """An export and what belongs to it."""

    base: Path
    directory: Path
    key: ClientKey

    @property
    def name(self) -> str:
        """As the documentation has engines call it."""
        return f"obfuscated-{self.key.identity.key_id}"


class Upstream(NamedTuple):
    """An engine and the gateway in front of it."""

    engine: FakeEngine
    door: Door
    model: Obfuscated

    def plain(self, ids: list[int], tokens: int, bias: dict[int, float] | None = None) -> list[int]:
        """The plain model's greedy answer, an end included."""
        model = AutoModelForCausalLM.from_pretrained(self.model.base).eval()
        said = list(ids)
        with torch.inference_mode():
            for _ in range(tokens):
                scores = model(torch.tensor([said])).logits[0, -1]
                for token, value in (bias or {}).items():
                    scores[token] += value
                said.append(int(scores.argmax()))
                if said[-1] in self.door.gateway.tokenizer.stop_ids:
                    break
        return said[len(ids) :]


@pytest.fixture(scope="session")
def obfuscate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Obfuscated]:
    """Directory of a base → an export of it, made once."""
    made: dict[Path, Obfuscated] = {}

    def make(base: Path) -> Obfuscated:
        if base not in made:
            owner = create_owner_key(base, choose(base))
            directory = tmp_path_factory.mktemp("exports") / "export"
            export(base, directory, owner)
            made[base] = Obfuscated(base, directory, owner.client())
        return made[base]

    return make


@pytest.fixture
def open_upstream(
    obfuscate: Callable[[Path], Obfuscated], tiny_with_text: Callable[[str], Path]
) -> Iterator[Callable[..., Upstream]]:
    """Starts an engine of a kind and a gateway with the given limits; with `served`, `Door.served` is to run the latter."""
    with ExitStack() as stack:

        def make(
            kind: str = "vllm",
            *,
            served: bool = False,
            base: Path | None = None,
            presents: ssl.SSLContext | None = None,
            **given: Any,
        ) -> Upstream:
            model = obfuscate(base or tiny_with_text("llama"))
            engine = stack.enter_context(FakeEngine(kind, model.directory, model.name, presents))
            limits = {name: given.pop(name) for name in list(given) if name in Limits.__struct_fields__}
            log = io.StringIO()
            found = obfuscated(kind, engine.url, model.key, model.base, **given)
            gateway = Gateway(found, Limits(**limits), "tiny", request_logger(log))
            door = Door(gateway, None, log)  # type: ignore[arg-type]
            if not served:
                door.http = stack.enter_context(TestClient(door.app(), base_url=f"http://127.0.0.1:{PORT}"))
            return Upstream(engine, door, model)

        yield make


@pytest.fixture(params=NAMES)
def upstream(request: pytest.FixtureRequest, open_upstream: Callable[..., Upstream]) -> Upstream:
    """One after another, every kind."""
    return open_upstream(request.param)
