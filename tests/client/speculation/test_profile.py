"""What outlives a session: only if asked for, only for its owner, and never from a file that is not right."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cutlayer.client.speculation.candidates import WIDTH
from cutlayer.client.speculation.profile import ProfileCandidates
from cutlayer.client.speculation.speculator import build_speculator
from cutlayer.client.speculation.tensor_file import Purpose, pack
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

V = 23
FINGERPRINT = "f" * 32
PURPOSE = Purpose("candidate-profile", "1", FINGERPRINT)


def opened(name: str = "mine") -> ProfileCandidates:
    return ProfileCandidates(3, name, FINGERPRINT, V)


def saved() -> Path:
    candidates = opened()
    candidates.put((1, 2, 3), {4: 0.75, 5: 0.25})
    candidates.put((3,), {6: 0.5})
    candidates.close()
    return candidates.file


def test_a_session_goes_on_where_the_last_one_stopped(toy: Any, trusted: Any) -> None:
    model = toy(0)
    first = build_speculator("recycling:profile=mine", trusted)
    cold = model.speculative(first, [1, 2], 40)
    first.close()
    second = build_speculator("recycling:profile=mine", trusted)
    warm = model.speculative(second, [1, 2], 40)
    assert warm.tokens == cold.tokens
    assert warm.trips < cold.trips


def test_it_is_the_owners_alone_and_replaced_whole() -> None:
    file = saved()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    again = opened()
    assert again.get((1, 2, 3)) == {4: 0.75, 5: 0.25}
    assert again.get((3,)) == {6: 0.5}
    again.close()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]


def test_nothing_is_written_unless_asked_for(toy: Any, trusted: Any, home: Path) -> None:
    for spec in ("recycling", "auto", "lookup"):
        speculator = build_speculator(spec, trusted)
        toy(0).speculative(speculator, [1, 2], 20)
        speculator.close()
    assert not list(home.rglob("*"))


def test_profiles_and_models_are_apart(trusted: Any) -> None:
    saved()
    assert len(opened("other")) == 0
    assert len(ProfileCandidates(3, "mine", "0" * 32, V)) == 0


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../mine", "-x", "a" * 65, "ä"])
def test_names_that_are_paths_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="profile"):
        opened(name)


def tensors(**changes: Any) -> dict[str, Any]:
    ids, chances = np.zeros((2, WIDTH), np.int32), np.zeros((2, WIDTH), np.float32)
    ids[:, 0], chances[:, 0] = 4, 0.5
    return {"contexts": np.array([[-1, -1, 3], [1, 2, 3]], np.int32), "ids": ids, "chances": chances} | changes


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no safetensors",
        pack(tensors(), PURPOSE)[:-3],
        pack(tensors(), Purpose("candidate-table", "1", FINGERPRINT)),
        pack(tensors(), Purpose("candidate-profile", "9", FINGERPRINT)),
        pack(tensors(), Purpose("candidate-profile", "1", "0" * 32)),
        pack({}, PURPOSE),
        pack(tensors(contexts=np.array([[1, -1, 3], [1, 2, 3]], np.int32)), PURPOSE),
        pack(tensors(contexts=np.array([[-1, -1, -1], [1, 2, 3]], np.int32)), PURPOSE),
        pack(tensors(contexts=np.array([[-2, -1, 3], [1, 2, 3]], np.int32)), PURPOSE),
        pack(tensors(contexts=np.array([[-1, -1, V], [1, 2, 3]], np.int32)), PURPOSE),
        pack(tensors(contexts=np.zeros((2, 2), np.int32)), PURPOSE),
        pack(tensors(contexts=np.zeros((3, 3), np.int32)), PURPOSE),
        pack(tensors(ids=np.full((2, WIDTH), V, np.int32)), PURPOSE),
        pack(tensors(ids=np.full((2, WIDTH), -1, np.int32)), PURPOSE),
        pack(tensors(chances=np.full((2, WIDTH), np.nan, np.float32)), PURPOSE),
        pack(tensors(chances=np.full((2, WIDTH), np.inf, np.float32)), PURPOSE),
        pack(tensors(chances=np.full((2, WIDTH), -0.5, np.float32)), PURPOSE),
        pack(tensors(chances=np.full((2, WIDTH), 0.5, np.float32)), PURPOSE),
        pack(tensors(contexts=np.zeros((1 << 16, 3), np.int32)), PURPOSE),
    ],
)
def test_a_file_that_is_not_right_is_left_alone(content: bytes) -> None:
    file = saved()
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="starts afresh"):
        candidates = opened()
    assert len(candidates) == 0
    candidates.put((1,), {2: 0.5})
    candidates.close()
    assert file.read_bytes() == content


def test_a_file_others_can_read_is_not_used() -> None:
    file = saved()
    file.chmod(0o644)
    with pytest.warns(UserWarning, match="chmod 600"):
        assert len(opened()) == 0


def test_a_disk_that_is_full_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved()
    content = file.read_bytes()
    candidates = opened()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="No space left"):
        candidates.close()
    assert file.read_bytes() == content
    assert list(file.parent.iterdir()) == [file]
