"""What computes a step of sampling: tokens in, logits out.

`base` has the interface; `cpp` is the fast one on CPUs, `pytorch` works everywhere, `cuda_graphs` records `pytorch`.
"""
