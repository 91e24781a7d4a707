"""Sources of images: one module for each kind, and `registry`, which finds the kind of a location and opens it.

In: a path or name, as the user gives it. Out: an `ImageSource`, whose examples are images with an optional label.
"""
