"""Measures the cells of one cut: what is the same for several cells is computed once.

    per cut       the client's layers, and the hidden states of the attacker's own text
    per defence   what the server holds of every prompt, and what it got of the attacker's text
    per cell      the attack is prepared, reads every prompt, and is scored; its record is written at once

A cell that fails takes no other with it.

Notation: S sequences, T positions, D hidden size, N sessions.
"""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec
import torch
from transformers.utils import logging as transformers_logging

from cutlayer.attacks.attack import build_attack, prepare
from cutlayer.attacks.prior import Prior
from cutlayer.audit.cell_record import PREFIX, CellConfig
from cutlayer.audit.knowledge import ThreatModel
from cutlayer.audit.reading import read_all
from cutlayer.audit.report.words import percent
from cutlayer.audit.request import Event, Job
from cutlayer.audit.scene import Scene, victim_secret
from cutlayer.audit.scoring import Outcome, Scoring
from cutlayer.audit.shelf import Shelf
from cutlayer.audit.utility import Utility
from cutlayer.audit.utility_figures import utility_outcome
from cutlayer.errors import CutlayerError
from cutlayer.models.locate import locate
from cutlayer.models.parts import load_client
from cutlayer.records.record import new_record
from cutlayer.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from cutlayer.attacks.attack import Auxiliary, Observation
    from cutlayer.audit.cell_record import Status
    from cutlayer.audit.grid import Cell

_SEQUENCES: Final = 32
"""The attacker's sequences in one forward."""
_NOTHING: Final = Outcome({}, {})


class _Share(NamedTuple):
    """How far one cell is: half of a pass is preparing, half is reading."""

    emit: Callable[[Event], None]
    cell: Cell
    seed: int
    seeds: int

    def preparing(self, share: float) -> None:
        """The share of preparation done."""
        self._tell(share / 2)

    def reading(self, share: float) -> None:
        """The share of prompts read."""
        self._tell((1 + share) / 2)

    def _tell(self, share: float) -> None:
        self.emit(Event("share", self.cell, (self.seed + min(max(share, 0.0), 1.0)) / self.seeds))


class _Setting:
    """One defence at the cut, and what is shared by all attacks on it."""

    def __init__(self, job: Job, scene: Scene, states: Callable[[Scene], torch.Tensor]) -> None:
        self._job = job
        self._states = states
        self.scene = scene
        self._observed: dict[int, list[Observation]] = {}
        self._owned: dict[tuple[int, int], Auxiliary] = {}

    def observations(self, seed: int) -> list[Observation]:
        """What the server holds of every prompt."""
        if seed not in self._observed:
            repeats = self._job.request.repeats
            self._observed[seed] = [
                self.scene.observe(item.ids, [victim_secret(seed, item.id, i) for i in range(repeats)])
                for item in self._job.items
            ]
        return self._observed[seed]

    def owned(self, scene: Scene, seed: int) -> Auxiliary:
        """The attacker's text through `scene`, which is this one or that of a public base."""
        key = (id(scene), seed)
        if key not in self._owned:
            ids = torch.tensor(self._job.owned)
            self._owned[key] = scene.auxiliary(ids, self._job.request.repeats, seed, self._states(scene))
        return self._owned[key]


class CutRun:
    """The cells of one cut.

    Args:
        job: what to measure.
        emit: told of every cell.
    """

    def __init__(self, job: Job, emit: Callable[[Event], None]) -> None:
        self._job = job
        self._emit = emit
        self._shelf = Shelf(job.request.out)
        self._tokenizer = Tokenizer(job.directory)
        self._scenes: dict[str | None, Scene] = {}
        self._hidden: dict[int, torch.Tensor] = {}
        self._priors: dict[str | None, Prior] = {}
        self._rest: Utility | None = None
        transformers_logging.disable_progress_bar()  # the caller shows its own

    def run(self) -> None:
        """Measure every cell and write its record."""
        for defence in dict.fromkeys(config.cell.defence for config in self._job.cells):
            self._defended(defence, [config for config in self._job.cells if config.cell.defence == defence])
        for defence in dict.fromkeys(cell.defence for cell in self._job.amend):
            self._amend(defence, [cell for cell in self._job.amend if cell.defence == defence])

    def _defended(self, defence: str, configs: list[CellConfig]) -> None:
        setting: _Setting | None = None
        utility = _NOTHING
        for config in configs:
            started = time.monotonic()
            try:
                if setting is None:
                    setting = _Setting(self._job, self._scene(None).under(defence), self._states)
                    utility = self._utility(setting.scene) if self._job.request.utility else _NOTHING
                scored = self._score(config.cell, setting)
                outcome = scored.outcome()
            except Exception as error:  # whatever an attack raises must not cost the other cells
                reason = self._reason(error)
                self._save(config, started, "error", reason)
                self._emit(Event("failed", config.cell, detail=reason))
            else:
                self._save(config, started, "complete", None, outcome.and_also(utility), scored.columns())
                shown = outcome.figures.get("token_accuracy")
                self._emit(
                    Event(
                        "done", config.cell, detail="" if shown is None else f"reads {percent(shown.value)} of tokens"
                    )
                )

    def _score(self, cell: Cell, setting: _Setting) -> Scoring:
        """Run the attack in every seed and score its guesses."""
        threat_model = ThreatModel.parse(cell.threat)
        request = self._job.request
        scoring = Scoring(self._tokenizer, keep_texts=request.keep_texts)
        for seed in range(request.seeds):
            progress = _Share(self._emit, cell, seed, request.seeds)
            scene = setting.scene if threat_model.base is None else self._public(threat_model.base, cell.defence)
            owned = setting.owned(scene, seed) if threat_model.auxiliary else None
            prior = self._prior(threat_model.base) if threat_model.prior else None
            threat = threat_model.threat(scene, owned, prior, request.repeats, seed, request.device)
            torch.manual_seed(seed)
            reader = prepare(build_attack(cell.attack), threat, progress.preparing)
            guesses = read_all(reader, setting.observations(seed), progress.reading)
            for item, (guess, seconds) in zip(self._job.items, guesses, strict=True):
                scoring.add(item, seed, guess, seconds, self._job.baseline[len(item.ids)])
        return scoring

    def _save(
        self,
        config: CellConfig,
        started: float,
        status: Status,
        reason: str | None = None,
        outcome: Outcome = _NOTHING,
        samples: dict[str, list[Any]] | None = None,
    ) -> None:
        seconds = round(time.monotonic() - started, 3)
        final = msgspec.structs.replace(
            config, status=status, reason=reason, unmeasured=outcome.unmeasured, seconds=seconds
        )
        self._shelf.save(
            new_record(
                PREFIX + config.cell.key,
                self._job.request.command(),
                msgspec.to_builtins(final),
                outcome.figures,
                samples or {},
            )
        )

    def _amend(self, defence: str, cells: list[Cell]) -> None:
        """Add utility to records that were measured without."""
        utility = self._utility(self._scene(None).under(defence))
        for cell in cells:
            found = self._shelf.find(cell)
            if found is not None:
                added = Outcome(found.figures, found.config.unmeasured).and_also(utility)
                config = msgspec.structs.replace(found.config, unmeasured=added.unmeasured)
                self._shelf.save(
                    msgspec.structs.replace(found.record, config=msgspec.to_builtins(config), figures=added.figures)
                )
            self._emit(Event("done", cell, detail="utility added"))

    def _utility(self, scene: Scene) -> Outcome:
        """Utility's figures; where they fail, why."""
        try:
            self._rest = self._rest or Utility(self._job.directory, self._job.span)
            return utility_outcome(self._rest, scene, [item.ids for item in self._job.items])
        except Exception as error:  # as above
            return Outcome({}, {"perplexity_increase": self._reason(error)})

    def _scene(self, base: str | None) -> Scene:
        """The undefended cut of the model, or of a public base."""
        if base not in self._scenes:
            directory = self._job.directory if base is None else locate(base)
            parts = load_client(directory, self._job.span, torch.float32, self._job.request.device)
            self._scenes[base] = Scene(directory, self._job.span, parts, codec=self._job.request.codec)
        return self._scenes[base]

    def _public(self, base: str, defence: str) -> Scene:
        key = f"{base}\0{defence}"
        if key not in self._scenes:
            self._scenes[key] = self._scene(base).under(defence)
        return self._scenes[key]

    def _states(self, scene: Scene) -> torch.Tensor:
        """Hidden states [S, T, D] of the attacker's text, before any defence."""
        key = id(scene.parts)
        if key not in self._hidden:
            ids = torch.tensor(self._job.owned)
            self._hidden[key] = torch.cat(
                [scene.hidden(ids[i : i + _SEQUENCES]) for i in range(0, len(ids), _SEQUENCES)]
            )
        return self._hidden[key]

    def _prior(self, base: str | None) -> Prior:
        if base not in self._priors:
            directory = self._job.directory if base is None else locate(base)
            self._priors[base] = Prior.load(directory, self._job.request.device)
        return self._priors[base]

    def _reason(self, error: Exception) -> str:
        """What went wrong, without words that may quote a prompt."""
        if isinstance(error, CutlayerError) or self._job.request.keep_texts:
            return f"{type(error).__name__}: {error}"
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(frame.filename).name}:{frame.lineno}"
        return f"{type(error).__name__} in {where} (its message may quote prompts; --keep-texts shows it)"
