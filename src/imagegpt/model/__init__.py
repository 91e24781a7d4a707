"""The model: ImageGPT's arithmetic, and the transformers models around it.

Inside: `layers` (norm, attention, MLP, block), `base` (embeddings, blocks, final norm), `modeling` (the generative
model and the classifier), `pretrained_model` (loading, saving, resizing), `attention` (backends), `generation`
(`generate()`), `losses`, `initialization`, `pruning`, `cost` (parameters, bytes, FLOPs), checks of inputs and files. In
come token ids (B, T), start token first; out come features (B, T, C), logits (B, T, V) and losses in nats
per pixel.
"""
