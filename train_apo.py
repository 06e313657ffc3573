"""Stage 2 of A*-PO: train on-policy, with one response per prompt and a least-squares loss.

    python train_apo.py                                           # the embedded arithmetic task
    torchrun --nproc_per_node=8 train_apo.py config/math.py       # Qwen2.5-1.5B on MATH, 8 GPUs
    torchrun --nproc_per_node=8 train_apo.py config/math.py config/7b.py --out=out/math_7b

Each step samples one response y for each prompt x of a batch from the current policy pi, and
minimises

    ( beta2 ln( pi(y|x) / pi_ref(y|x) )  -  (r(x, y) - V*(x)) )^2

with V* from estimate_value.py. For the optimal policy the two terms are equal: its log-ratio is the
optimal advantage. Compared with PPO and GRPO there is no critic, no group of responses per prompt,
no clipping and no importance ratio (baselines/ has PPO, GRPO and REBEL in the shape of this file).

Reads data/<task>/{train,test}.jsonl and <out>/values.pt. Writes <out>/metrics.jsonl, one line per
step, <out>/eval-<step>.jsonl, the responses of each evaluation, <out>/ckpt and <out>/model.
Interrupted at any moment, the same command continues from the newest checkpoint, with any number of
processes. For another run on the same values:

    mkdir -p out/higher_lr && cp out/math/values.pt out/higher_lr
    torchrun --nproc_per_node=8 train_apo.py config/math.py --lr=2e-6 --out=out/higher_lr
"""
import os
from functools import partial

import reward
from evaluate import held_out_accuracy
from lib.batches import make_updates
from lib.cli import check, check_settings, configure, one_line_errors
from lib.data import (
    batch_at,
    fingerprint_prompts,
    load_prompts,
    print_first_prompt,
    sampling_seed,
    subset,
    task_name,
)
from lib.distributed import (
    all_host_threads,
    device,
    local_world_size,
    run_stage,
    set_phase,
    stop_requested,
    world_size,
)
from lib.memory import plan
from lib.run import Run
from lib.values import add_to_means, add_v_star
from lib.weights import fingerprint
from model import LOGPS_CHUNK, Qwen2, open_model, shard_model

import torch
from torch.nn.utils import clip_grad_norm_

# model, data, output
model = "data/arithmetic/model"  # initial policy and reference: a local folder, or a hub name
task = "arithmetic"              # data/<task>, or a task file: examples/countdown.py
out = ""                         # the run's folder, with stage 1's values.pt; empty: out/<task>
seed = 0
# sampling
max_prompt_tokens = 0            # longest prompt; 0: as long as the model's context allows
drop_long_prompts = False        # leave longer prompts out instead of stopping with an error
chat_template = False            # wrap prompts in the model's template, for instruct models
filter_incorrect = False         # leave out prompts that the reference never solved in stage 1
max_response_tokens = 32         # longer responses are truncated
temperature = 1.0
# optimisation
max_steps = 32
batch_size = 256                 # prompts per step, one response each
mini_batch_size = 128            # prompts per update of the weights
beta2 = 1e-3                     # strength of the KL regularisation towards the reference
baseline = "v_star"              # of the reward; to compare: mean, running_mean (in stage 1), zero
lr = 4e-4
lr_decay = True                  # linearly to 0 at max_steps; False: constant
adam_beta1 = 0.9
adam_beta2 = 0.999
weight_decay = 0.0
grad_clip = 1.0                  # largest norm of an update's gradient
entropy_coef = 0.0               # bonus on the mean entropy per token; the paper's code has 1e-3
# evaluation on held-out prompts
eval_every = 4                   # steps
eval_prompts = 256               # so many of data/<task>/test.jsonl; 0: all
save_rollouts = 0                # steps between batches that are kept in <out>/rollouts; 0: none
# showing
push_to_hub = ""                 # upload the model at the end, to name/of-repository
wandb = ""                       # log to this project of Weights & Biases; empty: don't
tensorboard = False              # write <out>/tensorboard
# checkpoints
save_every = 8                   # steps; 0: only when stopped by SIGTERM or Ctrl-C
keep_checkpoints = 2             # so many of the newest stay in <out>/ckpt
resume = True                    # continue from the newest; False: start anew and delete them
# the machine
dtype = "float32"                # of computation, float32 or bfloat16; master weights are float32
compile = False                  # torch.compile: faster steps, but the first takes a minute more
micro_batch_tokens = 0           # tokens in one forward and backward pass, on each rank; 0: choose
checkpoint_activations = False   # recompute activations in backward: slower, far less memory
offload_reference = False        # keep the reference in host memory
offload_optimizer = False        # keep master weights, gradients and AdamW's state in host memory
gpu_memory_utilization = 0.5     # share of the GPU's memory for vLLM while it generates
tp = 1                           # GPUs that share a vLLM engine, for models too large for one
replicate_nodes = False          # each node shards a copy of its own: less traffic, more memory
timeout_minutes = 60.0           # end the job if a rank makes no progress for so long
logp_tolerance = 0.0             # largest mean |ln p(vLLM) - ln p(trainer)|; 0: by dtype
# --------------------------------------------------------------------------------------------------

# A run may continue with other values of these: they change no sample, and no gradient beyond
# rounding.
MAY_DIFFER = {"out", "eval_every", "eval_prompts", "save_rollouts", "save_every",
              "keep_checkpoints", "resume", "push_to_hub", "wandb", "tensorboard", "compile",
              "micro_batch_tokens", "checkpoint_activations", "offload_reference",
              "offload_optimizer", "gpu_memory_utilization", "tp", "replicate_nodes",
              "timeout_minutes", "logp_tolerance"}


def apo_loss(logps, ref_logps, rewards, v_star, beta2):
    """Mean of (beta2 ln(pi/pi_ref) + V* - r)^2. Paper, stage 2.

    All (B,); log-probabilities are summed over the response. EOS is part of the sum: to stop is an
    action of the policy, too.
    """
    return (beta2 * (logps - ref_logps) + v_star - rewards).square().mean()


def read_inputs():
    """(path, config, tokenizer, training rows, held-out rows). Raises OSError or ValueError."""
    check_settings(dtype, max_response_tokens=max_response_tokens, max_steps=max_steps,
                   batch_size=batch_size, mini_batch_size=mini_batch_size, eval_every=eval_every,
                   keep_checkpoints=keep_checkpoints, tp=tp)
    check(batch_size % mini_batch_size == 0,
          f"--mini_batch_size={mini_batch_size} does not divide --batch_size={batch_size}")
    check(mini_batch_size % world_size == 0, f"--mini_batch_size={mini_batch_size} is not a "
          f"multiple of the {world_size} processes")
    check(temperature > 0, f"--temperature={temperature}: training needs samples; it must be > 0")
    path, config, tokenizer = open_model(model)
    context = config.max_position_embeddings - max_response_tokens
    train, test = (load_prompts(task, split, tokenizer, max_prompt_tokens, drop_long_prompts,
                                context, reward.reward_of, chat_template)
                   for split in ("train", "test"))
    return path, config, tokenizer, train, subset(test, eval_prompts, seed=0)


def main(constants):
    # ---- read the inputs, and find out where to continue ----
    folder = out or os.path.join("out", task_name(task))
    with one_line_errors():
        path, config, tokenizer, rows, test = read_inputs()
        inputs = {"model": fingerprint(path), "prompts": fingerprint_prompts(rows),
                  "reward": reward.fingerprint(rows)}
        settings = {"temperature": temperature, "max_response_tokens": max_response_tokens}
        rows, inputs["values"] = add_v_star(rows, folder, inputs | settings, filter_incorrect,
                                            baseline)
        check(batch_size <= len(rows), f"--batch_size={batch_size}: there are {len(rows)} prompts")
        constants |= {f"fingerprint of {part}": digest for part, digest in inputs.items()}
        # With lr_decay, max_steps decides the learning rate of every step.
        run = Run(folder, constants, MAY_DIFFER if lr_decay else MAY_DIFFER | {"max_steps"})
    if run.is_finished():
        print(f"{folder} is trained: {run.step} steps; raise --max_steps to continue, or start "
              "anew with --resume=False")
        return

    # ---- plan the memory ----
    longest = max(len(row["tokens"]) for row in rows + test) + max_response_tokens
    replicas = world_size // local_world_size if replicate_nodes else 1
    print_first_prompt(rows, tokenizer)
    print(f"{len(rows):,} prompts, {len(rows) // batch_size} steps per epoch; {max_steps} steps of "
          f"{batch_size} prompts, processes: {world_size}")
    with torch.device("meta"):
        shape = Qwen2(config)
    with one_line_errors():
        memory = plan(shape, world_size // replicas, mini_batch_size // world_size * longest,
                      LOGPS_CHUNK, constants)

    # ---- engine, policy, reference, optimizer ----
    set_phase("building the engine")
    from rollout import Engine  # imports vLLM, which takes seconds
    with one_line_errors():
        engine = Engine(path, dtype, longest, gpu_memory_utilization, tp)
    engine.sleep()
    compute_dtype = getattr(torch, dtype)
    shard = partial(shard_model, compute_dtype=compute_dtype, pin=memory.pin, replicas=replicas)
    set_phase("loading the policy")
    policy = Qwen2.from_pretrained(path, torch.float32, "cpu" if offload_optimizer else device,
                                   partial(shard, offload=offload_optimizer))
    policy.checkpoint_activations = memory.recompute
    set_phase("loading the reference")
    reference = Qwen2.from_pretrained(path, compute_dtype, "cpu" if offload_reference else device,
                                      partial(shard, offload=offload_reference))
    reference.requires_grad_(False)  # it stays the initial policy
    if compile:
        policy.compile_layers()
        reference.compile_layers()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, betas=(adam_beta1, adam_beta2),
                                  weight_decay=weight_decay, fused=True)
    run.start(engine, policy, optimizer,
              evaluate=partial(held_out_accuracy, engine, test, seed, max_response_tokens))

    def batch_of(step):
        return [rows[i] for i in batch_at(step, len(rows), batch_size, seed)]

    if baseline == "running_mean":  # of the steps before the checkpoint, too
        for earlier in run.history:
            add_to_means(batch_of(earlier["step"]), earlier["rewards"])

    for step in run.steps():
        # ---- sample one response y ~ pi(.|x) per prompt ----
        with run.phase("generate"):
            batch = batch_of(step)
            seeds = [sampling_seed(seed, "stage 2", step, row["id"]) for row in batch]
            responses = engine.generate([row["tokens"] for row in batch], seeds,
                                        max_response_tokens, temperature, logps=True)
        if stop_requested():  # the same answer on all ranks; this step hasn't changed the weights
            break
        engine.sleep()        # until the sync the GPU's memory belongs to the trainer

        # ---- score: r(x, y) in other processes, while the reference runs; V*(x) from stage 1 ----
        wait_for_grades = reward.start_grading(batch, responses)
        v_star = torch.tensor([row["v_star"] for row in batch], device=device)           # (batch,)

        # ---- log-probabilities under the reference, in the micro-batches of training ----
        with run.phase("reference"), torch.no_grad():
            updates = make_updates(batch, responses, mini_batch_size, memory.micro_batch_tokens)
            micro_batches = [micro for update in updates for micro in update.micro_batches]
            for micro in micro_batches:
                micro.ref_logps = reference.token_logps(micro.input_ids, micro.cu_seqlens,
                                                        temperature, micro.response_mask)    # (T,)
            reference.reshard()  # FSDP would keep the root gathered until a backward pass
        with run.phase("grade"), run.reward_errors():
            graded = wait_for_grades()
            rewards = torch.tensor(graded.rewards, device=device)                        # (batch,)
            for micro in micro_batches:
                micro.rewards, micro.v_star = rewards[micro.index], v_star[micro.index]      # (B,)

        # ---- regress beta2 ln(pi / pi_ref) on r - V* ----
        now_lr = lr * (1 - step / max_steps) if lr_decay else lr
        for group in optimizer.param_groups:
            group["lr"] = now_lr
        with run.phase("train"), all_host_threads(offload_optimizer):
            # From the second update on, y comes from a slightly older policy. That needs no
            # importance ratio: the target r - V* is what the log-ratio should be for any y.
            for update in updates:
                for micro in update.micro_batches:
                    policy.keep_whole(memory.keep_whole and micro is not update.micro_batches[-1])
                    # The logits are divided by the temperature, as vLLM did: pi is what is sampled.
                    logps, entropy = policy.token_logps(
                        micro.input_ids, micro.cu_seqlens, temperature, micro.response_mask,
                        entropy=True)                                                  # (T,), (T,)
                    loss = apo_loss(micro.sum(logps), micro.sum(micro.ref_logps), micro.rewards,
                                    micro.v_star, beta2)
                    loss = loss * len(micro) / mini_batch_size  # its share of the update's mean
                    bonus = entropy_coef * entropy.sum() / update.num_tokens if entropy_coef else 0
                    # FSDP averages gradients over the ranks; the shares have to be added up.
                    ((loss - bonus) * world_size).backward()
                    run.measure(micro, loss, logps, entropy)
                grad_norm = clip_grad_norm_(policy.parameters(), grad_clip).full_tensor().item()
                run.check_update(update, grad_norm)  # or exit, before the weights are touched
                optimizer.step()
                optimizer.zero_grad()

        # ---- bring the new weights to vLLM ----
        with run.phase("sync"):
            engine.sync(policy.gather_weights(compute_dtype))
        kept = {"rewards": graded.rewards} if baseline == "running_mean" else {}
        run.log(batch, responses, graded, v_star=v_star.mean().item(), lr=now_lr, **kept)
        if baseline == "running_mean":
            add_to_means(batch, graded.rewards)
    run.finish(tokenizer)


if __name__ == "__main__":
    run_stage(main, configure(globals()), timeout_minutes=timeout_minutes)
