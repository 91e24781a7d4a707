"""Training runs in folders: from a recipe to a model with its card, and everything that was seen on the way."""

from imagegpt.runs.folder import RECIPE_FILE, check_folder
from imagegpt.runs.run import Run, Told
from imagegpt.runs.scores import Score, score_folder

__all__ = ["RECIPE_FILE", "Run", "Score", "Told", "check_folder", "score_folder"]
