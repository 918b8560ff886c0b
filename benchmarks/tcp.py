"""What TCP makes of a step's round trip over an emulated wide-area link: cold, warm, after pauses, under loss, beside a replay.

Messages go through the product's own transport and acceptor with TLS; the server answers at once, so all that is measured is the
way. Prints and writes the record ``tcp``.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec
from cyclopts import App
from rich.progress import track

from cutlayer.client.remote import REPLAY_BYTES
from cutlayer.netsim.link import Link
from cutlayer.netsim.shape import Shape
from cutlayer.records.record import Figure, exact, median, new_record, quantile
from cutlayer.wire.certificates import create
from cutlayer.wire.tls import client_context
from cutlayer.wire.websocket import WebSocketTransport
from report import command, finish

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

STEP_BYTES: Final = 41_000
"""Five positions of hidden size 4096 in fp16."""
LONG_PROMPT_BYTES: Final = 800_000
SMALL_BYTES: Final = 64
THINK_S: Final = 0.024
"""Between two steps, for what both sides compute."""
KEEP_WARM_S: Final = 60.0
STEPS: Final = 12
LOSSES: Final = {"loss_0_1_percent": 0.001, "loss_1_percent": 0.01}

Samples = defaultdict[str, list[float]]

app = App(help=__doc__)


class Control(NamedTuple):
    """How both ends send."""

    congestion: str
    keep_warm_s: float = 0.0


CONTROLS: Final = {"cubic": Control("cubic"), "kept_warm": Control("cubic", KEEP_WARM_S), "bbr": Control("bbr")}


class Bench:
    """A link with an echo server for each congestion control on its far side."""

    def __init__(self, link: Link, folder: Path) -> None:
        self.link = link
        self._ports: dict[str, int] = {}
        create(folder, hosts=(link.far_host,), clients=("client",), days=1)
        self._context: ssl.SSLContext = client_context(folder / "client")
        program = "from tcp_echo import main; main()"
        starting = []
        for port, congestion in enumerate(sorted({control.congestion for control in CONTROLS.values()}), start=18410):
            arguments = ("-c", program, link.far_host, str(port), str(folder / "server"), congestion)
            starting.append(
                link.run_server([sys.executable, *arguments], stdout=subprocess.DEVNULL, cwd=Path(__file__).parent)
            )
            self._ports[congestion] = port
        for server, port in zip(starting, self._ports.values(), strict=True):
            while not link.listening(port):
                if server.poll() is not None:
                    raise RuntimeError("the echo server did not start")
                time.sleep(0.05)

    @contextmanager
    def connection(self, control: Control) -> Iterator[WebSocketTransport]:
        """A new connection."""
        transport = WebSocketTransport(
            f"wss://{self.link.address(self._ports[control.congestion])}", self._context, None, 64 << 20,
            congestion=control.congestion, keep_warm_s=control.keep_warm_s,
        )  # fmt: skip
        if transport.congestion_control() != control.congestion:
            raise RuntimeError(f"asked for {control.congestion}, got {transport.congestion_control()}")
        try:
            yield transport
        finally:
            transport.close()


def send(transport: WebSocketTransport, up: int) -> None:
    """Ask for an answer of `SMALL_BYTES`."""
    transport.send(SMALL_BYTES.to_bytes(4, "little") + bytes(up - 4))


def round_trip_ms(transport: WebSocketTransport, up: int = STEP_BYTES, down: int = STEP_BYTES) -> float:
    """One message each way."""
    started = time.perf_counter()
    transport.send(down.to_bytes(4, "little") + bytes(up - 4))
    if len(transport.recv(60)) != down:
        raise RuntimeError("the answer has another length")
    return (time.perf_counter() - started) * 1e3


def steps(transport: WebSocketTransport, count: int) -> list[float]:
    """Steps as an answer makes them."""
    times = []
    for _ in range(count):
        time.sleep(THINK_S)
        times.append(round_trip_ms(transport))
    return times


def conversation(bench: Bench, name: str, control: Control, samples: Samples) -> None:
    """A short prompt, steps, and pauses between answers."""
    with bench.connection(control) as transport:
        samples[f"{name}_cold_ms"].append(round_trip_ms(transport))
        samples[f"{name}_warm_ms"] += steps(transport, STEPS)[2:]
        for pause in (2, 10):
            time.sleep(pause)
            samples[f"{name}_after_{pause}s_ms"].append(round_trip_ms(transport))
            samples[f"{name}_second_after_{pause}s_ms"].append(steps(transport, 1)[0])
            steps(transport, 3)
        for direction, up, down in (("up", STEP_BYTES, SMALL_BYTES), ("down", SMALL_BYTES, STEP_BYTES)):
            time.sleep(2)
            samples[f"{name}_{direction}_after_2s_ms"].append(round_trip_ms(transport, up, down))
            steps(transport, 3)
    with bench.connection(control) as transport:
        samples[f"{name}_long_prompt_ms"].append(round_trip_ms(transport, LONG_PROMPT_BYTES, LONG_PROMPT_BYTES))
        samples[f"{name}_warm_after_long_prompt_ms"] += steps(transport, STEPS)[2:]


def steady(bench: Bench, control: Control, count: int) -> list[float]:
    """Steps after a short prompt."""
    with bench.connection(control) as transport:
        round_trip_ms(transport)
        return steps(transport, count)


def beside_replay(bench: Bench, control: Control, count: int) -> list[float]:
    """One session's steps while another on its own connection replays without pause."""
    ended = threading.Event()
    with bench.connection(control) as bulk, bench.connection(control) as transport:

        def replay() -> None:
            while not ended.is_set():
                round_trip_ms(bulk, REPLAY_BYTES, SMALL_BYTES)

        steps(transport, 5)
        thread = threading.Thread(target=replay)
        thread.start()
        try:
            time.sleep(2)
            return steps(transport, count)
        finally:
            ended.set()
            thread.join()


def behind_replay(bench: Bench, control: Control, count: int) -> list[float]:
    """The same had both shared one connection: a step sent just after a replayed frame."""
    times = []
    with bench.connection(control) as transport:
        steps(transport, 5)
        for _ in range(count):
            started = time.perf_counter()
            send(transport, REPLAY_BYTES)
            transport.send(STEP_BYTES.to_bytes(4, "little") + bytes(STEP_BYTES - 4))
            transport.recv(60)
            transport.recv(60)
            times.append((time.perf_counter() - started) * 1e3)
    return times


def keep_warm_bytes(bench: Bench, seconds: float) -> float:
    """Bytes a minute of a silent connection that is kept warm, both ways, IP headers included."""
    counters = Path("/sys/class/net") / bench.link.device / "statistics"

    def count() -> int:
        return sum(int((counters / name).read_text()) for name in ("rx_bytes", "tx_bytes"))

    with bench.connection(CONTROLS["kept_warm"]) as transport:
        round_trip_ms(transport)
        time.sleep(1)
        before, started = count(), time.monotonic()
        time.sleep(seconds)
        return (count() - before) / (time.monotonic() - started) * 60


@app.default
def tcp(
    *,
    trials: int = 6,
    lossy_steps: int = 100,
    replayed_steps: int = 20,
    rtt: float = 80.0,
    rate: float = 100.0,
    kind: Literal["auto", "tun", "proxy"] = "auto",
    write: bool = True,
) -> None:
    """Measure and record."""
    shape = Shape(rtt_ms=rtt, mbit_s=rate, seed=1)
    samples: Samples = defaultdict(list)
    figures: dict[str, Figure] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def on_link(shape: Shape, number: int, measure: Callable[[Bench], None]) -> Link:
            with Link(shape, None if kind == "auto" else kind) as link:
                measure(Bench(link, folder / str(number)))
            return link

        def clean(bench: Bench) -> None:
            rounds = [(name, control) for _ in range(trials) for name, control in CONTROLS.items()]
            for name, control in track(rounds, "conversations"):
                conversation(bench, name, control, samples)
            with bench.connection(CONTROLS["cubic"]) as transport:
                small = [round_trip_ms(transport, SMALL_BYTES, SMALL_BYTES) for _ in range(100)]
            samples["beyond_shape_ms"] = [value - rtt for value in small]
            for name in ("cubic", "bbr"):
                samples[f"{name}_beside_replay_ms"] = beside_replay(bench, CONTROLS[name], replayed_steps)
                samples[f"{name}_behind_replay_ms"] = behind_replay(bench, CONTROLS[name], replayed_steps // 2)
            if bench.link.device:
                figures["keep_warm_bytes_per_minute"] = exact(round(keep_warm_bytes(bench, 20)), "bytes")

        link = on_link(shape, 0, clean)
        if link.kind == "tun":
            for number, (key, loss) in enumerate(track(list(LOSSES.items()), "loss"), start=1):

                def lossy(bench: Bench, key: str = key) -> None:
                    for name in ("cubic", "bbr"):
                        samples[f"{name}_{key}_ms"] = steady(bench, CONTROLS[name], lossy_steps)

                on_link(msgspec.structs.replace(shape, loss=loss), number, lossy)
    figures |= {key: median(values, "ms") for key, values in samples.items()}
    figures |= {
        key.replace("_ms", "_ms_p90"): quantile(samples[key], 0.9, "ms")
        for key in samples
        if "loss" in key or "replay" in key
    }
    if link.tally is not None and link.tally.late_ms_p50 is not None and link.tally.late_ms_p99 is not None:
        figures["packet_late_ms_p50"] = exact(link.tally.late_ms_p50, "ms", link.tally.carried)
        figures["packet_late_ms_p99"] = exact(link.tally.late_ms_p99, "ms", link.tally.carried)
    config = {
        "link": str(link), "kind": link.kind, "kernel": platform.release(), "trials": trials, "step_bytes": STEP_BYTES,
        "long_prompt_bytes": LONG_PROMPT_BYTES, "replayed_frame_bytes": REPLAY_BYTES, "between_steps_s": THINK_S,
        "keep_warm_s": KEEP_WARM_S, "queue_bytes": shape.queue_bytes, "loss_seed": shape.seed,
        "transport": "TLS 1.3, WebSocket, both ends as in the product; the server answers without a model",
        "load_average": os.getloadavg()[0],
    }  # fmt: skip
    finish(new_record("tcp", command("tcp"), config, figures, dict(samples)), write=write)


if __name__ == "__main__":
    app()
