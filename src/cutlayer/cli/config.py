"""`cutlayer config show`: the gateway's settings in effect, and where each comes from."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import App, Parameter

from cutlayer.cli.gateway import GatewayOptions

app = App(name="config", help="Settings of the gateway.", help_format="plaintext")

_NOTHING_GIVEN = GatewayOptions()


@app.command
def show(*, options: GatewayOptions = _NOTHING_GIVEN, json: Annotated[bool, Parameter(negative=())] = False) -> int:
    """Print every setting, its value and its source: flag, environment, file or default.

    Parameters
    ----------
    options
        Flags as `cutlayer gateway` takes them, to see what they would do.
    json
        Print one JSON object.
    """
    import msgspec

    from cutlayer.gateway.settings import shown, variable

    resolved = options.resolved()
    values = {name: shown(value) for name, value in msgspec.structs.asdict(resolved.settings).items()}
    if json:
        settings = {name: {"value": value, "source": resolved.sources[name]} for name, value in values.items()}
        whole = {"file": None if resolved.file is None else str(resolved.file), "settings": settings}
        sys.stdout.write(msgspec.json.encode(whole).decode() + "\n")
        return 0
    sys.stdout.write(f"file: {resolved.file or 'none'}\n")
    for name, value in values.items():
        source = resolved.sources[name]
        place = {"flag": f"--{name.replace('_', '-')}", "environment": variable(name)}.get(source, source)
        text = msgspec.json.encode(value).decode() if value is not None else "-"
        sys.stdout.write(f"{name:14} {text:32} {place}\n")
    return 0
