"""How long ranks wait for each other in training: micro-batches as model.deal makes them, against equal numbers of prompts.

    python bench/deal.py         # seconds

Lengths are log-normal with median and spread of MATH's solutions (162 tokens, 95% under 628) after prompts of 64, cut at
1,280. Layers are gathered by all ranks together, so a micro-batch lasts as long as its longest share: the busy part is the mean
share over the longest.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common  # noqa: F401  before torch

import numpy as np

from model import deal

rng = np.random.default_rng(0)
print(f"{'ranks':>5}{'limit':>8}{'deal':>9}{'equal numbers':>16}   busy part of the time, mean over 100 mini-batches of 128")
for ranks, limit in ((2, 16384), (4, 16384), (8, 16384), (8, 8192), (32, 16384)):
    busy = []
    for _ in range(100):
        lengths = np.minimum(64 + np.exp(rng.normal(np.log(162), 0.82, 128)), 1280).astype(int).tolist()
        dealt = [[sum(lengths[i] for i in group) for group in groups] for groups in deal(range(128), lengths, limit, ranks)]
        shares = [[]] * ranks
        for rank in range(ranks):  # every ranks-th prompt, a new micro-batch when the last is full
            filled = [0]
            for length in lengths[rank::ranks]:
                filled = filled + [0] if filled[-1] + length > limit else filled
                filled[-1] += length
            shares[rank] = filled
        longest = max(map(len, shares))
        equal = [[share[k] if k < len(share) else 0 for share in shares] for k in range(longest)]
        busy.append([sum(lengths) / ranks / sum(map(max, how)) for how in (dealt, equal)])
    print(f"{ranks:>5}{limit:>8}{np.mean(busy, 0)[0]:>9.1%}{np.mean(busy, 0)[1]:>16.1%}")
