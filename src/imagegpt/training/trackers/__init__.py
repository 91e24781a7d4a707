"""Experiment trackers: where a run logs its metrics besides log.jsonl, by the names that recipes give them.

In: a recipe's settings, and the report of each step. Out: whatever the tracker writes or sends.

All of accelerate's trackers are available by name. To add one, write a subclass of `Tracker` decorated by
`register_tracker` in a file of its own, and import it below. Another package declares its class as an entry point of
the group `imagegpt.trackers` instead.
"""

from imagegpt.training.trackers.base import TRACKERS, Tracker, Trackers, check_trackers, register_tracker

__all__ = ["TRACKERS", "Tracker", "Trackers", "check_trackers", "register_tracker"]
