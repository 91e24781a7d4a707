"""Checkpoints: model names, bundled weights, the hub, and OpenAI's TensorFlow checkpoints.

Inside: `registry` (names and `Auto...` classes), `loading` and `saving` (folders), `hub`, `conversion` (from and to
OpenAI's format, and from older folders) on top of `openai`, `tensor_bundle`, `bundle_index`, `leveldb` and `protobuf`,
and `openai_download`. In comes a name, a folder or a checkpoint's prefix; out come a matching model and processor, or
an error of one sentence.
"""
