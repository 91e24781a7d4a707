"""What every other folder may use: the range of each number, text fit for terminals, and what the machine can do.

Nothing here knows images, models or files.
"""
