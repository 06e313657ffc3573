"""Measure models on tasks' held-out prompts: greedy accuracy, avg@k, pass@k, with 95% intervals.

    python evaluate.py                                    # arithmetic, before and after training
    torchrun --nproc_per_node=8 evaluate.py config/math.py --task=math500,minerva_math,amc23 \
        --model=Qwen/Qwen2.5-1.5B,out/math/model

Several models of one shape, separated by commas, stand side by side in each task's table: the
engine is built with the first, the weights of the others replace it. Results go to
<model>/eval.json, by task, and all responses to <model>/eval-<task>.jsonl; beside the model of a
training run, a picture of the run goes to curves.png.

avg@k is the mean accuracy of k samples per prompt; pass@k the probability that at least one of k is
right, by the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374).
"""
import json
import os
from math import comb, sqrt

import reward
from lib.batches import pack, pack_by_tokens
from lib.cli import check, check_settings, configure, one_line_errors, progress
from lib.data import load_prompts, print_first_prompt, sampling_seed, subset
from lib.distributed import (
    all_reduce_sum,
    device,
    rank,
    restart_timer,
    run_stage,
    set_phase,
    stop_requested,
    world_size,
)
from lib.files import atomic_file, write_jsonl
from lib.weights import find_model, read_weights
from model import Qwen2, open_model

import numpy as np
import torch

model = "data/arithmetic/model,out/arithmetic/model"  # one or several: local folders or hub names
task = "arithmetic"           # one or several: data/<task>/test.jsonl
samples_per_prompt = 8        # for avg@k and pass@k; 0: greedy only
max_prompts = 0               # use a random subset of so many prompts; 0: all
max_prompt_tokens = 0         # longest prompt; 0: as long as the model's context allows
drop_long_prompts = False     # leave longer prompts out instead of stopping with an error
chat_template = False         # wrap prompts in the model's template, for instruct models
max_response_tokens = 32      # longer responses are truncated
temperature = 1.0             # of the samples
show = 0                      # print so many of the wrong greedy responses to each task
kl_to = ""                    # a model: also estimate the KL divergence from it, on the samples
dtype = "float32"             # float32 or bfloat16
gpu_memory_utilization = 0.8  # share of the GPU's memory for vLLM
micro_batch_tokens = 8192     # tokens in one forward pass, for the KL
seed = 0
tp = 1                        # GPUs that share a vLLM engine, for models too large for one
timeout_minutes = 60.0        # end the job if a rank makes no progress for so long
# --------------------------------------------------------------------------------------------------


def held_out_accuracy(engine, rows, seed, max_response_tokens, path):
    """Of the engine's policy, during training: {"accuracy": greedy, "accuracy_sampled": one sample
    per prompt at temperature 1}; {} if the job is asked to stop. A collective. The responses are
    written to `path`."""
    accuracy, records = {}, new_records(rows)
    seeds = [sampling_seed(seed, "eval", row["id"]) for row in rows]
    for name, t in (("accuracy", 0.0), ("accuracy_sampled", 1.0)):
        responses = engine.generate([row["tokens"] for row in rows], seeds, max_response_tokens, t)
        if stop_requested():
            return {}
        rewards = reward.start_grading(rows, responses)().rewards
        accuracy[name] = sum(rewards) / len(rows)
        add_responses(records, "greedy" if t == 0 else "samples", responses, rewards, 1)
    if rank == 0:
        write_jsonl(path, records)
    return accuracy


def new_records(rows):
    """What eval-*.jsonl has of each prompt, before the responses."""
    kept = ("id", "task", "prompt", "answer", "level", "subject")
    return [{key: row[key] for key in kept if key in row} for row in rows]


def add_responses(records, name, responses, rewards, k):
    """records[i][name] = k responses to prompt i. responses, rewards: prompts x k, flat."""
    for i, (response, r) in enumerate(zip(responses, rewards, strict=True)):
        records[i // k].setdefault(name, []).append(
            {"text": response.text, "reward": r, "truncated": response.truncated,
             "tokens": len(response.tokens)})


# ---- statistics ----------------------------------------------------------------------------------

def pass_at_k(num_samples, num_right, k):
    """Probability that one of k out of num_samples samples is right. Chen et al. 2021, eq. 1."""
    return 1 - comb(num_samples - num_right, k) / comb(num_samples, k)


def wilson(p, n):
    """95% interval of a share p of n independent trials (Wilson score: sound near 0 and 1, too)."""
    z = 1.96
    middle, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [(middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)]


def mean_with_interval(per_prompt):
    """{"value", "ci95"} of a mean, from the spread between prompts: the samples of one prompt are
    not independent of each other, so they don't count one by one."""
    x = np.asarray(per_prompt, dtype=float)
    half = 1.96 * x.std(ddof=1) / sqrt(len(x)) if len(x) > 1 else 0.0
    return {"value": x.mean(), "ci95": [x.mean() - half, x.mean() + half]}


# ---- measurements --------------------------------------------------------------------------------

def measure(engine, rows):
    """Sample and grade. Returns (results for eval.json, the sampled responses, P x k, the rows of
    eval-<task>.jsonl)."""
    grades, records = [], new_records(rows)

    def sample_and_grade(k, t):  # -> P x k responses, (P, k) rewards
        repeated = [row for row in rows for _ in range(k)]
        seeds = [sampling_seed(seed, "evaluate", row["id"], i) for row in rows for i in range(k)]
        responses = engine.generate([row["tokens"] for row in repeated], seeds, max_response_tokens,
                                    t, desc="greedy" if t == 0 else "sampling")
        grades.append(reward.start_grading(repeated, responses)())
        add_responses(records, "greedy" if t == 0 else "samples", responses, grades[-1].rewards, k)
        rewards = np.array(grades[-1].rewards).reshape(len(rows), k)
        return [responses[i:i + k] for i in range(0, len(responses), k)], rewards

    greedy, rewards = sample_and_grade(1, 0.0)
    accuracy, of_prompts = rewards.mean(), {"greedy": rewards[:, 0]}
    results = {"prompts": len(rows),
               "greedy": {"value": accuracy, "ci95": wilson(accuracy, len(rows))}}
    samples, n = [], samples_per_prompt
    if n:
        samples, rewards = sample_and_grade(n, temperature)
        right = rewards.sum(1).astype(int)                                                 # (P,)
        results[f"avg@{n}"] = mean_with_interval(right / n)
        of_prompts[f"avg@{n}"] = right / n
        for k in sorted({2 ** i for i in range(1, n.bit_length())} | {n} - {1}):  # pass@1 is avg@n
            results[f"pass@{k}"] = mean_with_interval([pass_at_k(n, c, k) for c in right.tolist()])
    shown = [r for group in samples or greedy for r in group]
    results["response_length"] = float(np.mean([len(r.tokens) for r in shown]))
    results["truncated"] = float(np.mean([r.truncated for r in shown]))
    for key in ("inexact", "timed_out"):
        flags = [flag for graded in grades for flag in getattr(graded, key)]
        results[f"grade_{key}"] = float(np.mean(flags))
    if results["truncated"] > 0.5:
        print("warning: most responses were truncated; raise --max_response_tokens")
    results["groups"] = by_group(rows, of_prompts)
    return results, samples, records


def by_group(rows, of_prompts):
    """{"level 1": {"prompts": P, "greedy": mean, ...}, ...} where the data has levels and subjects.

    of_prompts: {"greedy": accuracy of each prompt, ...}
    """
    groups = {}
    for i, row in enumerate(rows):
        for key in ("level", "subject"):
            if key in row:
                groups.setdefault(f"{key} {row[key]}", []).append(i)
    return {group: {"prompts": len(groups[group]),
                    **{name: float(x[groups[group]].mean()) for name, x in of_prompts.items()}}
            for group in sorted(groups)}


def print_wrong(records):
    """The first `show` wrong greedy responses, and why they are wrong."""
    wrong = [record for record in records if record["greedy"][0]["reward"] < 1]
    for record in wrong[:show]:
        greedy = record["greedy"][0]
        reason = reward.explain(record["task"], greedy["text"], record["answer"],
                                not greedy["truncated"])
        print(f"\n---- {record['id']}: {reason}\n{record['prompt']}\n---- response\n"
              f"{greedy['text']}")


def kl_divergence(path, other, rows, samples):
    """KL(model || other), estimated on the model's own samples: the mean of ln pi - ln pi_other per
    response and per token, in nats. Every rank has both models, and a part of the samples."""
    models = [Qwen2.from_pretrained(p, getattr(torch, dtype), device) for p in (path, other)]
    prompts = [row["tokens"] for row, group in zip(rows, samples, strict=True) for _ in group]
    responses = [r.tokens for group in samples for r in group]
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    groups = pack_by_tokens(range(rank, len(prompts), world_size), lengths, micro_batch_tokens)
    kl = torch.zeros(len(prompts))  # the entries of other ranks' samples stay 0
    with torch.no_grad():
        for [index] in progress(groups, desc="KL", unit="batch"):
            restart_timer()
            micro = pack(index, prompts, responses)
            a, b = (micro.sum(m.token_logps(micro.input_ids, micro.cu_seqlens, temperature,
                                            micro.response_mask)) for m in models)         # (B,)
            kl[micro.index] = (a - b).cpu()
    all_reduce_sum(kl)
    return {"kl_per_response": mean_with_interval(kl.view(len(rows), -1).mean(1)),
            "kl_per_token": kl.sum().item() / sum(map(len, responses)), "kl_to": other}


def print_table(title, names, all_results):
    """Models side by side, one line per measure and per group. all_results: one per model."""
    lines = {title: names}
    for key in all_results[0]:
        if key != "groups":
            lines[key.replace("_", " ")] = [cell(key, r.get(key, "")) for r in all_results]
    for group, measured in all_results[0]["groups"].items():
        measures = [name for name in measured if name != "prompts"]
        lines[f"{group} ({measured['prompts']})"] = [
            " / ".join(f"{r['groups'][group][name]:.1%}" for name in measures)
            for r in all_results]
    left = max(22, *(len(label) + 2 for label in lines))
    width = max(24, *(len(name) + 2 for name in names))
    print()
    for label, cells in lines.items():
        print(f"{label:<{left}}" + "".join(f"{text:>{width}}" for text in cells))
    if all_results[0]["groups"]:
        print(f"(of each level and subject: {' / '.join(measures)}; in brackets its prompts)")


def cell(key, value):
    """A result as text. key: its name."""
    if isinstance(value, dict):
        low, high = value["ci95"]
        if key.startswith("kl"):
            return f"{value['value']:.3f} [{low:.3f}, {high:.3f}]"
        return f"{value['value']:.1%} [{max(low, 0):.1%}, {min(high, 1):.1%}]"
    formats = {"truncated": "{:.1%}", "grade_inexact": "{:.1%}", "grade_timed_out": "{:.1%}",
               "response_length": "{:.1f}", "kl_per_token": "{:.4f}"}
    return formats.get(key, "{}").format(value)


def read_inputs(name, tasks):
    """(path, {task: rows}, eval.json's path and contents, (config, EOS)) of a model.

    Raises OSError or ValueError.
    """
    path, config, tokenizer = open_model(name)
    context = config.max_position_embeddings - max_response_tokens
    rows = {t: subset(load_prompts(t, "test", tokenizer, max_prompt_tokens, drop_long_prompts,
                                   context, reward.REWARDS, chat_template), max_prompts, seed=0)
            for t in tasks}
    folder = name if os.path.isdir(name) else os.path.join("out", "eval", name)
    file, saved = os.path.join(folder, "eval.json"), {}
    if os.path.exists(file):
        with open(file) as f:
            try:
                saved = json.load(f)
            except ValueError as e:
                raise ValueError(f"{file}: not valid JSON ({e}); move it away") from None
    return path, rows, file, saved, (config, tokenizer.eos_token_id)


def main():
    names, tasks = ([x.strip() for x in several.split(",")] for several in (model, task))
    with one_line_errors():  # everything is checked before the first model is sampled
        check_settings(dtype, max_response_tokens=max_response_tokens, tp=tp)
        check(samples_per_prompt or not kl_to, "--kl_to needs --samples_per_prompt of 1 or more")
        other = find_model(kl_to) if kl_to else None
        plans = [read_inputs(name, tasks) for name in names]
        first = plans[0]
        for name, plan in zip(names, plans, strict=True):
            check(plan[-1] == first[-1], f"{name} has another shape or end-of-text token than "
                  f"{names[0]}; evaluate them one at a time")

    set_phase("building the engine")
    from rollout import Engine  # imports vLLM, which takes seconds
    with one_line_errors():
        longest = max(len(row["tokens"]) for rows in first[1].values() for row in rows)
        engine = Engine(first[0], dtype, longest + max_response_tokens, gpu_memory_utilization, tp)
    print_first_prompt(first[1][tasks[0]], engine.tokenizer)
    tables, tied, loaded = {t: [] for t in tasks}, first[-1][0].tie_word_embeddings, first[0]
    for name, (path, all_rows, file, saved, _) in zip(names, plans, strict=True):
        for t, rows in all_rows.items():
            set_phase(f"evaluating {name} on {t}")
            if engine.asleep or path != loaded:
                engine.sync(read_weights(path, tied))
                loaded = path
            results, samples, records = measure(engine, rows)
            if other:
                set_phase(f"KL of {name} on {t}")
                engine.sleep()
                results.update(kl_divergence(path, other, rows, samples))
            tables[t].append(results)
            saved[t] = {**results, "samples_per_prompt": samples_per_prompt, "seed": seed,
                        "temperature": temperature, "max_response_tokens": max_response_tokens,
                        "dtype": dtype}
            if rank == 0:
                with atomic_file(file) as f:
                    json.dump(saved, f, indent=2)
                write_jsonl(os.path.join(os.path.dirname(file), f"eval-{t}.jsonl"), records)
                print_wrong(records)
    for t, all_results in tables.items():
        print_table(t, names, all_results)
    for name in names:
        run = os.path.dirname(os.path.normpath(name))
        if rank == 0 and os.path.isfile(os.path.join(run, "metrics.jsonl")):
            from lib.plot import plot_run  # imports matplotlib
            plot_run(os.path.join(run, "metrics.jsonl"), os.path.join(run, "curves.png"))
            print(f"\nwrote {run}/curves.png")


if __name__ == "__main__":
    configure(globals())
    run_stage(main, timeout_minutes=timeout_minutes)
