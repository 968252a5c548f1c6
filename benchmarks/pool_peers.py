"""Other routers and ours, on the same vectors and the same splits: prints one table a part.

    python benchmarks/pool_peers.py [FILE] [--peer-python PATH] [--routerbench DIR]
        [--llmrouterbench DIR] [--queries 5000] [--seeds 3] [--parts 1 2 3 4] [--quick]

1. Two models: RouteLLM's MMLU log (FILE, or shared/data/routellm_mmlu.csv.gz beside the checkout).
2. Ten models: a synthetic pool of known truth.
3. Two models and a verifier's score after the answer: AutoMix beside our cascades, at its cost.
4. Ten models, learned while serving under a ceiling on the mean cost: ParetoBandit beside ours.

The peers run from their own code in another process (`pool_peers_worker.py`), in a Python of your
choice that has them: llmrouter-lib 0.4.0, automix-llm 1.0.3 and paretobandit 0.1.1 with torch,
scikit-learn, pandas and PyYAML; RouterBench and LLMRouterBench (AvengersPro) have no package, so
name the folders that hold their `routers/` and `AvengersPro/`. What is not there is left out, and
said so.

Every router gets the same vectors: the dense part of our `TextEncoder`, fitted on the training
part. Rows marked "+ n-grams" are ours with its sparse part as well, as it comes by default; no peer
takes that. Each part is drawn or split anew for each seed; figures are means ± standard deviations
over seeds. Processor seconds and microseconds are of one core; a decision is timed one query at a
time, with its vector given, by the call that each library serves with.

Part 1 shows the APGR of what a router's scores rank (for LLMRouter's classifiers, which only name a
model, the class probabilities of their estimators), of the settings that its own code offers (a
willingness to pay, a weight of quality, a threshold; for the classifiers the one there is), and the
share that goes to the strong model where nothing is said of costs. Part 2 shows the mean quality
over all costs between the cheapest model's and the dearest's, single models always at hand: with
the router's own settings, and with our price on its scores and the models' mean costs.

Takes about five minutes of one core.
"""

import argparse
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

from pool_peers_before import ask_routers, part_one, part_two
from pool_peers_later import STREAM, ask_automix, ask_paretobandit, part_four, part_three
from pool_peers_shared import Peers, mmlu, pool_of_ten

from pool import DATA


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, nargs="?", default=DATA)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--routerbench", type=Path, help="folder that holds its routers/")
    parser.add_argument("--llmrouterbench", type=Path, help="folder that holds AvengersPro/")
    parser.add_argument("--queries", type=int, default=5000, help="of the MMLU log")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--quick", action="store_true", help="leave out our slowest router")
    given = parser.parse_args()
    if not given.data.is_file():
        print(f"{given.data} is not there: nothing to compare on; name RouteLLM's MMLU log")
        return
    start, seeds, wanted = time.process_time(), range(given.seeds), set(given.parts)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(p.resolve()) for p in (given.routerbench, given.llmrouterbench) if p]
        peers = Peers(given.peer_python, paths, Path(folder))
        parts = {}
        if 1 in wanted:
            parts[1] = [mmlu(given.data, given.queries, seed) for seed in seeds]
            ask_routers(peers, parts[1])
        if 2 in wanted:
            parts[2] = [pool_of_ten(seed) for seed in seeds]
            ask_routers(peers, parts[2])
        if 3 in wanted:
            sizes = (1000, 1000, 3000)
            parts[3] = [pool_of_ten(s, models=2, kind="signals", sizes=sizes) for s in seeds]
            ask_automix(peers, parts[3])
        if 4 in wanted:
            sizes = (1000, 500, STREAM)
            parts[4] = [pool_of_ten(seed, sizes=sizes) for seed in seeds]
            ask_paretobandit(peers, parts[4])
        peers.run()
        first = partial(part_one, quick=given.quick)
        for number, show in enumerate((first, part_two, part_three, part_four), 1):
            if number in wanted:
                show(peers, parts[number])
    children = os.times().children_user + os.times().children_system
    here = time.process_time() - start
    print(f"\n{here:.0f} s of processor time here, {children:.0f} s in the peers' process")


if __name__ == "__main__":
    main()
