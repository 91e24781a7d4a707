"""`ImageGPTPipeline`: a model and its image processor at work together, in a few verbs.

In: images and options. Out: images, likelihoods, features, classes.
"""
