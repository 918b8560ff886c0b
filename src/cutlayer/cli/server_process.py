"""`cutlayer serve` as a process of its own, for the demo, the benchmarks and the tests.

with ServerProcess("smollm2-135m") as server:
    client = connect(server.url, keys=server.client_keys)
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cutlayer.errors import CutlayerError
from cutlayer.wire.certificates import create

if TYPE_CHECKING:
    from types import TracebackType

_POLL_S: Final = 0.02
_STOP_S: Final = 10.0


class ServerProcess:
    """A server under mutual TLS, with certificates made for it alone.

    Args:
        model: what to serve.
        cut: ``A:B``.
        options: more command-line arguments of ``cutlayer serve``.
        start_s: patience while it loads.
        host: address it listens on.
        prefix: what its command line starts with, to run it elsewhere (`netsim.link.Link.prefix`).
    """

    def __init__(
        self,
        model: str,
        cut: str = "2:-2",
        options: tuple[str, ...] = (),
        start_s: float = 120.0,
        host: str = "127.0.0.1",
        prefix: tuple[str, ...] = (),
    ) -> None:
        self._host = host
        self._prefix = prefix
        self._arguments = (model, f"--cut={cut}", *options)
        self._start_s = start_s
        self._folder = tempfile.TemporaryDirectory(prefix="cutlayer-")
        self._root = Path(self._folder.name)
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.client_keys = self._root / "keys" / "client"

    def __enter__(self) -> ServerProcess:
        create(self._root / "keys", hosts=(self._host, "localhost"), clients=("client",), days=1)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """Process id.

        Raises:
            CutlayerError: it is not running.
        """
        if self._process is None:
            raise CutlayerError("the server process is not running")
        return self._process.pid

    def start(self) -> None:
        """Start, or start again on the same port after `kill`.

        Raises:
            CutlayerError: it did not come up; the message ends with its own last words.
        """
        ready = self._root / "ready"
        ready.unlink(missing_ok=True)
        address = self.url.partition("//")[2] or f"{self._host}:0"
        command = [*self._prefix, sys.executable, "-m", "cutlayer", "serve", *self._arguments, f"--listen={address}"]
        command += [f"--keys={self._root / 'keys' / 'server'}", f"--ready-file={ready}"]
        with self.log_file.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603
        deadline = time.monotonic() + self._start_s
        while not (ready.exists() and ready.read_text().endswith("\n")):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise CutlayerError(f"the server did not start: {self.log().strip()[-2000:]}")
            time.sleep(_POLL_S)
        self.url = ready.read_text().strip()

    @property
    def log_file(self) -> Path:
        """Where its standard output and error go."""
        return self._root / "server.log"

    def log(self) -> str:
        """All it has said."""
        return self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.exists() else ""

    def kill(self) -> None:
        """SIGKILL: no farewell, all sessions gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> int | None:
        """SIGTERM and wait; returns the exit code, None if it was not running."""
        return self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP: the process keeps its sockets and answers nothing."""
        self._signal(signal.SIGSTOP)

    def proceed(self) -> None:
        """SIGCONT after `pause`."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        if process.poll() is None:
            process.send_signal(number)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return process.returncode
