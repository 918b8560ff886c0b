"""What an export directory is: reproducible, resumable, free of secrets and of the base, and never written over anything."""

from __future__ import annotations

import hashlib
import json
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from cutlayer.errors import (
    InputError,
    IntegrityError,
    KeyFileError,
    ModelNotFoundError,
    StoreError,
    UnsupportedModelError,
    WeightsError,
)
from cutlayer.models.checkpoint import Checkpoint
from cutlayer.obfuscation.export import building_place, export
from cutlayer.obfuscation.keys import OwnerKey, create_owner_key
from cutlayer.obfuscation.marker import read_marker
from cutlayer.obfuscation.settings import choose
from cutlayer.types import Secret

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Exported

SHARD = 20_000
"""Bytes; splits a tiny model into about ten files."""


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}


@pytest.fixture
def key(tiny: Callable[[str], Path]) -> OwnerKey:
    base = tiny("llama")
    return create_owner_key(base, choose(base, mode="noisy", expand=48), Secret(bytes(range(32))))


def test_same_key_same_bytes(key: OwnerKey, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        export(tiny("llama"), tmp_path / name, key, shard_bytes=SHARD)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(list((tmp_path / "one").glob("*.safetensors"))) > 3
    other = OwnerKey(identity=key.identity, settings=key.settings, seed=Secret(bytes(32)))
    export(tiny("llama"), tmp_path / "three", other, shard_bytes=SHARD)
    assert contents(tmp_path / "one") != contents(tmp_path / "three")


class Killed(BaseException):
    """Ends an export in the middle, as a signal would."""


@pytest.mark.parametrize("after", [1, 2, 17, 56])
@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("shard_bytes", [SHARD, 10**9])
def test_a_killed_export_continues_with_the_same_bytes(
    after: int, torn: bool, shard_bytes: int, key: OwnerKey, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    export(tiny("llama"), tmp_path / "whole", key, shard_bytes=shard_bytes)
    target = tmp_path / "killed"

    def kill(done: int, total: int) -> None:
        if done == after:
            raise Killed

    with pytest.raises(Killed):
        export(tiny("llama"), target, key, kill, shard_bytes=shard_bytes)
    assert not target.exists()
    building = building_place(target, key)
    last = max(building.glob("*.safetensors"), key=lambda file: file.name)
    if torn:  # in the middle of a tensor, or of a header
        last.write_bytes(last.read_bytes()[:-5])
    (building / "obfuscation.json").write_text(
        "{}"
    )  # as if it had been killed once more, before the directory got its name
    export(tiny("llama"), target, key, shard_bytes=shard_bytes)
    assert contents(target) == contents(tmp_path / "whole")
    assert not building.exists()


def test_resuming_makes_only_what_is_missing(
    key: OwnerKey, tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cutlayer.obfuscation.transform import Transform

    made: list[str] = []
    make = Transform.make
    monkeypatch.setattr(Transform, "make", lambda self, place: made.append(place.exported) or make(self, place))

    def kill(done: int, total: int) -> None:
        if done == 20:
            raise Killed

    with pytest.raises(Killed):
        export(tiny("llama"), tmp_path / "out", key, kill)
    assert len(made) == 20
    export(tiny("llama"), tmp_path / "out", key)
    # The last one is made again: its length may have reached the disk before its bytes.
    assert made[20] == made[19]
    assert len(made) == 20 + 1 + 57 - 20


def test_two_at_once_do_not_mix(key: OwnerKey, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    refused: list[str] = []

    def again(done: int, total: int) -> None:
        if done == 5:
            with pytest.raises(StoreError, match="another process") as caught:
                export(tiny("llama"), tmp_path / "out", key)
            refused.append(str(caught.value))

    export(tiny("llama"), tmp_path / "out", key, again)
    assert refused
    export(tiny("llama"), tmp_path / "alone", key)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_weights_that_changed_under_the_key(key: OwnerKey, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    """Another fine-tuning of the same shapes would otherwise continue an interrupted export."""
    base = edited(tiny("llama"), tmp_path, lambda held: held["model.norm.weight"].mul_(2))
    with pytest.raises(KeyFileError, match="other weights"):
        export(base, tmp_path / "out", key)


def test_another_key_does_not_continue_it(key: OwnerKey, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    other = create_owner_key(tiny("llama"), key.settings)
    assert building_place(tmp_path / "out", key) != building_place(tmp_path / "out", other)


def test_nothing_secret_and_nothing_of_the_base(
    tiny: Callable[[str], Path], exported: Callable[..., Exported], tmp_path: Path
) -> None:
    """For every family: no seed, no τ, no setting, no name, and no tensor or row of the base."""
    for family in ("llama-bias", "qwen2", "qwen3", "gemma", "mixtral", "qwen3_moe"):
        made = exported(tiny(family), mode="noisy", alpha_e=0.0123, alpha_h=0.0456, name=family)
        whole = b"".join(contents(made.directory).values())
        tau = made.key.tau()
        for secret in (made.key.seed.reveal(), made.key.seed.reveal().hex().encode(), tau.astype("<u4").tobytes()):
            assert secret not in whole
        assert json.dumps(tau.tolist()).encode()[1:-1] not in whole
        assert json.dumps(tau.tolist(), separators=(",", ":")).encode()[1:-1] not in whole
        described = b"".join(file for name, file in contents(made.directory).items() if name.endswith(".json"))
        for told in (b"0.0123", b"0.0456", b"noisy", b"alpha", str(made.base).encode(), b"_name_or_path"):
            assert told not in described
        base, obfuscated = Checkpoint(made.base), Checkpoint(made.directory)
        originals = {base.read(name).numpy().tobytes() for name in base.names()}
        assert not [name for name in obfuscated.names() if obfuscated.read(name).numpy().tobytes() in originals]
        plain = torch.nn.functional.normalize(base.read("model.embed_tokens.weight"), dim=1)
        rows = torch.nn.functional.normalize(obfuscated.read("model.embed_tokens.weight"), dim=1)
        assert (plain @ rows.T).abs().max() < 0.9


def test_norms_say_nothing(tiny: Callable[[str], Path], exported: Callable[..., Exported]) -> None:
    for family, stored in (("llama", 1.0), ("gemma", 0.0)):
        checkpoint = Checkpoint(exported(tiny(family), name=family).directory)
        for name in checkpoint.names():
            if "norm" in name:
                assert (checkpoint.read(name) == stored).all()


def test_special_ids_are_those_the_server_knows(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny("llama"), base)
    asked = {"eos_token_id": [2, 7], "bos_token_id": 1, "pad_token_id": -1, "temperature": 0.6, "_name_or_path": "x/y"}
    (base / "generation_config.json").write_text(json.dumps(asked))
    key = create_owner_key(base, choose(base))
    export(base, tmp_path / "out", key)
    tau = key.tau().tolist()
    held = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    expected = {"eos_token_id": [tau[2], tau[7]], "bos_token_id": tau[1], "pad_token_id": None, "temperature": 0.6}
    assert held == expected
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")] == [tau[1], tau[2], tau[0]]
    assert key.identity.stop_ids == (2, 7)


def test_dummy_tokenizer_takes_no_text(tiny: Callable[[str], Path], exported: Callable[..., Exported]) -> None:
    made = exported(tiny("llama"))
    tokenizer = AutoTokenizer.from_pretrained(made.directory)
    assert len(tokenizer) == 101
    assert tokenizer.eos_token_id == int(made.tau[2])
    assert tokenizer.decode([5, 70]) == "<5><70>"
    with pytest.raises(Exception, match="Missing"):
        tokenizer("hello")


def test_marker_names_every_file(tiny: Callable[[str], Path], exported: Callable[..., Exported]) -> None:
    made = exported(tiny("llama"), expand=48)
    marker = read_marker(made.directory)
    files = contents(made.directory)
    del files["obfuscation.json"]
    assert marker.files == {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    assert (marker.vocabulary, marker.hidden_size) == (101, 48)
    made.key.client().check(marker)
    (made.directory / "obfuscation.json").write_text('{"format": 2}')
    with pytest.raises(IntegrityError, match="malformed"):
        read_marker(made.directory)
    with pytest.raises(ModelNotFoundError, match="not made by"):
        read_marker(made.base)


def test_existing_directory_is_left_alone(key: OwnerKey, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="never overwritten"):
        export(tiny("llama"), tmp_path / "out", key)
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_key_of_another_base(key: OwnerKey, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="other weights"):
        export(tiny("llama-tied"), tmp_path / "out", key)
    assert list(tmp_path.iterdir()) == []


def edited(base: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A copy of `base` with changed tensors."""
    directory = tmp_path / "edited"
    shutil.copytree(base, directory)
    tensors = {name: Checkpoint(base).read(name).clone() for name in Checkpoint(base).names()}
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop("model.norm.weight"), "lacks model.norm.weight"),
        (lambda held: held.update({"model.layers.0.self_attn.extra": torch.ones(3)}), "holds model.layers.0.self_attn.extra"),
        (lambda held: held.update({"model.norm.weight": torch.ones(7)}), r"has shape \(7,\)"),
        (lambda held: held["model.layers.2.mlp.up_proj.weight"].fill_(float("nan")), "up_proj.weight holds values"),
    ],
)  # fmt: skip
def test_corrupted_base(change: Any, message: str, tiny: Callable[[str], Path], tmp_path: Path) -> None:
    base = edited(tiny("llama"), tmp_path, change)
    with pytest.raises(WeightsError, match=message):
        export(base, tmp_path / "out", create_owner_key(base, choose(base)))
    assert not (tmp_path / "out").exists()


def test_values_too_large_for_the_dtype(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    base = edited(tiny("llama"), tmp_path, lambda held: held["model.embed_tokens.weight"].mul_(1e6))
    with pytest.raises(WeightsError, match="not finite in float16"):
        export(base, tmp_path / "out", create_owner_key(base, choose(base, dtype="float16")))


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gpt_neox", "LayerNorm"),
        ("cohere", "LayerNorm"),
        ("starcoder2", "LayerNorm"),
        ("phi3", "fused"),
        ("olmo2", "over all heads"),
        ("smollm3", "no rotary positions"),
    ],
)
def test_unsupported_families_are_refused_with_the_reason(
    family: str, reason: str, tiny: Callable[[str], Path]
) -> None:
    with pytest.raises(UnsupportedModelError, match=reason):
        choose(tiny(family))


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
@pytest.mark.parametrize("mode", ["exact", "noisy", "paper"])
def test_gemma_2_and_3_are_monomial_only(family: str, mode: str, tiny: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match="use --mode monomial"):
        choose(tiny(family), mode=mode)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "fast"}, "unknown mode 'fast'"),
        ({"alpha_e": 0.1}, "--alpha-e has no meaning in mode 'exact'"),
        ({"mode": "noisy", "lam": 0.1}, "--lambda has no meaning in mode 'noisy'"),
        ({"per_writer_keys": True}, "--per-writer-keys has no meaning"),
        ({"mode": "noisy", "alpha_e": -1.0}, "out of range"),
        ({"mode": "noisy", "alpha_e": float("nan")}, "out of range"),
        ({"mode": "paper", "lam": float("inf")}, "out of range"),
        ({"mode": "monomial", "expand": 64}, "monomial keys permute the 32"),
        ({"expand": 31}, "does not fit"),
        ({"expand": 50}, "multiple of the heads"),
        ({"expand": 10_000_000}, "does not fit"),
        ({"mode": "paper", "expand": 32}, "must be 4, 8, 12"),
        ({"dtype": "int8"}, "unknown dtype"),
    ],
)
def test_settings_out_of_place(settings: dict[str, Any], message: str, tiny: Callable[[str], Path]) -> None:
    with pytest.raises(InputError, match=message):
        choose(tiny("llama"), **settings)


def test_qwen2_with_windows_keeps_its_width(tiny: Callable[[str], Path]) -> None:
    for settings in ({"expand": 64}, {"mode": "paper"}):
        with pytest.raises(UnsupportedModelError, match="sliding windows"):
            choose(tiny("qwen2"), **settings)


def test_quantised_base_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(tiny("llama"), tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "quantization_config": {"bits": 4}}))
    with pytest.raises(UnsupportedModelError, match="quantised"):
        choose(tmp_path / "base")


def test_paper_mode_takes_the_papers_settings(tiny: Callable[[str], Path], exported: Callable[..., Exported]) -> None:
    settings = choose(tiny("llama"), mode="paper")
    assert (settings.alpha_e, settings.alpha_h, settings.lam, settings.beta, settings.gamma) == (1.0, 0.2, 0.3, 8, 1e3)
    assert settings.hidden_size == 32 + 256
    silent = {"mode": "paper", "expand": 64, "alpha_e": 0.0, "alpha_h": 0.0}
    shared = exported(tiny("llama"), **silent, name="shared")
    per_writer = exported(tiny("llama"), **silent, per_writer_keys=True, name="own")
    ids = torch.arange(3, 60)[None]
    with torch.inference_mode():
        plain, _ = shared.models()
        expected = plain(ids).logits
        errors = [
            float((made.models()[1](made.tau[ids]).logits[..., made.tau] - expected).square().mean())
            for made in (shared, per_writer)
        ]
    spread = float(expected.square().mean())
    assert errors[0] < 0.5 * spread  # recognisably the same model
    assert errors[0] > 1e-6  # and not an exact one
    assert errors[1] > errors[0]  # fresh keys per writer hurt
    config = json.loads((shared.directory / "config.json").read_text())
    kappa = float(Checkpoint(shared.directory).read("model.norm.weight")[0])
    assert config["rms_norm_eps"] == pytest.approx(plain.config.rms_norm_eps * kappa**2, rel=1e-6)
    assert kappa != 1


def test_presets_of_noise_follow_the_size_of_the_model(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cutlayer.models.checkpoint import TensorHeader

    assert (choose(tiny("llama"), mode="noisy").alpha_e, choose(tiny("llama"), mode="noisy").alpha_h) == (0.02, 0.01)
    monkeypatch.setattr(Checkpoint, "headers", lambda self: {"w": TensorHeader("BF16", (2_000_000, 1000))})
    large = choose(tiny("llama"), mode="noisy")
    assert (large.alpha_e, large.alpha_h, large.dtype) == (0.05, 0.02, "bfloat16")


def test_client_maps_ids_both_ways_and_refuses_others(key: OwnerKey) -> None:
    client = key.client()
    ids = list(range(101))
    assert client.from_server(client.to_server(ids)) == ids
    assert sorted(client.to_server(ids)) == ids
    assert client.to_server(ids) != ids
    assert np.array_equal(client.inverse[client.tau], np.arange(101))
    for outside in (-1, 101, 2**40):
        with pytest.raises(InputError, match="outside the key's vocabulary"):
            client.to_server([5, outside])
        with pytest.raises(InputError, match="outside the key's vocabulary"):
            client.from_server([outside])


def test_secrets_do_not_show(key: OwnerKey) -> None:
    shown = repr(key) + repr(key.client())
    assert key.seed.reveal().hex() not in shown
    assert repr(key.seed.reveal()) not in shown
    assert str(key.tau()[:5].tolist())[1:-1] not in shown
