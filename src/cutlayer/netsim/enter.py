"""Run a command on the far side of a link: ``python -m cutlayer.netsim.enter PID COMMAND …``, PID being the forwarder's."""

from __future__ import annotations

import os
import sys

from cutlayer.netsim.device import enter_namespace_of


def main() -> int:
    """Become the command; its process id stays this one's. Exit code 127 if there is no such command, as shells have it."""
    pid, command = int(sys.argv[1]), sys.argv[2:]
    try:
        enter_namespace_of(pid)
    except OSError as error:
        sys.stderr.write(f"cutlayer: cannot enter the far side of the link ({error}); is it still up?\n")
        return 1
    try:
        os.execvp(command[0], command)  # noqa: S606 - the caller's own command
    except OSError as error:
        sys.stderr.write(f"cutlayer: cannot run {command[0]!r}: {error.strerror}\n")
        return 127


if __name__ == "__main__":
    sys.exit(main())
