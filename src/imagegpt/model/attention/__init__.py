"""Attention: the definition and the implementations of our own, which register themselves with transformers.

transformers brings "sdpa", "flex_attention" and "flash_attention_2"; one test compares them all with the definition,
`tests/model/test_attention_parity.py`. Sampling in C++ has attention over its own cache, in `kernels/cpp`.
"""
