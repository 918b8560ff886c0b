"""Examples in docstrings are run."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "cutlayer.types",
    "cutlayer.registry",
    "cutlayer.defences.gaussian",
    "cutlayer.defences.exponential",
    "cutlayer.defences.positions",
    "cutlayer.corpora.split",
    "cutlayer.corpora.canaries",
    "cutlayer.audit.metrics.positional",
    "cutlayer.audit.metrics.bag",
    "cutlayer.audit.metrics.content",
    "cutlayer.audit.metrics.entities",
    "cutlayer.gateway.settings",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried > 0
    assert failed == 0
