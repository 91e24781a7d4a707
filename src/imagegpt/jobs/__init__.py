"""Many images: a run into a folder that may be killed at any moment, goes on where it was, and spreads over processes.

Images are drawn in fixed blocks, block i being images i * batch_size to (i + 1) * batch_size - 1, always whole. So the
file of image k depends on the weights, the seed, the rules, the block size and k alone: not on how many images are
asked for, on kills, or on the number of processes, of which process r draws the blocks i with i % processes == r.

    folder/run.json              the settings, written first; `RunSettings`
    folder/0003/00031234.png     one PNG an image, 10,000 a folder; or
    folder/00031232.npz          one shard a block, called after its first image; or
    folder/00031232.arrow        the same for the library `datasets`
"""
