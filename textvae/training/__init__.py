"""Training: one loop for every recipe."""

from textvae.training.loop import Interrupted, train

__all__ = ["Interrupted", "train"]
