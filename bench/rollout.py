"""Speed of rollout.Engine against bare vLLM with the same prompts, lengths, seeds and settings.

    python bench/rollout.py                                  # 1M parameters, 25 tokens each, CPU
    python bench/rollout.py --size=1.5B --dtype=bfloat16 --mean_tokens=400 --max_tokens=1024   # GPU

In turns in one process; the medians. What differs: Engine hands every finished response on, makes
its text, and collects log-probabilities as lists of numbers.
"""
import statistics
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rollout
from bench.estimate import make_model
from lib.cli import configure
from lib.distributed import init_process_group

import numpy as np
import torch
from vllm import SamplingParams

size = "1M"          # or 0.5B, 1.5B, 3B, 7B; weights are random
dtype = "float32"
requests = 256
prompt_tokens = 8
mean_tokens = 25     # of a response; lengths are log-normal
max_tokens = 32
repeats = 7
# --------------------------------------------------------------------------------------------------


def random_lengths(mean, longest):
    """Yield the tokens of one response after another, log-normal as real ones are."""
    rng = np.random.default_rng(0)
    while True:
        yield int(np.clip(rng.lognormal(np.log(mean) - 0.6 ** 2 / 2, 0.6), 1, longest))


def end_responses_after(lengths):
    """Let each request of rollout.Engine end after the next of these numbers of tokens, whatever it
    samples. lengths: an iterator."""
    rollout.SamplingParams = lambda **settings: SamplingParams(
        **settings | {"max_tokens": next(lengths), "ignore_eos": True})


def main(args):
    init_process_group()
    lengths = [*islice(random_lengths(args.mean_tokens, args.max_tokens), args.requests)]
    prompts = np.random.default_rng(0).integers(256, size=(args.requests, args.prompt_tokens))
    prompts, seeds = prompts.tolist(), [*range(args.requests)]
    with tempfile.TemporaryDirectory() as folder:
        make_model(args.size, folder, getattr(torch, args.dtype))
        engine = rollout.Engine(folder, args.dtype, args.prompt_tokens + args.max_tokens, 0.5)

    def ours(logps):
        end_responses_after(iter(lengths))
        return [r.tokens for r in engine.generate(prompts, seeds, args.max_tokens, logps=logps)]

    def bare(logps):
        params = [SamplingParams(temperature=1.0, max_tokens=n, ignore_eos=True, seed=seed,
                                 logprobs=0 if logps else None)
                  for n, seed in zip(lengths, seeds, strict=True)]
        outputs = engine.llm.generate([{"prompt_token_ids": p} for p in prompts], params,
                                      use_tqdm=False)
        return [request.outputs[0].token_ids for request in outputs]

    variants = {f"{name}{', log-probabilities' * logps}": (function, logps)
                for logps in (False, True) for name, function in (("vLLM", bare), ("ours", ours))}
    rates = {name: [] for name in variants}
    for _ in range(args.repeats + 1):
        for name, (function, logps) in variants.items():
            begin = time.perf_counter()
            tokens = sum(map(len, function(logps)))
            rates[name].append(tokens / (time.perf_counter() - begin))
    baseline = statistics.median(rates["vLLM"][1:])
    print(f"{args.size}, {args.dtype}, {args.requests} requests, {tokens:,} tokens")
    for name, measured in rates.items():
        rate = statistics.median(measured[1:])
        print(f"{name:<26}{rate:12,.0f} tokens/s{rate / baseline:8.2f}")


if __name__ == "__main__":
    main(configure(__file__))
