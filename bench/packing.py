"""How long ranks wait for each other in training: micro-batches as lib.batches.pack_by_tokens makes
them, compared with an equal number of prompts per rank.

    python bench/packing.py         # seconds

Lengths are log-normal, with the median and the spread of MATH's solutions (162 tokens, 95% under
628), after prompts of 64 tokens, and cut at 1,280. All ranks gather a layer together, so a
micro-batch takes as long as the rank with the most tokens in it. A rank is busy for the mean number
of tokens divided by the largest.
"""
import sys
from itertools import zip_longest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.batches import pack_by_tokens

import numpy as np


def equal_numbers(lengths, limit, ranks):
    """Every ranks-th sequence to a rank, a new micro-batch whenever one is full.

    Returns [k][rank] -> tokens of that rank's micro-batch k, 0 if it has none.
    """
    filled = []
    for rank in range(ranks):
        tokens = [0]
        for length in lengths[rank::ranks]:
            if tokens[-1] + length > limit:
                tokens.append(0)
            tokens[-1] += length
        filled.append(tokens)
    return [*zip_longest(*filled, fillvalue=0)]


def main():
    rng = np.random.default_rng(0)
    print("share of the time in which a rank is busy, mean over 100 mini-batches of 128 responses\n"
          f"{'ranks':>5}{'limit':>8}{'pack_by_tokens':>17}{'equal numbers':>16}")
    for ranks, limit in ((2, 16384), (4, 16384), (8, 16384), (8, 8192), (32, 16384)):
        busy = []
        for _ in range(100):
            lengths = np.minimum(64 + np.exp(rng.normal(np.log(162), 0.82, 128)), 1280)
            lengths = lengths.astype(int).tolist()
            packed = [[sum(lengths[i] for i in group) for group in groups]
                      for groups in pack_by_tokens(range(128), lengths, limit, ranks)]
            busy.append([sum(lengths) / ranks / sum(map(max, micro_batches))
                         for micro_batches in (packed, equal_numbers(lengths, limit, ranks))])
        ours, equal = np.mean(busy, 0)
        print(f"{ranks:>5}{limit:>8}{ours:>17.1%}{equal:>16.1%}")


if __name__ == "__main__":
    main()
