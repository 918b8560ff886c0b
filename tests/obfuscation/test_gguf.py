"""The GGUF of an export, read back by the format's own library, and run by llama.cpp where it is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest
import torch

from cutlayer.errors import InputError, ModelNotFoundError, UnsupportedModelError
from cutlayer.models.checkpoint import Checkpoint
from cutlayer.obfuscation.gguf_export import export_gguf

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Exported

NEW_TOKENS = 64
SUPPORTED = ["llama", "llama-tied", "llama-bias", "llama-rope3", "qwen3"]


def tensors(file: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}


def field(file: Path, name: str) -> Any:
    return gguf.GGUFReader(file).fields[name].contents()


def test_holds_what_the_export_holds(
    tiny: Callable[[str], Path], exported: Callable[..., Exported], tmp_path: Path
) -> None:
    made = exported(tiny("llama"), expand=48)
    export_gguf(made.directory, tmp_path / "model.gguf")
    found, checkpoint = tensors(tmp_path / "model.gguf"), Checkpoint(made.directory)
    assert len(found) == len(checkpoint.names())
    names = {"lm_head": "output", "model.embed_tokens": "token_embd", "model.layers.3.mlp.down_proj": "blk.3.ffn_down"}
    for ours, theirs in names.items():
        held = checkpoint.read(f"{ours}.weight").numpy()
        assert np.array_equal(found[f"{theirs}.weight"].view(np.float32).reshape(held.shape), held)
    tau = made.tau.tolist()
    assert field(tmp_path / "model.gguf", "tokenizer.ggml.eos_token_id") == tau[2]
    assert field(tmp_path / "model.gguf", "tokenizer.ggml.tokens")[7] == "<7>"
    assert field(tmp_path / "model.gguf", "llama.attention.key_length") == 8
    assert field(tmp_path / "model.gguf", "llama.embedding_length") == 48


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bit_weights_stay_as_they_are(
    dtype: str, tiny: Callable[[str], Path], exported: Callable[..., Exported], tmp_path: Path
) -> None:
    made = exported(tiny("llama"), dtype=dtype)
    export_gguf(made.directory, tmp_path / "model.gguf")
    held = Checkpoint(made.directory).read("model.embed_tokens.weight")
    stored = tensors(tmp_path / "model.gguf")["token_embd.weight"]
    assert stored.tobytes() == held.view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma", "mixtral", "qwen3_moe"])
def test_what_the_engine_does_not_run_alike_is_refused(
    family: str, tiny: Callable[[str], Path], exported: Callable[..., Exported], tmp_path: Path
) -> None:
    made = exported(tiny(family))
    with pytest.raises(UnsupportedModelError, match="erve the safetensors export instead"):
        export_gguf(made.directory, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


def test_only_an_export_and_only_once(
    tiny: Callable[[str], Path], exported: Callable[..., Exported], tmp_path: Path
) -> None:
    with pytest.raises(ModelNotFoundError, match="not made by"):
        export_gguf(tiny("llama"), tmp_path / "model.gguf")
    (tmp_path / "model.gguf").write_text("mine")
    with pytest.raises(InputError, match="never overwritten"):
        export_gguf(exported(tiny("llama")).directory, tmp_path / "model.gguf")
    assert (tmp_path / "model.gguf").read_text() == "mine"


@pytest.mark.parametrize("family", SUPPORTED)
@pytest.mark.parametrize("expand", [None, 48])
def test_llama_cpp_answers_as_the_plain_model(
    family: str, expand: int | None, tiny: Callable[[str], Path], exported: Callable[..., Exported], tmp_path: Path
) -> None:
    engine = pytest.importorskip("xllamacpp")
    made = exported(tiny(family), expand=expand)
    export_gguf(made.directory, tmp_path / "model.gguf")
    settings = engine.CommonParams()
    settings.model.path = str(tmp_path / "model.gguf")
    settings.n_ctx, settings.warmup, settings.verbosity = 256, False, -1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.flash_attn_type = engine.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.cache_type_k = settings.cache_type_v = engine.ggml_type.GGML_TYPE_F32
    server = engine.Server(settings)
    plain, _ = made.models()
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        whole = plain.generate(ids, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, do_sample=False)
        logprobs = plain(ids).logits[0, -1].log_softmax(-1)
    client = made.key.client()
    request = {
        "prompt": client.to_server(ids[0].tolist()), "n_predict": NEW_TOKENS, "top_k": 1, "samplers": ["top_k"],
        "ignore_eos": True, "n_probs": 5, "cache_prompt": False,
    }  # fmt: skip
    answered = server.handle_completions(request)["choices"][0]["logprobs"]["content"]
    assert client.from_server([token["id"] for token in answered]) == whole[0, ids.shape[1] :].tolist()
    for token in answered[0]["top_logprobs"]:
        assert token["logprob"] == pytest.approx(float(logprobs[client.from_server([token["id"]])[0]]), abs=1e-4)
