"""The backends of sampling, which compute a decoding step: tokens in, logits out.

`base` defines the interface. `cpp` is the fastest on CPUs, `pytorch` works everywhere, and `cuda_graphs` captures
`pytorch` in CUDA graphs. `thread_count` tunes the number of threads of `cpp`.
"""
