"""`ImageGPTPipeline`: a model and its image processor, with methods to sample, complete and fill images.

In: images and options. Out: images.
"""
