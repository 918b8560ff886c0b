"""llama.cpp's server over HTTP on loopback, by the package xllamacpp, until standard input ends.

    python xllamacpp_serve.py MODEL.gguf NAME THREADS

Prints its URL. The same as

    llama-server -m MODEL.gguf --alias NAME -t THREADS -c 2048 -np 1 -ctk f32 -ctv f32 -fa off --cache-ram 0
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def serve(model: str, name: str, threads: int) -> None:
    """Answer until standard input ends."""
    llama: Any = importlib.import_module("xllamacpp")
    params = llama.CommonParams()
    params.model.path = model
    params.model_alias = {name}
    params.n_ctx, params.n_parallel, params.cache_ram_mib = 2048, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    server = llama.Server(params)
    sys.stdout.write(f"{server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
