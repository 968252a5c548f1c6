"""What keeps experts equally used: losses that are returned, and biases learned beside them."""

from pointsman.moe.balance.losses import switch

__all__ = ["switch"]
