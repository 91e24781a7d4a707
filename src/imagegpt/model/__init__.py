"""The model: the maths in `layers`, transformers' shell around it in `modeling`."""
