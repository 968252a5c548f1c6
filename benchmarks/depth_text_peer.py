"""`transformers`' own generation, plain and assisted by an early exit, on the very same weights."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from depth_text_models import (
    CONTEXT,
    HEADS,
    LAYERS,
    WIDTH,
    Row,
    prompts_of,
    same_texts,
    timed,
    times_as_fast,
)
from depth_text_speed import SPECULATE, Drafts, fastest
from torch import Tensor

from pointsman.claims.language import BYTES
from pointsman.depth.decoder import Decoder
from pointsman.depth.decoding.early import decode
from pointsman.depth.decoding.exits import LanguageExits
from pointsman.depth.decoding.speculative import speculate


def as_starcoder(decoder: Decoder) -> Any:
    """The same weights in a model of `transformers`: Starcoder2 has our norms and rotary turns."""
    import transformers

    config = transformers.Starcoder2Config(
        vocab_size=BYTES,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        hidden_act="gelu",
        norm_epsilon=1e-5,
        sliding_window=None,
        use_bias=True,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = transformers.Starcoder2ForCausalLM(config).eval()
    own = decoder.state_dict()
    weights = {
        "model.embed_tokens.weight": own["embedding.weight"],
        "lm_head.weight": own["head.weight"],
        "model.norm.weight": own["norm.weight"],
        "model.norm.bias": own["norm.bias"],
    }
    nothing = torch.zeros(WIDTH)
    for at in range(LAYERS):
        block, layer = f"blocks.{at}.", f"model.layers.{at}."
        for name, part in zip("qkv", own[block + "attention.mix.weight"].chunk(3), strict=True):
            weights[f"{layer}self_attn.{name}_proj.weight"] = part
            weights[f"{layer}self_attn.{name}_proj.bias"] = nothing
        weights[f"{layer}self_attn.o_proj.weight"] = own[block + "attention.out.weight"]
        weights[f"{layer}self_attn.o_proj.bias"] = nothing
        pairs = {
            "norm_1": "input_layernorm",
            "norm_2": "post_attention_layernorm",
            "feed_forward.0": "mlp.c_fc",
            "feed_forward.2": "mlp.c_proj",
        }
        for ours, theirs in pairs.items():
            for kind in ("weight", "bias"):
                weights[f"{layer}{theirs}.{kind}"] = own[f"{block}{ours}.{kind}"]
    model.load_state_dict(weights)
    return model


def generate(model: Any, new: int, ids: Tensor, drafts: Drafts | None = None) -> Tensor:
    """Greedy generation; with drafts, assisted by the model's own early exit."""
    about: dict[str, Any] = {"do_sample": False, "max_new_tokens": new, "use_cache": True}
    if drafts is not None:
        about |= {"assistant_early_exit": drafts.after, "num_assistant_tokens": drafts.most}
        about |= {"num_assistant_tokens_schedule": "constant"}
        about |= {"assistant_confidence_threshold": drafts.sure}
    with torch.no_grad():
        text: Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), **about)
    return text


def peer_table(exits: Decoder, tuning: int, count: int, new: int) -> list[Row]:
    """Each side drafts at the setting that was fastest for it on the tuning prompts."""
    model = as_starcoder(exits)
    prompts = prompts_of("test", count)
    with torch.no_grad():
        apart = float((model(prompts[0]).logits - exits(prompts[0])).abs().max())
    if apart > 1e-3:
        raise SystemExit(f"the two models should say the same, they are {apart:.2g} apart")
    trunks = {"pointsman on it": model, "pointsman's Decoder": exits}
    contenders: dict[str, Callable[[Tensor], Any]] = {
        "transformers: generate": partial(generate, model, new)
    }
    assisted = {each: partial(generate, model, new, drafts=each) for each in SPECULATE}
    best = fastest(assisted, tuning, new)
    contenders[f"transformers: assistant_early_exit, {best}"] = assisted[best]
    for name, trunk in trunks.items():
        which = LanguageExits(trunk, at=range(LAYERS - 1))
        contenders[f"{name}: full depth"] = partial(decode, LanguageExits(trunk, at=[]), new=new)
        ours = {each: partial(speculate, which, new=new, **each.options) for each in SPECULATE}
        best = fastest(ours, tuning, new)
        contenders[f"{name}: speculation, {best}"] = ours[best]
    measured, rows = timed(contenders, prompts, new), []
    base = measured["transformers: generate"]
    for name, each in measured.items():
        texts = [getattr(found, "ids", found) for found in each["found"]]
        row: Row = {"name": name, "tokens per s": each["tokens per s"]}
        row["times as fast"] = times_as_fast(base, each)
        row["texts as generate's"] = same_texts(base["found"], texts)
        rows.append(row | {"texts": count})
    return rows
