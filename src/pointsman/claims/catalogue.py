"""Every claim, listed by hand: what is not imported here does not exist."""

from difflib import get_close_matches

from pointsman.claims.depth import softmax_cascade
from pointsman.claims.frame import Claim
from pointsman.claims.moe import (
    advmoe,
    attention_router,
    base_layer,
    blockffn,
    care,
    chain_of_experts,
    cigt,
    cmoe,
    competesmoe,
    conditional_moe,
    deep_moe,
    deepspeed_ted,
    dipaco,
    distributed_architectures,
    dpsl,
    drmc,
    dynamic_dino,
    erc_loss,
    exflow,
    expert_prototyping,
    expertflow,
    fsmoe,
    glider,
    grin,
    hyperrouter,
    kamoe,
    loss_free_balancing,
    maskmoe,
    megablocks,
    mhr,
    mixer,
    mixture_of_rank,
    moe_for_deep_rl,
    moetuner,
    mos,
    online_k_means_router,
    online_rerouting,
    patch_level_moe,
    polystep,
    rectify_router,
    remix,
    remoe,
    rmoe,
    roma,
    roster_of_experts,
    routed_scaling_laws,
    sam,
    similarity_aware_smoe,
    smear,
    smile,
    smore,
    sparse_transport,
    sparsely_gated_moe,
    task_aware_moe,
    tutel,
)
from pointsman.claims.pool import window_cascade
from pointsman.claims.supernet import sortednet
from pointsman.errors import InputError

CLAIMS: tuple[Claim, ...] = (
    advmoe.CLAIM,
    attention_router.CLAIM,
    base_layer.CLAIM,
    blockffn.CLAIM,
    care.CLAIM,
    chain_of_experts.CLAIM,
    cigt.CLAIM,
    cmoe.CLAIM,
    competesmoe.CLAIM,
    conditional_moe.CLAIM,
    deep_moe.CLAIM,
    deepspeed_ted.CLAIM,
    dipaco.CLAIM,
    distributed_architectures.CLAIM,
    dpsl.CLAIM,
    drmc.CLAIM,
    dynamic_dino.CLAIM,
    erc_loss.CLAIM,
    exflow.CLAIM,
    expert_prototyping.CLAIM,
    expertflow.CLAIM,
    fsmoe.CLAIM,
    glider.CLAIM,
    grin.CLAIM,
    hyperrouter.CLAIM,
    kamoe.CLAIM,
    loss_free_balancing.CLAIM,
    maskmoe.CLAIM,
    megablocks.CLAIM,
    mhr.CLAIM,
    mixer.CLAIM,
    mixture_of_rank.CLAIM,
    moe_for_deep_rl.CLAIM,
    moetuner.CLAIM,
    mos.CLAIM,
    online_k_means_router.CLAIM,
    online_rerouting.CLAIM,
    patch_level_moe.CLAIM,
    polystep.CLAIM,
    rectify_router.CLAIM,
    remix.CLAIM,
    remoe.CLAIM,
    rmoe.CLAIM,
    roma.CLAIM,
    roster_of_experts.CLAIM,
    routed_scaling_laws.CLAIM,
    sam.CLAIM,
    similarity_aware_smoe.CLAIM,
    smear.CLAIM,
    smile.CLAIM,
    smore.CLAIM,
    sparse_transport.CLAIM,
    sparsely_gated_moe.CLAIM,
    task_aware_moe.CLAIM,
    tutel.CLAIM,
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
