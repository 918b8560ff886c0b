"""Split equals unsplit on the real model: logits and greedy tokens, every cut, through the whole protocol.

Prints and writes the record ``founding``.
"""

from __future__ import annotations

import torch
from cyclopts import App
from rich.progress import track
from transformers import AutoModelForCausalLM

from cutlayer.client.connect import Client, Options
from cutlayer.models.locate import locate
from cutlayer.models.parts import load_body
from cutlayer.records.record import Figure, exact, new_record, proportion
from cutlayer.server.build import build_service
from cutlayer.server.local import LocalServer
from cutlayer.server.logs import log_json
from report import PROMPTS, finish, prompt_texts

CUTS = ("0:30", "1:-1", "2:-2", "4:-4", "8:-2")

app = App(help=__doc__)


@app.default
def founding(*, model: str = "smollm2-135m", prompts: int = 20, tokens: int = 64, write: bool = True) -> None:
    """Compare and record."""
    log_json()
    directory = locate(model)
    unsplit = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    texts = prompt_texts(prompts)
    reference: list[tuple[list[int], list[int], torch.Tensor]] = []
    figures: dict[str, Figure] = {}
    samples: dict[str, list[float]] = {}
    for cut in CUTS:
        errors, identical = [], 0
        with (
            LocalServer(build_service(directory, model, cut, "float32")) as server,
            Client(server.connect, Options(model=model)) as client,
        ):
            if not reference:
                reference = [_unsplit(unsplit, client.encode(text), tokens) for text in track(texts, "unsplit")]
            body = load_body(directory, client.cut, torch.float32)
            for ids, expected, logits in track(reference, f"cut {cut}"):
                answer = client.generate(ids, max_tokens=tokens, ignore_eos=True).result()
                identical += answer.token_ids == expected
                head, tail = client.parts
                with torch.inference_mode():
                    hidden = head(torch.tensor([[*ids, *expected]]), head.new_cache())
                    split = tail(body(hidden, body.new_cache()), tail.new_cache())[0]
                errors.append((split - logits).abs().max().item())
        name = cut.replace(":", "_").replace("-", "m")
        figures[f"greedy_identical_{name}"] = proportion(identical, prompts)
        figures[f"largest_logit_error_{name}"] = exact(max(errors), "logit", prompts)
        samples[f"logit_error_{name}"] = errors
    config = {"model": model, "dtype": "float32", "text": PROMPTS, "prompts": prompts, "tokens_per_prompt": tokens}
    finish(new_record("founding", "cutlayer bench founding", config, figures, samples), write=write)


def _unsplit(model: torch.nn.Module, ids: list[int], tokens: int) -> tuple[list[int], list[int], torch.Tensor]:
    """(prompt, greedy answer, logits [T, V] over both)."""
    inputs = torch.tensor([ids])
    with torch.inference_mode():
        whole = model.generate(  # type: ignore[operator]
            inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=tokens, eos_token_id=-1, do_sample=False
        )
        return ids, whole[0, len(ids) :].tolist(), model(whole).logits[0]


if __name__ == "__main__":
    app()
