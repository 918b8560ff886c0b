"""What a cut costs the client, as a record states it; the estimate itself is that of `cutlayer plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cutlayer.audit.cell_record import ClientCost
from cutlayer.models.conditions import Conditions
from cutlayer.models.cost import cut_cost, wire_bytes
from cutlayer.models.family import read_config
from cutlayer.models.parameters import count_parameters

if TYPE_CHECKING:
    from pathlib import Path

    from cutlayer.types import Cut


def client_cost(directory: Path, cut: Cut) -> ClientCost:
    """Layers and bytes on the client, under the default conditions of `cutlayer plan`."""
    parameters = count_parameters(read_config(directory))
    cost = cut_cost(parameters, cut, Conditions(), wire_bytes(parameters.hidden_size))
    return ClientCost(layers=cut.head_layers + cut.tail_layers, bytes=cost.client_bytes)
