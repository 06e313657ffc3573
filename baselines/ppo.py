"""PPO (arXiv 1707.06347) in the shape of train_apo.py, to be read and run beside it.

    python -m baselines.ppo                                         # the embedded arithmetic task
    torchrun --nproc_per_node=8 -m baselines.ppo config/math.py     # Qwen2.5-1.5B on MATH, 8 GPUs

Each step samples one response y for each prompt x of a batch from the current policy pi_old, and
maximises the mean over response tokens of

    min( ratio A, clip(ratio, 1 - clip_ratio, 1 + clip_ratio) A )

where ratio = pi / pi_old of the token, and the advantage A comes by GAE (arXiv 1506.02438) from a
critic, a second network of the policy's size, which is trained in turns with it. The reward of a
token is -kl_coef ln(pi_old / pi_ref); the last token's has r(x, y) added. Compared with A*-PO there
is no stage 1 and no values.pt, but a second network with gradients and AdamW's state.

Loss, KL in the reward, normalised advantages, gamma, gae_lambda, clip_ratio, clip_value, and ten
times the policy's learning rate for the critic are those of the A*-PO paper's repository
(verl/trainer/apo/core_algos.py and config/apo_trainer.yaml, which it has from verl's PPO). There
kl_coef is 0, as A*-PO needs none; 1e-3 is GRPO's. Batch and sampling are A*-PO's.
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
    all_reduce_sum,
    device,
    local_world_size,
    run_stage,
    set_phase,
    stop_requested,
    world_size,
)
from lib.memory import plan
from lib.run import Run
from lib.weights import fingerprint
from model import LOGPS_CHUNK, Critic, Qwen2, open_model, shard_model

import torch
from torch.nn.utils import clip_grad_norm_

# model, data, output
model = "data/arithmetic/model"  # initial policy and reference: a local folder, or a hub name
task = "arithmetic"              # data/<task>, or a task file: examples/countdown.py
out = ""                         # the run's folder; empty: out/<task>_ppo
seed = 0
# sampling
max_prompt_tokens = 0            # longest prompt; 0: as long as the model's context allows
drop_long_prompts = False        # leave longer prompts out instead of stopping with an error
chat_template = False            # wrap prompts in the model's template, for instruct models
max_response_tokens = 32         # longer responses are truncated
temperature = 1.0
# optimisation
max_steps = 32
batch_size = 256                 # prompts per step, one response each
mini_batch_size = 128            # prompts per update of the weights
clip_ratio = 0.2
clip_value = 0.5                 # largest change of a value within a step
kl_coef = 1e-3                   # strength of the KL regularisation towards the reference
gamma = 1.0                      # discount per token
gae_lambda = 1.0
lr = 4e-4
critic_lr = 4e-3
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


def token_rewards(micro, kl_coef):
    """Reward of each token, (T,): the KL penalty, and for the last of a response the response's."""
    rewards = -kl_coef * (micro.sampled_logps - micro.ref_logps)
    return rewards.index_add(0, micro.cu_seqlens[1:].long() - 1, micro.rewards)


def gae(rewards, values, response_mask, gamma, gae_lambda):
    """Advantages of response tokens, (T,), 0 elsewhere. GAE (arXiv 1506.02438), eq. 16.

    All (T,), packed; a token's value is that of the state before it.
    """
    advantages, advantage, next_value = [0.0] * len(values), 0.0, 0.0
    tokens = zip(rewards.tolist(), values.tolist(), response_mask.tolist(), strict=True)
    for t, (r, value, in_response) in reversed([*enumerate(tokens)]):
        if in_response:
            error = r + gamma * next_value - value
            advantage, next_value = error + gamma * gae_lambda * advantage, value
            advantages[t] = advantage
        else:  # a prompt's token: the next response, read backwards, begins at its end
            advantage, next_value = 0.0, 0.0
    return torch.tensor(advantages, device=values.device)


def normalise(micro_batches):
    """Give the advantages of all response tokens of the step, on all ranks, mean 0 and variance 1.
    """
    x = torch.cat([micro.advantages[micro.response_mask] for micro in micro_batches])
    n, total = all_reduce_sum(torch.stack((x.new_tensor(len(x)), x.sum())))
    mean = total / n
    variance = all_reduce_sum((x - mean).square().sum()) / (n - 1)
    for micro in micro_batches:
        micro.advantages = (micro.advantages - mean) * torch.rsqrt(variance + 1e-8)


def policy_loss(logps, sampled_logps, advantages, clip_ratio):
    """Loss of each token. All (T,). PPO (arXiv 1707.06347), eq. 7."""
    ratio = torch.exp(logps - sampled_logps)
    clipped = ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def value_loss(values, old_values, returns, clip_value):
    """Loss of each token's value. All (T,). As in the A*-PO paper's repository, compute_value_loss.
    """
    clipped = old_values + (values - old_values).clamp(-clip_value, clip_value)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


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
    folder = out or os.path.join("out", f"{task_name(task)}_ppo")
    with one_line_errors():
        path, config, tokenizer, rows, test = read_inputs()
        inputs = {"model": fingerprint(path), "prompts": fingerprint_prompts(rows),
                  "reward": reward.fingerprint(rows)}
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
                      LOGPS_CHUNK, constants, critic=True)

    # ---- engine, policy, critic, reference, optimizer ----
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
    set_phase("loading the critic")
    critic = Critic.from_pretrained(path, torch.float32, "cpu" if offload_optimizer else device,
                                    partial(shard, offload=offload_optimizer))
    critic.checkpoint_activations = memory.recompute
    set_phase("loading the reference")
    reference = Qwen2.from_pretrained(path, compute_dtype, "cpu" if offload_reference else device,
                                      partial(shard, offload=offload_reference))
    reference.requires_grad_(False)  # it stays the initial policy
    if compile:
        policy.compile_layers()
        critic.compile_layers()
        reference.compile_layers()
    trained = torch.nn.ModuleDict({"policy": policy, "critic": critic})
    optimizer = torch.optim.AdamW([{"params": part.parameters()} for part in trained.values()],
                                  betas=(adam_beta1, adam_beta2), weight_decay=weight_decay,
                                  fused=True)
    run.start(engine, policy, optimizer,
              evaluate=partial(held_out_accuracy, engine, test, seed, max_response_tokens),
              trained=trained)

    for step in run.steps():
        # ---- sample one response y ~ pi(.|x) per prompt ----
        with run.phase("generate"):
            batch = [rows[i] for i in batch_at(step, len(rows), batch_size, seed)]
            seeds = [sampling_seed(seed, "ppo", step, row["id"]) for row in batch]
            responses = engine.generate([row["tokens"] for row in batch], seeds,
                                        max_response_tokens, temperature, logps=True)
        if stop_requested():  # the same answer on all ranks; this step hasn't changed the weights
            break
        engine.sleep()        # until the sync the GPU's memory belongs to the trainer

        # ---- score: r(x, y) in other processes, while the reference runs ----
        wait_for_grades = reward.start_grading(batch, responses)

        # ---- log-probabilities under the reference, and values, in the micro-batches of training
        with run.phase("reference"), torch.no_grad():
            updates = make_updates(batch, responses, mini_batch_size, memory.micro_batch_tokens)
            micro_batches = [micro for update in updates for micro in update.micro_batches]
            for micro in micro_batches:
                micro.ref_logps = reference.token_logps(micro.input_ids, micro.cu_seqlens,
                                                        temperature, micro.response_mask)    # (T,)
                micro.values = critic(micro.input_ids, micro.cu_seqlens)                     # (T,)
            reference.reshard()  # FSDP would keep the root gathered until a backward pass
            critic.reshard()
        with run.phase("grade"), run.reward_errors():
            graded = wait_for_grades()
            rewards = torch.tensor(graded.rewards, device=device)                        # (batch,)
            for micro in micro_batches:
                micro.rewards = rewards[micro.index]                                         # (B,)
                micro.advantages = gae(token_rewards(micro, kl_coef), micro.values,
                                       micro.response_mask, gamma, gae_lambda)               # (T,)
                micro.returns = micro.advantages + micro.values                              # (T,)
            normalise(micro_batches)

        # ---- make what was better than its value more probable ----
        decay = 1 - step / max_steps if lr_decay else 1.0
        for group, its_lr in zip(optimizer.param_groups, (lr, critic_lr), strict=True):
            group["lr"] = its_lr * decay
        critic_loss = torch.zeros((), device=device)
        with run.phase("train"), all_host_threads(offload_optimizer):
            # From the second update on, y comes from a slightly older policy: hence the ratio.
            for update in updates:
                for micro in update.micro_batches:
                    policy.keep_whole(memory.keep_whole and micro is not update.micro_batches[-1])
                    # The logits are divided by the temperature, as vLLM did: pi is what is sampled.
                    logps, entropy = policy.token_logps(
                        micro.input_ids, micro.cu_seqlens, temperature, micro.response_mask,
                        entropy=True)                                                  # (T,), (T,)
                    loss = policy_loss(logps, micro.sampled_logps, micro.advantages,
                                       clip_ratio)                                           # (T,)
                    loss = loss[micro.response_mask].sum() / update.num_tokens
                    bonus = entropy_coef * entropy.sum() / update.num_tokens if entropy_coef else 0
                    # FSDP averages gradients over the ranks; the shares have to be added up.
                    ((loss - bonus) * world_size).backward()
                    run.measure(micro, loss, logps, entropy)
                grad_norm = clip_grad_norm_(policy.parameters(), grad_clip).full_tensor().item()
                run.check_update(update, grad_norm)  # or exit, before the weights are touched
                # The critic learns from the same micro-batches, and both take their step.
                for micro in update.micro_batches:
                    critic.keep_whole(memory.keep_whole and micro is not update.micro_batches[-1])
                    values = critic(micro.input_ids, micro.cu_seqlens)                       # (T,)
                    loss = value_loss(values, micro.values, micro.returns, clip_value)       # (T,)
                    loss = loss[micro.response_mask].sum() / update.num_tokens
                    (loss * world_size).backward()
                    critic_loss += loss.detach() / len(updates)
                clip_grad_norm_(critic.parameters(), grad_clip)
                optimizer.step()
                optimizer.zero_grad()

        # ---- bring the new weights to vLLM ----
        with run.phase("sync"):
            engine.sync(policy.gather_weights(compute_dtype))
        run.log(batch, responses, graded, lr=lr * decay,
                critic_loss=all_reduce_sum(critic_loss).item())
    run.finish(tokenizer)


if __name__ == "__main__":
    run_stage(main, configure(globals()), timeout_minutes=timeout_minutes)
