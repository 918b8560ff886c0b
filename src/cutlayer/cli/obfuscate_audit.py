"""`cutlayer obfuscate audit`: attack an export, and say what its host reads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

_Flag = Annotated[bool, Parameter(negative=())]
_List = Annotated[tuple[str, ...], Parameter(negative="", show_default=False)]


def audit(
    directory: Path,
    /,
    *,
    base: str,
    key: Path | None = None,
    passphrase_file: Path | None = None,
    attack: _List = (),
    tokens: int = 20_000,
    ids: int = 2000,
    seed: int = 0,
    quiet: _Flag = False,
    json: _Flag = False,
) -> int:
    """Attack an obfuscated checkpoint as its host could, and say what a host with and one without the base model reads.

    With the client's key, which only scores claims and makes the requests that are attacked, every attack has its share of ids
    and of traffic. Without it the attacks on weights are run all the same, and say what they can tell by themselves.

    Parameters
    ----------
    directory
        Made by `cutlayer obfuscate`.
    base
        The model it was made from, or may have been: a pulled name, a directory, or hf:ORG/NAME.
    key
        The client's key file.
    passphrase_file
        File with its passphrase, mode 0600 (default: the one that CUTLAYER_PASSPHRASE_FILE names, else ask).
    attack
        NAME[:KEY=VALUE,…], to be repeated (default: all).
    tokens
        Length of the log that is attacked.
    ids
        Drawn at random; the share of the vocabulary is estimated on them.
    seed
        Of what is drawn.
    quiet
        Show no progress.
    json
        Print one JSON object instead of a table.
    """
    from cutlayer.attacks.keycut.attack import build_attack
    from cutlayer.audit.keycut.material import material
    from cutlayer.audit.keycut.run import DEFAULT_ATTACKS
    from cutlayer.audit.keycut.run import audit as run
    from cutlayer.audit.keycut.words import plain, show
    from cutlayer.cli.passphrase import read_passphrase
    from cutlayer.errors import InputError
    from cutlayer.models.locate import locate
    from cutlayer.obfuscation.keyfile import MAX_KEY_BYTES, open_client_key
    from cutlayer.obfuscation.marker import read_marker
    from cutlayer.text.tokenizer import Tokenizer
    from cutlayer.wire.private_files import read_private

    if tokens < 1 or ids < 1:
        raise InputError(f"--tokens {tokens} and --ids {ids} must both be positive")
    chosen = attack or DEFAULT_ATTACKS
    for name in chosen:
        build_attack(name)
    marker = read_marker(directory)
    public = locate(base)
    client = None
    if key is not None:
        client = open_client_key(read_private(key, MAX_KEY_BYTES), read_passphrase(passphrase_file, new=False))
        client.check(marker)
    with _Progress(quiet) as progress:
        progress("reading text", 0)
        text = material(Tokenizer(public).encode, tokens, seed)
        outcomes = run(directory, public, client, text, attacks=chosen, sample=ids, seed=seed, progress=progress)
    if json:
        import msgspec

        sys.stdout.write(msgspec.json.encode(plain(outcomes, text.source)).decode() + "\n")
    else:
        from rich.console import Console

        show(outcomes, text.source, Console(highlight=False))
    return 0


class _Progress:
    """One bar on stderr, called with what begins and the share done."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=quiet,
            transient=True,
        )
        self._task = self._bars.add_task("", total=1.0)

    def __call__(self, what: str, share: float) -> None:
        self._bars.update(self._task, description=what, completed=share)

    def __enter__(self) -> _Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()
