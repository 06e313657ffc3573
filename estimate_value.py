"""Stage 1 of A*-PO: estimate the optimal value V* of every training prompt, offline.

    python estimate_value.py                                                    # arithmetic
    torchrun --standalone --nproc_per_node=8 estimate_value.py config/math.py   # Qwen2.5-1.5B
    torchrun --standalone --nproc_per_node=8 estimate_value.py config/math.py \
        --samples_per_prompt=16

Each prompt x gets N samples y_1 ... y_N from the reference model, and

    V*(x) = beta1 ln( 1/N sum_i exp(r(x, y_i) / beta1) )

A prompt that is never solved has V* = 0, so a correct response later has advantage 1.

Writes <out>/values.pt for train_apo.py, and <out>/responses.jsonl to read. If it is interrupted,
the same command continues it. Asked for more samples or prompts, it samples only what is missing;
after a change of beta1 or of the reward it only grades again. V* depends on the reference model
alone, so one values.pt serves any number of runs of stage 2.

The paper's authors have published samples of their models. With these, nothing is sampled:

    python estimate_value.py config/gsm8k.py \
        --responses_from=Cornell-AGI/gsm8k_size_qwen2.5_1.5b_eval    # or its .parquet file
"""
import os
from math import log

import reward
from lib.cli import check, check_settings, configure, one_line_errors
from lib.data import (fingerprint_prompts, load_prompts, print_first_prompt, sampling_seed, subset,
                      task_name, versions)
from lib.distributed import all_gather, rank, run_stage, set_activity
from lib.files import atomic_file, files_in, lock, write_jsonl
from lib.samples import (PARTS, PROMPT_SETTINGS, Response, describe, push_responses,
                         read_published, read_samples, sample)
from lib.weights import fingerprint
from model import open_model

import torch

model = "data/arithmetic/model"  # reference model: a local folder, or a hub name
task = "arithmetic"              # a file in tasks/, or a path: my_tasks/chess.py
out = ""                         # the run's folder, shared with stage 2; empty: out/<task>
samples_per_prompt = 8           # N
responses_from = ""              # instead of sampling: a data set in the paper's columns
keep_rewards = False             # with responses_from: take its rewards; False: grade again
push_to_hub = ""                 # upload the responses in these columns, to name/of-data-set
max_prompts = 0                  # use a random subset of this many prompts; 0: all
max_prompt_tokens = 0            # leave longer prompts out; 0: refuse what exceeds the context
chat_template = False            # wrap prompts in the model's template, for instruct models
chat_template_kwargs = ""        # the template's arguments, such as {"enable_thinking": false}
max_response_tokens = 32         # longer responses are truncated
temperature = 1.0
beta1 = 0.5                      # small: near the largest reward; 0: the mean; < 0: V* = 0
dtype = "float32"                # float32 or bfloat16
seed = 0
gpu_memory_utilization = 0.9     # share of the GPU's memory for vLLM
tp = 1                           # GPUs that share a vLLM engine, for models too large for one
# --------------------------------------------------------------------------------------------------


def optimal_value(rewards, beta1):
    """V* of each prompt: beta1 ln mean exp(r / beta1). rewards (P, N) -> (P,). Paper, stage 1.

    As in the paper's code, beta1 = 0 is the mean reward (the limit of an infinite beta1), and a
    negative one is V* = 0.
    """
    if beta1 < 0:
        return rewards.new_zeros(len(rewards))
    if beta1 == 0:
        return rewards.mean(dim=1)
    exponents = rewards.double() / beta1  # in float32 a large beta1 would leave no digit of them
    return (beta1 * (torch.logsumexp(exponents, dim=1) - log(rewards.shape[1]))).to(rewards.dtype)


def finish(args, folder, rows, all_rows, samples, meta):
    """Grade every sample there is, on all ranks, and write all to responses.jsonl and what was
    asked for to values.pt. Returns (values, Graded). Raises OSError or ValueError with one line.
    """
    set_activity("grading")
    answers, n = {row["id"]: row for row in all_rows}, args.samples_per_prompt
    lost = sum((row["id"], i) not in samples for row in rows for i in range(n))
    check(not lost, f"{lost:,} responses are not in {folder}: it must be on a file system that all "
          "machines share. The same command samples what is missing")
    graded = reward.grade([answers[i] for i, _ in samples],
                          [Response([], s["text"], not s["finished"]) for s in samples.values()])
    for s, r in zip(samples.values(), graded.rewards, strict=True):
        s["reward"] = s["published"] if args.keep_rewards else r

    def column(key):  # (P, N)
        return torch.tensor([[samples[row["id"], i][key] for i in range(n)] for row in rows])

    v_star = optimal_value(column("reward"), args.beta1)                                     # (P,)
    values = {"ids": [row["id"] for row in rows], "rewards": column("reward"),
              "lengths": column("length").int(), "finished": column("finished"),
              "v_star": v_star, "meta": meta}
    if rank > 0:
        return values, graded
    by_id, of_prompt = dict(zip(values["ids"], v_star.tolist(), strict=True)), {}
    for (i, _), s in sorted(samples.items()):
        of_prompt.setdefault(i, []).append(s)
    write_jsonl(os.path.join(folder, "responses.jsonl"),
                [{"id": row["id"], "prompt": row["prompt"], "answer": row["answer"],
                  "v_star": by_id.get(row["id"]), "responses": of_prompt[row["id"]]}
                 for row in all_rows if row["id"] in of_prompt])
    with atomic_file(os.path.join(folder, "values.pt"), "wb") as f:
        torch.save(values, f)
    for part in files_in(folder, rf"{PARTS}\..*"):
        os.remove(part)
    return values, graded


def print_summary(values, seconds, tokens):
    """What a finished stage 1 found, with warnings about the usual mistakes."""
    print("\n{:,} prompts x {} samples".format(*values["rewards"].shape))
    for name, text in describe(values).items():
        print(f"  {name:<26}{text}")
    if tokens:
        print(f"  {tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:,.0f} per second")
    if values["finished"].float().mean() < 0.5:
        print("  warning: most responses were truncated. Usual causes: a low "
              "--max_response_tokens, an instruct model without --chat_template=True, or a base "
              "model that never stops at this kind of prompt")
    if not values["rewards"].any():
        print("  warning: no prompt was ever solved, so stage 2 has nothing to learn from. Compare "
              "responses.jsonl with what the reward asks for: where the final answer is, whether a "
              "response has to end by itself, whether the task's answers are bare")


def main(args):
    folder = args.out or os.path.join("out", task_name(args.task))
    with one_line_errors():
        check_settings(args.dtype, max_response_tokens=args.max_response_tokens,
                       samples_per_prompt=args.samples_per_prompt, tp=args.tp)
        check(args.temperature > 0, f"--temperature={args.temperature} must be above 0")
        check(args.responses_from or not args.keep_rewards, "--keep_rewards=True: the rewards of "
              "which responses? Set --responses_from, too")
        path, config, tokenizer = open_model(args.model)
        all_rows = load_prompts(args.task, "train", tokenizer, args.max_prompt_tokens,
                                config.max_position_embeddings, args.max_response_tokens,
                                args.chat_template, args.chat_template_kwargs)
        lock(folder)
        meta = {"model": fingerprint(path, tokenizer),
                "prompts": fingerprint_prompts(all_rows),
                "reward": reward.fingerprint(all_rows), "temperature": args.temperature,
                "max_response_tokens": args.max_response_tokens, "dtype": args.dtype,
                "seed": args.seed, "beta1": args.beta1, "task": args.task,
                "model_name": args.model, "versions": versions(),
                **{name: getattr(args, name) for name in PROMPT_SETTINGS}}
        if args.responses_from:  # no seed: these samples are not continued by ours
            meta |= {"seed": args.responses_from, "keep_rewards": args.keep_rewards}
        samples = read_samples(folder, meta) if rank == 0 else {}
        if args.responses_from:
            samples = read_published(args.responses_from, all_rows, args.samples_per_prompt,
                                     tokenizer, args.max_response_tokens)
            all_rows = [row for row in all_rows if (row["id"], 0) in samples]
    rows = subset(all_rows, args.max_prompts, args.seed)
    print_first_prompt(rows, tokenizer)

    missing = [(k, i) for k, row in enumerate(rows) for i in range(args.samples_per_prompt)
               if (row["id"], i) not in samples]
    missing = all_gather(missing if rank == 0 else None)[0]  # rank 0 has read the samples
    seconds, tokens = 0, 0
    if missing:
        set_activity("building the engine")
        from rollout import Engine  # imports vLLM, which takes seconds
        longest = max(len(row["tokens"]) for row in rows) + args.max_response_tokens
        with one_line_errors():
            engine = Engine(path, args.dtype, longest, args.gpu_memory_utilization, args.tp)
        todo = [(rows[k], i, sampling_seed(args.seed, "stage 1", rows[k]["id"], i))
                for k, i in missing]
        seconds, tokens = sample(engine, todo, folder, PARTS, meta, args.max_response_tokens,
                                 args.temperature)
    with one_line_errors():
        if not args.responses_from:
            samples = read_samples(folder, meta)
        values, graded = finish(args, folder, rows, all_rows, samples, meta)
    print_summary(values, seconds, tokens)
    if args.responses_from:
        differ = [s["published"] != r
                  for s, r in zip(samples.values(), graded.rewards, strict=True)]
        print(f"  reward.py differs from the published rewards in {sum(differ):,} of "
              f"{len(differ):,} responses; V* is computed from "
              f"{'the published ones' if args.keep_rewards else 'those of reward.py'}")
    print(f"wrote {folder}/values.pt and {folder}/responses.jsonl")
    if args.push_to_hub and rank == 0:
        push_responses(args.push_to_hub, rows, samples)


if __name__ == "__main__":
    run_stage(main, configure(__file__))
