"""`cutlayer`: the verbs, and the one place where errors become messages and exit codes.

Exit codes: 0 done, 1 the operation failed, 2 a wrong value or an insecure request, 130 cancelled.
Verb modules are imported when used, which keeps ``cutlayer --help`` fast.
"""

from __future__ import annotations

import sys
from typing import Final

from cyclopts import App

import cutlayer
from cutlayer.cli.quiet import quiet_imports
from cutlayer.cli.threads import limit_spinning
from cutlayer.errors import CutlayerError

VERBS: Final[dict[str, tuple[str, str]]] = {
    "pull": ("cutlayer.cli.pull:pull", "Fetch a model into this machine's cache and convert it once."),
    "models": ("cutlayer.cli.models:models", "List the models on this machine."),
    "plan": ("cutlayer.cli.plan:plan", "What each cut of a model costs in memory, bytes and tokens per second."),
    "keys": ("cutlayer.cli.keys:app", "Create and inspect the certificates of client and server."),
    "serve": ("cutlayer.cli.serve:serve", "Run the middle layers of a model (the untrusted side)."),
    "generate": ("cutlayer.cli.generate:generate", "Answer one prompt through a server."),
    "chat": ("cutlayer.cli.chat:chat", "Talk through a server, turn by turn."),
    "watch": ("cutlayer.cli.watch:watch", "Ask in a browser page, and see beside the answer what the server reads."),
    "gateway": ("cutlayer.cli.gateway:gateway", "Serve OpenAI's interface on this machine, through a server."),
    "config": ("cutlayer.cli.config:app", "Show the gateway's settings and where they come from."),
    "doctor": ("cutlayer.cli.doctor:doctor", "Check on your own run what crossed the network."),
    "audit": ("cutlayer.cli.audit:app", "Measure what a server can read at a cut."),
    "obfuscate": ("cutlayer.cli.obfuscate:app", "Write a checkpoint that other hosts run without seeing plain text."),
    "netsim": ("cutlayer.cli.netsim:netsim", "Put a slow network between two commands on this machine."),
    "train-draft": (
        "cutlayer.cli.train_draft:train_draft",
        "Train a small layer that guesses at the next tokens here.",
    ),
    "draft-table": (
        "cutlayer.cli.draft_table:draft_table",
        "Note what a model says after short contexts, to guess from.",
    ),
    "bench": ("cutlayer.cli.bench:bench", "Run a benchmark of this checkout and write its record."),
    "demo": ("cutlayer.cli.demo:demo", "Server, client and a question over TLS on this machine."),
}

app = App(
    name="cutlayer",
    help="Run a language model split between this machine and a server you do not trust.",
    version=cutlayer.__version__,
    help_format="plaintext",  # markdown would cost 45 ms of imports
)
for _name, (_target, _help) in VERBS.items():
    app.command(_target, name=_name, help=_help)


def main() -> None:
    """Run the command line and exit."""
    limit_spinning()
    quiet_imports()
    try:
        result = app(result_action="return_value")
    except CutlayerError as error:
        print(f"cutlayer: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)
