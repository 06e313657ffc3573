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
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[0] = str(REPO)

import rollout  # noqa: E402
from bench.estimate import SIZES, TINY  # noqa: E402
from lib.base_model import byte_tokenizer  # noqa: E402
from lib.cli import configure  # noqa: E402
from lib.distributed import init_process_group  # noqa: E402
from model import Qwen2  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

size = "1M"          # or 0.5B, 1.5B, 3B, 7B; weights are random
dtype = "float32"
requests = 256
prompt_tokens = 8
mean_tokens = 25     # of a response; lengths are log-normal
max_tokens = 32
repeats = 7
# --------------------------------------------------------------------------------------------------


def main():
    init_process_group()
    tokenizer = byte_tokenizer()
    rng = np.random.default_rng(0)
    lengths = rng.lognormal(np.log(mean_tokens) - 0.6 ** 2 / 2, 0.6, requests)
    lengths = [int(n) for n in np.clip(lengths, 1, max_tokens)]
    prompts = rng.integers(256, size=(requests, prompt_tokens)).tolist()
    seeds = list(range(requests))
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        Qwen2(SIZES.get(size, TINY)).save_pretrained(folder, getattr(torch, dtype))
        tokenizer.save_pretrained(folder)
        engine = rollout.Engine(folder, dtype, prompt_tokens + max_tokens, 0.5)
    original = rollout.SamplingParams

    def ours(logps):
        of_request = iter(lengths)
        rollout.SamplingParams = lambda **settings: original(
            **{**settings, "max_tokens": next(of_request)}, ignore_eos=True)
        responses = engine.generate(prompts, seeds, max_tokens, logps=logps)
        return sum(len(r.tokens) for r in responses)

    def bare(logps):
        params = [original(temperature=1.0, max_tokens=n, ignore_eos=True, seed=seed,
                           logprobs=0 if logps else None)
                  for n, seed in zip(lengths, seeds, strict=True)]
        outputs = engine.llm.generate([{"prompt_token_ids": p} for p in prompts], params,
                                      use_tqdm=False)
        return sum(len(request.outputs[0].token_ids) for request in outputs)

    variants = {f"{name}{', log-probabilities' * logps}": (function, logps)
                for logps in (False, True) for name, function in (("vLLM", bare), ("ours", ours))}
    rates = {name: [] for name in variants}
    for _ in range(repeats + 1):
        for name, (function, logps) in variants.items():
            begin = time.perf_counter()
            tokens = function(logps)
            rates[name].append(tokens / (time.perf_counter() - begin))
    baseline = statistics.median(rates["vLLM"][1:])
    print(f"{size}, {dtype}, {requests} requests, {tokens:,} tokens")
    for name, measured in rates.items():
        rate = statistics.median(measured[1:])
        print(f"{name:<26}{rate:12,.0f} tokens/s{rate / baseline:8.2f}")


if __name__ == "__main__":
    configure(globals())
    main()
