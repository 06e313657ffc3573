"""REBEL (arXiv 2404.16767) in the shape of train_apo.py, to be read and run beside it.

    python -m baselines.rebel                                       # the embedded arithmetic task
    torchrun --nproc_per_node=8 -m baselines.rebel config/math.py   # Qwen2.5-1.5B on MATH, 8 GPUs

Each step samples two responses y and y' for each prompt x of a batch from the current policy
pi_old, and minimises

    ( 1/eta ( ln pi(y|x) / pi_old(y|x) - ln pi(y'|x) / pi_old(y'|x) )  -  (R(y) - R(y')) )^2

where R(y) = r(x, y) - kl_coef ln( pi_old(y|x) / pi_ref(y|x) ). In the difference of two responses
to one prompt V* cancels out: compared with A*-PO there is no stage 1 and no values.pt, but a prompt
whose responses earn the same reward teaches nothing.

The loss is that of the paper's Algorithm 1, and the KL in the reward that of its authors' code
(github.com/ZhaolinGao/REBEL, src/tldr). Batch, learning rate and sampling are A*-PO's. The A*-PO
paper's repository keeps no settings for REBEL: 1/eta is A*-PO's beta2 here, and kl_coef is GRPO's.
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
from lib.weights import fingerprint
from model import LOGPS_CHUNK, Qwen2, open_model, shard_model

import torch
from torch.nn.utils import clip_grad_norm_

# model, data, output
model = "data/arithmetic/model"  # initial policy and reference: a local folder, or a hub name
task = "arithmetic"              # data/<task>, or a task file: examples/countdown.py
out = ""                         # the run's folder; empty: out/<task>_rebel
seed = 0
# sampling
max_prompt_tokens = 0            # longest prompt; 0: as long as the model's context allows
drop_long_prompts = False        # leave longer prompts out instead of stopping with an error
chat_template = False            # wrap prompts in the model's template, for instruct models
max_response_tokens = 32         # longer responses are truncated
temperature = 1.0
# optimisation
max_steps = 32
batch_size = 128                 # prompts per step, two responses each
mini_batch_size = 64             # prompts per update of the weights
eta = 1e3                        # size of a step; 1/eta is the strength of the pull towards pi_old
kl_coef = 1e-3                   # strength of the KL regularisation towards the reference
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


def rebel_loss(logps, sampled_logps, ref_logps, rewards, eta, kl_coef):
    """Mean over pairs of the squared error above. REBEL (arXiv 2404.16767), Algorithm 1.

    All (B,), two neighbours being responses to one prompt; log-probabilities are summed over the
    response, EOS included.
    """
    rewards = rewards - kl_coef * (sampled_logps - ref_logps)
    first, second = ((logps - sampled_logps) / eta - rewards).view(-1, 2).T
    return (first - second).square().mean()


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
    folder = out or os.path.join("out", f"{task_name(task)}_rebel")
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
        memory = plan(shape, world_size // replicas,
                      2 * mini_batch_size // world_size * longest, LOGPS_CHUNK, constants)

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

    for step in run.steps():
        # ---- sample two responses y, y' ~ pi(.|x) per prompt ----
        with run.phase("generate"):
            batch = [rows[i] for i in batch_at(step, len(rows), batch_size, seed)
                     for _ in range(2)]
            seeds = [sampling_seed(seed, "rebel", step, row["id"], k % 2)
                     for k, row in enumerate(batch)]
            responses = engine.generate([row["tokens"] for row in batch], seeds,
                                        max_response_tokens, temperature, logps=True)
        if stop_requested():  # the same answer on all ranks; this step hasn't changed the weights
            break
        engine.sleep()        # until the sync the GPU's memory belongs to the trainer

        # ---- score: r(x, y) in other processes, while the reference runs ----
        wait_for_grades = reward.start_grading(batch, responses)

        # ---- log-probabilities under the reference, in the micro-batches of training ----
        with run.phase("reference"), torch.no_grad():
            updates = make_updates(batch, responses, 2 * mini_batch_size,
                                   memory.micro_batch_tokens, together=2)
            micro_batches = [micro for update in updates for micro in update.micro_batches]
            for micro in micro_batches:
                micro.ref_logps = reference.token_logps(micro.input_ids, micro.cu_seqlens,
                                                        temperature, micro.response_mask)    # (T,)
            reference.reshard()  # FSDP would keep the root gathered until a backward pass
        with run.phase("grade"), run.reward_errors():
            graded = wait_for_grades()
            rewards = torch.tensor(graded.rewards, device=device)                        # (batch,)
            for micro in micro_batches:
                micro.rewards = rewards[micro.index]                                         # (B,)

        # ---- regress the difference of log-ratios on the difference of rewards ----
        now_lr = lr * (1 - step / max_steps) if lr_decay else lr
        for group in optimizer.param_groups:
            group["lr"] = now_lr
        with run.phase("train"), all_host_threads(offload_optimizer):
            # The log-ratio is to the policy that sampled, also from the second update on.
            for update in updates:
                for micro in update.micro_batches:
                    policy.keep_whole(memory.keep_whole and micro is not update.micro_batches[-1])
                    # The logits are divided by the temperature, as vLLM did: pi is what is sampled.
                    logps, entropy = policy.token_logps(
                        micro.input_ids, micro.cu_seqlens, temperature, micro.response_mask,
                        entropy=True)                                                  # (T,), (T,)
                    loss = rebel_loss(micro.sum(logps), micro.sum(micro.sampled_logps),
                                      micro.sum(micro.ref_logps), micro.rewards, eta, kl_coef)
                    loss = loss * len(micro) / (2 * mini_batch_size)  # its share of the mean
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
        run.log(batch, responses, graded, lr=now_lr)
    run.finish(tokenizer)


if __name__ == "__main__":
    run_stage(main, configure(globals()), timeout_minutes=timeout_minutes)
