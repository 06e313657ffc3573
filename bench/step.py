"""Steps of training at the true shapes of Qwen2.5, with random weights: seconds, FLOPs, memory.

    python bench/step.py                                        # 0.5B in float32, on a CPU
    python bench/step.py --dtype=bfloat16 --compile=True
    python bench/step.py --size=1.5B --dtype=bfloat16 --compile=True --batch_size=256 \
        --mini_batch_size=128 --mean_tokens=400 --max_response_tokens=1024    # one 80 GB GPU
    python bench/step.py --algorithms=apo,ppo,rebel,grpo --equal=generations,prompts ...

The whole of train_apo.py runs, or of baselines/*.py one after the other, with responses of
log-normal lengths, as real ones have: each request has a length of its own, at which it ends,
whatever it samples. Other options go to these scripts (--checkpoint_activations=True,
--micro_batch_tokens=8192 ...). batch_size and
mini_batch_size are A*-PO's: with equal generations REBEL and GRPO take fewer prompts per step, with
equal prompts they generate more. MFU is the share of the machine's measured matrix rate that the
training phase reaches with the operations that one forward and one backward pass need of each
network: no recomputed ones, and no padding.
"""
import gc
import importlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[0] = str(REPO)

import reward  # noqa: E402
from bench.estimate import SIZES, TINY, on_meta_device  # noqa: E402
from lib import memory  # noqa: E402
from lib.base_model import byte_tokenizer  # noqa: E402
from lib.cli import check, configure, one_line_errors  # noqa: E402
from lib.data import fingerprint_prompts, load_prompts  # noqa: E402
from lib.distributed import all_host_threads, cuda, device, run_stage  # noqa: E402
from lib.files import write_jsonl  # noqa: E402
from lib.run import Run  # noqa: E402
from lib.weights import fingerprint  # noqa: E402
from model import LOGPS_CHUNK, Qwen2  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

algorithms = "apo"       # or several of apo, ppo, rebel, grpo
equal = "generations"    # or prompts, or both: what all algorithms have as many of per step
size = "0.5B"            # or 1M, 1.5B, 3B, 7B
steps = 3                # the first is not counted
mean_tokens = 100        # of a response
prompt_tokens = 80       # of every prompt
# --------------------------------------------------------------------------------------------------

SCRIPTS = {"apo": "train_apo", "ppo": "baselines.ppo", "rebel": "baselines.rebel",
           "grpo": "baselines.grpo"}
RESPONSES = {"apo": 1, "ppo": 1, "rebel": 2, "grpo": 8}  # per prompt
DEFAULTS = {"model": "model", "out": "out/step", "batch_size": 16, "mini_batch_size": 8,
            "max_response_tokens": 256, "lr": 1e-6, "eval_every": 1000, "eval_prompts": 1,
            "save_every": 0, "logp_tolerance": 1.0}


def make_inputs(constants):
    """A model, prompts and values in the current folder."""
    torch.manual_seed(0)
    with device:
        Qwen2(SIZES.get(size, TINY)).save_pretrained("model", getattr(torch, constants["dtype"]))
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained("model")
    digits = np.random.default_rng(0).integers(10, size=(constants["batch_size"], prompt_tokens))
    for split in ("train", "test"):
        write_jsonl(f"data/arithmetic/{split}.jsonl",
                    [{"id": f"{split}/{i}", "task": "arithmetic", "answer": "1",
                      "prompt": "".join(map(str, row))} for i, row in enumerate(digits)])
    rows = load_prompts("arithmetic", "train", tokenizer, 0, False, 10_000, reward.reward_of)
    ones = torch.ones(len(rows), 1)
    os.makedirs("out/step")
    torch.save({"ids": [row["id"] for row in rows], "rewards": ones, "lengths": ones.int(),
                "finished": ones > 0, "v_star": ones[:, 0] / 2,
                "meta": {"model": fingerprint("model"), "prompts": fingerprint_prompts(rows),
                         "reward": reward.fingerprint(rows), "temperature": 1.0,
                         "max_response_tokens": constants["max_response_tokens"]}},
               "out/step/values.pt")


def set_lengths(max_response_tokens):
    """Let every request end after a number of tokens of its own."""
    import rollout
    original, rng = rollout.SamplingParams, np.random.default_rng(0)

    def params(**settings):
        length = rng.lognormal(np.log(mean_tokens) - 0.6 ** 2 / 2, 0.6)
        settings["max_tokens"] = int(np.clip(length, 1, max_response_tokens))
        return original(**settings, ignore_eos=True)

    rollout.SamplingParams = params


def matrix_rate(dtype):
    """FLOP/s of a large matrix product, the median of nine."""
    n = 8192 if cuda else 2048
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(12):
        begin = time.perf_counter()
        a @ b
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return 2 * n ** 3 / statistics.median(seconds[3:])


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


def main(folder, constants):
    import rollout
    os.chdir(folder)
    try:
        make_inputs(constants["apo"])
        set_lengths(constants["apo"]["max_response_tokens"])
        build, engines = rollout.Engine, []

        def engine(*arguments):  # the same for all algorithms: each begins with a sync
            if not engines:
                engines.append(build(*arguments))
            return engines[0]

        rollout.Engine = engine
        for algorithm, accounting in plan_of_runs():
            measure(algorithm, accounting, constants[algorithm])
    finally:  # the process ends without leaving the interpreter
        shutil.rmtree(folder)


def plan_of_runs():
    """[(algorithm, accounting)]: with one response per prompt the accountings are the same."""
    return [(algorithm, accounting) for accounting in equal.split(",")
            for algorithm in algorithms.split(",")
            if RESPONSES[algorithm] > 1 or accounting == equal.split(",")[0]]


def measure(algorithm, accounting, constants):
    config, dtype = SIZES.get(size, TINY), getattr(torch, constants["dtype"])
    script, n = importlib.import_module(SCRIPTS[algorithm]), RESPONSES[algorithm]
    prompts = {name: constants[name] // (n if accounting == "generations" else 1)
               for name in ("batch_size", "mini_batch_size")}
    for name, value in prompts.items():
        setattr(script, name, value)
    measured = {"flops": []}
    original_log, original_start, original_finish = Run.log, Run.start, Run.finish

    def start(run, engine, policy, *args, **kwargs):
        with all_host_threads(constants["offload_optimizer"]):
            measured["rate"] = matrix_rate(dtype)
        memory.reset_peak_memory()
        original_start(run, engine, policy, *args, **kwargs)

    def log(run, batch, responses, *args, **kwargs):
        tokens = [len(r.tokens) for r in responses]
        whole = [k + prompt_tokens for k in tokens]
        flops = model_flops(config, whole, tokens)
        if algorithm == "ppo":  # the critic has no logits
            flops += model_flops(config, whole, [0] * len(tokens))
        measured["flops"].append(flops)
        original_log(run, batch, responses, *args, **kwargs)

    def chosen(model, shards, largest, *args, **kwargs):
        measured["plan"] = tokens, recompute, keep_whole, _ = plan(model, shards, largest, *args,
                                                                   **kwargs)
        measured["estimate"] = sum(sum(part.values()) for part in memory.estimate(
            on_meta_device(config), shards, min(tokens, largest), constants["dtype"], LOGPS_CHUNK,
            recompute, constants["offload_reference"], constants["offload_optimizer"],
            constants["compile"], keep_whole, **kwargs)[:1 if cuda else 2])
        return measured["plan"]

    plan, script.plan = script.plan, chosen
    Run.log, Run.start, Run.finish = log, start, lambda run, tokenizer: None
    script.main({**constants, **prompts})
    script.plan, Run.log, Run.start, Run.finish = (plan, original_log, original_start,
                                                   original_finish)
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
    report(algorithm, accounting, prompts["batch_size"], constants, measured)


def report(algorithm, accounting, prompts, constants, measured):
    config, dtype = SIZES.get(size, TINY), getattr(torch, constants["dtype"])
    with open("out/step/metrics.jsonl") as f:
        rows = [json.loads(line) for line in f][1:]
    name = torch.cuda.get_device_name() if cuda else f"{torch.get_num_threads()} CPU threads"
    print(f"\n{algorithm}, equal {accounting}: {prompts} prompts per step, "
          f"{prompts * RESPONSES[algorithm]} responses; {size}, {constants['dtype']}, "
          f"compile={constants['compile']}, {name}: micro-batches of "
          f"{measured['plan'].micro_batch_tokens:,} tokens, recompute="
          f"{measured['plan'].recompute}, keep_whole={measured['plan'].keep_whole}")
    median = {key: statistics.median(row[key] for row in rows) for key in rows[0]
              if key.startswith("seconds") or key == "tokens"}
    for phase in ("generate", "reference", "grade", "train", "sync"):
        print(f"{phase:<22}{median[f'seconds_{phase}']:8.2f} s")
    rest = [1 - sum(row[f"seconds_{phase}"] for phase in ("generate", "reference", "grade", "train",
                                                          "sync")) / row["seconds_step"]
            for row in rows]
    print(f"{'step':<22}{median['seconds_step']:8.2f} s, everything else "
          f"{statistics.median(rest):.2%}")
    print(f"{'response tokens':<22}{median['tokens']:8.0f}, generated "
          f"{median['tokens'] / median['seconds_generate']:,.0f} /s, trained "
          f"{median['tokens'] / median['seconds_train']:,.0f} /s")
    rates = [flops / row["seconds_train"] for flops, row in zip(measured["flops"][1:], rows,
                                                                strict=True)]
    print(f"{'training':<22}{statistics.median(rates) / 1e12:8.3f} TFLOP/s, MFU "
          f"{statistics.median(rates) / measured['rate']:.1%} of {measured['rate'] / 1e12:.3f}")
    weights = sum(p.numel() for p in on_meta_device(config).parameters()) * dtype.itemsize
    source, target = (torch.full((weights,), i, dtype=torch.uint8, device=device) for i in (1, 2))
    seconds = []
    for _ in range(4):
        begin = time.perf_counter()
        target.copy_(source)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    print(f"{'sync':<22}{weights / median['seconds_sync'] / 1e9:8.2f} GB/s, a plain copy "
          f"{weights / min(seconds) / 1e9:.2f}")
    print(f"{'memory':<22}{rows[-1]['memory_gb']:8.2f} GB, estimated "
          f"{measured['estimate'] / 1e9:.2f}", flush=True)


if __name__ == "__main__":
    own = [a for a in sys.argv[1:] if a[2:].split("=")[0] in globals()]
    given = [a for a in sys.argv[1:] if a not in own]
    sys.argv[1:] = own
    configure(globals())
    with one_line_errors():
        check(set(algorithms.split(",")) <= set(SCRIPTS), f"--algorithms={algorithms}: the "
              f"algorithms are {', '.join(SCRIPTS)}")
        check(set(equal.split(",")) <= {"generations", "prompts"},
              f"--equal={equal}: it must be generations, prompts, or generations,prompts")
    defaults = {**DEFAULTS, "max_steps": steps, "resume": False}
    sys.argv[1:] = [f"--{name}={value}" for name, value in defaults.items()] + given
    constants = {name: configure(vars(importlib.import_module(SCRIPTS[name])))
                 for name in {"apo", *algorithms.split(",")}}
    run_stage(main, tempfile.mkdtemp(), constants, timeout_minutes=60)
