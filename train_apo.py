"""Stage 2 of A*-PO: train on-policy with one response per prompt, by regressing the policy's log-ratio on the advantage.

    python train_apo.py                                                              # the embedded arithmetic task
    torchrun --nproc_per_node=8 train_apo.py config/gsm8k_qwen2.5_1.5b.py            # a process per GPU
    torchrun --nnodes=2 --node_rank=0 --master_addr=10.0.0.1 --nproc_per_node=8 train_apo.py config/gsm8k_qwen2.5_7b.py
    mkdir -p out/higher_lr && cp out/gsm8k_qwen2.5_1.5b/values.pt out/higher_lr      # another run on the same values
    torchrun --nproc_per_node=8 train_apo.py config/gsm8k_qwen2.5_1.5b.py --lr=2e-6 --out=out/higher_lr

Each step samples one response y for each prompt x of a batch from the current policy, and minimises

    ( beta2 ln(pi(y|x) / pi_ref(y|x))  -  (r(x, y) - V*(x)) )^2

with V* from estimate_value.py. The left part is what the log-ratio is, the right what it would be under the optimal policy.
Against PPO and GRPO there is no critic, no group of samples per prompt, no clipping and no importance ratio.

Reads data/<task>/{train,test}.jsonl and <out>/values.pt; writes <out>/metrics.jsonl, a line per step, and <out>/model.
Killed at any moment, the same command goes on from the newest checkpoint in <out>/ckpt, with any number of processes.
Every process trains a shard of the policy and samples with vLLM, which sleeps while the policy trains and takes the new
weights after every step.
"""
import hashlib
import json
import os
import sys
import time
from contextlib import contextmanager
from functools import partial

from common import (check, check_settings, configure, fingerprint_prompts, fingerprint_reward, load_prompts, one_line_errors,
                    open_model, read_jsonl, sampling_seed, start_grading_together, subset, whole_folder, write_jsonl)

import numpy as np  # common comes before torch, to quiet it
import torch

import checkpoint
import job
from estimate_value import load_values
from memory import estimate, forget, host_memory, in_words, resident
from model import Qwen2, deal, fingerprint, pack, shard_model, sum_per_sequence

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
save_every = 8                   # steps; 0: only when stopped by SIGTERM or Ctrl-C
keep_checkpoints = 2             # so many of the newest stay in <out>/ckpt
resume = True                    # go on from the newest whole one; False: begin anew, and delete them
# the machine
dtype = "float32"                # compute in float32 or bfloat16; master weights, gradients and AdamW are float32
micro_batch_tokens = 16384       # tokens in one forward and backward pass, on each rank
checkpoint_activations = False   # recompute activations in backward: a third more compute, far less memory
offload_reference = False        # keep the reference in host memory; its layers come to the GPU as they are needed
offload_optimizer = False        # keep master weights, gradients and AdamW's state in host memory, and update them there
engine_memory = 0.5              # share of the GPU for vLLM while it is awake
tp = 1                           # ranks that share an engine, for models that don't fit one GPU
replicate_nodes = False          # each node shards a copy of its own: less traffic between nodes, more memory
hang_limit = 540.0               # seconds without progress after which the job ends; a checkpoint must take less
logp_tolerance = 0.0             # largest mean |ln p(vLLM) - ln p(trainer)| of a token; 0: from the dtype and the first step
# ---------------------------------------------------------------------------------------------------------------------

# What may change when a run goes on: it moves no sample, and no gradient beyond rounding.
MAY_DIFFER = {"out", "eval_every", "eval_prompts", "save_every", "keep_checkpoints", "resume", "micro_batch_tokens",
              "checkpoint_activations", "offload_reference", "offload_optimizer", "engine_memory", "tp", "replicate_nodes",
              "hang_limit", "logp_tolerance"}

# Shapes: B sequences in a micro-batch, T packed tokens, batch responses in a step.


def apo_loss(logps, ref_logps, rewards, v_star, beta2):
    """Mean of (beta2 ln(pi/pi_ref) + V* - r)^2. All (B,), log-probabilities summed over the response. Paper, stage 2."""
    return (beta2 * (logps - ref_logps) + v_star - rewards).square().mean()


def batch_at(step, num_prompts):
    """Indices of a step's prompts, (batch_size,): a fresh permutation every epoch, a function of seed and step alone."""
    epoch, k = divmod(step, num_prompts // batch_size)
    return np.random.default_rng([seed, epoch]).permutation(num_prompts)[k * batch_size:(k + 1) * batch_size].tolist()


def evaluate_policy(engine, rows):
    """Metrics: the share of held-out prompts that the engine's policy solves, greedily and sampled once at temperature 1.
    {} if the job is to stop."""
    job.phase("evaluation")
    accuracy = {}
    for name, t in (("accuracy", 0.0), ("accuracy_sampled", 1.0)):
        responses = engine.generate([row["tokens"] for row in rows], [sampling_seed(seed, "eval", row["id"]) for row in rows],
                                    max_response_tokens, t)
        if job.stopping():
            return {}
        accuracy[name] = sum(start_grading_together(rows, responses)().rewards) / len(rows)
    return accuracy


def check_sampler(step, mean, largest, first_mean):
    """Exit unless vLLM's and the trainer's log-probabilities of the samples agree: else they are of different weights.

    How far rounding alone takes them apart depends on dtype and model (means on arithmetic: 3e-7 in float32, 8e-4 in
    bfloat16), so besides a fixed limit the run's own first step is the measure: later ones stay within three times that."""
    fixed = 0.1 if dtype == "bfloat16" else 1e-2 if torch.cuda.is_available() else 1e-4
    limit = logp_tolerance or min(fixed, 3 * first_mean + 1e-4)
    if not mean <= limit:
        sys.exit(f"error: step {step}: vLLM's log-probabilities differ from the trainer's by {mean:.2g} a token on average "
                 f"(at most {largest:.2g}; allowed on average {limit:.2g}): the samples come from other weights than those "
                 "in training. The weights were not updated. If logp_diff_mean in metrics.jsonl grew slowly, it is rounding: "
                 "raise --logp_tolerance")


def check_finite(step, loss, norm):
    """Exit before the update if loss or gradient is infinite or not a number; the same on every rank."""
    if not (np.isfinite(loss) and np.isfinite(norm)):
        sys.exit(f"error: step {step}: the loss is {loss}, the gradient's norm {norm}. The weights were not updated. Begin "
                 "anew in another --out with a lower --lr, or see whether --dtype=float32 mends it")


def read_inputs(folder):
    """Everything stage 2 reads, checked to belong together. Raises OSError or ValueError with one line."""
    check_settings(dtype, max_response_tokens, max_steps=max_steps, batch_size=batch_size, mini_batch_size=mini_batch_size,
                   eval_every=eval_every, keep_checkpoints=keep_checkpoints, tp=tp)
    check(batch_size % mini_batch_size == 0, f"--mini_batch_size={mini_batch_size} does not divide --batch_size={batch_size}")
    check(mini_batch_size % job.world == 0,
          f"--mini_batch_size={mini_batch_size} can't be dealt evenly to {job.world} processes")
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


def load_models(path, compute, replicas, pin):
    """(policy, reference, optimizer), sharded over all processes. Both models have the checkpoint's weights, the policy in
    float32, the reference in `compute`, the dtype that both compute in."""
    def load(dtype, offload):
        shard = partial(shard_model, compute_dtype=compute, offload=offload, pin=pin, replicas=replicas)
        return Qwen2.from_pretrained(path, dtype, "cpu" if offload else job.device, shard)

    job.phase("loading the policy")
    policy = load(torch.float32, offload_optimizer)
    policy.checkpoint_activations = checkpoint_activations
    job.phase("loading the reference")
    reference = load(compute, offload_reference)
    return policy, reference, torch.optim.AdamW(policy.parameters(), lr=lr, betas=(adam_beta1, adam_beta2),
                                                weight_decay=weight_decay, fused=True)


@contextmanager
def host_threads():
    """Around clipping and AdamW. Offloaded, they run on the host, for which vLLM and torchrun leave a rank one thread."""
    if not (offload_optimizer and job.cuda):
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // job.local_world))
    yield
    torch.set_num_threads(before)


def write_model(folder, steps, policy, tokenizer, dtype, constants):
    """Write <folder>/model in Hugging Face format, and training.json, which says what made it."""
    job.phase("writing the model")
    with whole_folder(os.path.join(folder, "model")) as temporary:
        policy.save_pretrained(temporary, dtype)
        if job.rank == 0:
            tokenizer.save_pretrained(temporary)
            with open(os.path.join(temporary, "training.json"), "w") as f:
                json.dump({"steps": steps, "constants": constants}, f, indent=2)


def steps_of_model(folder):
    """After how many steps <folder>/model was written; None if it isn't there."""
    try:
        with open(os.path.join(folder, "model", "training.json")) as f:
            return json.load(f)["steps"]
    except FileNotFoundError:
        return None


# ---- what a person sees --------------------------------------------------------------------------------------------

HEADER = "step  reward  acc(greedy/sampled)      kl    loss   gnorm  length  cut  |dlogp|  tok/s  seconds: gen  ref train sync"


def screen_line(m):
    """One step's metrics for the screen, under HEADER."""
    acc = f"{m['accuracy']:.3f} / {m['accuracy_sampled']:.3f}" if "accuracy" in m else ""
    return (f"{m['step']:4d}  {m['reward']:6.3f}  {acc:^19}  {round(m['kl'], 5) + 0:8.5f}  {m['loss']:6.4f}  "
            f"{m['grad_norm']:6.3f}  {m['response_length']:6.1f}  {m['truncated']:3.0%}  {m['logp_diff_max']:.1e}  "
            f"{m['tokens'] / m['seconds_step']:5.0f}  {m['seconds_generate']:12.2f} {m['seconds_reference']:4.2f} "
            f"{m['seconds_train']:5.2f} {m['seconds_sync']:4.2f}")


def warnings_about(history):
    """What the last step's metrics should make a person look at; a list of lines."""
    now, lines = history[-1], []
    best = max(history, key=lambda m: m["reward"])
    if best["reward"] >= 0.1 and now["reward"] < 0.2 * best["reward"]:
        lines.append(f"the policy has collapsed: reward {now['reward']:.3f}, after {best['reward']:.3f} in step "
                     f"{best['step']}. It won't recover by itself: stop, and begin anew with a lower --lr")
    if now["truncated"] > 0.5:
        lines.append(f"{now['truncated']:.0%} of the responses were cut at {max_response_tokens} tokens, most of them before "
                     "their answer: raise --max_response_tokens (from stage 1 on), or lower --lr if it began in training")
    return lines


# ---- the loop ----------------------------------------------------------------------------------------------------

class Clock:
    """Seconds of each of a step's phases. On a GPU work is queued, so each waits for its own before the next begins."""
    def __init__(self, step):
        self.step, self.seconds, self.phase = step, {}, None

    def begin(self, phase):
        if job.cuda:
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.phase:
            self.seconds[f"seconds_{self.phase}"] = now - self.since
        self.phase, self.since = phase, now
        job.phase(f"step {self.step}, {phase}")


def main(constants):
    # ---- read, and find out where to go on ----
    folder = out or os.path.join("out", task)
    metrics_path = os.path.join(folder, "metrics.jsonl")
    with one_line_errors():
        path, config, tokenizer, rows, test, values = read_inputs(folder)
        constants = {**constants, "values.pt": values}
        may_differ = MAY_DIFFER if lr_decay else MAY_DIFFER | {"max_steps"}
        saved, steps = checkpoint.newest(folder, constants, may_differ) if resume else (None, 0)
        history = [m for m in read_jsonl(metrics_path, ("step",)) if m["step"] < steps] if saved else []
    if steps >= max_steps and steps_of_model(folder) == steps:
        print(f"{folder} is trained: {steps} steps; raise --max_steps to go on, or begin anew with --resume=False")
        return

    # ---- say what it takes ----
    compute = getattr(torch, dtype)
    longest = max(len(row["tokens"]) for row in rows + test) + max_response_tokens
    replicas = job.world // job.local_world if replicate_nodes else 1
    device, host = estimate(config, job.world // replicas, min(micro_batch_tokens, mini_batch_size // job.world * longest),
                            dtype, checkpoint_activations, offload_reference, offload_optimizer)
    print(f"{len(rows):,} prompts, {len(rows) // batch_size} steps an epoch; {max_steps} steps of {batch_size} responses in "
          f"{job.world} process{'es' * (job.world > 1)}\neach takes about {in_words(device)} beside its engine"
          f"{f', and {in_words(host)} of host memory' if host else ''}", flush=True)

    # ---- engine, policy, reference ----
    job.phase("building the engine")
    from rollout import Engine  # imports vLLM, which takes seconds
    with one_line_errors():
        engine = Engine(path, dtype, longest, engine_memory, tp)
    engine.sleep()
    memory_before = resident()
    forget()
    policy, reference, optimizer = load_models(path, compute, replicas,
                                               pin=sum(host.values()) * job.local_world < 0.8 * host_memory())
    with one_line_errors():
        checkpoint.make_ready(folder, anew=not saved)
        if saved:
            job.phase("loading the checkpoint")
            checkpoint.load(saved, policy, optimizer)
            print(f"going on from {saved}")
    engine.sync(policy.full_weights(compute), config.tie_word_embeddings)

    def record():
        if job.rank == 0:
            write_jsonl(metrics_path, history)

    def save():
        job.phase("save")
        with one_line_errors():
            checkpoint.save(folder, steps, policy, optimizer, constants, keep_checkpoints)
        return steps

    def accuracy_is_due():
        return steps % eval_every == 0 or steps == max_steps

    start = {}
    if not saved:
        start = {k.replace("accuracy", "accuracy_start"): v for k, v in evaluate_policy(engine, test).items()}
        if start:
            print("held-out accuracy before training: {:.3f} greedy, {:.3f} sampled".format(*start.values()))
    elif accuracy_is_due() and "accuracy" not in history[-1]:  # stopped while it was measured
        history[-1].update(evaluate_policy(engine, test))
        record()
    print(HEADER, flush=True)
    first_mean = None    # the sampler's rounding, measured in this process's first step
    last_warning = -10   # the step when something was last warned about
    last_saved = steps
    stopped = job.stopping()
    while steps < max_steps and not stopped:
        step, clock = steps, Clock(steps)

        # ---- sample one response per prompt from the current policy ----
        clock.begin("generate")
        batch = [rows[i] for i in batch_at(step, len(rows))]
        prompts = [row["tokens"] for row in batch]
        responses = engine.generate(prompts, [sampling_seed(seed, "stage 2", step, row["id"]) for row in batch],
                                    max_response_tokens, temperature, logps=True)
        stopped = job.stopping()
        if stopped:
            break  # with the weights as they were before this step
        engine.sleep()
        if job.cuda:
            forget()  # a GPU's peak is of training, with the engine asleep; a CPU's engine doesn't sleep, its peak is of all

        # ---- score, each rank its part, in other processes while this one goes on ----
        clock.begin("reference")
        grading = start_grading_together(batch, responses)
        v_star = torch.tensor([row["v_star"] for row in batch])                                                # (batch,)

        # ---- log-probabilities under the reference, in the micro-batches of training: equal models, equal numbers ----
        tokens = [r.tokens for r in responses]
        lengths = [len(p) + len(t) for p, t in zip(prompts, tokens)]
        mini_batches = [[pack(groups[job.rank], prompts, tokens, job.device)
                         for groups in deal(range(i, i + mini_batch_size), lengths, micro_batch_tokens, job.world)]
                        for i in range(0, batch_size, mini_batch_size)]
        with torch.no_grad():
            ref_logps = [[reference.token_logps(micro.input_ids, micro.cu_seqlens, temperature, micro.where)
                          for micro in micros] for micros in mini_batches]
        reference.reshard()  # without a backward pass its root would stay gathered
        clock.begin("grade")
        graded = grading()
        rewards = torch.tensor(graded.rewards)                                                                 # (batch,)

        # ---- regress ----
        clock.begin("train")
        now_lr = lr * (1 - step / max_steps) if lr_decay else lr
        for group in optimizer.param_groups:
            group["lr"] = now_lr
        sums, grad_norms, differences = [], [], []
        for n, micros in enumerate(mini_batches):
            num_tokens = sum(map(len, tokens[n * mini_batch_size:(n + 1) * mini_batch_size]))
            part = torch.zeros(3, device=job.device)  # of loss, KL and entropy
            for micro, ref in zip(micros, ref_logps[n]):                                                       # ref (T,)
                job.tick()
                logps, entropy = policy.token_logps(micro.input_ids, micro.cu_seqlens, temperature, micro.where,
                                                    entropy=True)                                              # (T,), (T,)
                loss = apo_loss(sum_per_sequence(logps, micro.cu_seqlens), sum_per_sequence(ref, micro.cu_seqlens),
                                rewards[micro.index].to(job.device), v_star[micro.index].to(job.device), beta2)
                loss = loss * len(micro.index) / mini_batch_size  # its share of the mini-batch's mean
                bonus = entropy_coef * entropy.sum() / num_tokens if entropy_coef else 0.0
                ((loss - bonus) * job.world).backward()  # FSDP takes the mean over ranks, this is a sum

                sampled = torch.tensor([x for i in micro.index.tolist() for x in responses[i].logps], device=job.device)
                part += torch.stack((loss.detach(), (sampled - ref[micro.where]).sum(), entropy.detach().sum()))
                if n == 0:  # before the step's first update the trainer's policy must be the one that was sampled from
                    differences.append((logps.detach()[micro.where] - sampled).abs())
            if n == 0:
                difference = torch.cat(differences)
                diff_mean = job.total(difference.sum()).item() / num_tokens
                diff_max = max(job.gather(difference.max().item()))
                first_mean = diff_mean if first_mean is None else first_mean
                check_sampler(step, diff_mean, diff_max, first_mean)
            sums.append(job.total(part).tolist())
            with host_threads():
                grad_norms.append(torch.nn.utils.clip_grad_norm_(policy.parameters(), grad_clip).full_tensor().item())
                check_finite(step, sums[-1][0], grad_norms[-1])
                optimizer.step()
            optimizer.zero_grad()
        peak = resident(peak=True) - memory_before

        # ---- bring the new weights to the engine ----
        clock.begin("sync")
        engine.sync(policy.full_weights(compute), config.tie_word_embeddings)

        # ---- log, evaluate, save ----
        clock.begin("log")
        steps += 1
        count = sum(map(len, tokens))
        loss, kl, entropy = (sum(values) for values in zip(*sums))
        metrics = {"step": step, "reward": rewards.mean().item(), "loss": loss / len(mini_batches), "kl": kl / count,
                   "entropy": entropy / count, "grad_norm": sum(grad_norms) / len(grad_norms),
                   "response_length": count / batch_size, "truncated": sum(not r.finished for r in responses) / batch_size,
                   "v_star": v_star.mean().item(), "logp_diff_max": diff_max, "logp_diff_mean": diff_mean,
                   "grade_inexact": sum(graded.inexact) / batch_size, "grade_timed_out": sum(graded.timed_out) / batch_size,
                   "tokens": count, "lr": now_lr, **clock.seconds, "seconds_step": sum(clock.seconds.values()),
                   "memory_gb": max(job.gather(peak / 1e9)), **start}
        start = {}
        history.append(metrics)
        record()
        if accuracy_is_due():
            metrics.update(evaluate_policy(engine, test))
            record()
        print(screen_line(metrics), flush=True)
        for line in warnings_about(history) if step >= last_warning + 10 else []:
            print(f"      warning: {line}", flush=True)
            last_warning = step
        if save_every and (steps % save_every == 0 or steps == max_steps):
            last_saved = save()
        stopped = job.stopping()

    if stopped:
        if steps > last_saved:
            save()
        raise job.Stopped(stopped, f"stopped after {steps} steps{', which are saved' * (steps > 0)}: the same command goes on")
    write_model(folder, steps, policy, tokenizer, compute, constants)
    print(f"wrote {metrics_path} and {folder}/model; at most {history[-1]['memory_gb']:.1f} GB a process beside its engine")
    engine.shutdown()


if __name__ == "__main__":
    constants = configure(globals())
    job.run(main, constants, hang_limit=hang_limit)
