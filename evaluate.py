"""Measure models on tasks' held-out prompts: greedy accuracy, avg@k, pass@k, with 95% intervals.

    python evaluate.py                                    # arithmetic, before and after training
    torchrun --standalone --nproc_per_node=8 evaluate.py config/math.py \
        --task=math500,minerva_math,amc23 --model=Qwen/Qwen2.5-1.5B,out/math/model

Several models of one shape, separated by commas, stand side by side in each task's table: the
engine is built with the first, then the weights of the others replace it. Results go to
<model>/eval.json, by task, and the graded responses to <model>/eval-<task>.jsonl (a hub model's to
out/eval/<name>). report.py puts them into a run's report.

If it is interrupted, the same command continues it. Every response is kept in <model>/responses/:
what was sampled before with the same settings is not sampled again.

avg@k is the mean accuracy of k samples per prompt; pass@k the probability that at least one of k is
right, by the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374).
"""
import hashlib
import json
import os
import re
from itertools import product
from math import comb, sqrt
from typing import NamedTuple

import reward
from lib.batches import pack, pack_by_tokens
from lib.cli import check, check_settings, configure, one_line_errors, progress
from lib.data import (fingerprint_prompts, load_prompts, print_first_prompt, sampling_seed, subset,
                      task_name)
from lib.distributed import (all_gather, all_reduce_sum, device, rank, restart_timer, run_stage,
                             set_activity, stop_requested, world_size)
from lib.files import alone, atomic_file, read_json, write_jsonl
from lib.samples import Response, read_parts, sample
from lib.tables import results_folder, results_table
from lib.weights import fingerprint, read_weights, stop_ids
from model import Qwen2, open_model

import numpy as np
import torch

model = "data/arithmetic/model,out/arithmetic/model"  # one or several: local folders or hub names
task = "arithmetic"           # one or several: data/<task>/test.jsonl
samples_per_prompt = 8        # for avg@k and pass@k; 0: greedy only
max_prompts = 0               # use a random subset of this many prompts; 0: all
chat_template = False         # wrap prompts in the model's template, for instruct models
chat_template_kwargs = ""     # the template's arguments, such as {"enable_thinking": false}
max_response_tokens = 32      # longer responses are truncated
temperature = 1.0             # of the samples
show = 0                      # print this many wrong greedy responses to each task
kl_to = ""                    # a model: also estimate the KL divergence from it, on the samples
dtype = "float32"             # float32 or bfloat16
gpu_memory_utilization = 0.8  # share of the GPU's memory for vLLM
micro_batch_tokens = 8192     # tokens in one forward pass, for the KL
seed = 0
tp = 1                        # GPUs that share a vLLM engine, for models too large for one
# --------------------------------------------------------------------------------------------------


def held_out_accuracy(engine, rows, seed, max_response_tokens, path):
    """Accuracy of the engine's policy on held-out prompts, during training. A collective.

    {"accuracy": greedy, "accuracy_sampled": of one sample per prompt at temperature 1, and the 95%
    interval of each as "..._ci95"}; {} if the job is asked to stop. The responses are written to
    `path`. Raises RewardError if a reward function is wrong.
    """
    seeds = [sampling_seed(seed, "eval", row["id"]) for row in rows]
    responses = {}
    for kind, temperature in (("greedy", 0.0), ("samples", 1.0)):
        found = engine.generate([row["tokens"] for row in rows], seeds, max_response_tokens,
                                temperature)
        if stop_requested():
            return {}
        responses[kind] = [[response] for response in found]
    results, records = measure(rows, responses)
    if rank == 0:
        write_jsonl(path, records)
    greedy, sampled = results["greedy"], results["avg@1"]
    return {"accuracy": greedy["value"], "accuracy_ci95": greedy["ci95"],
            "accuracy_sampled": sampled["value"], "accuracy_sampled_ci95": sampled["ci95"]}


# ---- estimates -----------------------------------------------------------------------------------

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


# ---- responses -----------------------------------------------------------------------------------

class Job(NamedTuple):
    """One model on one task."""
    model: str           # its name
    path: str            # its local folder
    task: str
    rows: list           # prompts, P of them
    settings: dict       # {"greedy" or "samples": what decides these responses}


def make_jobs(args, name, tasks):
    """([Job of each task], what models must share to be evaluated together) of a model."""
    path, config, tokenizer = open_model(name)
    read_json(f"{results_folder(name)}/eval.json")  # an error now, not after hours
    trained = read_json(f"{path}/training.json").get("constants", {})
    for setting in ("chat_template", "chat_template_kwargs"):
        then, now = trained.get(setting), getattr(args, setting)
        if then not in (None, now):
            print(f"warning: {name} was trained with {setting} = {then!r}, here it is {now!r}")
    model_fingerprint, jobs = fingerprint(path, tokenizer), []
    for t in tasks:
        rows = load_prompts(t, "test", tokenizer, 0, config.max_position_embeddings,
                            args.max_response_tokens, args.chat_template,
                            args.chat_template_kwargs)
        reward.fingerprint(rows)  # loads their tasks: an error now, too
        greedy = {"model": model_fingerprint, "prompts": fingerprint_prompts(rows),
                  "max_response_tokens": args.max_response_tokens, "dtype": args.dtype}
        samples = greedy | {"temperature": args.temperature, "seed": args.seed}
        jobs.append(Job(name, path, task_name(t), subset(rows, args.max_prompts, seed=0),
                        {"greedy": greedy, "samples": samples}))
    print_first_prompt(jobs[0].rows, tokenizer)
    return jobs, (config, stop_ids(path, tokenizer), tokenizer.get_vocab())


def files_of(job, kind):
    """(folder, how the names begin) of the files with responses of a kind, "greedy" or "samples".
    Other settings have other files, so no response is ever lost or mixed with others."""
    digest = hashlib.sha256(json.dumps(job.settings[kind]).encode()).hexdigest()[:8]
    return f"{results_folder(job.model)}/responses", f"{job.task}-{kind}-{digest}"


def read_responses(job, kind):
    """{(prompt id, sample number): Response} of all evaluations so far, the same on all ranks."""
    parts = read_parts(*files_of(job, kind)) if rank == 0 else []
    return all_gather({(r["id"], r["sample"]): Response(r["tokens"], r["text"], not r["finished"])
                       for _, _, lines in parts for r in lines})[0]


def all_responses(job, kind, k):
    """P x k responses, all of which have been sampled. Raises ValueError if they aren't there."""
    done = read_responses(job, kind)
    lost = sum((row["id"], i) not in done for row in job.rows for i in range(k))
    check(not lost, f"{lost:,} responses are not in {files_of(job, kind)[0]}: it must be on a file "
          "system that all machines share. The same command samples them")
    return [[done[row["id"], i] for i in range(k)] for row in job.rows]


# ---- measurements --------------------------------------------------------------------------------

def measure(rows, responses):
    """Grade. responses: {"greedy": P x 1, "samples": P x k, if there are any}. Returns (results for
    eval.json, the rows of eval-<task>.jsonl). Raises RewardError if a reward function is wrong."""
    kept = ("id", "task", "prompt", "prompt_messages", "answer", "level", "subject")
    records = [{key: row[key] for key in kept if key in row} for row in rows]
    results, timed_out = {"prompts": len(rows)}, []
    for kind, groups in responses.items():
        k = len(groups[0])
        repeated, flat = [row for row in rows for _ in range(k)], [r for g in groups for r in g]
        graded = reward.grade(repeated, flat)
        rewards = np.array(graded.rewards).reshape(-1, k)                                  # (P, k)
        results |= accuracies(kind, rewards == 1)
        timed_out += graded.timed_out
        dicts = [{"text": r.text, "reward": x, "truncated": r.truncated, "tokens": len(r.tokens)}
                 for r, x in zip(flat, graded.rewards, strict=True)]
        for i, record in enumerate(records):
            record[kind] = dicts[i * k:(i + 1) * k]
    if not {0.0, 1.0}.issuperset(np.unique(rewards)):  # a reward that gives partial credit
        results["reward"] = mean_with_interval(rewards.mean(1))
    return results | {"response_length": float(np.mean([len(r.tokens) for r in flat])),
                      "truncated": float(np.mean([r.truncated for r in flat])),
                      "grade_timed_out": float(np.mean(timed_out))}, records


def accuracies(kind, right):
    """Measures of the responses of a kind, "greedy" or "samples". right (P, k) bool."""
    k, counts = right.shape[1], right.sum(1).tolist()
    name = "greedy" if kind == "greedy" else f"avg@{k}"
    by_name = {name: right.mean(1)}                                                        # (P,)
    for m in [m for m in (2, 4, 8, 16, 32, 64, 128) if m < k] + [k] * (k > 1):  # pass@1 is avg@k
        by_name[f"pass@{m}"] = [pass_at_k(k, c, m) for c in counts]
    results = {name: mean_with_interval(x) for name, x in by_name.items()}
    for name, x in by_name.items():
        # Wilson's interval is that of one trial per prompt. It also says something where the spread
        # between prompts does not: if no prompt was ever solved, or all of them always.
        if k == 1 or len(set(x)) == 1:
            results[name]["ci95"] = wilson(results[name]["value"], len(right))
    return results


def kl_divergence(args, path, other, rows, samples):
    """KL(model || other), estimated on the model's own samples: the mean of ln pi - ln pi_other per
    response and per token, in nats. Every rank has both models, and a part of the samples."""
    models = [Qwen2.from_pretrained(p, getattr(torch, args.dtype), device) for p in (path, other)]
    prompts = [row["tokens"] for row, group in zip(rows, samples, strict=True) for _ in group]
    responses = [r.tokens for group in samples for r in group]
    lengths = [len(p) + len(r) for p, r in zip(prompts, responses, strict=True)]
    groups = pack_by_tokens(range(rank, len(prompts), world_size), lengths,
                            args.micro_batch_tokens)
    kl = torch.zeros(len(prompts))  # the entries of other ranks' samples stay 0
    with torch.no_grad():
        for [index] in progress(groups, desc="KL", unit="batch"):
            restart_timer()
            micro = pack(index, prompts, responses)
            a, b = (micro.sum(m.token_logps(micro.input_ids, micro.cu_seqlens, args.temperature,
                                            micro.response_mask)) for m in models)         # (B,)
            kl[micro.index] = (a - b).cpu()
    all_reduce_sum(kl)
    return {"kl_per_response": mean_with_interval(kl.view(len(rows), -1).mean(1)),
            "kl_per_token": kl.sum().item() / sum(map(len, responses)), "kl_to": args.kl_to}


def print_wrong(records, number):
    """The first `number` greedy responses that earned less than 1, as a terminal can show them."""
    wrong = [record for record in records if record["greedy"][0]["reward"] < 1]
    for record in wrong[:number]:
        [r] = record["greedy"]
        text = (f"\n---- {record['id']}: reward {r['reward']:g}, the answer is {record['answer']!r}"
                f"{', truncated' * r['truncated']}\n{record['prompt']}\n---- response\n{r['text']}")
        print(re.sub(r"[^\n\t -~\xa0-\U0010ffff]", lambda c: repr(c[0])[1:-1], text))


# ---- the stage -----------------------------------------------------------------------------------

def main(args):
    names, tasks = ([several] if os.path.isdir(several) else [x.strip() for x in several.split(",")]
                    for several in (args.model, args.task))
    with one_line_errors():  # everything is checked before the first model is sampled
        check_settings(args.dtype, max_response_tokens=args.max_response_tokens, tp=args.tp)
        check(args.temperature > 0 or not args.samples_per_prompt,
              f"--temperature={args.temperature}: it is that of the samples, which would all be "
              "the greedy response; for that alone, set --samples_per_prompt=0")
        check(args.samples_per_prompt or not args.kl_to,
              "--kl_to needs --samples_per_prompt of 1 or more")
        jobs, shared = make_jobs(args, names[0], tasks)
        if args.kl_to:
            other, _, tokenizer = open_model(args.kl_to)
            check(tokenizer.get_vocab() == shared[-1],
                  f"--kl_to={args.kl_to} has other tokens than {names[0]}")
        for name in names[1:]:
            more, its = make_jobs(args, name, tasks)
            check(its == shared, f"{name} has another shape or other tokens than {names[0]}, or "
                  "others that end a response; evaluate them one at a time")
            jobs += more

    # ---- sample what earlier evaluations have not sampled ----
    longest = max(len(row["tokens"]) for job in jobs for row in job.rows)
    kinds = {"greedy": 1, "samples": args.samples_per_prompt}
    kinds = {kind: k for kind, k in kinds.items() if k}  # responses to each prompt
    engine, loaded = None, None
    for job, (kind, k) in product(jobs, kinds.items()):
        done = read_responses(job, kind)
        todo = [(row, i, sampling_seed(args.seed, "evaluate", row["id"], i)) for row in job.rows
                for i in range(k) if (row["id"], i) not in done]
        if not todo:
            continue
        set_activity("building the engine")
        if not engine:
            from rollout import Engine  # imports vLLM, which takes seconds
            with one_line_errors():
                engine = Engine(job.path, args.dtype, longest + args.max_response_tokens,
                                args.gpu_memory_utilization, args.tp)
        elif job.path != loaded:
            engine.sync(read_weights(job.path, engine.tied))
        loaded = job.path
        sample(engine, todo, *files_of(job, kind), job.settings[kind], args.max_response_tokens,
               args.temperature if kind == "samples" else 0.0, desc=f"{job.task}, {kind}")
    if engine:
        engine.sleep()  # the networks of the KL need the GPU's memory

    # ---- grade, estimate the KL, and write the results ----
    by_model = {name: {} for name in names}
    for job in jobs:
        set_activity(f"grading {job.task}")
        with one_line_errors():
            responses = {kind: all_responses(job, kind, k) for kind, k in kinds.items()}
            results, records = measure(job.rows, responses)
        if results["truncated"] > 0.5:
            print("warning: most responses were truncated; raise --max_response_tokens")
        if args.kl_to:
            set_activity(f"KL of {job.path} on {job.task}")
            results |= kl_divergence(args, job.path, other, job.rows, responses["samples"])
        results["settings"] = {"samples_per_prompt": args.samples_per_prompt,
                               "max_prompts": args.max_prompts,
                               "reward": reward.fingerprint(job.rows), **job.settings["samples"]}
        by_model[job.model][job.task] = results
        if rank == 0:
            folder = results_folder(job.model)
            with alone(folder):  # another job may evaluate the same base model
                write_jsonl(f"{folder}/eval-{job.task}.jsonl", records)
                with atomic_file(f"{folder}/eval.json") as f:
                    json.dump(read_json(f"{folder}/eval.json") | {job.task: results}, f, indent=2)
            print_wrong(records, args.show)
    print(f"\n{results_table(by_model)}")


if __name__ == "__main__":
    run_stage(main, configure(__file__))
