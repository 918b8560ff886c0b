"""A draft head: one small decoder layer that guesses on from the states the client already holds.

After EAGLE (arXiv 2401.15077), for a model whose middle is elsewhere:

    network    the model's own last layer, changed by low rank and fed with token and state
    file       a trained head on disk
    guessing   the speculator
    examples, collect, start, unroll, acceptance, training   how one is made
"""

from cutlayer.client.speculation.head.guessing import KIND

__all__ = ["KIND"]
