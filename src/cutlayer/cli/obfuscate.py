"""`cutlayer obfuscate`: transform a checkpoint with secret keys, for a host that runs it in an unmodified engine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from cutlayer.errors import InputError, InsecureError

if TYPE_CHECKING:
    from cutlayer.obfuscation.keys import OwnerKey
    from cutlayer.obfuscation.settings import Settings

app = App(name="obfuscate", help="Write a checkpoint that other hosts run without seeing plain text.")
app.command("cutlayer.cli.obfuscate_audit:audit", name="audit", help="Attack an export as its host could.")

_Flag = Annotated[bool, Parameter(negative=())]


@app.default
def obfuscate(
    model: str,
    /,
    *,
    out: Path,
    key: Path,
    mode: str = "exact",
    client_key: Path | None = None,
    passphrase_file: Path | None = None,
    expand: int | None = None,
    dtype: str | None = None,
    alpha_e: float | None = None,
    alpha_h: float | None = None,
    lam: Annotated[float | None, Parameter(name="--lambda")] = None,
    beta: int | None = None,
    gamma: float | None = None,
    per_writer_keys: _Flag = False,
    gguf: Path | None = None,
    quiet: _Flag = False,
    json: _Flag = False,
) -> int:
    """Transform an open checkpoint with secret keys, so that a host can run it and sees permuted token ids only.

    It hides requests and answers from logs, gateways and dashboards of a host, as long as their readers do not have both the
    transformed and the original weights. It does not hide them from a host that has, or can guess, the public model it was made
    from: the weights then give the secret permutation back.

    Interrupted, the same command goes on where it was. Nothing that exists is overwritten.

    Parameters
    ----------
    model
        A pulled name, a directory of safetensors, or hf:ORG/NAME[@REVISION].
    out
        Directory to create, for the host. It holds no secret.
    key
        The owner's key file, outside OUT: created, or read again to go on after an interruption. Keep it here.
    mode
        exact: no change of answers. noisy: noise on embedding and output head. paper: the keys as published, which change
        answers. monomial: permutation and signs, for gemma 2 and 3.
    client_key
        The key file for those who talk to the host (default: client.key beside KEY).
    passphrase_file
        File with the passphrase of both key files, mode 0600 (default: the one that CUTLAYER_PASSPHRASE_FILE names, else ask).
    expand
        Hidden size of the result, a multiple of the number of attention heads (default: unchanged; paper: 256 more, rounded up).
    dtype
        float32, bfloat16 or float16 (default: the model's).
    alpha_e
        Noise on the embedding, relative to its standard deviation (noisy and paper; default by size of the model).
    alpha_h
        The same on the output head.
    lam
        λ of the published keys (paper; default 0.3).
    beta
        Widest window of rotary pairs that are permuted (paper; default 8).
    gamma
        How strongly unequal rotary frequencies keep windows narrow (paper; default 1000).
    per_writer_keys
        A fresh key for each matrix that adds to the hidden state, as published (paper); answers change much more.
    gguf
        Also write this GGUF file, for llama.cpp.
    quiet
        Show no progress.
    json
        Print one JSON object instead of lines.
    """
    from cutlayer.models.locate import locate
    from cutlayer.obfuscation.export import export
    from cutlayer.obfuscation.families import family_of
    from cutlayer.obfuscation.gguf_export import gguf_architecture
    from cutlayer.obfuscation.settings import choose

    client_key = key.with_name("client.key") if client_key is None else client_key
    _check_paths(out, key, client_key, gguf)
    base = locate(model)
    if gguf is not None:
        gguf_architecture(family_of(base)[0])
    settings = choose(
        base, mode=mode, expand=expand, dtype=dtype, alpha_e=alpha_e, alpha_h=alpha_h, lam=lam, beta=beta, gamma=gamma,
        per_writer_keys=per_writer_keys,
    )  # fmt: skip
    owner = _keys(base, settings, key, client_key, passphrase_file)
    with _Progress(quiet) as progress:
        export(base, out, owner, progress.follow("transforming"))
        if gguf is not None:
            _write_gguf(out, gguf, progress)
    _report(out, owner, key, client_key, gguf, json=json)
    return 0


@app.command
def modes(*, json: _Flag = False) -> int:
    """Say what each mode does, what it hides and from whom, and where it departs from the paper.

    Parameters
    ----------
    json
        Print one JSON object instead of text.
    """
    from cutlayer.obfuscation.card import CARDS, DOES_NOT_HIDE, HIDES, SOURCE

    if json:
        import msgspec

        said = {"source": SOURCE, "hides": HIDES, "does_not_hide": DOES_NOT_HIDE, "modes": CARDS}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(said), indent=2).decode() + "\n")
        return 0
    sys.stdout.write(f"Hides: {HIDES}\nDoes not hide: {DOES_NOT_HIDE}\nSource: {SOURCE}\n")
    for card in CARDS.values():
        sys.stdout.write(
            f"\n{card.mode}\n  Keys: {card.keys}\n  Answers: {card.effect}\n  Deviations: {card.deviations}\n"
        )
    return 0


@app.command(name="gguf")
def to_gguf(directory: Path, file: Path, /, *, quiet: _Flag = False) -> int:
    """Write an obfuscated checkpoint as one GGUF file for llama.cpp. Takes no key.

    Parameters
    ----------
    directory
        Made by `cutlayer obfuscate`.
    file
        To be created.
    quiet
        Show no progress.
    """
    with _Progress(quiet) as progress:
        _write_gguf(directory, file, progress)
    sys.stdout.write(f"{file}\n")
    return 0


def _check_paths(out: Path, key: Path, client_key: Path, gguf: Path | None) -> None:
    """Before anything is read or created.

    Raises:
        InputError: something to be created exists, or two of them are the same.
        InsecureError: a key would lie in what the host gets.
    """
    for path in (out, gguf):
        if path is not None and (path.exists() or path.is_symlink()):
            raise InputError(f"{path} exists and is never overwritten; choose another path or remove it yourself")
    for file in (key, client_key):
        if file.resolve().is_relative_to(out.resolve()):
            raise InsecureError(f"{file} lies in {out}, which goes to the host; keep keys elsewhere")
    if key.resolve() == client_key.resolve():
        raise InputError(f"--key and --client-key are both {key}; the owner's and the client's key are two files")


def _keys(base: Path, settings: Settings, key: Path, client_key: Path, passphrase_file: Path | None) -> OwnerKey:
    """The owner's key: new, or that of an interrupted export. The client's file is there afterwards too."""
    from cutlayer.cli.passphrase import read_passphrase
    from cutlayer.obfuscation.keyfile import MAX_KEY_BYTES, open_owner_key, read_header, seal
    from cutlayer.obfuscation.keys import create_owner_key
    from cutlayer.wire.private_files import read_private, write_new

    known = key.exists()
    if not known and client_key.exists():
        raise InputError(
            f"{client_key} exists and is never overwritten; choose another --client-key, or another folder for --key"
        )
    passphrase = read_passphrase(passphrase_file, new=not known)
    if known:
        owner = open_owner_key(read_private(key, MAX_KEY_BYTES), passphrase)
        if owner.settings != settings:
            made = owner.settings
            raise InputError(
                f"{key} was made for mode {made.mode}, D {made.hidden_size}, {made.dtype}, alpha_e {made.alpha_e:g}, alpha_h "
                f"{made.alpha_h:g}, lambda {made.lam:g}; repeat that command to go on, or give another --key"
            )
    else:
        owner = create_owner_key(base, settings)
        key.parent.mkdir(parents=True, exist_ok=True)
        write_new(key, seal(owner, passphrase))
    if not client_key.exists():
        client_key.parent.mkdir(parents=True, exist_ok=True)
        write_new(client_key, seal(owner.client(), passphrase))
    elif read_header(read_private(client_key, MAX_KEY_BYTES)).key_id != owner.identity.key_id:
        raise InputError(f"{client_key} is of another export and is never overwritten; choose another --client-key")
    return owner


def _write_gguf(directory: Path, file: Path, progress: _Progress) -> None:
    from cutlayer.obfuscation.gguf_export import export_gguf

    export_gguf(directory, file, progress.follow("writing GGUF"))


def _report(out: Path, owner: OwnerKey, key: Path, client_key: Path, gguf: Path | None, *, json: bool) -> None:
    from cutlayer.obfuscation.card import DOES_NOT_HIDE, HIDES

    settings = owner.settings
    if json:
        import msgspec

        made: dict[str, Any] = {
            "directory": str(out),
            "gguf": None if gguf is None else str(gguf),
            "key_id": owner.identity.key_id,
            "owner_key": str(key),
            "client_key": str(client_key),
            "settings": settings,
        }
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(made), indent=2).decode() + "\n")
        return
    file = "" if gguf is None else f" or {gguf}"
    sys.stdout.write(
        f"To the host:   {out}{file}   (hidden size {settings.hidden_size}, {settings.dtype})\n"
        f"To clients:    {client_key}   Whoever has it and its passphrase reads and writes their traffic.\n"
        f"Keep here:     {key}   Whoever has it can undo the transformation.\n\n"
        f"Hides: {HIDES}\nDoes not hide: {DOES_NOT_HIDE}\n"
    )


class _Progress:
    """A bar on stderr for each stage."""

    def __init__(self, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} tensors"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=quiet,
        )

    def __enter__(self) -> _Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def follow(self, stage: str) -> Any:
        """A callback of (done, total) that moves the bar of `stage`."""
        task = self._bars.add_task(stage, total=None)
        return lambda done, total: self._bars.update(task, completed=done, total=total)
