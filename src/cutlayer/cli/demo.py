"""`cutlayer demo`: the whole point, on one machine, in under a minute.

Starts an untrusted server as a process of its own, asks it a question through the cut over TLS, streams the answer, and
says what crossed the network, what the server never had, and what it can read all the same. Everything said is counted in
this run, but for the one line of what audits measured before.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from cutlayer.errors import CutlayerError

if TYPE_CHECKING:
    from cutlayer.audit.view import View
    from cutlayer.client.connect import Client
    from cutlayer.client.generation import Result

MODEL: Final = "smollm2-135m"
QUESTION: Final = "What is the capital of France?"
ANSWER: Final = "Paris"


def demo(*, cut: str = "2:-2", question: str = QUESTION) -> int:
    """Start a server, ask it a question through the cut, and account for what crossed.

    Parameters
    ----------
    cut
        A:B, the layers the server runs.
    question
        What to ask.
    """
    from cutlayer.cli.pull import pull
    from cutlayer.cli.server_process import ServerProcess

    _say(f"1. The model: {MODEL}, fetched and converted on first use.")
    code = pull(MODEL)
    if code:
        return code
    _say(f"2. The server: a process of its own that loads layers {cut} and nothing else. Starting it ...")
    with ServerProcess(MODEL, cut) as server:
        from cutlayer.audit.held import Held
        from cutlayer.audit.watch import Watcher
        from cutlayer.client.connect import Client, Options, dialler

        held = Held(dialler(server.url, keys=server.client_keys))
        with Client(held, Options(model=MODEL, cut=cut)) as client, Watcher(client, held) as watcher:
            security = client.security()
            _say(f"   {server.url}, {security.protocol}, {security.cipher}, certificates of both sides checked.")
            _say(f"3. The question: {question}\n")
            generation = watcher.ask(question, max_tokens=64)
            for piece in generation:
                sys.stdout.write(piece.text)
                sys.stdout.flush()
            result = generation.result()
            _say("\n")
            _say(_account(client, result))
            _say(_readable(client, watcher.settle()))
        if server.stop() != 0:
            raise CutlayerError(f"the server did not stop cleanly: {server.log()[-500:]}")
    if question == QUESTION and ANSWER not in result.text:
        raise CutlayerError(f"expected {ANSWER} in the answer")
    return 0


def _account(client: Client, result: Result) -> str:
    info = client.info
    width = client.codec.row_bytes(info.hidden_size)
    positions = len(result.prompt_token_ids) + result.steps
    words = {
        "crossed": (
            f"{result.bytes.sent:,} bytes out and {result.bytes.received:,} bytes back in {result.steps + 1} round trips of "
            f"hidden states:\n   {positions} positions × {info.hidden_size} numbers × {width // info.hidden_size} bytes each "
            f"way = {2 * positions * width:,} bytes, the rest is frame headers."
        ),
        "server": (
            f"{info.opened_count} of the model's tensors, those of layers {info.cut} of {info.cut.layers} "
            "(by its own word; `cutlayer doctor` says what can be checked)."
        ),
        "client": f"{len(client.parts.head.opened)} tensors: embedding, layers before and after, final norm, output head.",
    }
    return (
        f"What crossed the network: {words['crossed']}\n"
        f"What the server opened: {words['server']}\n"
        f"What stayed here: {words['client']}\n"
        "What the server was never sent: the question, the answer, token ids, the tokenizer, embeddings, logits, sampling.\n"
        f"Defence in this run: {result.defence}."
    )


def _readable(client: Client, view: View) -> str:
    """What all this does not protect, by an attack on this very run and by those before."""
    from cutlayer.audit.measured import statement_for

    read, of = view.share("prompt")
    if view.problem:
        found = f"What this server could read of your question is unknown: the {view.attack} attack stopped, {view.problem}."
    else:
        found = f"This server could read {read} of {of} tokens of your question ({view.attack} attack, just now)."
    return f"{found}\n{statement_for(client)}"


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
