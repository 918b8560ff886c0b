"""Fill a partly emptied model with exactly the checkpoint tensors it still has a place for.

Names and layouts on disk differ from those in memory for some families (one tensor per expert, say). Transformers' own
conversion rules translate; we only decide, from names alone and before anything is opened, what is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging as transformers_logging

from cutlayer.errors import WeightsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from cutlayer.models.checkpoint import Checkpoint


def fill(model: PreTrainedModel, checkpoint: Checkpoint, device: torch.device | str) -> tuple[str, ...]:
    """Move `model` from the meta device to `device` and load its tensors.

    Returns:
        Names of the tensors that were opened, in the checkpoint's spelling.

    Raises:
        WeightsError: the checkpoint lacks tensors the model needs, or their shapes differ.
    """
    _rebuild_buffers(model, device)
    rules = get_model_conversion_mapping(model)
    wanted = _needed(model, checkpoint, rules)
    state = {name: checkpoint.read(name) for name in wanted}
    progress = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # parts load in a second or two; the caller shows its own
    try:
        report, _ = convert_and_load_state_dict_in_model(
            model, state, LoadStateDictConfig(device_map={"": device}, weight_mapping=rules)
        )
    finally:
        if progress:
            transformers_logging.enable_progress_bar()
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing = sorted(set(report.missing_keys) - tied)
    if missing or report.mismatched_keys or report.conversion_errors:
        problem = missing or sorted(map(str, report.mismatched_keys)) or sorted(map(str, report.conversion_errors))
        raise WeightsError(
            f"{checkpoint.directory} does not fit its config.json: "
            f"{len(problem)} tensors missing or of another shape, first {problem[0]}"
        )
    if model.config.tie_word_embeddings and not isinstance(model.get_output_embeddings(), torch.nn.Identity):
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if left:
        raise WeightsError(f"{checkpoint.directory}: {len(left)} tensors were not filled, first {left[0]}")
    return tuple(checkpoint.opened)


def _needed(model: PreTrainedModel, checkpoint: Checkpoint, rules: list[WeightRenaming | WeightConverter]) -> list[str]:
    """Checkpoint names whose tensors end up in `model`."""
    places = model.state_dict()
    if model.config.tie_word_embeddings and model.get_input_embeddings() is not None:
        # Some checkpoints store the tied head a second time.
        places = {name: tensor for name, tensor in places.items() if not name.startswith("lm_head")}
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    return [
        name
        for name in checkpoint.names()
        if rename_source_key(name, renamings, converters, model.base_model_prefix, places)[0] in places
    ]


def _rebuild_buffers(model: PreTrainedModel, device: torch.device | str) -> None:
    """Give non-persistent buffers (rotary frequencies, embedding scales) storage and their computed values."""
    for module in model.modules():
        empty = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        for name in empty:
            module.register_buffer(name, torch.empty_like(getattr(module, name), device=device), persistent=False)
        if empty:
            model._init_weights(module)
