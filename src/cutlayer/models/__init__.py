"""The cut: which tensors belong to which side, how each part is built, and what a cut costs."""
