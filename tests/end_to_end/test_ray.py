"""Two replicas of two stages on a cluster of two nodes: what a single server answers, also through a death."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
import torch

from cutlayer.client.remote import Patience, RemoteBody
from cutlayer.models.parts import load_body
from cutlayer.server.build import Fleet, build_fleet_service
from cutlayer.server.local import LocalServer
from cutlayer.server.ray_stages import Resources
from cutlayer.server.replicas import ReplicaEngine, Scale
from cutlayer.server.sessions import Limits
from cutlayer.types import Cut
from cutlayer.wire.codecs import CODECS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings("ignore")

HIDDEN = 32
CUT = "1:5"
TOLERANCE = 1e-4


def states(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def server(tiny: Callable[[str], Path]) -> Iterator[LocalServer]:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    cluster.add_node(num_cpus=2)
    fleet = Fleet(cluster.address, 2, Scale(most=2, sessions_each=1), Resources(cpus=1))
    directory = tiny("llama")
    try:
        service = build_fleet_service(
            directory, str(directory), "tiny", CUT, "float32", "cpu", Limits(positions=256), fleet
        )
        with LocalServer(service) as local:
            yield local
    finally:
        ray.shutdown()
        cluster.shutdown()
        logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def expected(tiny: Callable[[str], Path]) -> Callable[[torch.Tensor], torch.Tensor]:
    body = load_body(tiny("llama"), Cut.parse(CUT, 6), torch.float32)

    def run(hidden: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            return body(hidden[None], body.new_cache())[0]

    return run


class Talk:
    """A client that sends a prompt and then one position after another."""

    def __init__(self, server: LocalServer, seed: int) -> None:
        self.remote = RemoteBody(
            server.connect, Patience(step_s=120, recover_s=240)
        )  # actors start slowly on busy cores
        info = self.remote.info()
        self.remote.open(info.fingerprint, info.cut, CODECS.get("fp32"), HIDDEN)
        self.hidden = states(60, seed)
        self.outputs: list[torch.Tensor] = []
        self.at = 0

    def go(self, count: int) -> None:
        self.remote.send(self.at, self.hidden[self.at : self.at + count])
        self.outputs.append(self.remote.receive().hidden)
        self.at += count


def test_a_death_in_mid_answer_changes_no_answer(
    server: LocalServer, expected: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    talks = [Talk(server, seed) for seed in range(2)]
    for talk in talks:
        talk.go(40)
        talk.go(1)
    engine = server.service.engine
    assert isinstance(engine, ReplicaEngine)
    assert len(engine) == 2, "each session has a replica of its own"
    ray.kill(engine._running[0].replica._stages[1])
    for talk in talks:
        while talk.at < len(talk.hidden):
            talk.go(1)
        assert (torch.cat(talk.outputs) - expected(talk.hidden)).abs().max() < TOLERANCE
    assert [talk.remote.traffic.resumes for talk in talks] == [1, 0]
    for talk in talks:
        talk.remote.close()


def test_the_stages_say_what_they_opened(server: LocalServer) -> None:
    opened = server.service.info.opened
    assert any(".layers.1." in name for name in opened)
    assert any(".layers.4." in name for name in opened)
    assert not any(".layers.0." in name or "embed" in name for name in opened)
