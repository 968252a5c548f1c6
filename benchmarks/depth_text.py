"""A byte-level language model that stops early: bits per byte and tokens per second of every way.

    python benchmarks/depth_text.py --folder F --train exits|plain|recursion [--updates 1000]
    python benchmarks/depth_text.py --folder F [--json depth_text.json]

Trains small models on the standard library's sources (about 1.6 million weights, 8 layers; some 20
minutes of one core each for 1,000 updates) and keeps them in a folder; then, without --train,
measures them side by side:

- bits per byte on held-out files, and layers per token: full depth, the same network trained
  without exits, each exit by itself, and exits chosen token by token at several thresholds;
- tokens per second of decoding, all contenders in turns over the same prompts: full depth, fixed
  exits, exits by token with either way of keeping the cache, self-speculative decoding;
- recursion with a depth per token, and routers that skip layers beside what an oracle would skip;
- `transformers`' assisted generation with `assistant_early_exit` on the very same weights.

Seconds are process time of one thread, so that what else runs on the machine matters less.

Legend: L layers, E exits, V = 128 byte values.
"""

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pointsman.claims.language import BYTES, corpus
from pointsman.depth.decoder import Decoder
from pointsman.depth.decoding.early import decode
from pointsman.depth.decoding.exits import LanguageExits
from pointsman.depth.decoding.forced import TokenCosts, forced, layer_runs
from pointsman.depth.decoding.speculative import speculate
from pointsman.depth.decoding.training import fit_language, fit_text

WIDTH, LAYERS, HEADS, CONTEXT = 128, 8, 4, 256
SIZE = 8_000_000  # bytes of the training text
RATE = 3e-3
EARLY = (1, 3, 5)  # layers after which a token may leave, where it chooses
THRESHOLDS = (0.98, 0.95, 0.9, 0.8, 0.7, 0.5)
# drafts come after so many layers, so many of them, while they are as sure as this
SPECULATE = ((1, 4, 0.0), (2, 4, 0.0), (3, 4, 0.0), (4, 6, 0.0), (2, 8, 0.6), (3, 8, 0.6))
PROMPT = 64  # bytes
ROUTED = (192, 96)  # windows that routers learn from, and that they are measured on
PARTS = ("bits", "speed", "batch", "recursion", "routers", "peer")


def plain_decoder(seed: int = 0, layers: int = LAYERS) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(vocabulary=BYTES, width=WIDTH, layers=layers, heads=HEADS, context=CONTEXT)


def recursive(seed: int = 0) -> Any:
    """4 blocks; the middle two run up to 3 times: 8 layers deep at most, as the others."""
    from pointsman.depth.recursion.mixture import MixtureOfRecursions
    from pointsman.depth.recursion.routers import ExpertChoice

    router = ExpertChoice(WIDTH, capacities=(1.0, 2 / 3, 1 / 3))
    return MixtureOfRecursions(plain_decoder(seed, layers=4), range(1, 3), router)


def train(kind: str, folder: Path, updates: int) -> None:
    """Train one model and keep it, with the seconds it took."""
    text, start = corpus(SIZE).train, time.time()

    def say(update: int, loss: float) -> None:
        if update % 20 == 0:
            print(f"{update:5d}  {loss:.3f} nats  {time.time() - start:.0f} s", flush=True)

    about: dict[str, Any] = {"updates": updates, "rate": RATE, "seed": 0, "on_update": say}
    if kind == "recursion":
        model = recursive()
        fit_text(model, partial(recursion_loss, model), text, window=CONTEXT, **about)
        weights = model.state_dict()
    else:
        decoder = plain_decoder()
        early = range(LAYERS - 1) if kind == "exits" else ()
        dropout = 0.1 if kind == "exits" else 0.0
        fit_language(LanguageExits(decoder, at=early), text, dropout=dropout, **about)
        weights = decoder.state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"model": weights, "seconds": time.time() - start}, folder / f"{kind}.pt")


def recursion_loss(model: Any, ids: Tensor) -> Tensor:
    found = model(ids[:, :-1])
    return functional.cross_entropy(found.logits.flatten(0, 1), ids[:, 1:].flatten()) + found.loss


def loaded(kind: str, folder: Path, make: Callable[[], Any]) -> Any:
    """A trained model, or None where it was not trained."""
    path = folder / f"{kind}.pt"
    if not path.exists():
        return None
    model = make()
    model.load_state_dict(torch.load(path, weights_only=True)["model"])
    return model.eval()


def windows(count: int, size: int = CONTEXT, offset: float = 0.0) -> Tensor:
    """Windows (count, size) of held-out text, evenly spread."""
    text = corpus(SIZE).validation.long()
    starts = ((torch.arange(count) + offset) * (len(text) - size) / (count + 1)).long()
    return torch.stack([text[start : start + size] for start in starts.tolist()])


def bits_table(exits: Decoder, plain: Decoder | None, count: int) -> list[dict[str, Any]]:
    """Bits per byte, layers and MFLOPs per token of every way to run the network."""
    ids, rows = windows(count), []
    every = LanguageExits(exits, at=range(LAYERS - 1))
    some = LanguageExits(exits, at=EARLY)

    def add(name: str, model: LanguageExits, limits: Any, **how: Any) -> None:
        costs = TokenCosts.count(model, ids[:1])
        found = [forced(model, part, limits, **how) for part in ids.split(16)]
        left = torch.cat([each.exits for each in found])
        bits = torch.cat([each.bits(part) for each, part in zip(found, ids.split(16), strict=True)])
        keep = how.get("keep", "exact")
        asked = [limits] * (len(model) - 1) if isinstance(limits, float) else list(limits)
        spent = costs.spent(left, [*asked, -math.inf], model.bounds, keep)
        layers = layer_runs(left, model.bounds, keep).sum() / left.numel()
        rows.append(
            {
                "name": name,
                "bits": float(bits.mean()),
                "layers": float(layers),
                "left after": float(torch.tensor(model.bounds[1:])[left].double().mean()),
                "MFLOPs": float(spent.mean()),
            }
        )

    if plain is not None:
        add("plain network, no exits", LanguageExits(plain, at=[]), math.inf)
    for at in reversed(range(LAYERS)):
        limits = [math.inf] * at + [-math.inf] + [0.0] * (LAYERS - 2 - at)
        add(f"exit after {at + 1}", every, limits[: LAYERS - 1])
    for keep in ("exact", "propagate"):
        for threshold in THRESHOLDS:
            add(f"by token at {threshold}, {keep}", some, threshold, keep=keep)
        for threshold in THRESHOLDS[1:4]:
            limits = [threshold, threshold, -math.inf]
            add(f"by token at {threshold}, else after 6, {keep}", some, limits, keep=keep)
    return rows


def timed(
    contenders: dict[str, Callable[[Tensor], Any]], prompts: list[Tensor], new: int
) -> dict[str, dict[str, Any]]:
    """Tokens per second of process time, the contenders in turns; and what they wrote."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    found: dict[str, list[Any]] = {name: [] for name in contenders}
    for name, run in contenders.items():  # warm up
        run(prompts[0][:, :8])
        print(f"  {name} warm", flush=True)
    for prompt in prompts:
        for name, run in contenders.items():
            start = time.process_time()
            written = run(prompt)
            seconds[name].append(time.process_time() - start)
            found[name].append(written)
    return {
        name: {
            "tokens per s": median(len(p) * new / s for p, s in zip(prompts, each, strict=True)),
            "seconds": each,
            "found": found[name],
        }
        for name, each in seconds.items()
    }


def own_contenders(
    exits: Decoder, plain: Decoder | None, new: int
) -> dict[str, Callable[[Tensor], Any]]:
    """Every way of decoding."""
    full, some = LanguageExits(exits, at=[]), LanguageExits(exits, at=EARLY)
    found: dict[str, Callable[[Tensor], Any]] = {"full depth": partial(decode, full, new=new)}
    if plain is not None:
        found["plain network"] = partial(decode, LanguageExits(plain, at=[]), new=new)
    for at in (1, 3, 5):
        only = LanguageExits(exits, at=[at])
        found[f"exit after {at + 1}"] = partial(decode, only, new=new, thresholds=-math.inf)
    for keep in ("exact", "propagate"):
        for threshold in (0.95, 0.8, 0.6):
            found[f"by token at {threshold}, {keep}"] = partial(
                decode, some, new=new, thresholds=threshold, keep=keep
            )
        found[f"by token at 0.9, else after 6, {keep}"] = partial(
            decode, some, new=new, thresholds=[0.9, 0.9, -math.inf], keep=keep
        )
    every = LanguageExits(exits, at=range(LAYERS - 1))
    for after, drafts, sure in SPECULATE:
        while_sure = f" while {sure:g} sure" if sure else ""
        found[f"speculation: {drafts} drafts after {after}{while_sure}"] = partial(
            speculate, every, new=new, drafts=drafts, exit_=after - 1, sure=sure
        )
    return found


def speed_table(exits: Decoder, plain: Decoder | None, batch: int, count: int, new: int) -> Any:
    """One row per contender."""
    texts = windows(batch * count, PROMPT, offset=0.5)
    prompts = list(texts.reshape(count, batch, PROMPT))
    measured = timed(own_contenders(exits, plain, new), prompts, new)
    base = measured["full depth"]
    rows = []
    for name, each in measured.items():
        results = each.pop("found")
        row = {"name": name, "tokens per s": each["tokens per s"]}
        pairs = zip(base["seconds"], each["seconds"], strict=True)
        row["times as fast"] = median(a / b for a, b in pairs)
        ran = torch.stack([found.ran for found in results]).sum()
        tokens = sum(int(found.lengths.sum()) - batch for found in results)
        row["layers per token"] = float(ran / tokens)
        drafted = sum(found.drafted for found in results)
        if drafted:
            row["accepted"] = sum(found.accepted for found in results) / drafted
            row["tokens per round"] = count * batch * new / sum(f.rounds for f in results) / batch
        row["texts as full depth"] = sum(
            bool((a == b).all())
            for mine, theirs in zip(results, base.get("results") or results, strict=True)
            for a, b in zip(mine.ids, theirs.ids, strict=True)
        )
        if name == "full depth":
            base["results"] = results
        row["texts"] = batch * count
        rows.append(row)
    return rows


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


def peer_table(exits: Decoder, count: int, new: int) -> list[dict[str, Any]]:
    """`transformers`' own generation, plain and assisted by an early exit, on the same weights."""
    model = as_starcoder(exits)
    prompts = list(windows(count, PROMPT, offset=0.5)[:, None])
    with torch.no_grad():
        apart = float((model(prompts[0]).logits - exits(prompts[0])).abs().max())
    if apart > 1e-3:
        raise SystemExit(f"the two models should say the same, they are {apart:.2g} apart")
    plain = {"do_sample": False, "max_new_tokens": new, "use_cache": True}

    def generate(
        ids: Tensor, after: int | None = None, drafts: int = 0, sure: float = 0.0
    ) -> Tensor:
        more: dict[str, Any] = {}
        if after is not None:
            more = {"assistant_early_exit": after, "num_assistant_tokens": drafts}
            more |= {"num_assistant_tokens_schedule": "constant"}
            more |= {"assistant_confidence_threshold": sure}
        with torch.no_grad():
            text: Tensor = model.generate(ids, attention_mask=torch.ones_like(ids), **plain, **more)
        return text

    every = LanguageExits(model, at=range(LAYERS - 1))
    ours = LanguageExits(exits, at=range(LAYERS - 1))
    contenders: dict[str, Callable[[Tensor], Any]] = {
        "transformers: generate": generate,
        "pointsman on it: full depth": partial(decode, LanguageExits(model, at=[]), new=new),
        "pointsman's Decoder: full depth": partial(decode, LanguageExits(exits, at=[]), new=new),
    }
    for after, drafts, sure in SPECULATE:
        about = f"{drafts} drafts after {after}" + (f" while {sure:g} sure" if sure else "")
        contenders[f"transformers: assistant_early_exit, {about}"] = partial(
            generate, after=after, drafts=drafts, sure=sure
        )
        for name, which in (("pointsman on it", every), ("pointsman's Decoder", ours)):
            contenders[f"{name}: speculation, {about}"] = partial(
                speculate, which, new=new, drafts=drafts, exit_=after - 1, sure=sure
            )
    measured = timed(contenders, prompts, new)
    base = measured["transformers: generate"]
    rows = []
    for name, each in measured.items():
        texts = [getattr(found, "ids", found) for found in each["found"]]
        same = sum(torch.equal(a, b) for a, b in zip(texts, base["found"], strict=True))
        pairs = zip(base["seconds"], each["seconds"], strict=True)
        rows.append(
            {
                "name": name,
                "tokens per s": each["tokens per s"],
                "times as fast": median(a / b for a, b in pairs),
                "texts as generate's": same,
                "texts": count,
            }
        )
    return rows


def recursion_table(model: Any, count: int, batch: int, new: int) -> list[dict[str, Any]]:
    """Bits, depth and speed of recursion, at its own depths, all at the deepest, all at the least.

    The gates' threshold sets the depth: 0 lets every token through every recursion.
    """
    from pointsman.depth.recursion.mixture import generate

    ids = windows(count)
    prompts = list(windows(batch, PROMPT, offset=0.5)[:, None])
    contenders, rows = {}, []
    for threshold in (0.0, 0.3, 0.5, 0.7, 1.0):

        def run(prompt: Tensor, threshold: float = threshold) -> Any:
            model.router.threshold = threshold
            return generate(model, prompt, new)

        contenders[f"recursion, gates above {threshold:g}"] = run
    measured = timed(contenders, prompts, new)
    for (name, each), threshold in zip(measured.items(), (0.0, 0.3, 0.5, 0.7, 1.0), strict=True):
        model.router.threshold = threshold
        with torch.no_grad():
            found = [model(part) for part in ids.split(16)]
        logits = torch.cat([part.logits for part in found])[:, :-1]
        nats = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        depth = torch.cat([part.depths for part in found]).double().mean()
        fixed = len(model.decoder.blocks) - len(model.shared)
        rows.append(
            {
                "name": name,
                "bits": float(nats) / math.log(2),
                "recursions per token": float(depth),
                "layers": fixed + float(depth) * len(model.shared),
                "tokens per s": each["tokens per s"],
            }
        )
    return rows


def router_table(decoder: Decoder, seed: int = 0) -> list[dict[str, Any]]:
    """Routers that skip layers for a whole window, supervised by search, beside the oracle."""
    from pointsman.depth.layers.gap import skip_gap
    from pointsman.depth.layers.network import SkipNetwork
    from pointsman.depth.layers.paths import enumerate_paths
    from pointsman.depth.layers.routers import WindowRouters
    from pointsman.depth.layers.search import every_path
    from pointsman.depth.layers.training import fit_routers

    torch.manual_seed(seed)
    size, editable = 64, range(1, LAYERS - 1)
    texts = windows(ROUTED[0] + ROUTED[1], size + 1, offset=0.25)
    texts = texts[torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed))]
    x, y = texts[:, :-1], texts[:, 1:]
    parts = [(x[: ROUTED[0]], y[: ROUTED[0]]), (x[ROUTED[0] :], y[ROUTED[0] :])]

    def saved(logits: Tensor, target: Tensor) -> Tensor:
        """1 - bits / 7: how much of a blind guess's bits is saved."""
        nats = functional.cross_entropy(logits.mT, target, reduction="none").mean(dim=1)
        return (1 - nats / math.log(BYTES)).clamp(0, 1)

    paths = enumerate_paths(LAYERS, actions=2, editable=editable, max_edits=len(editable))
    tried = [every_path(decoder, *part, paths=paths, quality=saved) for part in parts]
    routers = WindowRouters(LAYERS, WIDTH, actions=2, editable=editable)
    network = SkipNetwork(decoder, routers)
    rows = []
    for tolerance in (0.005, 0.01, 0.02):
        runs, found = tried[0].best(tolerance=tolerance)
        fit_routers(network, parts[0][0][found], runs[found], updates=200, seed=seed)
        gap = skip_gap(network, *parts[1], tried[1], (-1.0, 0.0, 1.0), quality=saved)
        at = gap.at(0.0)
        names = ("whole", "routers", "shuffled", "exchanged", "oracle")
        rows.append(
            {
                "name": f"labels within {7 * tolerance:.3f} bits",
                "cost saved": at["saved"],
                **{name: 7 * (1 - at[name]) for name in names},
                "gap": 7 * at["below oracle"],
            }
        )
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "name"))
    wide = max(len(row["name"]) for row in rows)
    print(" " * wide, *(f"{column:>{max(9, len(column))}}" for column in columns))
    for row in rows:
        cells = []
        for column in columns:
            value = row.get(column, "")
            text = f"{value:.3f}" if isinstance(value, float) else str(value)
            cells.append(f"{text:>{max(9, len(column))}}")
        print(f"{row['name']:<{wide}}", *cells)
    sys.stdout.flush()


def measure(folder: Path, parts: list[str], windows_: int, texts: int, new: int) -> dict[str, Any]:
    exits, plain = loaded("exits", folder, plain_decoder), loaded("plain", folder, plain_decoder)
    recursion = loaded("recursion", folder, recursive)
    if exits is None:
        raise SystemExit(f"no model in {folder}: train one with --train exits")
    found: dict[str, Any] = {}
    if "bits" in parts:
        found["bits"] = bits_table(exits, plain, windows_)
        show("Bits per byte on held-out files", found["bits"])
    if "speed" in parts:
        found["speed"] = speed_table(exits, plain, 1, texts, new)
        show("Tokens per second, one text at a time", found["speed"])
    if "batch" in parts:
        found["batch"] = speed_table(exits, plain, 8, max(1, texts // 3), new)
        show("Tokens per second, eight texts at a time", found["batch"])
    if "recursion" in parts and recursion is not None:
        found["recursion"] = recursion_table(recursion, windows_, texts, new)
        show("Recursion with a depth per token", found["recursion"])
    if "routers" in parts:
        found["routers"] = router_table(plain or exits)
        show("Routers that skip layers for a window of 64 bytes: bits per byte", found["routers"])
    if "peer" in parts:
        found["peer"] = peer_table(exits, texts, new)
        show("transformers on the same weights", found["peer"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where models are kept")
    parser.add_argument("--train", choices=("exits", "plain", "recursion"))
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--windows", type=int, default=64, help="of held-out text, for bits")
    parser.add_argument("--texts", type=int, default=6, help="to write, for speed")
    parser.add_argument("--new", type=int, default=96, help="bytes a text")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.train:
        train(options.train, options.folder, options.updates)
        return
    found = measure(options.folder, options.parts, options.windows, options.texts, options.new)
    if options.json:
        about = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "torch": torch.__version__,
        }
        about |= {"python": platform.python_version(), "machine": platform.processor()}
        options.json.write_text(json.dumps({**about, **found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
