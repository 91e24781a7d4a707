"""Where images come from: one module for each kind of source, and `registry`, which recognises and opens them.

In: a path or name that a user gives. Out: an `ImageSource`, whose examples are images with an optional class.
"""
