"""`cutlayer serve`: the untrusted side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from cutlayer.cli.address import parse_address
from cutlayer.errors import InputError
from cutlayer.types import DEFAULT_CUT, check_dtype

_SHORTEST_IDLE_S = 1.0


def serve(
    model: str,
    /,
    *,
    cut: Annotated[str, Parameter(allow_leading_hyphen=True)] = DEFAULT_CUT,
    listen: str = "127.0.0.1:8410",
    dtype: str = "float32",
    weights: str = "dtype",
    device: str = "cpu",
    keys: Path | None = None,
    token: Path | None = None,
    max_sessions: int = 64,
    max_sessions_per_client: int = 0,
    max_positions: int = 8192,
    max_step_positions: int = 512,
    cache_positions: int = 65_536,
    max_cache_per_client: int = 0,
    max_rate: float = 0.0,
    idle: float = 600.0,
    drain: float = 30.0,
    congestion: str | None = None,
    ray: str | None = None,
    replicas: int = 1,
    stages: int = 1,
    sessions_per_replica: int = 16,
    stage_cpus: float = 1.0,
    stage_gpus: float = 0.0,
    ready_file: Path | None = None,
) -> int:
    """Run layers [A, B) of a model for clients that keep the rest.

    Parameters
    ----------
    model
        A pulled name, a directory of safetensors, or hf:ORG/NAME[@REVISION].
    cut
        A:B, the layers this server runs; negative numbers count from the end.
    listen
        HOST:PORT. Beyond loopback, TLS with client certificates or a token is required. Port 0 picks a free one.
    dtype
        float32, bfloat16 or float16.
    weights
        How weights are kept in memory: as the dtype, or int8 with one scale per row (needs cutlayer[int8]). int8 takes a
        quarter of float32's memory, and changes answers a little; the time of a step need not become shorter.
    device
        cpu, cuda, cuda:1, mps, …
    keys
        Directory with ca.pem, server.pem and server.key (see `cutlayer keys create`). Clients need a certificate of
        the same CA, unless a token is given.
    token
        File with a bearer token clients must present, or with a line NAME TOKEN for each client.
    max_sessions
        Open sessions at a time.
    max_sessions_per_client
        Of those, how many one client may have; 0 sets no limit. A client is a certificate or a named token.
    max_positions
        Tokens per session.
    max_step_positions
        Positions per message.
    cache_positions
        Tokens all sessions together may hold; bounds the cache's memory.
    max_cache_per_client
        Of those, how many one client may hold; 0 sets no limit.
    max_rate
        Tokens per second one client may send in the long run; 0 sets no limit. Who sends more has to wait.
    idle
        Seconds after which an unused session is dropped.
    drain
        Seconds that answers in progress get to finish when the server is told to stop. A second signal ends at once.
    congestion
        TCP congestion control of what is sent to clients, e.g. bbr on lossy lines; default: cubic where permitted.
    ray
        Run the layers on a Ray cluster: HOST:PORT, auto, or local to start one here. This process then only speaks with
        the clients.
    replicas
        With --ray, the most copies of the layers; they follow the open sessions.
    stages
        With --ray, actors that one copy's layers are spread over.
    sessions_per_replica
        With --ray, sessions on a copy before another is started.
    stage_cpus
        With --ray, CPUs set aside for a stage.
    stage_gpus
        With --ray, GPUs set aside for a stage.
    ready_file
        Written with the URL once connections are accepted; for scripts.
    """
    from cutlayer.models.weights import check_weights

    dtype_name, weights_name = check_dtype(dtype), check_weights(weights)
    host, port = parse_address(listen)

    # Nothing in this process may be able to turn ids into text; set up before transformers is imported.
    from cutlayer.server.isolation import forbid_text_libraries

    forbid_text_libraries()

    import asyncio

    from cutlayer.models.locate import locate
    from cutlayer.server.build import Fleet, build_fleet_service, build_service
    from cutlayer.server.listen import listen as run
    from cutlayer.server.logs import log_json
    from cutlayer.server.sessions import Limits
    from cutlayer.wire.tls import listen_policy, read_token_book, server_context

    listen_policy(host, tls=keys is not None, authenticated=keys is not None or token is not None)
    tokens = read_token_book(token) if token else None
    context = server_context(keys, require_client_certificate=tokens is None) if keys else None
    if not idle >= _SHORTEST_IDLE_S:
        raise InputError(f"--idle must be at least {_SHORTEST_IDLE_S:g} s, not {idle:g}")
    for name, value in (
        ("max-sessions-per-client", max_sessions_per_client),
        ("max-cache-per-client", max_cache_per_client),
        ("max-rate", max_rate),
        ("drain", drain),
    ):
        if not 0 <= value < math.inf:
            raise InputError(f"--{name} must be a number of 0 or more, not {value:g}")
    limits = Limits(
        sessions=_at_least_one("max-sessions", max_sessions),
        sessions_per_owner=max_sessions_per_client,
        positions=_at_least_one("max-positions", max_positions),
        cache_positions=_at_least_one("cache-positions", cache_positions),
        cache_positions_per_owner=max_cache_per_client,
        positions_per_s=max_rate,
        step_positions=min(_at_least_one("max-step-positions", max_step_positions), 4096),
        idle_s=idle,
    )
    log_json()
    directory = locate(model)
    name = directory.name if "/" in model else model
    if ray is None:
        service = build_service(directory, name, cut, dtype_name, device, limits, weights_name)
    else:
        from cutlayer.server.ray_stages import Resources
        from cutlayer.server.replicas import Scale

        scale = Scale(_at_least_one("replicas", replicas), _at_least_one("sessions-per-replica", sessions_per_replica))
        fleet = Fleet(ray, _at_least_one("stages", stages), scale, Resources(stage_cpus, stage_gpus))
        service = build_fleet_service(directory, model, name, cut, dtype_name, device, limits, fleet, weights_name)
    scheme = "wss" if context else "ws"

    def ready(bound: int) -> None:
        if ready_file is not None:
            ready_file.write_text(f"{scheme}://{host}:{bound}\n", encoding="utf-8")

    try:
        asyncio.run(
            run(service, host, port, tls=context, tokens=tokens, drain_s=drain, congestion=congestion, ready=ready)
        )
    except OSError as error:
        raise InputError(f"cannot listen on {listen}: {error.strerror or error}") from error
    return 0


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise InputError(f"--{name} must be at least 1, not {value}")
    return value
