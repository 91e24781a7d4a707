"""Measuring trained models: exact likelihoods, baselines, accuracy.

Inside: `likelihood` (nats per pixel of ids), `baselines` (two distributions fitted by counting), `scoring` (a model
beside them) and `classification` (both score a model's folder on a split of its data), `evaluate` (the entry point).

In: a model's folder and data sets of token ids. Out: scores in nats per pixel, predicted classes.
"""
