"""One network on two devices: where to cut it, predicted and measured."""

from pointsman.depth.splitting.cuts import (
    Cut,
    Device,
    Pipeline,
    front,
    joined,
    parts_of,
    predict,
    profile,
)
from pointsman.depth.splitting.link import Link
from pointsman.depth.splitting.partner import partner, serve
from pointsman.depth.splitting.split import Split, measure_cuts
from pointsman.depth.splitting.wire import PartnerError

__all__ = [
    "Cut",
    "Device",
    "Link",
    "PartnerError",
    "Pipeline",
    "Split",
    "front",
    "joined",
    "measure_cuts",
    "partner",
    "parts_of",
    "predict",
    "profile",
    "serve",
]
