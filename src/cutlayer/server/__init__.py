"""The untrusted side: sessions of hidden states through the middle layers.

Nothing in this package, nor anything it imports, knows tokens, text, embeddings, logits or keys; import-linter holds it
to that, and `isolation` keeps the tokenizers library out of the process.
"""
