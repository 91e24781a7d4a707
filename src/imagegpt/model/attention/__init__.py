"""Attention: the reference implementation, our own backend, and the choice between them.

Inside: `reference` (eager attention, the definition), `kernels` (our C++ backend, registered with transformers) and
`dispatch` (backend and masks of a forward pass). In come queries, keys and values (B, H, T, D); out go mixed values
(B, T, H, D). transformers adds "sdpa", "flex_attention" and "flash_attention_2";
`tests/model/test_attention_parity.py` compares all of them with the reference. The samplers have their own attention:
in `sampling/backends/pytorch.py` and `kernels/cpp`.
"""
