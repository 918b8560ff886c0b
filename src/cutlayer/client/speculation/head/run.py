"""The folder beside a draft head that is being made: its data, its checkpoint, and the settings both belong to."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING

import msgspec

from cutlayer.client.speculation.head.collect import file_of
from cutlayer.client.speculation.head.examples import load_example
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from cutlayer.client.speculation.head.collect import Job
    from cutlayer.client.speculation.head.training import Recipe, Trained
    from cutlayer.client.trusted import Trusted


class Run:
    """See the module.

    Args:
        folder: made if it is not there, its owner's alone: what is in it is as private as the texts.
        trusted: model and cut.
        jobs: the texts.
        recipe: the training.
        defence: under which states leave.
        fresh: discard what is there.

    Raises:
        InputError: the folder holds a run with other settings, or cannot be made.
    """

    def __init__(
        self, folder: Path, trusted: Trusted, jobs: Sequence[Job], recipe: Recipe, defence: str, *, fresh: bool
    ) -> None:
        self.folder = folder
        self.checkpoint = folder / "checkpoint.safetensors"
        self._jobs = jobs
        self._recipe = recipe
        settings = (trusted.info.fingerprint, trusted.cut, trusted.dtype, defence, recipe, [tuple(job) for job in jobs])
        digest = hashlib.sha256(msgspec.json.encode(settings)).hexdigest()
        mark = folder / "settings"
        try:
            if fresh and folder.is_dir():
                shutil.rmtree(folder)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if mark.is_file() and mark.read_text() != digest:
                raise InputError(f"{folder} is of a run with other settings; repeat those, or discard it with --fresh")
            mark.write_text(digest)
        except OSError as error:
            raise InputError(f"cannot use {folder}: {error.strerror or error}") from error

    def files(self, *, held: bool) -> list[Path]:
        """Examples that are held back from training, or those that are not."""
        return [file_of(job, self.folder) for job in self._jobs if job.held == held]

    def summary(self, trained: Trained) -> dict[str, str | int | float | None]:
        """What was done and what it reached."""
        lengths = {held: [len(load_example(file).ids) for file in self.files(held=held)] for held in (False, True)}
        return {
            "tokens": sum(lengths[False]),
            "texts": len(lengths[False]),
            "answers": sum(1 for job in self._jobs if job.answer and not job.held),
            "held_out_answers": len(lengths[True]),
            "steps": trained.steps,
            "loss": trained.losses[-1] if trained.losses else None,
            "tokens_per_trip": trained.best,
            "tokens_per_trip_untrained": trained.acceptance[0],
            "chain": self._recipe.depth,
            "recipe": msgspec.json.encode(self._recipe).decode(),
        }

    def remove(self) -> None:
        """Forget data and checkpoint."""
        shutil.rmtree(self.folder)
