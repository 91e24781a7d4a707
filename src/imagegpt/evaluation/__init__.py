"""Measuring models: exact likelihoods, and the baselines they are held against."""
