"""Every claim, listed by hand: what is not imported here does not exist."""

from difflib import get_close_matches

from pointsman.claims.depth import softmax_cascade
from pointsman.claims.frame import Claim
from pointsman.claims.pool import window_cascade
from pointsman.claims.supernet import sortednet
from pointsman.errors import InputError

CLAIMS: tuple[Claim, ...] = (
    softmax_cascade.CLAIM,
    window_cascade.CLAIM,
    sortednet.CLAIM,
)


def find(slug: str) -> Claim:
    """The claim of this name.

    Raises:
        InputError: there is none; near names are listed.
    """
    by_slug = {claim.slug: claim for claim in CLAIMS}
    if slug in by_slug:
        return by_slug[slug]
    near = get_close_matches(slug.lower().replace("_", "-"), by_slug, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`pointsman claims` lists them all"
    raise InputError(f"there is no claim {slug!r}: {hint}")
