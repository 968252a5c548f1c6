"""The peers' own code on the arrays that `pool_peers.py` writes; run by it in their Python.

    python benchmarks/pool_peers_worker.py FOLDER

FOLDER holds `jobs.json` and an .npz for each job; answers are written beside them. What a peer does
is done by its own classes. Only what their import or their constructors ask for is put in place:
the embedding model is replaced by the vectors given, and token counters, hub and database clients
that no call here needs by empty modules. Where a peer has no score (it only names a model), the
class probability of its own fitted estimator is handed back as well, so that it can be ranked.

Legend: N training queries, K asked ones, M models, D features, S settings of a knob.
"""

import contextlib
import io
import json
import logging
import os
import sys
import tempfile
import time
import traceback
import types
import warnings
from pathlib import Path

import numpy as np

ONE_BY_ONE = 40  # queries asked singly for the time of one decision
BINS = 16  # of AutoMix; a power of two, since its bin numbers come from floor division
WEIGHTS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.25, 0.0)  # of quality, in AvengersPro
# Settings that LLMRouter's repository ships beside its code (configs/model_config_train).
LLMROUTER = {
    "knn": {
        "n_neighbors": 5,
        "weights": "uniform",
        "algorithm": "auto",
        "leaf_size": 30,
        "p": 2,
        "metric": "minkowski",
        "n_jobs": -1,
    },
    "svm": {"kernel": "rbf", "C": 1.0, "gamma": "scale", "probability": True},
    "mlp": {
        "hidden_layer_sizes": [128, 64],
        "activation": "relu",
        "lr": 0.001,
        "epochs": 100,
        "batch_size": 32,
        "alpha": 0.0001,
    },
    "hybrid": {
        "hidden_layer_sizes": [128, 64],
        "activation": "relu",
        "solver": "adam",
        "max_iter": 300,
    },
}


def seconds_of(call):
    """What the call returns, and its seconds of processor time."""
    start = time.process_time()
    found = call()
    return found, time.process_time() - start


def one_by_one(decide, count=ONE_BY_ONE):
    """Microseconds of processor time that one decision takes; the first is left out."""
    decide(0)
    _, seconds = seconds_of(lambda: [decide(at) for at in range(1, count + 1)])
    return 1e6 * seconds / count


def stub(name, **attributes):
    """A module of this name, where there is none."""
    try:
        __import__(name)
    except ImportError:
        module = types.ModuleType(name)
        for key, value in attributes.items():
            setattr(module, key, value)
        sys.modules[name] = module


# ---- LLMRouter


def llmrouter_files(job, models, folder):
    """The files that its data loader reads, and the part of the configuration that names them."""
    import torch

    rows = []
    for at, query in enumerate(job["query"]):
        for m, model in enumerate(models):
            if np.isfinite(job["quality"][at, m]):
                rows.append(
                    {
                        "query": f"query {query}",
                        "embedding_id": at,
                        "model_name": model,
                        "performance": float(job["quality"][at, m]),
                    }
                )
    files = {name: str(folder / name) for name in ("routing.jsonl", "vectors.pt", "models.json")}
    Path(files["routing.jsonl"]).write_text("\n".join(json.dumps(row) for row in rows))
    torch.save(torch.tensor(job["x"], dtype=torch.float32), files["vectors.pt"])
    order = np.argsort(np.argsort(job["cost"].mean(axis=0)))  # it goes by size, not by price
    sizes = {model: {"size": f"{order[m] + 1}B"} for m, model in enumerate(models)}
    Path(files["models.json"]).write_text(json.dumps(sizes))
    return {
        "routing_data_train": files["routing.jsonl"],
        "query_embedding_data": files["vectors.pt"],
        "llm_data": files["models.json"],
    }


def llmrouter(which, job, models, seed):
    """One of its routers, trained by its trainer."""
    import torch
    import yaml

    names = {
        "knn": ("knnrouter", "KNNRouter", "KNNRouterTrainer"),
        "svm": ("svmrouter", "SVMRouter", "SVMRouterTrainer"),
        "mlp": ("mlprouter", "MLPRouter", "MLPTrainer"),
        "hybrid": ("hybrid_llm", "HybridLLMRouter", "HybridLLMTrainer"),
    }
    package, router_name, trainer_name = names[which]
    home = __import__(f"llmrouter.models.{package}.router", fromlist=["router"])
    trainers = __import__(f"llmrouter.models.{package}.trainer", fromlist=["trainer"])
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (its estimators have no seed of their own)
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        saved = str(folder / "saved.pkl")
        config = {
            "data_path": llmrouter_files(job, models, folder),
            "model_path": {
                "ini_model_path": "",
                "save_model_path": saved,
                "load_model_path": saved,
            },
            "hparam": LLMROUTER[which],
            "router_mode": "probabilistic",
            "router_tau": 0.1,
            "router_threshold": 0.5,
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        asked = torch.tensor(job["ask"], dtype=torch.float32)
        home.get_longformer_embedding = lambda text: asked[int(text)]
        router = getattr(home, router_name)(str(folder / "config.yaml"))
        trainer = getattr(trainers, trainer_name)(router)
        _, seconds = seconds_of(trainer.train)
        answer = llmrouter_answer(which, router, trainer.model, asked, models)
        answer["microseconds"] = one_by_one(lambda at: router.route_single({"query": str(at)}))
    return {**answer, "seconds": seconds}


def llmrouter_answer(which, router, model, asked, models):
    """Its decision for each query, and what its estimator says behind it."""
    import torch

    column = {name: m for m, name in enumerate(models)}
    score = np.zeros((len(asked), len(models)))
    if which == "hybrid":
        small, large = column[router.small_model_name], column[router.large_model_name]
        to_small = np.clip(model.predict(asked.numpy()), 0.0, 1.0)
        score[:] = -np.inf
        score[:, small], score[:, large] = to_small, 1.0 - to_small
        own = np.where(to_small >= router.router_threshold, small, large)
        edges = np.unique(np.quantile(to_small, np.linspace(0, 1, 41)))
        edges = np.concatenate([edges, [edges[-1] + 1.0]])
        knob = np.where(to_small[None] >= edges[:, None], small, large)
        return {"score": score, "own": own, "knob": knob}
    if which == "mlp":
        names = [router.idx_to_model[at] for at in range(router.num_classes)]
        with torch.no_grad():
            shares = torch.softmax(model(asked), dim=-1).numpy()
        picked = [names[at] for at in model.predict(asked).tolist()]
    else:
        names = list(model.classes_)
        shares, picked = model.predict_proba(asked.numpy()), model.predict(asked.numpy())
    score[:, [column[name] for name in names]] = shares
    own = np.array([column[name] for name in picked])
    return {"score": score, "own": own, "knob": own[None]}


# ---- RouterBench


class Given:
    """Stands in for its cache of embeddings: a prompt is the number of a vector."""

    def __init__(self, vectors):
        self.vectors = vectors

    def batch_get_embedding(self, prompts, _model):
        return self.vectors[[int(prompt) for prompt in prompts]]


def routerbench(which, job, models, seed):
    """One of its routers; the settings are those of its configs/evaluate_routers.yaml."""
    import pandas as pd

    stub("tokencost", count_string_tokens=lambda text, _model: len(text) / 4)
    for missing in ("pymongo", "sentence_transformers", "dotenv", "fsspec"):
        stub(missing)
    stub("embedding")
    stub("embedding.cache", EmbeddingCache=object)
    from routers import common

    for model, (prompt, completion) in zip(models, job["price"], strict=True):
        common.TOKEN_COSTS[model] = {"prompt": float(prompt), "completion": float(completion)}
    home = __import__(f"routers.{which}_router", fromlist=["router"])
    n = len(job["x"])
    table = pd.DataFrame(job["quality"], columns=models)
    table["prompt"] = [str(at) for at in range(n)]
    for model in models:
        table[f"{model}|model_response"] = "answer"
    keywords = {
        "knn": {"n_neighbors": 40, "distance_metric": "cosine"},
        "mlp": {"hidden_layer_sizes": [100, 100], "activation_function": "relu"},
        "svm": {},
    }[which]
    kind = getattr(home, f"{which.upper()}Router")
    build = {
        "embedding_model": "given",
        "cache": Given(np.concatenate([job["x"], job["ask"]])),
        "train_file": table,
        "models_to_route": list(models),
    }
    router, seconds = seconds_of(lambda: kind(**build, **keywords))
    prompts = [str(n + at) for at in range(len(job["ask"]))]
    microseconds = one_by_one(
        lambda at: router.batch_route_prompts([prompts[at]], willingness_to_pay=0.01)
    )
    if which == "knn":
        score = router.calc_performance_scores(job["ask"])[list(models)].to_numpy()
        router.calc_performance_scores = lambda _: pd.DataFrame(score, columns=models)
    else:
        found = router.return_optimal_model(job["ask"])
        score = np.stack([found[model] for model in models], axis=1)
        router.return_optimal_model = lambda _: {m: found[m].copy() for m in models}
    column = {name: m for m, name in enumerate(models)}
    knob = []
    price = float(np.sum(job["price"], axis=1).max())
    for pay in (0.0, *(price * np.geomspace(0.1, 1e4, 60))):
        picked = router.batch_route_prompts(prompts, willingness_to_pay=pay)
        knob.append([column[name] for name in picked])
    return {
        "score": score,
        "own": np.array(knob[0]),  # 0 is its way to leave the price out
        "knob": np.array(knob),
        "seconds": seconds,
        "microseconds": microseconds,
    }


# ---- LLMRouterBench: AvengersPro


def avengers(_which, job, models, seed):
    """AvengersPro's cluster router; settings of its config/balance_config.json."""
    stub("datasets", Dataset=object)
    counter = types.SimpleNamespace(encode=lambda text: text.split())
    stub(
        "tiktoken",
        get_encoding=lambda _: counter,
        encoding_for_model=lambda _: counter,
    )
    stub("generators")
    stub("generators.factory", create_generator=lambda *_: types.SimpleNamespace())
    from AvengersPro.balance_cluster_router import BalanceClusterRouter
    from AvengersPro.config import SimpleClusterConfig

    here = str(Path(__file__).resolve())  # it wants paths that exist; nothing is read from them
    config = SimpleClusterConfig(
        train_data_path=here,
        test_data_path=here,
        baseline_scores_path=here,
        n_clusters=25,
        top_k=3,
        beta=9.0,
        seed=seed,
        max_workers=1,
        performance_weight=1.0,
        cost_sensitivity=0.0,
    )
    router = BalanceClusterRouter(config)
    cache = {f"train {at}": vector.astype(float) for at, vector in enumerate(job["x"])}
    cache |= {f"ask {at}": vector.astype(float) for at, vector in enumerate(job["ask"])}
    BalanceClusterRouter._global_embedding_cache = cache
    train = [
        {
            "query": f"train {at}",
            "dataset": "all",
            "records": dict(zip(models, job["quality"][at].tolist(), strict=True)),
            "usages": {
                model: {"cost": cost}
                for model, cost in zip(models, job["cost"][at].tolist(), strict=True)
            },
        }
        for at in range(len(job["x"]))
    ]
    _, seconds = seconds_of(lambda: router.build_cluster_model(train))
    queries = [f"ask {at}" for at in range(len(job["ask"]))]
    microseconds = one_by_one(lambda at: router.route_queries_batch([queries[at]]))
    column = {name: m for m, name in enumerate(models)}
    knob = []
    for weight in WEIGHTS:
        config.performance_weight, config.cost_sensitivity = weight, 1.0 - weight
        router.cluster_rankings = router._compute_cluster_rankings(
            router.kmeans_model.labels_, train
        )
        knob.append([column[names[0]] for names in router.route_queries_batch(queries)])
    return {
        "score": avengers_score(router, job["ask"], models),
        "own": np.array(knob[0]),
        "knob": np.array(knob),
        "seconds": seconds,
        "microseconds": microseconds,
    }


def avengers_score(router, asked, models):
    """(K, M) accuracies of the nearest clusters, weighed as it weighs their ranks."""
    mean = np.array(
        [
            [router.cluster_rankings[c]["metrics"][model].accuracy for model in models]
            for c in range(len(router.cluster_centers))
        ]
    )
    distance = 1 - router.normalizer.transform(asked) @ router.cluster_centers.T
    near = np.argsort(distance, axis=1)[:, : router.config.top_k]
    weight = np.exp(-router.config.beta * np.take_along_axis(distance, near, axis=1))
    weight /= weight.sum(axis=1, keepdims=True)
    return np.einsum("kc,kcm->km", weight, mean[near])


# ---- AutoMix


def automix(_which, job, _models, seed):
    """Its union of methods at its best lift, and under bounds on the cost it may spend."""
    import pandas as pd
    from automix import POMDP, Automix

    def table(quality, signal):
        # its GreedyPOMDP reads columns of these names, whatever it is told
        return pd.DataFrame(
            {
                "llama13b_f1": quality[:, 0],
                "llama70b_f1": quality[:, 1],
                "p_ver_13b": signal,
            }
        )

    train = table(job["quality"], job["signal"])
    fresh = table(job["ask_quality"], job["ask_signal"])
    small, large = job["cost"].mean(axis=0).tolist()
    verifier = float(job["verifier_cost"])
    retry, names, seconds, took = [], [], 0.0, 0.0
    for share in (None, 0.1, 0.25, 0.5):
        mixer = Automix(POMDP(BINS), costs=[small, large], verifier_cost=verifier)
        bound = None if share is None else (0.0, small + verifier + share * (large - small))
        try:
            _, once = seconds_of(lambda m=mixer, b=bound: m.train(train, cost_constraint=b))
        except ValueError:  # no setting within the bound
            continue
        seconds += once
        found, took = seconds_of(
            lambda m=mixer: m.evaluate(fresh, return_dict=True, return_decisions=True)
        )
        retry.append(np.asarray(found["route_to_llm"], dtype=bool))
        names.append("its best lift" if share is None else f"bound at {share:.0%} of the way")
    return {
        "retry": np.array(retry),
        "names": np.array(names),
        "seconds": seconds / len(names),
        "microseconds": 1e6 * took / len(fresh),
    }


# ---- ParetoBandit


def paretobandit(which, job, models, seed):
    """Its router under its pacer on a stream, each cost told as its own demonstration does.

    Cold: nothing known before; warm: priors that it makes from a log. Both with the settings that
    the package ships for the case. "Unpenalised" leaves out the fixed penalty on costs that its
    constructor sets beside the pacer's.
    """
    from pareto_bandit import BanditRouter, FeatureService
    from pareto_bandit.budget_pacer import BudgetPacer
    from pareto_bandit.config import BEST_K3_HPARAMS, BEST_K3_TABULA_RASA_HPARAMS
    from sklearn.decomposition import PCA

    registry = {
        model: {"input_cost_per_m": 1e6 * float(prompt), "output_cost_per_m": 1e6 * float(output)}
        for model, (prompt, output) in zip(models, job["price"], strict=True)
    }
    pca = PCA(int(job["components"]), svd_solver="full").fit(job["raw_train"])
    x = pca.transform(job["raw"]) / np.sqrt(pca.explained_variance_)
    stream = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    warm = which.startswith("warm")
    best = BEST_K3_HPARAMS if warm else BEST_K3_TABULA_RASA_HPARAMS
    penalty = {"cost_penalty": 0.0} if which.endswith("unpenalised") else {}
    with tempfile.TemporaryDirectory() as folder:
        priors, seconds = "none", 0.0
        if warm:
            priors = str(Path(folder) / "priors.joblib")
            seconds = paretobandit_priors(job, models, pca, priors)
        router = BanditRouter.create(
            model_registry=registry,
            feature_service=FeatureService.for_precomputed(stream.shape[1]),
            priors=priors,
            prior_n_effective=best["prior_n_effective"],
            alpha=best["alpha"],
            forgetting_factor=best["forgetting_factor"],
            bandit_seed=seed,
            budget_pacer=BudgetPacer(target_avg_spend_usd=float(job["ceiling"])),
            **penalty,
        )
    column = {name: m for m, name in enumerate(models)}
    chosen, decide, learn = [], 0.0, 0.0
    for at, x in enumerate(stream):
        (model, log), once = seconds_of(lambda x=x: router.route(x))
        decide += once
        m = column[model]
        log.cost_usd = float(job["cost"][at, m])
        reward = float(job["quality"][at, m])
        _, once = seconds_of(
            lambda log=log, reward=reward: router.process_feedback(log.request_id, reward=reward)
        )
        learn += once
        chosen.append(m)
    return {
        "own": np.array(chosen),
        "seconds": seconds,
        "microseconds": 1e6 * decide / len(stream),
        "learning": 1e6 * learn / len(stream),
    }


def paretobandit_priors(job, models, pca, path):
    """Its own priors from a log, to a file; seconds."""
    from hashlib import sha256

    from pareto_bandit import generate_warmup_priors

    names = [f"query {at}" for at in range(len(job["raw_train"]))]
    vectors = {
        sha256(name.encode()).hexdigest(): vector
        for name, vector in zip(names, job["raw_train"], strict=True)
    }
    rewards = [
        {"prompt": name, "rewards": dict(zip(models, row.tolist(), strict=True))}
        for name, row in zip(names, job["train_quality"], strict=True)
    ]
    _, seconds = seconds_of(
        lambda: generate_warmup_priors(
            rewards, "given", pca, output_path=path, precomputed_raw_embeddings=vectors
        )
    )
    return seconds


PEERS = {
    "LLMRouter": llmrouter,
    "RouterBench": routerbench,
    "AvengersPro": avengers,
    "AutoMix": automix,
    "ParetoBandit": paretobandit,
}


def answer(folder, task):
    """Run one task; what went wrong is an answer, too."""
    with np.load(folder / task["arrays"]) as arrays:
        job = dict(arrays)
    models = [str(name) for name in job["models"]]
    noise = io.StringIO()
    start = time.process_time()
    try:
        with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
            found = PEERS[task["peer"]](task["which"], job, models, task["seed"])
    except Exception as wrong:  # a peer that fails is reported and must not stop the others
        if os.environ.get("PEERS_TRACE"):
            traceback.print_exc()
        return {"failed": f"{type(wrong).__name__}: {wrong}"[:200]}
    np.savez(folder / task["answer"], **found)
    return {"cpu": time.process_time() - start}


def main():
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    folder = Path(sys.argv[1])
    jobs = json.loads((folder / "jobs.json").read_text())
    sys.path[:0] = jobs["paths"]
    said = {}
    for task in jobs["tasks"]:
        said[task["answer"]] = answer(folder, task)
        (folder / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
