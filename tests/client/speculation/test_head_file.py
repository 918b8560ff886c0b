"""Draft heads on disk: what is written is read back, and no file that does not fit gets far."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cutlayer.client.speculation.head import file as heads
from cutlayer.client.speculation.head.file import find_head, load_head, own_head, read_card, save_head
from cutlayer.client.speculation.head.network import DraftHead
from cutlayer.client.speculation.speculator import build_speculator
from cutlayer.client.trusted import Trusted
from cutlayer.errors import CutlayerError, InputError, WeightsError
from cutlayer.models.locate import fingerprint
from cutlayer.types import Cut
from cutlayer.wire import frames

if TYPE_CHECKING:
    from collections.abc import Callable

CARD = "cutlayer.draft_head"
CUT = Cut(2, 4, 6)


def trusted_side(directory: Path, cut: Cut = CUT) -> Trusted:
    """As after meeting a server of this model."""
    info = frames.InfoReply(
        protocol=frames.PROTOCOL,
        version="0",
        model="tiny",
        fingerprint=fingerprint(directory),
        cut=cut,
        dtype="float32",
        device="cpu",
        hidden_size=32,
        max_positions=256,
        codecs=["fp32"],
        time=0.0,
        opened=[],
        opened_count=0,
    )
    return Trusted(info, model=str(directory))


@pytest.fixture(scope="module")
def trusted(tiny_with_text: Callable[[str], Path]) -> Trusted:
    return trusted_side(tiny_with_text("llama"))


@pytest.fixture
def head(trusted: Trusted) -> DraftHead:
    torch.manual_seed(3)
    head = DraftHead(trusted.parts, torch.tensor([9, 40, 7, 80]), rank=4)
    for weight in head.trained().values():
        weight.data.normal_().copy_(weight.data.bfloat16())
    return head


@pytest.fixture
def file(head: DraftHead, trusted: Trusted, tmp_path: Path) -> Path:
    path = tmp_path / "head.safetensors"
    save_head(head, trusted, {"tokens": 12}, path)
    return path


def test_a_head_is_read_back_as_it_was(head: DraftHead, trusted: Trusted, file: Path) -> None:
    read = load_head(file, trusted)
    assert read.vocabulary.tolist() == [9, 40, 7, 80]
    assert {name: weight.tolist() for name, weight in head.trained().items()} == {
        name: weight.tolist() for name, weight in read.named_parameters() if name in head.trained()
    }
    inputs = torch.randn(1, 5, 32)
    with torch.inference_mode():
        assert torch.equal(read(inputs, read.new_cache()).logits, head(inputs, head.new_cache()).logits)
    card = read_card(file)
    assert (card.made, card.cut, card.outputs) == ({"tokens": 12}, trusted.cut, 4)


def test_a_file_holds_nothing_of_the_model(head: DraftHead, file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        assert set(opened.keys()) == {*head.trained(), "vocabulary"}
    assert not any("linear" in name or "embed" in name or "norm" in name for name in head.trained())


def rewritten(file: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], None]) -> Path:
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        card = json.loads(opened.metadata()[CARD])
    change(tensors, card)
    changed = file.with_name("changed.safetensors")
    save_file(tensors, changed, {CARD: json.dumps(card)})
    return changed


def spoil(name: str, value: float) -> Callable[[dict[str, torch.Tensor], dict[str, Any]], None]:
    def change(tensors: dict[str, torch.Tensor], card: dict[str, Any]) -> None:
        tensors[name][0] = value

    return change


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda t, c: c.update(fingerprint="0" * 32), InputError, "fingerprint 000"),
        (lambda t, c: c.update(cut=[1, 4, 6]), InputError, "trained at cut 1:4"),
        (lambda t, c: c.update(cut=[4, 1, 6]), WeightsError, "cannot read"),
        (lambda t, c: c.update(format=2), WeightsError, "cannot read"),
        (lambda t, c: c.update(code="x"), WeightsError, "unknown field"),
        (lambda t, c: c.update(rank=33), WeightsError, "rank 33"),
        (lambda t, c: c.update(rank=0), WeightsError, "cannot read"),
        (lambda t, c: c.update(rank=5), WeightsError, "not BF16"),
        (lambda t, c: c.update(outputs=1 << 20), WeightsError, "'vocabulary' is I32"),
        (lambda t, c: c.update(outputs=1 << 40), WeightsError, "cannot read"),
        (lambda t, c: t.update(vocabulary=t["vocabulary"].long()), WeightsError, "I64"),
        (spoil("vocabulary", 101), WeightsError, "outside the vocabulary of 101"),
        (spoil("vocabulary", -1), WeightsError, "outside the vocabulary"),
        (spoil("vocabulary", 40), WeightsError, "repeat"),
        (lambda t, c: t.pop("vocabulary"), WeightsError, "'vocabulary' is missing"),
        (lambda t, c: t.pop("own.weight"), WeightsError, "'own.weight' is missing"),
        (lambda t, c: t.update(more=torch.zeros(1)), WeightsError, "'more' is unknown"),
        (lambda t, c: t.update({"own.weight": torch.zeros(32, 32)}), WeightsError, "F32"),
        (lambda t, c: t.update({"token.bias": torch.zeros(33).bfloat16()}), WeightsError, r"\[33\]"),
        (spoil("returned.weight", float("nan")), WeightsError, "NaN or infinity"),
        (spoil("token.bias", float("inf")), WeightsError, "NaN or infinity"),
    ],
)
def test_what_does_not_fit_is_refused(
    file: Path, trusted: Trusted, change: Any, error: type[CutlayerError], words: str
) -> None:
    with pytest.raises(error, match=words):
        load_head(rewritten(file, change), trusted)


def test_a_vocabulary_larger_than_the_models_is_refused(file: Path, trusted: Trusted) -> None:
    def change(tensors: dict[str, torch.Tensor], card: dict[str, Any]) -> None:
        tensors["vocabulary"] = torch.arange(102, dtype=torch.int32)
        card["outputs"] = 102

    with pytest.raises(WeightsError, match="guesses among 102 tokens"):
        load_head(rewritten(file, change), trusted)


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"\xff" * 8 + b"{}", b"{}", b"PK\x03\x04"])
def test_other_files_are_refused(tmp_path: Path, trusted: Trusted, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="cannot read"):
        load_head(path, trusted)


def test_a_file_of_tensors_without_a_card_is_refused(tmp_path: Path, trusted: Trusted) -> None:
    save_file({"token.weight": torch.zeros(2)}, tmp_path / "other")
    with pytest.raises(WeightsError, match="no draft head"):
        load_head(tmp_path / "other", trusted)


def test_a_truncated_file_is_refused(file: Path, trusted: Trusted) -> None:
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="cannot read"):
        load_head(file, trusted)


def test_a_head_for_another_cut_of_the_same_model_is_refused(file: Path, tiny_with_text: Callable[[str], Path]) -> None:
    other = trusted_side(tiny_with_text("llama"), Cut(1, 4, 6))
    with pytest.raises(InputError, match="trained at cut 2:4, this session's is 1:4"):
        load_head(file, other)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("head", "path"),
        ("head:path=missing.safetensors", "is no file"),
        ("head:path=.", "is no file"),
        ("head:path=x,depth=0", "depth"),
        ("head:path=x,breadth=17", "breadth"),
        ("head:path=x,size=3", "size"),
    ],
)
def test_options_are_checked(trusted: Trusted, spec: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        build_speculator(spec, trusted)


def test_the_default_takes_the_head_of_model_and_cut(head: DraftHead, trusted: Trusted, home: Path) -> None:
    assert find_head(trusted) is None
    build_speculator("auto", trusted)
    own = own_head(trusted)
    assert own.is_relative_to(home)
    own.parent.mkdir()
    save_head(head, trusted, {}, own)
    assert find_head(trusted) == own
    one, other = (build_speculator(f"head:path={own}", trusted) for _ in range(2))
    assert vars(one)["_head"] is vars(other)["_head"], "sessions of one client share it"
    build_speculator("auto", trusted)
    own.write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsError, match=own.name):
        build_speculator("auto", trusted)
    build_speculator("auto:head=none", trusted)


def test_heads_that_ship_say_what_they_are_for_and_are_small() -> None:
    shipped = list((Path(heads.__file__).parent / "heads").glob("*.safetensors"))
    assert shipped
    for path in shipped:
        card = read_card(path)
        assert path.name == f"{card.fingerprint}-{card.cut.start}-{card.cut.stop}.safetensors"
        assert path.stat().st_size <= 8 << 20
