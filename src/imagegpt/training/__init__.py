"""Training: from a recipe and a data set to a folder that holds a model.

Inside: recipes, objectives, optimisers and trackers (each extensible by other packages), the trainer with its
checkpoints, distributed training, the folder of a run, the model card, and the search for a learning rate.
In: a recipe, as YAML or a `Recipe`. Out: a `TrainingResult`, and a model that transformers can load.
"""
