"""Helpers for every other room: number ranges, registries, printable text, suggested commands, memory and precision.

In: numbers, text and devices. Out: the same, checked or formatted. Nothing here knows about images, models or files.
"""
