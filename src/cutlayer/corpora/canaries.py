"""Prompts with planted secrets: invented names, ten-digit numbers, e-mail addresses and account numbers.

What an attack reads of a secret shows what it would read of a real one: unlike words, secrets cannot be guessed from
their context. Secrets are random: addresses end in domains reserved for examples, account numbers look like an IBAN but
their check digits are random. The texts of a seed are those of one version of faker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cutlayer.corpora.prompts import Prompt
from cutlayer.errors import InputError

if TYPE_CHECKING:
    from faker import Faker

TEMPLATES: Final = (
    "My name is {name} and my customer number is {number}. Please write a short complaint about a late delivery.",
    "Draft a message to {name} at {email} saying that the contract will be ready on Monday.",
    "Transfer the deposit of 1,200 euros to {account}, account holder {name}, and write a note to confirm it.",
    "I lost my phone yesterday. Its number was {number}. What should I tell my provider first?",
    "Please correct the grammar: 'you can reach me under {email} or by phone at {number} since Tuesday'.",
    "Summarise this for my tax adviser: {name} received three payments on {account} in March.",
    "Write a reminder that {name}, patient number {number}, has an appointment on Thursday at half past nine.",
    "Is it safe to send my account number {account} by e-mail to a landlord I have never met?",
    "Someone writes to me as {email} and asks for money. How do I find out whether this is fraud?",
    "Add a contact: {name}, phone {number}, e-mail {email}. Then suggest a polite first message.",
    "My colleague {name} was dismissed last week. How do I word a letter of recommendation without mentioning it?",
    "Fill in this form for me. Name: {name}. Account: {account}. Reason: refund of a cancelled journey.",
    "The password reset went to {email}, but nothing arrives. Write to the help desk for me, please.",
    "Explain to {name} why the payment from {account} was returned and what has to be done now.",
    "Insurance claim {number}: a pipe burst in the flat below. Write two sentences describing the damage.",
    "Remind me in one sentence that {name} owes me 350 euros, to be paid to {account} before June.",
    "I want to cancel my membership. My card says {number} and I signed up as {email}. Write the cancellation.",
    "Translate into Spanish: 'Dear {name}, your test results are ready, please call {number} to discuss them'.",
    "Our new tenant is {name}. Write a friendly letter asking for references to be sent to {email}.",
    "Which documents does {name} need to open a second account besides {account}?",
)
"""Every slot holds a secret."""

_DOMAINS: Final = ("example.com", "example.net", "example.org")


def canary_prompts(n: int, seed: int = 0, name: str = "canary", start: int = 0) -> list[Prompt]:
    """`n` prompts whose entities are their secrets; the i-th depends on no other.

    Args:
        n: how many.
        seed: another seed, other secrets.
        name: how their ids begin; another name, other secrets.
        start: number of the first.

    Raises:
        InputError: faker is not installed, or `n` is negative.
    """
    if n < 0:
        raise InputError(f"{n} prompts with secrets were asked for; ask for 0 or more")
    faker = _faker()
    return [_canary(faker, f"{name}-{seed}-{i:04d}", TEMPLATES[i % len(TEMPLATES)]) for i in range(start, start + n)]


def plant(text: str, secret: str, slot: str = "secret") -> str:
    """The text with the secret in its ``{slot}``, or in a sentence at its end if it has none.

    Examples:
        >>> plant("Is {secret} a good password?", "hunter2")
        'Is hunter2 a good password?'
        >>> plant("Good morning.", "4711")
        'Good morning. My secret is 4711.'
    """
    mark = f"{{{slot}}}"
    return text.replace(mark, secret, 1) if mark in text else f"{text} My {slot} is {secret}."


def _canary(faker: Faker, identity: str, template: str) -> Prompt:
    faker.seed_instance(identity)
    mailbox = f"{faker.first_name()}.{faker.last_name()}{faker.numerify('##')}".lower()  # not of the same person
    secrets = {
        "name": f"{faker.first_name()} {faker.last_name()}",
        "number": faker.numerify("%#########"),
        "email": f"{mailbox}@{faker.random_element(_DOMAINS)}",
        "account": faker.bothify("GB##????##############", letters="ABCDEFGHJKLMNPRSTUVWXYZ"),
    }
    text, planted = template, []
    for slot, secret in secrets.items():
        if f"{{{slot}}}" in template:
            text = plant(text, secret, slot)
            planted.append(secret)
    return Prompt(text, identity, planted, {"source": "canary"})


def _faker() -> Faker:
    try:
        from faker import Faker
    except ImportError:
        raise InputError(
            "prompts with planted secrets need the package faker; run: pip install 'cutlayer[audit]'"
        ) from None
    return Faker("en_US")
