"""Stage 2 of A*-PO: train on-policy with one response per prompt, by regressing the policy's log-ratio on the advantage.

    python train_apo.py                                               # the embedded arithmetic task
    torchrun --nproc_per_node=1 train_apo.py config/gsm8k_qwen2.5_1.5b.py
    torchrun --nproc_per_node=1 train_apo.py config/gsm8k_qwen2.5_1.5b.py --lr=2e-6 --out=out/higher_lr

Each step samples one response y for each prompt x of a batch from the current policy, and minimises

    ( beta2 ln(pi(y|x) / pi_ref(y|x))  -  (r(x, y) - V*(x)) )^2                                 (paper, eq. 5)

with V* from estimate_value.py. The left part is what the log-ratio is, the right what it would be under the optimal policy.
Against PPO and GRPO there is no critic, no group of samples per prompt, no clipping and no importance ratio.

Reads data/<task>/{train,test}.jsonl and <out>/values.pt; writes <out>/metrics.jsonl, a line per step, and <out>/model.
vLLM samples in this same process: it sleeps while the policy trains and takes the new weights after every step.
"""
import json
import os
import shutil
import sys
import time
from functools import partial
from glob import glob
from typing import NamedTuple

from common import (check, check_settings, configure, fingerprint_prompts, fingerprint_reward, load_prompts, one_line_errors,
                    open_model, read_jsonl, sampling_seed, single_process, whole_folder, write_jsonl)

import numpy as np  # common comes before torch, to quiet it
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from estimate_value import load_values
from model import Qwen2, fingerprint, shard_model
from reward import grade

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
save_every = 0                   # steps; 0: none. <out>/ckpt keeps the newest
resume = True                    # go on from <out>/ckpt if there is one; False: begin anew and delete it
# the machine
dtype = "float32"                # compute in float32 or bfloat16; master weights, gradients and AdamW are float32
micro_batch_tokens = 16384       # tokens in one forward and backward pass
checkpoint_activations = False   # recompute activations in backward: a third more compute, far less memory
gpu_memory = 0.5                 # share of the GPU for the engine while it is awake
logp_tolerance = 0.0             # largest mean |ln p| difference of vLLM and trainer; 0: 1e-4 (float32), 0.1 (bfloat16)
# ---------------------------------------------------------------------------------------------------------------------

# Shapes: B sequences in a micro-batch, T packed tokens.


def apo_loss(logps, ref_logps, rewards, v_star, beta2):
    """Mean of (beta2 ln(pi/pi_ref) + V* - r)^2. All (B,), log-probabilities summed over the response. Paper, eq. 5."""
    return (beta2 * (logps - ref_logps) + v_star - rewards).square().mean()


class MicroBatch(NamedTuple):
    """Some of a batch's sequences, packed."""
    index: torch.Tensor       # (B,) which of the batch's
    input_ids: torch.Tensor   # (T,) prompts and responses, end to end
    cu_seqlens: torch.Tensor  # (B + 1,) int32
    where: torch.Tensor       # (T,) bool: the response's tokens, EOS included; from lengths, since EOS may equal PAD


def pack(index, prompts, responses, device):
    """MicroBatch of the sequences `index`. prompts, responses: token id lists of the whole batch."""
    tokens = [t for i in index for t in prompts[i] + responses[i]]
    where = [k >= len(prompts[i]) for i in index for k in range(len(prompts[i]) + len(responses[i]))]
    lengths = [len(prompts[i]) + len(responses[i]) for i in index]
    return MicroBatch(torch.tensor(index), torch.tensor(tokens, device=device),
                      torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device=device),
                      torch.tensor(where, device=device))


def split_by_tokens(index, lengths, limit):
    """Split `index` into groups of at most `limit` tokens (or one sequence), longest first, so a group's are alike."""
    groups, room = [], 0
    for i in sorted(index, key=lambda i: -lengths[i]):
        if lengths[i] > room:
            groups.append([])
            room = limit
        groups[-1].append(i)
        room -= lengths[i]
    return groups


def sum_per_sequence(x, cu_seqlens):
    """(T,) -> (B,)"""
    return torch.segment_reduce(x, "sum", lengths=cu_seqlens.diff().long())


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
        accuracy.append(sum(grade(rows, [r.text for r in responses], [r.finished for r in responses])) / len(rows))
    return accuracy


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
                                "--model, --task and --out")
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
    return path, config, tokenizer, rows, test[:eval_prompts or None]


# ---- checkpoints -------------------------------------------------------------------------------------------------

MAY_DIFFER = ("out", "max_steps", "eval_every", "eval_prompts", "save_every", "resume", "gpu_memory", "logp_tolerance")


def find_checkpoint(folder, constants):
    """(path, step) of the newest checkpoint to go on from, or (None, 0). Raises ValueError, naming the constant, if it was
    trained with other settings than this run's."""
    paths = sorted(glob(os.path.join(folder, "ckpt", "step-" + "[0-9]" * 6)))
    if not resume or not paths:
        return None, 0
    with open(os.path.join(paths[-1], "constants.json")) as f:
        theirs = json.load(f)
    for name, value in constants.items():
        check(name in MAY_DIFFER or theirs.get(name) == value, f"{paths[-1]} was trained with {name} = {theirs.get(name)!r}, "
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
    return (f"{m['step']:4d}  {m['reward']:6.3f}  {acc:^19}  {round(m['kl'], 5) + 0:8.5f}  {m['loss']:6.4f}  {m['grad_norm']:6.3f}  "
            f"{m['response_length']:6.1f}  {m['truncated']:3.0%}  {m['logp_diff_max']:.1e}  "
            f"{m['tokens'] / m['seconds_step']:5.0f}  {m['seconds_generate']:12.2f} {m['seconds_reference']:4.2f} "
            f"{m['seconds_train']:5.2f} {m['seconds_sync']:4.2f}")


def main(constants):
    # ---- set-up ----
    single_process()
    from rollout import Engine  # imports vLLM: takes seconds
    folder = out or os.path.join("out", task)
    with one_line_errors():
        path, config, tokenizer, rows, test = read_inputs(folder)
        checkpoint, first_step = find_checkpoint(folder, constants)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    compute = {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]
    tolerance = logp_tolerance or (1e-4 if dtype == "float32" else 0.1)
    alone = {} if "RANK" in os.environ else {"store": torch.distributed.HashStore(), "rank": 0, "world_size": 1}
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", **alone)  # python: torchrun with one

    longest = max(len(row["tokens"]) for row in rows + test) + max_response_tokens
    engine = Engine(path, dtype, longest, gpu_memory)
    engine.sleep()
    with one_line_errors():
        policy = Qwen2.from_pretrained(path, torch.float32, device, partial(shard_model, compute_dtype=compute))
        reference = Qwen2.from_pretrained(path, compute, device, partial(shard_model, compute_dtype=compute))
    policy.checkpoint_activations = checkpoint_activations
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, betas=(adam_beta1, adam_beta2), weight_decay=weight_decay)
    metrics_path = os.path.join(folder, "metrics.jsonl")
    history = []
    if checkpoint:
        load_checkpoint(checkpoint, policy, optimizer)
        history = [m for m in read_jsonl(metrics_path, ("step",)) if m["step"] < first_step]
        print(f"going on from {checkpoint}")
    else:
        shutil.rmtree(os.path.join(folder, "ckpt"), ignore_errors=True)
    engine.sync(policy.full_weights(), config.tie_word_embeddings)

    num_params = sum(p.numel() for p in policy.parameters())
    print(f"{num_params:,} parameters, {len(rows):,} prompts, {len(rows) // batch_size} steps an epoch, "
          f"{max_steps} steps of {batch_size} responses", flush=True)
    if first_step == 0:
        start = dict(zip(("accuracy_start", "accuracy_start_sampled"), evaluate_policy(engine, test)))
        print("held-out accuracy before training: {:.3f} greedy, {:.3f} sampled".format(*start.values()))
    write_jsonl(metrics_path, history)
    print(HEADER)

    for step in range(first_step, max_steps):
        clock = [time.time()]

        # ---- sample one response per prompt from the current policy ----
        batch = [rows[i] for i in batch_at(step, len(rows))]
        prompts = [row["tokens"] for row in batch]
        responses = engine.generate(prompts, [sampling_seed(seed, "stage 2", step, row["id"]) for row in batch],
                                    max_response_tokens, temperature, logps=True)
        engine.sleep()
        clock.append(time.time())

        # ---- score ----
        rewards = torch.tensor(grade(batch, [r.text for r in responses], [r.finished for r in responses]))     # (batch,)
        v_star = torch.tensor([row["v_star"] for row in batch])                                                # (batch,)

        # ---- log-probabilities under the reference, in the same micro-batches as below: equal models, equal numbers ----
        tokens = [r.tokens for r in responses]
        lengths = [len(p) + len(t) for p, t in zip(prompts, tokens)]
        mini_batches = [[pack(index, prompts, tokens, device)
                         for index in split_by_tokens(range(i, i + mini_batch_size), lengths, micro_batch_tokens)]
                        for i in range(0, batch_size, mini_batch_size)]
        with torch.no_grad():
            ref_logps = [[reference.token_logps(micro.input_ids, micro.cu_seqlens, temperature, micro.where)
                          for micro in micros] for micros in mini_batches]
        clock.append(time.time())

        # ---- regress ----
        now_lr = lr * (1 - step / max_steps) if lr_decay else lr
        for group in optimizer.param_groups:
            group["lr"] = now_lr
        loss_sum = kl_sum = entropy_sum = 0.0
        grad_norms, logp_diffs = [], []
        for n, micros in enumerate(mini_batches):
            num_tokens = sum(int(micro.where.sum()) for micro in micros)
            for micro, ref in zip(micros, ref_logps[n]):                                                       # ref (T,)
                logps, entropy = policy.token_logps(micro.input_ids, micro.cu_seqlens, temperature, micro.where,
                                                    entropy=True)                                              # (T,)
                loss = apo_loss(sum_per_sequence(logps, micro.cu_seqlens), sum_per_sequence(ref, micro.cu_seqlens),
                                rewards[micro.index].to(device), v_star[micro.index].to(device), beta2)
                loss = loss * len(micro.index) / mini_batch_size
                if entropy_coef:
                    loss = loss - entropy_coef * entropy.sum() / num_tokens
                loss.backward()
                loss_sum += loss.item()
                entropy_sum += entropy.sum().item()
                sampled = torch.tensor([x for i in micro.index.tolist() for x in responses[i].logps], device=device)
                kl_sum += (sampled - ref[micro.where]).sum().item()  # of the policy that the whole batch is from
                if n == 0:  # before the first update the trainer's policy must be that one
                    logp_diffs.append((logps[micro.where].detach() - sampled).abs())
            if n == 0:
                diff = torch.cat(logp_diffs)
                if not diff.mean() <= tolerance:
                    sys.exit(f"error: step {step}: vLLM's log-probabilities differ from the trainer's by {diff.mean():.2g} a "
                             f"token on average (largest {diff.max():.2g}, allowed {tolerance:.2g} on average): the samples "
                             "come from other weights than those being trained. The weights were not updated.")
            norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), grad_clip).full_tensor().item()
            if not np.isfinite(norm):
                sys.exit(f"error: step {step}: the gradient's norm is {norm}. The weights were not updated.")
            optimizer.step()
            optimizer.zero_grad()
            grad_norms.append(norm)
        clock.append(time.time())

        # ---- bring the new weights to the engine ----
        engine.sync(policy.full_weights(), config.tie_word_embeddings)
        clock.append(time.time())

        # ---- log ----
        total = sum(len(t) for t in tokens)
        generate, reference_, train, sync = np.diff(clock)
        metrics = {"step": step, "reward": rewards.mean().item(), "loss": loss_sum / len(mini_batches), "kl": kl_sum / total,
                   "entropy": entropy_sum / total, "grad_norm": sum(grad_norms) / len(grad_norms),
                   "response_length": total / batch_size, "truncated": 1 - sum(r.finished for r in responses) / batch_size,
                   "v_star": v_star.mean().item(), "logp_diff_max": diff.max().item(), "logp_diff_mean": diff.mean().item(),
                   "tokens": total, "lr": now_lr, "seconds_generate": generate, "seconds_reference": reference_,
                   "seconds_train": train, "seconds_sync": sync, "seconds_step": clock[-1] - clock[0]}
        if step == 0:
            metrics.update(start)
        if (step + 1) % eval_every == 0 or step + 1 == max_steps:
            metrics["accuracy"], metrics["accuracy_sampled"] = evaluate_policy(engine, test)
            metrics["seconds_eval"] = time.time() - clock[-1]
        with open(metrics_path, "a") as f:
            f.write(json.dumps(metrics) + "\n")
        print(screen_line(metrics), flush=True)
        if metrics["truncated"] > 0.5:
            print(f"      warning: {metrics['truncated']:.0%} of the responses were cut at {max_response_tokens} tokens and "
                  "learn nothing about their end; raise --max_response_tokens")
        if save_every and ((step + 1) % save_every == 0 or step + 1 == max_steps):
            save_checkpoint(folder, step + 1, policy, optimizer, constants)

    # ---- save ----
    with whole_folder(os.path.join(folder, "model")) as temporary:
        policy.save_pretrained(temporary, compute)
        tokenizer.save_pretrained(temporary)
    print(f"wrote {folder}/metrics.jsonl and {folder}/model")
    engine.shutdown()


if __name__ == "__main__":
    main(configure(globals()))
