"""Runs an audit: which cells there are, which of them are known already, and the rest measured, cut by cut.

Interrupted or failed, what is finished stays, and the same request goes on from there. A cell is measured again when
anything that decides its outcome changed: model, prompts, the attacker's text, repeats, seeds, codec or version.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec
import torch

import cutlayer
from cutlayer.attacks.attack import Observation, Threat, build_attack, prepare
from cutlayer.audit.cell_record import PREFIX, CellConfig, CellRecord
from cutlayer.audit.client_cost import client_cost
from cutlayer.audit.grid import BASELINE, Cell, expand
from cutlayer.audit.knowledge import ThreatModel
from cutlayer.audit.material import attackers, victims
from cutlayer.audit.request import Event, Job
from cutlayer.audit.scoring import check_packages
from cutlayer.audit.shelf import Plan, Shelf
from cutlayer.audit.workers import run_jobs
from cutlayer.errors import InputError
from cutlayer.models.family import read_config
from cutlayer.models.locate import fingerprint, locate
from cutlayer.records.record import new_record
from cutlayer.text.tokenizer import Tokenizer
from cutlayer.wire.codecs import CODECS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from cutlayer.audit.cell_record import Owned
    from cutlayer.audit.material import Material
    from cutlayer.audit.request import Request

_UNDECIDED: Final = ("status", "reason", "model", "client", "unmeasured", "seconds", "digest")
"""What does not decide a cell's outcome."""


def run_audit(request: Request, emit: Callable[[Event], None] = lambda event: None) -> list[CellRecord]:
    """Measure every cell that is not measured yet, and return the records of all.

    Args:
        request: what to measure.
        emit: told what happens to each cell.

    Raises:
        InputError: something asked for is wrong, or the directory is of another model.
        ModelNotFoundError: no such model, or it has no tokenizer.
    """
    CODECS.get(request.codec)
    check_packages()
    directory = locate(request.model)
    config = read_config(directory)
    cells = expand(config.num_hidden_layers, request.cuts, request.defences, request.attacks, request.threats)
    shelf = Shelf(request.out)
    plan = _planned(shelf, request, fingerprint(directory), cells)
    tokenizer = Tokenizer(directory)
    material = victims(tokenizer.encode, shelf.key(), request.prompts, request.limit, request.canaries)
    rows, owned = None, None
    if any(ThreatModel.parse(cell.threat).auxiliary for cell in cells):
        rows, owned = attackers(tokenizer.encode, config.vocab_size, request.auxiliary, request.pairs)
    shelf.write_plan(plan)

    for cell in cells:
        emit(Event("share", cell, 0.0))
    open_cells: list[CellConfig] = []
    amend: list[Cell] = []
    for wanted in _configs(request, directory, plan.fingerprint, cells, material, owned):
        found = None if request.fresh else shelf.find(wanted.cell)
        known = found is not None and found.config.digest == wanted.digest and found.config.status != "error"
        if wanted.status == "not applicable":
            shelf.save(new_record(PREFIX + wanted.cell.key, request.command(), msgspec.to_builtins(wanted), {}, {}))
            emit(Event("not applicable", wanted.cell, detail=wanted.reason or ""))
        elif found is not None and known and request.utility and "perplexity_increase" not in found.figures:
            amend.append(wanted.cell)
        elif known:
            emit(Event("skipped", wanted.cell, detail="measured before"))
        else:
            shelf.drop(wanted.cell)  # a record of other prompts must not stand in if this run is interrupted
            open_cells.append(wanted)

    spans = list(dict.fromkeys(cell.span for cell in cells))
    baseline = _baseline(directory, {len(item.ids) for item in material.items}, request.device) if open_cells else {}
    jobs = [
        Job(
            request=request,
            directory=directory,
            span=span,
            cells=[config for config in open_cells if config.cell.span == span],
            amend=[cell for cell in amend if cell.span == span],
            items=material.items,
            owned=rows.tolist() if rows is not None else [],
            baseline=baseline,
            threads=max(1, torch.get_num_threads() // min(request.jobs, len(spans))),
        )
        for span in spans
    ]
    run_jobs([job for job in jobs if job.cells or job.amend], request.jobs, emit)
    for unheard in open_cells:
        if shelf.find(unheard.cell) is None:
            lost = msgspec.structs.replace(unheard, status="error", reason="its process ended before it was measured")
            shelf.save(new_record(PREFIX + lost.cell.key, request.command(), msgspec.to_builtins(lost), {}, {}))
    return [found for cell in cells if (found := shelf.find(cell)) is not None]


def _planned(shelf: Shelf, request: Request, model: str, cells: list[Cell]) -> Plan:
    """The directory's plan with these cells in it."""
    before = shelf.plan()
    if before is not None and before.fingerprint != model:
        raise InputError(
            f"{request.out} holds an audit of {before.model}, not of {request.model}; choose another --out"
        )
    return (before or Plan(model, request.model, [])).with_cells(cells)


def _configs(
    request: Request, directory: Path, model: str, cells: Iterable[Cell], material: Material, owned: Owned | None
) -> list[CellConfig]:
    """How each cell is to be measured."""
    costs = {span: client_cost(directory, span) for span in {cell.span for cell in cells}}
    configs = []
    for cell in cells:
        threat = ThreatModel.parse(cell.threat)
        absent = set(build_attack(cell.attack).card.needs) & threat.lacks()
        config = CellConfig(
            cell=cell,
            status="not applicable" if absent else "complete",
            reason=threat.why(absent) if absent else None,
            model=request.model,
            fingerprint=model,
            codec=request.codec,
            repeats=request.repeats,
            seeds=tuple(range(request.seeds)),
            prompts=material.prompts,
            owned=owned if threat.auxiliary else None,
            client=costs[cell.span],
            texts_kept=request.keep_texts,
            unmeasured={},
            seconds=0.0,
            digest="",
        )
        configs.append(msgspec.structs.replace(config, digest=_digest(config)))
    return configs


def _digest(config: CellConfig) -> str:
    decisive = {name: value for name, value in msgspec.to_builtins(config).items() if name not in _UNDECIDED}
    decisive["cell"] = config.cell.key  # 2:-2 and 2:28 may be the same cut
    content = msgspec.json.encode([cutlayer.__version__, decisive], order="deterministic")
    return hashlib.sha256(content).hexdigest()[:32]


def _baseline(directory: Path, lengths: Iterable[int], device: str) -> dict[int, list[int]]:
    """What a language model guesses that sees nothing but how many tokens there are."""
    from transformers.utils import logging

    from cutlayer.attacks.prior import Prior
    from cutlayer.defences.defence import build_channel

    logging.disable_progress_bar()  # the caller shows its own
    threat = Threat("W0", build_channel("none"), prior=Prior.load(directory, device), device=device)
    reader = prepare(build_attack(BASELINE), threat)
    return {n: reader.read(Observation(torch.zeros(1, n, 1))).tokens.tolist() for n in sorted(lengths, reverse=True)}
