"""Depth level: how deep into one network an input goes."""

from pointsman.depth.early_exit import EarlyExit, joint_loss

__all__ = ["EarlyExit", "joint_loss"]
