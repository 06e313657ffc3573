"""Measure checkpoints on the held-out prompts of a task: greedy accuracy, avg@k and pass@k, each with a 95% interval.

    python evaluate.py                                                       # arithmetic, before and after training
    torchrun --nproc_per_node=8 evaluate.py config/gsm8k_qwen2.5_1.5b.py --model=Qwen/Qwen2.5-1.5B,out/gsm8k_qwen2.5_1.5b/model

Several models of one shape, separated by commas, stand side by side in the table: the first is loaded, the others' weights
take its place. Results go to <model>/eval.json, by task; beside a training run's model a picture of the run, curves.png.

avg@k is the mean accuracy of k samples per prompt, pass@k the chance that one of k is right, by the unbiased estimator of
Chen et al. 2021 (arXiv 2107.03374).
"""
import json
import os
from math import comb, sqrt

from common import (check, check_settings, configure, load_prompts, one_line_errors, open_model, progress, read_jsonl,
                    sampling_seed, start_grading_together, subset, whole_file)

import numpy as np
import torch  # common comes before it, to quiet it

import job
from model import Qwen2, deal, pack, read_weights, resolve, sum_per_sequence

model = "data/arithmetic/model,out/arithmetic/model"  # one or several: folders in Hugging Face format, or names on the hub
task = "arithmetic"         # data/<task>/test.jsonl
samples_per_prompt = 8      # for avg@k and pass@k; 0: greedy only
max_prompts = 0             # use a random subset of so many prompts; 0: all
max_prompt_tokens = 0       # longest prompt; 0: as long as the model's context allows
drop_long_prompts = False   # leave longer prompts out instead of stopping
max_response_tokens = 32    # longer responses are cut
temperature = 1.0           # of the samples
kl_to = ""                  # a checkpoint: also estimate the KL divergence from it, on the samples
dtype = "float32"           # float32 or bfloat16
gpu_memory = 0.8            # share of the GPU for the engine
micro_batch_tokens = 16384  # tokens in one forward pass, for the KL
seed = 0
tp = 1                      # ranks that share an engine, for models that don't fit one GPU
hang_limit = 540.0          # seconds without progress after which the job ends
# ---------------------------------------------------------------------------------------------------------------------


def pass_at_k(num_samples, num_right, k):
    """Chance that one of k samples, drawn from num_samples of which num_right are right, is right. Chen et al., eq. 1."""
    return 1 - comb(num_samples - num_right, k) / comb(num_samples, k)


def wilson(p, n):
    """95% interval of a share p of n independent trials (Wilson score: sound near 0 and 1 too)."""
    z = 1.96
    middle, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]


def mean_with_interval(per_prompt):
    """{"value", "ci95"} of a mean over prompts, from the spread between prompts: samples of one prompt are not independent."""
    x = np.asarray(per_prompt, dtype=float)
    half = 1.96 * x.std(ddof=1) / sqrt(len(x)) if len(x) > 1 else 0.0
    return {"value": x.mean(), "ci95": [x.mean() - half, x.mean() + half]}


def measure(engine, rows):
    """Sample and grade. rows: data rows with "tokens". Returns (results to write, all sampled responses, P x k)."""
    def sample(k, t):  # -> P x k responses
        requests = [(row, i) for row in rows for i in range(k)]
        responses = engine.generate([row["tokens"] for row, _ in requests],
                                    [sampling_seed(seed, "evaluate", row["id"], i) for row, i in requests],
                                    max_response_tokens, t, desc="greedy" if t == 0 else "sampling")
        return [responses[i:i + k] for i in range(0, len(requests), k)]

    grades = []

    def right(responses):  # P x k -> (P, k)
        graded = start_grading_together([row for row, group in zip(rows, responses) for _ in group],
                                        [r for group in responses for r in group])()
        grades.append(graded)
        return np.array(graded.rewards).reshape(len(rows), -1)

    greedy = sample(1, 0.0)
    accuracy = right(greedy).mean()
    results = {"prompts": len(rows), "greedy": {"value": accuracy, "ci95": wilson(accuracy, len(rows))}}
    samples = sample(samples_per_prompt, temperature) if samples_per_prompt else []
    if samples:
        n, solved = samples_per_prompt, right(samples).sum(1).astype(int)                                      # (P,)
        results[f"avg@{n}"] = mean_with_interval(solved / n)
        for k in sorted({n, *(2 ** i for i in range(n.bit_length()))} - {1}):  # pass@1 is avg@n
            results[f"pass@{k}"] = mean_with_interval([pass_at_k(n, c, k) for c in solved.tolist()])
    shown = [r for group in samples or greedy for r in group]
    results["response_length"] = float(np.mean([len(r.tokens) for r in shown]))
    results["cut_short"] = float(np.mean([not r.finished for r in shown]))
    for key in ("inexact", "timed_out"):
        results[f"grade_{key}"] = float(np.mean([x for graded in grades for x in getattr(graded, key)]))
    if results["cut_short"] > 0.5:
        print("warning: most responses were cut short; --max_response_tokens may be too small")
    return results, samples


def kl_divergence(path, other, rows, samples):
    """KL(model || other) on the model's own samples: mean of ln pi - ln pi_other per response and per token, in nats. Each rank
    has both models and a part of the samples."""
    models = []
    for p in (path, other):
        models.append(Qwen2.from_pretrained(p, getattr(torch, dtype), job.device))
        job.tick()
    prompts = [row["tokens"] for row, group in zip(rows, samples) for _ in group]
    responses = [r.tokens for group in samples for r in group]
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses)]
    kl = torch.zeros(len(prompts))
    with torch.no_grad():
        for [index] in progress(deal(range(job.rank, len(prompts), job.world), lengths, micro_batch_tokens), desc="KL",
                                unit="batch"):
            b = pack(index, prompts, responses, job.device)
            a, c = (sum_per_sequence(m.token_logps(b.input_ids, b.cu_seqlens, temperature, b.where), b.cu_seqlens)
                    for m in models)
            kl[b.index] = (a - c).cpu()
            job.tick()
    job.total(kl)  # the ranks' parts are zero but for their own
    return {"kl_per_response": mean_with_interval(kl.view(len(rows), -1).mean(1)),
            "kl_per_token": kl.sum().item() / sum(map(len, responses)), "kl_to": other}


def plot_run(metrics_path, png):
    """Draw a training run's reward, held-out accuracy, KL and response length over the steps."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    rows = read_jsonl(metrics_path, ("step",))
    steps = [m["step"] for m in rows]
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, layout="constrained")
    for ax, title in zip(axes.flat, ("training reward", "held-out accuracy", "KL to the reference, nats per token",
                                     "response length, tokens")):
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3)
    axes[0, 0].plot(steps, [m["reward"] for m in rows])
    measured = [m for m in rows if "accuracy" in m]
    for key, label in (("accuracy", "greedy"), ("accuracy_sampled", "sampled, temperature 1")):
        first = key.replace("accuracy", "accuracy_start")
        points = [(0, rows[0][first])] * (first in rows[0]) + [(m["step"] + 1, m[key]) for m in measured]
        axes[0, 1].plot(*zip(*points), marker="o", markersize=3, label=label)
    axes[0, 1].legend(fontsize=8, loc="lower right")
    axes[1, 0].plot(steps, [m["kl"] for m in rows])
    axes[1, 1].plot(steps, [m["response_length"] for m in rows])
    for ax in axes[0]:
        ax.set_ylim(0, 1.02)
    for ax in axes[1]:
        ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
        ax.set_xlabel("step (one rollout batch each)")
    figure.suptitle(os.path.dirname(metrics_path), fontsize=11)
    figure.savefig(png, dpi=120)
    plt.close(figure)


def print_table(names, all_results):
    """Models side by side, a row per measure."""
    width = max(20, *(len(name) + 2 for name in names))
    print(f"\n{'':<22}" + "".join(f"{name:>{width}}" for name in names))
    for key in all_results[0]:
        cells = []
        for value in (results.get(key, "") for results in all_results):
            if isinstance(value, dict):
                low, high = value["ci95"]
                cells.append(f"{value['value']:.3f} [{low:.3f}, {high:.3f}]" if key.startswith("kl") else
                             f"{value['value']:.1%} [{max(low, 0):.1%}, {min(high, 1):.1%}]")
            else:
                cells.append({"cut_short": "{:.1%}", "grade_inexact": "{:.1%}", "grade_timed_out": "{:.1%}",
                              "response_length": "{:.1f}", "kl_per_token": "{:.4f}"}.get(key, "{}").format(value))
        print(f"{key.replace('_', ' '):<22}" + "".join(f"{cell:>{max(width, 24)}}" for cell in cells))


def main():
    names, plans, shapes = [name.strip() for name in model.split(",")], [], []
    with one_line_errors():  # everything is checked before the first hour is spent
        check_settings(dtype, max_response_tokens, tp=tp)
        check(samples_per_prompt or not kl_to, "--kl_to needs samples; set --samples_per_prompt to 1 or more")
        other = resolve(kl_to) if kl_to else None
        for name in names:
            path, config, tokenizer = open_model(name)
            rows = subset(load_prompts(task, "test", tokenizer, max_prompt_tokens, drop_long_prompts,
                                       config.max_position_embeddings - max_response_tokens), max_prompts, 0)
            file, saved = os.path.join(name if os.path.isdir(name) else os.path.join("out", "eval", name), "eval.json"), {}
            if os.path.exists(file):
                with open(file) as f:
                    try:
                        saved = json.load(f)
                    except ValueError as e:
                        raise ValueError(f"{file}: not valid JSON ({e}); move it away") from None
            plans.append((path, rows, file, saved))
            shapes.append((config, tokenizer.eos_token_id))
            check(shapes[-1] == shapes[0], f"{name} has another shape or end-of-text token than {names[0]}; evaluate them one "
                  "at a time")

    job.phase("building the engine")
    from rollout import Engine  # imports vLLM, which takes seconds
    with one_line_errors():
        longest = max(len(row["tokens"]) for row in plans[0][1]) + max_response_tokens
        engine = Engine(plans[0][0], dtype, longest, gpu_memory, tp)
    all_results = []
    for name, (path, rows, file, saved) in zip(names, plans):
        job.phase(f"evaluating {name}")
        if all_results:
            engine.sync(read_weights(path), config.tie_word_embeddings)
        results, samples = measure(engine, rows)
        engine.sleep()
        if other:
            job.phase(f"KL of {name}")
            results.update(kl_divergence(path, other, rows, samples))
        all_results.append(results)
        saved[task] = {**results, "samples_per_prompt": samples_per_prompt, "temperature": temperature,
                       "max_response_tokens": max_response_tokens, "dtype": dtype, "seed": seed}
        if job.rank == 0:
            with whole_file(file) as f:
                json.dump(saved, f, indent=2)
    print_table(names, all_results)
    for name in names:
        run = os.path.dirname(os.path.normpath(name))
        if job.rank == 0 and os.path.isfile(os.path.join(run, "metrics.jsonl")):
            plot_run(os.path.join(run, "metrics.jsonl"), os.path.join(run, "curves.png"))
            print(f"\nwrote {run}/curves.png")
    engine.shutdown()


if __name__ == "__main__":
    configure(globals())
    job.run(main, hang_limit=hang_limit)
