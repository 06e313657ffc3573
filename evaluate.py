"""Measure models on tasks' held-out prompts: greedy accuracy, avg@k, pass@k, with 95% intervals.

    python evaluate.py                                    # arithmetic, before and after training
    torchrun --nproc_per_node=8 evaluate.py config/math.py --task=math500,minerva_math,amc23 \
        --model=Qwen/Qwen2.5-1.5B,out/math/model

Several models of one shape, separated by commas, stand side by side in each task's table: the
engine is built with the first, the weights of the others replace it. Results go to
<model>/eval.json, by task, and the graded responses to <model>/eval-<task>.jsonl; the tables to
eval.md beside the last model's, and into the report and the model card of a training run.

    python evaluate.py --plot=out/a,out/b                 # no measurement: runs in one picture
    python evaluate.py --report=out/a                     # report.md of a run

Interrupted at any moment, the same command continues. Every response is kept in <model>/responses/:
what was sampled before with the same settings is not sampled again.

avg@k is the mean accuracy of k samples per prompt; pass@k the probability that at least one of k is
right, by the unbiased estimator of Chen et al. 2021 (arXiv 2107.03374).
"""
import hashlib
import json
import os
import sys
from typing import NamedTuple

import reward
from lib import paper_grader
from lib.batches import pack, pack_by_tokens
from lib.cli import check, check_settings, configure, one_line_errors, progress
from lib.data import (
    fingerprint_prompts,
    load_prompts,
    print_first_prompt,
    sampling_seed,
    subset,
    task_name,
)
from lib.distributed import (
    all_gather,
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
from lib.samples import read_parts, sample
from lib.statistics import mean_with_interval, pass_at_k, wilson
from lib.tables import PAPER_TASKS, summary, table
from lib.weights import find_model, fingerprint, read_weights
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
grader = ""                   # "paper": grade also as the paper's code does, by comparing strings
kl_to = ""                    # a model: also estimate the KL divergence from it, on the samples
dtype = "float32"             # float32 or bfloat16
gpu_memory_utilization = 0.8  # share of the GPU's memory for vLLM
micro_batch_tokens = 8192     # tokens in one forward pass, for the KL
plot = ""                     # instead: draw these runs over each other, such as out/a,out/b
report = ""                   # instead: write this run's report.md anew, such as out/a
seed = 0
tp = 1                        # GPUs that share a vLLM engine, for models too large for one
timeout_minutes = 60.0        # end the job if a rank makes no progress for so long
# --------------------------------------------------------------------------------------------------

PAPER_GRADERS = {reward.gsm8k: paper_grader.gsm8k, reward.math: paper_grader.math}


def held_out_accuracy(engine, rows, seed, max_response_tokens, path):
    """Of the engine's policy, during training: {"accuracy": greedy, "accuracy_sampled": one sample
    per prompt at temperature 1}; {} if the job is asked to stop. A collective. The responses are
    written to `path`. Raises ValueError if a reward function is wrong."""
    accuracy, records = {}, new_records(rows)
    seeds = [sampling_seed(seed, "eval", row["id"]) for row in rows]
    for name, t in (("accuracy", 0.0), ("accuracy_sampled", 1.0)):
        responses = engine.generate([row["tokens"] for row in rows], seeds, max_response_tokens, t)
        if stop_requested():
            return {}
        rewards = reward.start_grading(rows, responses)().rewards
        accuracy[name] = sum(r == 1 for r in rewards) / len(rows)
        for record, response, r in zip(records, responses, rewards, strict=True):
            record["greedy" if t == 0 else "samples"] = [as_dict(response, r)]
    if rank == 0:
        write_jsonl(path, records)
    return accuracy


def new_records(rows):
    """What eval-*.jsonl has of each prompt, before the responses."""
    kept = ("id", "task", "prompt", "answer", "level", "subject")
    return [{key: row[key] for key in kept if key in row} for row in rows]


def as_dict(response, reward):
    return {"text": response.text, "reward": reward, "truncated": response.truncated,
            "tokens": len(response.tokens)}


# ---- responses -----------------------------------------------------------------------------------

class Job(NamedTuple):
    """One model on one task."""
    path: str            # the model's folder
    task: str
    rows: list           # prompts, P of them
    folder: str          # of the results
    sampled_with: dict   # the settings that decide the responses

    def settings(self, kind):
        """Those of one kind of responses: "greedy" or "samples"."""
        if kind == "samples":
            return self.sampled_with | {"temperature": temperature, "seed": seed}
        return self.sampled_with

    def files(self, kind):
        """Where the engines keep their responses, with * for an engine's number. Other settings
        have other files, so no response is ever lost or mixed with others."""
        digest = hashlib.sha256(json.dumps(self.settings(kind)).encode()).hexdigest()[:8]
        return os.path.join(self.folder, "responses", f"{self.task}-{kind}-{digest}.*.jsonl")


class Response(NamedTuple):
    """As rollout.Response, which needs vLLM: a response that was read from a file."""
    tokens: list
    text: str
    truncated: bool


def collect(job, kind, k, engine_with):
    """P x k responses: those of earlier evaluations, and what is missing, sampled now. The same on
    all ranks. kind: "greedy" or "samples"; engine_with(path): the engine with a model's weights."""
    def read():
        lines = (line for _, _, lines in read_parts(job.files(kind)) for line in lines)
        return {(r["id"], r["sample"]): Response(r["tokens"], r["text"], not r["finished"])
                for r in lines}

    done = all_gather(read() if rank == 0 else None)[0]
    todo = [(row, i, sampling_seed(seed, "evaluate", row["id"], i)) for row in job.rows
            for i in range(k) if (row["id"], i) not in done]
    if todo:
        sample(engine_with(job.path), todo, job.files(kind), job.settings(kind),
               max_response_tokens, temperature if kind == "samples" else 0.0,
               desc=f"{job.task}, {kind}")
        done = all_gather(read() if rank == 0 else None)[0]
        lost = sum((row["id"], i) not in done for row, i, _ in todo)
        if lost:
            sys.exit(f"error: {lost:,} responses are not in {job.folder}: it must be on a file "
                     "system that all machines share. The same command samples what is missing")
    return [[done[row["id"], i] for i in range(k)] for row in job.rows]


def read_results(folder):
    """The contents of eval.json, by task. Raises ValueError if it is damaged."""
    file = os.path.join(folder, "eval.json")
    if not os.path.exists(file):
        return {}
    with open(file) as f:
        try:
            return json.load(f)
        except ValueError as e:
            raise ValueError(f"{file}: not valid JSON ({e}); move it away") from None


# ---- measurements --------------------------------------------------------------------------------

def measure(rows, responses):
    """Grade. responses: {"greedy": P x 1, "samples": P x k, if there are any}. Returns (results for
    eval.json, the rows of eval-<task>.jsonl). Raises ValueError if a reward function is wrong."""
    records, results, of_prompts = new_records(rows), {"prompts": len(rows)}, {}
    all_rewards, flags, differ = [], {"inexact": [], "timed_out": []}, []
    for kind, groups in responses.items():
        k = len(groups[0])
        repeated, flat = [row for row in rows for _ in range(k)], [r for g in groups for r in g]
        graded = reward.start_grading(repeated, flat)()
        rewards = np.array(graded.rewards).reshape(-1, k)                                  # (P, k)
        results |= accuracies(kind, rewards == 1)
        of_prompts[kind if kind == "greedy" else f"avg@{k}"] = (rewards == 1).mean(1)
        all_rewards.append(rewards.mean(1))
        for key in flags:
            flags[key] += getattr(graded, key)
        dicts = [as_dict(r, x) for r, x in zip(flat, graded.rewards, strict=True)]
        if grader == "paper":
            for row, d in zip(repeated, dicts, strict=True):
                d["paper"] = PAPER_GRADERS[reward.reward_of(row["task"])](
                    d["text"], row["answer"], not d["truncated"])
            right = np.array([d["paper"] == 1 for d in dicts]).reshape(-1, k)
            results |= {f"{name}, paper's grader": value
                        for name, value in accuracies(kind, right).items() if "pass" not in name}
            differ += [d["paper"] != d["reward"] for d in dicts]
        for i, record in enumerate(records):
            record[kind] = dicts[i * k:(i + 1) * k]
    shown = [r for group in responses.get("samples", responses["greedy"]) for r in group]
    if not {0.0, 1.0}.issuperset(np.unique(rewards)):  # a reward that gives partial credit
        results["reward"] = mean_with_interval(all_rewards[-1])
    results["response_length"] = float(np.mean([len(r.tokens) for r in shown]))
    results["truncated"] = float(np.mean([r.truncated for r in shown]))
    results |= {f"grade_{key}": float(np.mean(values)) for key, values in flags.items()}
    if differ:
        results["graders_differ"] = float(np.mean(differ))
    if results["truncated"] > 0.5:
        print("warning: most responses were truncated; raise --max_response_tokens")
    results["groups"] = by_group(rows, of_prompts)
    return results, records


def accuracies(kind, right):
    """Measures of one kind of responses. right (P, k) bool; kind: "greedy", of which k is 1, or
    "samples"."""
    num_prompts, k = right.shape
    if kind == "greedy":
        return {"greedy": {"value": right.mean(), "ci95": wilson(right.mean(), num_prompts)}}
    counts = right.sum(1).tolist()
    results = {f"avg@{k}": mean_with_interval(right.mean(1))}
    for m in sorted({2 ** i for i in range(1, k.bit_length())} | {k} - {1}):  # pass@1 is avg@k
        results[f"pass@{m}"] = mean_with_interval([pass_at_k(k, c, m) for c in counts])
    return results


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


def print_examples(records):
    """The first `show` wrong greedy responses, and why they are wrong; and as many of which the two
    graders judge differently."""
    greedy = [(record, record["greedy"][0]) for record in records]
    for record, r in [pair for pair in greedy if pair[1]["reward"] < 1][:show]:
        print_response(record, r, reward.explain(record["task"], r["text"], record["answer"],
                                                 not r["truncated"]))
    for record, r in [pair for pair in greedy if pair[1].get("paper", pair[1]["reward"])
                      != pair[1]["reward"]][:show]:
        print_response(record, r, f"{r['reward']:g} by reward.py, {r['paper']:g} by the paper's "
                       f"grader, for the answer {record['answer']!r}")


def print_response(record, response, comment):
    print(f"\n---- {record['id']}: {comment}\n{record['prompt']}\n---- response\n"
          f"{response['text']}")


# ---- the stage -----------------------------------------------------------------------------------

def make_jobs(name, tasks):
    """([Job of each task], (config, EOS)) of a model. Raises OSError or ValueError."""
    path, config, tokenizer = open_model(name)
    context = config.max_position_embeddings - max_response_tokens
    folder = name if os.path.isdir(name) else os.path.join("out", "eval", name)
    read_results(folder)  # an error now and not after hours
    of_model, jobs = fingerprint(path), []
    for t in tasks:
        rows = load_prompts(t, "test", tokenizer, max_prompt_tokens, drop_long_prompts, context,
                            reward.reward_of, chat_template)
        if grader:
            other = [row["task"] for row in rows
                     if reward.reward_of(row["task"]) not in PAPER_GRADERS]
            check(not other, f"--grader=paper: the paper's code has no grader for {other[:1]}")
        sampled_with = {"model": of_model, "prompts": fingerprint_prompts(rows),
                        "max_response_tokens": max_response_tokens, "dtype": dtype}
        jobs.append(Job(path, task_name(t), subset(rows, max_prompts, seed=0), folder,
                        sampled_with))
    return jobs, (config, tokenizer)


def main():
    if plot or report:
        from lib.plot import plot_runs, read_runs  # imports matplotlib
        from lib.report import write_report
        with one_line_errors():
            check(world_size == 1, "pictures and reports are made in one process: use python")
            if report:
                print(f"wrote {write_report(os.path.normpath(report))}")
            else:
                runs = read_runs([os.path.normpath(folder) for folder in plot.split(",")])
                *_, last = runs
                png = os.path.join(last, "curves.png" if len(runs) == 1 else "compare.png")
                plot_runs(runs, png)
                print(f"wrote {png}")
        return
    names, tasks = ([x.strip() for x in several.split(",")] for several in (model, task))
    with one_line_errors():  # everything is checked before the first model is sampled
        check_settings(dtype, max_response_tokens=max_response_tokens, tp=tp)
        check(samples_per_prompt or not kl_to, "--kl_to needs --samples_per_prompt of 1 or more")
        check(grader in ("", "paper"), f"--grader={grader}: it can be paper, or empty")
        other = find_model(kl_to) if kl_to else None
        jobs, (config, tokenizer) = make_jobs(names[0], tasks)
        for name in names[1:]:
            more, (config_2, tokenizer_2) = make_jobs(name, tasks)
            check((config_2, tokenizer_2.eos_token_id) == (config, tokenizer.eos_token_id),
                  f"{name} has another shape or end-of-text token than {names[0]}; evaluate them "
                  "one at a time")
            jobs += more
    print_first_prompt(jobs[0].rows, tokenizer)

    engine, loaded = None, None

    def engine_with(path):
        nonlocal engine, loaded
        set_phase("building the engine")
        if not engine:
            from rollout import Engine  # imports vLLM, which takes seconds
            longest = max(len(row["tokens"]) for job in jobs for row in job.rows)
            with one_line_errors():
                engine = Engine(path, dtype, longest + max_response_tokens,
                                gpu_memory_utilization, tp)
        elif engine.asleep or path != loaded:
            engine.sync(read_weights(path, config.tie_word_embeddings))
        loaded = path
        return engine

    by_task = {}
    for job in jobs:
        responses = {"greedy": collect(job, "greedy", 1, engine_with)}
        if samples_per_prompt:
            responses["samples"] = collect(job, "samples", samples_per_prompt, engine_with)
        set_phase(f"grading {job.task}")
        with one_line_errors():
            results, records = measure(job.rows, responses)
        if other:
            set_phase(f"KL of {job.path} on {job.task}")
            if engine:
                engine.sleep()
            results.update(kl_divergence(job.path, other, job.rows, responses["samples"]))
        by_task.setdefault(job.task, []).append(results)
        if rank == 0:
            write_jsonl(os.path.join(job.folder, f"eval-{job.task}.jsonl"), records)
            saved = {**results, "settings": {"samples_per_prompt": samples_per_prompt,
                                             **job.settings("samples")}}
            with atomic_file(os.path.join(job.folder, "eval.json")) as f:
                json.dump({**read_results(job.folder), job.task: saved}, f, indent=2)
            print_examples(records)
    tables = [table(t, names, all_results) for t, all_results in by_task.items()]
    if len(by_task) > 1 or set(by_task) & set(PAPER_TASKS):
        tables.append(summary(names, by_task, (config.hidden_size, config.num_hidden_layers)))
    print("", *tables, sep="\n")
    if rank == 0:
        with atomic_file(os.path.join(jobs[-1].folder, "eval.md")) as f:
            f.write("\n".join(tables))
    for name in names:
        run = os.path.dirname(os.path.normpath(name))
        if rank == 0 and os.path.isfile(os.path.join(run, "metrics.jsonl")):
            from lib.card import rewrite_card  # imports matplotlib
            from lib.report import write_report
            print(f"wrote {write_report(run)}")
            rewrite_card(run)


if __name__ == "__main__":
    configure(globals())
    run_stage(main, timeout_minutes=timeout_minutes)
