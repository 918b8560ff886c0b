"""An obfuscated model in an engine of others (vLLM, llama.cpp, SGLang), as a gateway serves it.

Tokens are chosen by the engine; text exists on this side alone. `translation` is the only module that makes requests of prompts.
"""
