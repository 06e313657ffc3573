"""Stage 2 of A*-PO: train on-policy with one response per prompt, by regressing the policy's log-ratio on the advantage.

    python train_apo.py                                               # the embedded arithmetic task
    torchrun --nproc_per_node=1 train_apo.py config/gsm8k_qwen2.5_1.5b.py
    mkdir -p out/higher_lr && cp out/gsm8k_qwen2.5_1.5b/values.pt out/higher_lr      # another run on the same values
    torchrun --nproc_per_node=1 train_apo.py config/gsm8k_qwen2.5_1.5b.py --lr=2e-6 --out=out/higher_lr

Each step samples one response y for each prompt x of a batch from the current policy, and minimises

    ( beta2 ln(pi(y|x) / pi_ref(y|x))  -  (r(x, y) - V*(x)) )^2

with V* from estimate_value.py. The left part is what the log-ratio is, the right what it would be under the optimal policy.
Against PPO and GRPO there is no critic, no group of samples per prompt, no clipping and no importance ratio.

Reads data/<task>/{train,test}.jsonl and <out>/values.pt; writes <out>/metrics.jsonl, a line per step, and <out>/model.
vLLM samples in this same process: it sleeps while the policy trains and takes the new weights after every step.
"""
import hashlib
import json
import os
import shutil
import sys
import time
from functools import partial
from glob import glob

from common import (check, check_settings, configure, fingerprint_prompts, fingerprint_reward, load_prompts, one_line_errors,
                    open_model, read_jsonl, sampling_seed, single_process, subset, whole_folder, write_jsonl)

import numpy as np  # common comes before torch, to quiet it
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from estimate_value import load_values
from model import Qwen2, fingerprint, pack, shard_model, split_by_tokens, sum_per_sequence
from reward import grade, start_grading

# what
model = "data/arithmetic/model"  # initial policy and reference: a folder in Hugging Face format, or a name on the hub
task = "arithmetic"              # data/<task>
out = ""                         # the run's folder, with stage 1's values.pt; empty: out/<task>
seed = 0
# sampling
max_prompt_tokens = 0            # longest prompt; 0: as long as the model's context allows
drop_long_prompts = False        # leave longer prompts out instead of stopping
drop_unsolved = False            # leave out prompts that the reference model never solved in stage 1
max_response_tokens = 32         # longer responses are cut
temperature = 1.0
# optimisation
max_steps = 32
batch_size = 256                 # prompts a step, one response each
mini_batch_size = 128            # prompts an update; the updates after a step's first are slightly off-policy
beta2 = 1e-3                     # strength of the pull towards the reference
lr = 4e-4
lr_decay = True                  # linearly to 0 at max_steps; otherwise constant
adam_beta1 = 0.9
adam_beta2 = 0.999
weight_decay = 0.0
grad_clip = 1.0                  # largest norm of an update's gradient
entropy_coef = 0.0               # bonus on the mean entropy per response token; the paper's code has 1e-3, its text none
# evaluation on held-out prompts
eval_every = 4                   # steps
eval_prompts = 256               # so many of data/<task>/test.jsonl; 0: all
# checkpoints, to go on from after an interruption
save_every = 8                   # steps; 0: none. <out>/ckpt keeps the newest
resume = True                    # go on from <out>/ckpt if there is one; False: begin anew, and delete it
# the machine
dtype = "float32"                # compute in float32 or bfloat16; master weights, gradients and AdamW are float32
micro_batch_tokens = 16384       # tokens in one forward and backward pass
checkpoint_activations = False   # recompute activations in backward: a third more compute, far less memory
engine_memory = 0.5              # share of the GPU for vLLM while it is awake
logp_tolerance = 0.0             # largest mean |ln p(vLLM) - ln p(trainer)| of a token; 0: from the dtype and the first step
# ---------------------------------------------------------------------------------------------------------------------

# Shapes: B sequences in a micro-batch, T packed tokens, batch responses in a step.


def apo_loss(logps, ref_logps, rewards, v_star, beta2):
    """Mean of (beta2 ln(pi/pi_ref) + V* - r)^2. All (B,), log-probabilities summed over the response. Paper, stage 2."""
    return (beta2 * (logps - ref_logps) + v_star - rewards).square().mean()


def batch_at(step, num_prompts):
    """Indices of a step's prompts, (batch_size,): a fresh permutation every epoch, a function of seed and step alone."""
    epoch, k = divmod(step, num_prompts // batch_size)
    return np.random.default_rng([seed, epoch]).permutation(num_prompts)[k * batch_size:(k + 1) * batch_size].tolist()


def evaluate_policy(engine, rows):
    """Share of held-out prompts that the engine's policy solves: (greedy, sampled once at temperature 1)."""
    accuracy = []
    for t in (0.0, 1.0):
        responses = engine.generate([row["tokens"] for row in rows], [sampling_seed(seed, "eval", row["id"]) for row in rows],
                                    max_response_tokens, t)
        accuracy.append(sum(grade(rows, [r.text for r in responses], [r.finished for r in responses]).rewards) / len(rows))
    return accuracy


def check_sampler(step, mean, largest, first_mean):
    """Exit unless vLLM's and the trainer's log-probabilities of the samples agree: else they are of different weights.

    How far rounding alone takes them apart depends on dtype and model (means on arithmetic: 3e-7 in float32, 8e-4 in
    bfloat16), so besides a fixed limit the run's own first step is the measure: later ones stay within three times that."""
    fixed = 0.1 if dtype == "bfloat16" else 1e-2 if torch.cuda.is_available() else 1e-4
    limit = logp_tolerance or min(fixed, 3 * first_mean + 1e-4)
    if not mean <= limit:
        sys.exit(f"error: step {step}: vLLM's log-probabilities differ from the trainer's by {mean:.2g} a token on average "
                 f"(at most {largest:.2g}; allowed on average {limit:.2g}): the samples come from other weights than those in "
                 "training. The weights were not updated.")


def read_inputs(folder):
    """Everything stage 2 reads, checked to belong together. Raises OSError or ValueError with one line."""
    check_settings(dtype, max_response_tokens, max_steps=max_steps, batch_size=batch_size, mini_batch_size=mini_batch_size,
                   eval_every=eval_every)
    check(batch_size % mini_batch_size == 0, f"--mini_batch_size={mini_batch_size} does not divide --batch_size={batch_size}")
    check(temperature > 0, f"--temperature={temperature}: training needs samples; it must be above 0")
    path, config, tokenizer = open_model(model)
    train, test = (load_prompts(task, split, tokenizer, max_prompt_tokens, drop_long_prompts,
                                config.max_position_embeddings - max_response_tokens) for split in ("train", "test"))
    values_path = os.path.join(folder, "values.pt")
    if not os.path.isfile(values_path):
        raise FileNotFoundError(f"{values_path}: no such file; make it with estimate_value.py and the same "
                                "--model, --task and --out, or copy it from another run")
    values = load_values(values_path)
    ours = {"model": fingerprint(path), "prompts": fingerprint_prompts(train), "reward": fingerprint_reward(),
            "temperature": temperature, "max_response_tokens": max_response_tokens}
    for part, mine in ours.items():
        check(values["meta"].get(part) == mine, f"{values_path} was made with another {part} than this run's "
              f"({values['meta'].get(part)}, here {mine}); run estimate_value.py again with this run's settings, or mend them")
    by_id = {row["id"]: row for row in train}
    rows = [{**by_id[i], "v_star": v} for i, v, r in zip(values["ids"], values["v_star"].tolist(), values["rewards"])
            if not drop_unsolved or r.max() > 0]
    check(batch_size <= len(rows), f"--batch_size={batch_size} is larger than the data set: {values_path} has {len(rows)} "
          f"prompts{' that were ever solved' if drop_unsolved else ''}")
    fingerprint_values = hashlib.sha256(json.dumps([[row["id"], row["v_star"]] for row in rows]).encode()).hexdigest()
    return path, config, tokenizer, rows, subset(test, eval_prompts, 0), fingerprint_values


# ---- checkpoints -------------------------------------------------------------------------------------------------

# What may change when a run goes on: it moves no sample and no gradient beyond rounding.
MAY_DIFFER = ("out", "eval_every", "eval_prompts", "save_every", "resume", "micro_batch_tokens", "checkpoint_activations",
              "engine_memory", "logp_tolerance")


def find_checkpoint(folder, constants):
    """(path, step) of the newest checkpoint to go on from, or (None, 0). Raises ValueError, naming the constant, if it was
    trained with other settings than this run's."""
    paths = sorted(glob(os.path.join(folder, "ckpt", "step-" + "[0-9]" * 6)))
    if not resume or not paths:
        return None, 0
    with open(os.path.join(paths[-1], "constants.json")) as f:
        theirs = json.load(f)
    for name, value in constants.items():
        may_differ = name in MAY_DIFFER or name == "max_steps" and not lr_decay
        check(may_differ or theirs.get(name) == value, f"{paths[-1]} was trained with {name} = {theirs.get(name)!r}, "
              f"this run has {value!r}; choose another --out, or begin anew with --resume=False")
    return paths[-1], int(paths[-1][-6:])


def save_checkpoint(folder, step, policy, optimizer, constants):
    """Write <folder>/ckpt/step-NNNNNN, after so many steps, then delete the older ones."""
    path = os.path.join(folder, "ckpt", f"step-{step:06d}")
    weights, moments = get_state_dict(policy, optimizer)
    with whole_folder(path) as temporary:
        dcp.save({"policy": weights, "optimizer": moments}, checkpoint_id=temporary)
        with open(os.path.join(temporary, "constants.json"), "w") as f:
            json.dump(constants, f, indent=2)
    for old in set(glob(os.path.join(folder, "ckpt", "step-*"))) - {path}:
        shutil.rmtree(old)


def load_checkpoint(path, policy, optimizer):
    """Weights, AdamW moments and update count, in place."""
    weights, moments = get_state_dict(policy, optimizer)
    dcp.load({"policy": weights, "optimizer": moments}, checkpoint_id=path)
    set_state_dict(policy, optimizer, model_state_dict=weights, optim_state_dict=moments)


# ---- the loop ----------------------------------------------------------------------------------------------------

HEADER = "step  reward  acc(greedy/sampled)      kl    loss   gnorm  length  cut  |dlogp|  tok/s  seconds: gen  ref train sync"


def screen_line(m):
    """One step's metrics for the screen, under HEADER."""
    acc = f"{m['accuracy']:.3f} / {m['accuracy_sampled']:.3f}" if "accuracy" in m else ""
    return (f"{m['step']:4d}  {m['reward']:6.3f}  {acc:^19}  {round(m['kl'], 5) + 0:8.5f}  {m['loss']:6.4f}  "
            f"{m['grad_norm']:6.3f}  {m['response_length']:6.1f}  {m['truncated']:3.0%}  {m['logp_diff_max']:.1e}  "
            f"{m['tokens'] / m['seconds_step']:5.0f}  {m['seconds_generate']:12.2f} {m['seconds_reference']:4.2f} "
            f"{m['seconds_train']:5.2f} {m['seconds_sync']:4.2f}")


def main(constants):
    # ---- set-up ----
    single_process()
    folder = out or os.path.join("out", task)
    metrics_path = os.path.join(folder, "metrics.jsonl")
    with one_line_errors():
        path, config, tokenizer, rows, test, values = read_inputs(folder)
        constants = {**constants, "values": values}
        checkpoint, first_step = find_checkpoint(folder, constants)
        history = [m for m in read_jsonl(metrics_path, ("step",)) if m["step"] < first_step] if checkpoint else []
    if first_step >= max_steps and os.path.isdir(os.path.join(folder, "model")):
        print(f"{folder} is trained: {first_step} steps; raise --max_steps to go on, or begin anew with --resume=False")
        return
    from rollout import Engine  # imports vLLM, which takes seconds
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    compute = getattr(torch, dtype)
    # Under plain python, what torchrun with one process would set up.
    alone = {} if "RANK" in os.environ else {"store": torch.distributed.HashStore(), "rank": 0, "world_size": 1}
    torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", **alone)

    with one_line_errors():
        engine = Engine(path, dtype, max(len(row["tokens"]) for row in rows + test) + max_response_tokens, engine_memory)
    engine.sleep()
    policy = Qwen2.from_pretrained(path, torch.float32, device, partial(shard_model, compute_dtype=compute))
    reference = Qwen2.from_pretrained(path, compute, device, partial(shard_model, compute_dtype=compute))
    policy.checkpoint_activations = checkpoint_activations
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, betas=(adam_beta1, adam_beta2), weight_decay=weight_decay,
                                  fused=cuda)
    num_params = sum(p.numel() for p in policy.parameters())
    print(f"{num_params:,} parameters, {len(rows):,} prompts, {len(rows) // batch_size} steps an epoch, "
          f"{max_steps} steps of {batch_size} responses")
    if checkpoint:
        load_checkpoint(checkpoint, policy, optimizer)
        print(f"going on from {checkpoint}")
    else:
        shutil.rmtree(os.path.join(folder, "ckpt"), ignore_errors=True)
    engine.sync(policy.full_weights(), config.tie_word_embeddings)
    if not checkpoint:
        start = dict(zip(("accuracy_start", "accuracy_start_sampled"), evaluate_policy(engine, test)))
        print("held-out accuracy before training: {:.3f} greedy, {:.3f} sampled".format(*start.values()))
    print(HEADER, flush=True)

    def clock():
        if cuda:
            torch.cuda.synchronize()  # so that each phase is charged for its own work
        return time.perf_counter()

    first_mean = None  # the sampler's rounding, measured in this process's first step
    for step in range(first_step, max_steps):
        times = [clock()]

        # ---- sample one response per prompt from the current policy ----
        batch = [rows[i] for i in batch_at(step, len(rows))]
        prompts = [row["tokens"] for row in batch]
        responses = engine.generate(prompts, [sampling_seed(seed, "stage 2", step, row["id"]) for row in batch],
                                    max_response_tokens, temperature, logps=True)
        engine.sleep()
        times.append(clock())

        # ---- score, in other processes while this one goes on ----
        grading = start_grading(batch, [r.text for r in responses], [r.finished for r in responses])
        v_star = torch.tensor([row["v_star"] for row in batch])                                                # (batch,)

        # ---- log-probabilities under the reference, in the micro-batches of training: equal models, equal numbers ----
        tokens = [r.tokens for r in responses]
        lengths = [len(p) + len(t) for p, t in zip(prompts, tokens)]
        mini_batches = [[pack(index, prompts, tokens, device)
                         for index in split_by_tokens(range(i, i + mini_batch_size), lengths, micro_batch_tokens)]
                        for i in range(0, batch_size, mini_batch_size)]
        with torch.no_grad():
            ref_logps = [[reference.token_logps(micro.input_ids, micro.cu_seqlens, temperature, micro.where)
                          for micro in micros] for micros in mini_batches]
        times.append(clock())
        graded = grading()
        rewards = torch.tensor(graded.rewards)                                                                 # (batch,)
        times.append(clock())

        # ---- regress ----
        now_lr = lr * (1 - step / max_steps) if lr_decay else lr
        for group in optimizer.param_groups:
            group["lr"] = now_lr
        sums = torch.zeros(3, device=device)  # of loss, KL and entropy
        grad_norms, differences = [], []
        for n, micros in enumerate(mini_batches):
            num_tokens = sum(len(tokens[i]) for micro in micros for i in micro.index.tolist())
            for micro, ref in zip(micros, ref_logps[n]):                                                       # ref (T,)
                logps, entropy = policy.token_logps(micro.input_ids, micro.cu_seqlens, temperature, micro.where,
                                                    entropy=True)                                              # (T,), (T,)
                loss = apo_loss(sum_per_sequence(logps, micro.cu_seqlens), sum_per_sequence(ref, micro.cu_seqlens),
                                rewards[micro.index].to(device), v_star[micro.index].to(device), beta2)
                loss = loss * len(micro.index) / mini_batch_size  # its share of the mini-batch's mean
                bonus = entropy_coef * entropy.sum() / num_tokens if entropy_coef else 0.0
                (loss - bonus).backward()

                sampled = torch.tensor([x for i in micro.index.tolist() for x in responses[i].logps], device=device)
                sums += torch.stack((loss.detach(), (sampled - ref[micro.where]).sum(), entropy.detach().sum()))
                if n == 0:  # before the step's first update the trainer's policy must be the one that was sampled from
                    differences.append((logps.detach()[micro.where] - sampled).abs())
            if n == 0:
                difference = torch.cat(differences)
                diff_mean, diff_max = difference.mean().item(), difference.max().item()
                first_mean = diff_mean if first_mean is None else first_mean
                check_sampler(step, diff_mean, diff_max, first_mean)
            norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), grad_clip).full_tensor().item()
            if not np.isfinite(norm):
                sys.exit(f"error: step {step}: the gradient's norm is {norm}. The weights were not updated.")
            optimizer.step()
            optimizer.zero_grad()
            grad_norms.append(norm)
        times.append(clock())

        # ---- bring the new weights to the engine ----
        engine.sync(policy.full_weights(), config.tie_word_embeddings)
        times.append(clock())

        # ---- log, evaluate, save ----
        total = sum(len(t) for t in tokens)
        loss, kl, entropy = sums.tolist()
        metrics = {"step": step, "reward": rewards.mean().item(), "loss": loss / len(mini_batches), "kl": kl / total,
                   "entropy": entropy / total, "grad_norm": sum(grad_norms) / len(grad_norms),
                   "response_length": total / batch_size, "truncated": sum(not r.finished for r in responses) / batch_size,
                   "v_star": v_star.mean().item(), "logp_diff_max": diff_max, "logp_diff_mean": diff_mean,
                   "grade_inexact": sum(graded.inexact) / batch_size, "grade_timed_out": sum(graded.timed_out) / batch_size,
                   "tokens": total, "lr": now_lr}
        phases = ("generate", "reference", "grade", "train", "sync")
        metrics.update({f"seconds_{phase}": end - begin for phase, begin, end in zip(phases, times, times[1:])})
        metrics["seconds_step"] = times[-1] - times[0]
        if step == 0:
            metrics.update(start)
        if (step + 1) % eval_every == 0 or step + 1 == max_steps:
            metrics["accuracy"], metrics["accuracy_sampled"] = evaluate_policy(engine, test)
            metrics["seconds_eval"] = clock() - times[-1]
        history.append(metrics)
        write_jsonl(metrics_path, history)
        print(screen_line(metrics), flush=True)
        if metrics["truncated"] > 0.5:
            print(f"      warning: {metrics['truncated']:.0%} of the responses were cut at {max_response_tokens} tokens, most "
                  "of them before their answer; raise --max_response_tokens")
        if save_every and ((step + 1) % save_every == 0 or step + 1 == max_steps):
            save_checkpoint(folder, step + 1, policy, optimizer, constants)

    with whole_folder(os.path.join(folder, "model")) as temporary:
        policy.save_pretrained(temporary, compute)
        tokenizer.save_pretrained(temporary)
    print(f"wrote {metrics_path} and {folder}/model")
    engine.shutdown()


if __name__ == "__main__":
    main(configure(globals()))
