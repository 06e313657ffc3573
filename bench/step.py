"""Steps of training at the true shapes of Qwen2.5, with random weights: seconds, FLOPs, memory.

    python bench/step.py                                        # 0.5B in float32, on a CPU
    python bench/step.py --dtype=bfloat16 --compile=True
    python bench/step.py --size=1.5B --dtype=bfloat16 --compile=True --batch_size=256 \
        --mini_batch_size=128 --mean_tokens=400 --max_response_tokens=1024    # one 80 GB GPU
    python bench/step.py --algorithms=apo,ppo,rebel,grpo --equal=generations,prompts ...

The whole of train_apo.py runs, or of baselines/*.py one after the other, with responses of
log-normal lengths, as real ones have: each request has a length of its own, at which it ends,
whatever it samples. Every constant of train_apo.py can be set, too (--checkpoint_activations=True,
--micro_batch_tokens=8192 ...). batch_size and mini_batch_size are A*-PO's: with equal generations
REBEL and GRPO take fewer prompts per step, with equal prompts they generate more. MFU is the share
of the machine's measured matrix rate that the training phase reaches with the operations that one
forward and one backward pass need of each network: no recomputed ones, and no padding.
"""
import gc
import importlib
import os
import statistics
import sys
import tempfile
import time
from functools import cache
from glob import glob
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import rollout
import train_apo
from bench.estimate import SIZES, make_model, on_meta_device
from bench.rollout import end_responses_after, random_lengths
from lib import memory
from lib.cli import check, configure, constants_of, one_line_errors
from lib.distributed import cuda, device, run_stage
from lib.files import read_jsonl, write_jsonl

import numpy as np
import torch

algorithms = "apo"       # or several of apo, ppo, rebel, grpo, oapl
equal = "generations"    # or prompts, or both: what all algorithms have as many of per step
size = "0.5B"            # or 1M, 1.5B, 3B, 7B
steps = 3                # the first is not counted
mean_tokens = 100        # of a response
prompt_tokens = 80       # of every prompt
# constants of train_apo.py that have other values here
batch_size = 16
mini_batch_size = 8
max_response_tokens = 256
lr = 1e-6
logp_tolerance = 1.0
eval_every = 1000
eval_prompts = 1
save_every = 0
save_rollouts = 1        # the lengths of responses are read from them
resume = False
# --------------------------------------------------------------------------------------------------

# By algorithm: its script, and the responses per prompt.
ALGORITHMS = {"apo": ("train_apo", 1), "ppo": ("baselines.ppo", 1), "rebel": ("baselines.rebel", 2),
              "grpo": ("baselines.grpo", 8), "oapl": ("baselines.oapl", 8)}
PHASES = ("generate", "reference", "grade", "train", "sync")


def seconds_of(function, repeats):
    """The seconds of each call of `function`."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return seconds


def matrix_rate(dtype):
    """FLOP/s of a large matrix product, the median of nine."""
    n = 8192 if cuda else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n ** 3 / statistics.median(seconds_of(lambda: a @ b, 12)[3:])


def copy_rate(size):
    """Bytes per second of a plain copy of so many bytes, the fastest of four."""
    source, target = (torch.full((size,), i, dtype=torch.uint8, device=device) for i in (1, 2))
    return size / min(seconds_of(lambda: target.copy_(source), 4))


def model_flops(config, lengths, responses):
    """Of a forward and a backward pass. lengths, responses: tokens of each sequence, and of its
    response, for which alone logits are needed."""
    layer = 2 * config.hidden_size * config.head_dim * (config.num_attention_heads
                                                        + config.num_key_value_heads)
    layer += 3 * config.hidden_size * config.intermediate_size
    linear = config.num_hidden_layers * layer * sum(lengths)
    head = config.vocab_size * config.hidden_size * sum(responses)
    pairs = sum(n * (n + 1) / 2 for n in lengths)  # of a token and one that it attends to
    width = config.num_attention_heads * config.head_dim
    return 3 * 2 * (linear + head + 2 * config.num_hidden_layers * width * pairs)


def main(args):
    names, accountings = args.algorithms.split(","), args.equal.split(",")
    with one_line_errors():
        check(set(names) <= set(ALGORITHMS), f"--algorithms={args.algorithms}: the algorithms are "
              f"{', '.join(ALGORITHMS)}")
        check(set(accountings) <= {"generations", "prompts"},
              f"--equal={args.equal}: it must be generations, prompts, or generations,prompts")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        with device:
            make_model(args.size, "model", getattr(torch, args.dtype))
        digits = np.random.default_rng(0).integers(10, size=(args.batch_size, args.prompt_tokens))
        for split in ("train", "test"):
            write_jsonl(f"data/arithmetic/{split}.jsonl",
                        [{"id": f"{split}/{i}", "task": "arithmetic", "answer": "1",
                          "prompt": "".join(map(str, row))} for i, row in enumerate(digits)])
        train_apo.match_values = lambda folder, rows, *_: (rows, torch.full((len(rows),), 0.5), "")
        rollout.Engine = cache(rollout.Engine)  # one for all algorithms: each begins with a sync
        end_responses_after(random_lengths(args.mean_tokens, args.max_response_tokens))
        for accounting in accountings:
            for algorithm in names:
                # With one response per prompt the accountings are the same.
                if ALGORITHMS[algorithm][1] > 1 or accounting == accountings[0]:
                    measure(args, algorithm, accounting)


def measure(args, algorithm, accounting):
    """Run one algorithm, and print what its steps took."""
    name, n = ALGORITHMS[algorithm]
    script, fewer = importlib.import_module(name), n if accounting == "generations" else 1
    args = SimpleNamespace(**constants_of(script.__file__) | vars(args) | {
        "model": "model", "out": "out", "max_steps": args.steps,
        "batch_size": args.batch_size // fewer, "mini_batch_size": args.mini_batch_size // fewer})
    plans = []

    def make_plan(*its):
        plans.append(memory.make_plan(*its))
        return plans[-1]

    train_apo.make_plan = make_plan
    script.finish = lambda run, tokenizer: None  # no model, no report
    memory.reset_peak_memory()
    script.main(args)
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    report(args, algorithm, accounting, n, plans[0])


def report(args, algorithm, accounting, n, plan):
    """n: responses per prompt."""
    config, dtype = SIZES[args.size], getattr(torch, args.dtype)
    rows = read_jsonl("out/metrics.jsonl", ("tokens",))[1:]
    machine = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU threads"
    print(f"\n{algorithm}, equal {accounting}: {args.batch_size} prompts per step, "
          f"{args.batch_size * n} responses; {args.size}, {args.dtype}, compile={args.compile}, "
          f"{machine}: micro-batches of {plan.micro_batch_tokens:,} tokens, "
          f"recompute={plan.recompute}, defer_sharding={plan.defer_sharding}")
    median = {key: statistics.median(row.get(key, 0) for row in rows)
              for key in ("tokens", "seconds_step", *(f"seconds_{phase}" for phase in PHASES))}
    for phase in PHASES:
        print(f"{phase:<22}{median[f'seconds_{phase}']:8.2f} s")
    rest = statistics.median(1 - sum(row.get(f"seconds_{phase}", 0) for phase in PHASES)
                             / row["seconds_step"] for row in rows)
    print(f"{'step':<22}{median['seconds_step']:8.2f} s, everything else {rest:.2%}")
    print(f"{'response tokens':<22}{median['tokens']:8.0f}, generated "
          f"{median['tokens'] / median['seconds_generate']:,.0f} /s, trained "
          f"{median['tokens'] / median['seconds_train']:,.0f} /s")
    rates = []
    for file, row in zip(sorted(glob("out/rollouts/*"))[1:], rows, strict=True):
        tokens = [len(r["tokens"]) for r in read_jsonl(file, ("tokens",))]
        lengths = [args.prompt_tokens + k for k in tokens]
        flops = model_flops(config, lengths, tokens)
        if algorithm == "ppo":  # the critic has no logits
            flops += model_flops(config, lengths, [])
        rates.append(flops / row["seconds_train"])
    rate, possible = statistics.median(rates), matrix_rate(dtype)
    print(f"{'training':<22}{rate / 1e12:8.3f} TFLOP/s, MFU {rate / possible:.1%} of "
          f"{possible / 1e12:.3f}")
    weights = sum(p.numel() for p in on_meta_device(args.size).parameters()) * dtype.itemsize
    print(f"{'sync':<22}{weights / median['seconds_sync'] / 1e9:8.2f} GB/s, a plain copy "
          f"{copy_rate(weights) / 1e9:.2f}")
    estimated = sum(plan.on_device.values()) + (0 if cuda else sum(plan.on_host.values()))
    print(f"{'memory':<22}{rows[-1]['memory_gb']:8.2f} GB, estimated {estimated / 1e9:.2f}",
          flush=True)


if __name__ == "__main__":
    run_stage(main, configure(__file__, base=train_apo.__file__))
