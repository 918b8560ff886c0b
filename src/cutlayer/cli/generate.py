"""`cutlayer generate`: one prompt, one answer."""

from __future__ import annotations

import sys
from typing import Annotated

from cyclopts import Parameter

from cutlayer.cli.client_options import ConnectOptions, SamplingOptions
from cutlayer.errors import InputError

_GREEDY = SamplingOptions()


def generate(
    prompt: str,
    /,
    *,
    at: ConnectOptions,
    sample: SamplingOptions = _GREEDY,
    max_tokens: int = 256,
    stop: Annotated[list[str] | None, Parameter(negative=())] = None,
    raw: Annotated[bool, Parameter(negative=())] = False,
    ignore_eos: Annotated[bool, Parameter(negative=())] = False,
    json: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Answer one prompt. The text stays here; the server sees hidden states.

    Parameters
    ----------
    prompt
        The question; - reads it from standard input.
    at
        Server and model.
    sample
        Sampling.
    max_tokens
        The answer's longest length.
    stop
        A string that ends the answer; may be given several times.
    raw
        Send the prompt as it is, without the chat template.
    ignore_eos
        Go on after the model's end-of-sequence token.
    json
        Print one JSON object with text, ids, timings and bytes instead of streaming.
    """
    sampling = sample.sampling()
    text = sys.stdin.read() if prompt == "-" else prompt
    if not text:
        raise InputError("the prompt is empty")
    with at.connect() as client:
        generation = client.generate(
            text, max_tokens=max_tokens, sampling=sampling, stop=stop or (), raw=raw, ignore_eos=ignore_eos
        )
        for piece in generation:
            if not json:
                sys.stdout.write(piece.text)
                sys.stdout.flush()
        result = generation.result()
    if json:
        import msgspec

        sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
    else:
        sys.stdout.write("\n")
    return 0
