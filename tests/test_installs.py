"""Each package imports with no more than the install it is documented for, and the public names are what they say."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cutlayer

_CLIENT = ("gguf", "jinja2")
_SERVER = ("structlog",)
_AUDIT = ("faker", "matplotlib", "rapidfuzz", "rouge_score", "sacrebleu")
_GATEWAY = ("starlette", "uvicorn", "sse_starlette", "prometheus_client", "llguidance")

# package → what its install leaves out of the extras (tokenizers comes with transformers whether wanted or not)
LEAVES_OUT = {
    "models": (*_CLIENT, *_SERVER),
    "wire": (*_CLIENT, *_SERVER),
    "defences": (*_CLIENT, *_SERVER),
    "records": (*_CLIENT, *_SERVER),
    "server": (*_CLIENT, "tokenizers"),
    "text": _SERVER,
    "client": _SERVER,
    "store": _SERVER,
    "netsim": (*_CLIENT, *_SERVER, *_AUDIT, *_GATEWAY),
    "obfuscation": (*_SERVER, *_AUDIT, *_GATEWAY),
    "corpora": (*_CLIENT, *_SERVER, *_AUDIT, *_GATEWAY),
    "attacks": (*_SERVER, *_AUDIT, *_GATEWAY),
    "audit": (*_SERVER, *_GATEWAY),
    "gateway": (),
    "cli": (*_CLIENT, *_SERVER, *_AUDIT, *_GATEWAY),
}

_PROGRAM = """
import importlib, pkgutil, sys
for name in {absent!r}:
    sys.modules[name] = None
package = importlib.import_module("cutlayer.{package}")
names = [module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
print(len(names))
"""


@pytest.mark.parametrize("package", LEAVES_OUT)
def test_every_module_imports_under_its_smallest_install(package: str) -> None:
    program = _PROGRAM.format(package=package, absent=LEAVES_OUT[package])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 0


def test_public_names_are_sorted_and_resolve() -> None:
    assert cutlayer.__all__ == sorted(cutlayer.__all__)
    for name in cutlayer.__all__:
        assert getattr(cutlayer, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cutlayer.nothing
