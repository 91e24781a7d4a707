"""Pictures for people: grids of images, animations, and plots of numbers.

In: arrays. Out: Pillow images, or files in bytes. Only this folder uses matplotlib.
"""
