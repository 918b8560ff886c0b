"""How much of the text is in the hidden states, in bits per token: one estimator per file.

A deterministic layer is almost surely injective on a finite set of texts, so the mutual information of text and hidden state
equals the entropy of the text at every depth. What varies with depth is what a given reader can use (`v_information`), what
survives noise (`gaussian_bound`), what an attack showed (`fano`), or the estimator itself (`matrix_renyi`).
"""
