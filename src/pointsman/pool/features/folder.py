"""A text encoder from a folder on disk, laid out as sentence-transformers keeps one.

Legend: N queries, B queries of a batch, T tokens, D features.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from pointsman.errors import InputError, PolicyError
from pointsman.pool.features.features import Dense, Features
from pointsman.pool.features.vectors import features_of
from pointsman.pool.log import Log
from pointsman.pool.saving import Arrays, Plain

WEIGHTS = "model.safetensors"
POOLING = ("mean", "cls", "max")
MOST_TOKENS = 512  # where the folder does not say


class FolderEncoder:
    """Embeds queries with a transformer that lies on disk; nothing is downloaded.

    The folder holds what `AutoModel` and `AutoTokenizer` of transformers read, with weights in
    `model.safetensors`, which run no code. `modules.json`, where there is one, says how tokens are
    pooled (mean, first token, maximum) and whether vectors get length one; without it they are
    averaged and get length one. Of a long query the first tokens are read.

    A policy keeps the path and a digest of the weights, not the weights.

    Args:
        path: of the folder.
        batch: queries at a time.

    Raises:
        InputError: on fitting: transformers is not installed, or the folder is none of that kind.
    """

    def __init__(self, path: str | Path, *, batch: int = 32) -> None:
        self.path = Path(path)
        self.batch = batch
        self._loaded: tuple[Any, Any] | None = None

    def fit(self, log: Log) -> Self:
        """Read the folder; nothing is learned from the queries."""
        self.settings_ = _settings(self.path)
        self.digest_ = _digest(self.path)
        self.width_ = int(self._embed(["width"]).shape[1])
        return self

    def transform(self, log: Log) -> Features:
        """Embeddings of every query of a log."""
        return self.encode(log.queries, log.groups.get("task"))

    def encode(
        self,
        queries: Sequence[str] | npt.NDArray[np.object_],
        tasks: Sequence[str] | npt.NDArray[np.object_] | None = None,
    ) -> Features:
        """Embeddings of queries, in batches of similar length."""
        order = np.argsort([-len(query) for query in queries], kind="stable")
        dense = np.empty((len(queries), self.width_), dtype=np.float32)
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            dense[rows] = self._embed([queries[row] for row in rows])
        return features_of(dense, queries, tasks)

    def to_state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """See `Saved`."""
        return {
            "path": str(self.path),
            "batch": self.batch,
            "settings": self.settings_,
            "digest": self.digest_,
            "width": self.width_,
        }, {}

    @classmethod
    def from_state(cls, plain: Plain, arrays: Arrays) -> Self:
        """See `Saved`.

        Raises:
            PolicyError: the folder is gone, or its weights are others than those fitted with.
        """
        self = cls(plain["path"], batch=plain["batch"])
        if not (self.path / WEIGHTS).is_file() or _digest(self.path) != plain["digest"]:
            raise PolicyError(
                f"the policy was fitted with an encoder in {self.path}, which is gone or has other "
                "weights now: put it back, or fit again"
            )
        self.settings_, self.digest_ = dict(plain["settings"]), plain["digest"]
        self.width_ = int(plain["width"])
        return self

    def _embed(self, texts: list[str]) -> Dense:
        import torch

        tokenizer, model = self._model()
        tokens = tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.settings_["tokens"],
            return_tensors="pt",
        )
        with torch.inference_mode():
            states_BTD = model(**tokens).last_hidden_state
        mask_BT1 = tokens["attention_mask"][:, :, None].to(states_BTD.dtype)
        if self.settings_["pooling"] == "mean":
            pooled = (states_BTD * mask_BT1).sum(1) / mask_BT1.sum(1).clamp(min=1)
        elif self.settings_["pooling"] == "max":
            pooled = states_BTD.masked_fill(mask_BT1 == 0, -torch.inf).max(1).values
        else:
            pooled = states_BTD[:, 0]
        if self.settings_["normalise"]:
            pooled = torch.nn.functional.normalize(pooled, dim=1)
        vectors: Dense = pooled.float().numpy()
        return vectors

    def _model(self) -> tuple[Any, Any]:
        if self._loaded is None:
            try:
                from transformers import AutoModel, AutoTokenizer
            except ImportError as error:
                raise InputError(
                    "an encoder in a folder needs transformers: pip install pointsman[hf]"
                ) from error
            try:
                tokenizer = AutoTokenizer.from_pretrained(self.path, local_files_only=True)
                model = AutoModel.from_pretrained(
                    self.path, local_files_only=True, use_safetensors=True
                )
            except (OSError, ValueError, KeyError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise InputError(f"{self.path} cannot be read as an encoder: {reason}") from error
            if tokenizer.padding_side != "right":
                tokenizer.padding_side = "right"  # the first token is looked up by its place
            self._loaded = (tokenizer, model.eval())
        return self._loaded


def _settings(path: Path) -> dict[str, Any]:
    """How many tokens are read, how they are pooled, and whether vectors get length one."""
    if not (path / "config.json").is_file() or not (path / WEIGHTS).is_file():
        raise InputError(
            f"{path} must hold config.json and {WEIGHTS} as sentence-transformers or transformers "
            "write them: save the model there with safetensors"
        )
    found: dict[str, Any] = {"tokens": _tokens(path), "pooling": "mean", "normalise": True}
    if not (path / "modules.json").is_file():
        return found
    found["normalise"] = False
    for module in _json(path / "modules.json"):
        kind = str(module["type"]).rpartition(".")[2]
        if kind == "Pooling":
            found["pooling"] = _pooling(_json(path / module["path"] / "config.json"), path)
        elif kind == "Normalize":
            found["normalise"] = True
        elif kind != "Transformer":
            raise InputError(
                f"{path / 'modules.json'} has a module {kind!r}, which is not supported: only "
                "Transformer, Pooling and Normalize are"
            )
    return found


def _pooling(config: dict[str, Any], path: Path) -> str:
    named = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}
    chosen = [name for name, key in named.items() if config.get(f"pooling_mode_{key}")]
    if "pooling_mode" in config:
        modes = config["pooling_mode"]
        chosen = [modes] if isinstance(modes, str) else list(modes)
    if len(chosen) != 1 or chosen[0] not in POOLING:
        raise InputError(
            f"{path}: tokens must be pooled in one of the ways {', '.join(POOLING)}, its "
            f"configuration says {', '.join(map(str, chosen)) or 'another'}"
        )
    return str(chosen[0])


def _tokens(path: Path) -> int:
    limits = [MOST_TOKENS]
    if (path / "sentence_bert_config.json").is_file():
        limits = [_json(path / "sentence_bert_config.json").get("max_seq_length") or MOST_TOKENS]
    longest = _json(path / "config.json").get("max_position_embeddings")
    return int(min([*limits, longest] if longest else limits))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _digest(path: Path) -> str:
    with (path / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
