"""Figures for people: image grids, animations and plots.

In: arrays and Pillow images. Out: Pillow images, or PNG files as bytes. Only this folder uses matplotlib.
"""
