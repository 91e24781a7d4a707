"""Pictures on disk: reading them from where they are, encoding them once, and giving them out for training.

sources opens what a user names: an image folder, arrays, parquet, CIFAR's own files, a hub name, `digits`.
encoding writes them as ids of a palette into a folder that `datasets.load_from_disk` opens; encoded reads it.
augmentation moves and crops pictures before they are encoded, or their ids where that is exact.
palettes chooses the colours.
"""
