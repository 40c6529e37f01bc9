"""Training: one loop for every recipe."""

from textvae.errors import Interrupted
from textvae.training.loop import train

__all__ = ["Interrupted", "train"]
