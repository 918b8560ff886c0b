"""The key cut (AloePri): nothing is split; a server runs an obfuscated checkpoint in an unmodified engine, the client has a key.

    settings = choose(base, mode="exact")           # settings.py
    key = create_owner_key(base, settings)          # keys.py
    export(base, out, key)                          # export.py
    seal(key, passphrase), seal(key.client(), …)    # keyfile.py
    key.client().tau                                # uint32 [V], plain id → id the server sees

Source: Lin et al. 2026, "Towards Privacy-Preserving LLM Inference via Collaborative Obfuscation" (arXiv 2603.01499).

Footgun: this hides text from logs, gateways and an incurious operator. It does not hide it from a host that has, or can
guess, the public base model: `cutlayer.obfuscation.card` says what is known.
"""
