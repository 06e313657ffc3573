"""GRPO (arXiv 2402.03300) with the loop of train_apo.py, to be read and run beside it.

    python -m baselines.grpo                                        # the embedded arithmetic task
    torchrun --standalone --nproc_per_node=8 -m baselines.grpo config/math.py  # Qwen2.5-1.5B

Each step samples group_size responses y for each prompt x of a batch from the current policy
pi_old, and maximises the mean over response tokens of

    min( ratio A, clip(ratio, 1 - clip_ratio, 1 + clip_ratio) A )  -  kl_coef KL(pi || pi_ref)

where ratio = pi / pi_old of the token, and the advantage A of a response is its reward, normalised
in its group: (r - mean) / std. Compared with A*-PO there is no stage 1 and no values.pt.

The run's folder is out/<task>_grpo, unless --out names another.
"""
from functools import partial

import reward
from baselines import configure
from lib.batches import make_updates
from lib.data import batch_at, sampling_seed
from lib.distributed import device, exit_with_error, run_stage, stop_requested, world_size
from model import Qwen2, WithoutAdapters, load_sharded
from train_apo import decay, finish, make_run, read_inputs

import torch
from torch.nn.utils import clip_grad_norm_

# The other constants are those of train_apo.py.
batch_size = 32                  # prompts per step, group_size responses each
mini_batch_size = 16             # prompts per update of the weights
group_size = 8                   # responses per prompt
clip_ratio = 0.2
kl_coef = 1e-3                   # strength of the KL regularisation towards the reference
# --------------------------------------------------------------------------------------------------


def group_advantages(rewards, group_size):
    """(r - mean) / std in each group of neighbours, 0 if all are equal. (batch,) -> (batch,)"""
    groups = rewards.view(-1, group_size)
    std, mean = torch.std_mean(groups, dim=1, keepdim=True)
    return ((groups - mean) / (std + 1e-6)).flatten()


def grpo_loss(logps, sampled_logps, ref_logps, advantages, clip_ratio, kl_coef):
    """Loss of each token. All (T,). DeepSeekMath (arXiv 2402.03300), eq. 3, its KL by eq. 4. All
    tokens of a mini-batch weigh the same, as in verl; eq. 3 averages over each response first."""
    ratio = torch.exp(logps - sampled_logps)
    clipped = ratio.clamp(1 - clip_ratio, 1 + clip_ratio)
    kl = torch.exp(ref_logps - logps) - (ref_logps - logps) - 1
    return kl_coef * kl - torch.minimum(ratio * advantages, clipped * advantages)


def main(args):
    # ---- prompts, the checkpoint to continue from, and the engine ----
    if args.group_size < 2:
        exit_with_error(f"--group_size={args.group_size}: it must be at least 2")
    inputs = read_inputs(args, "GRPO")
    rows = inputs.rows
    run, engine, plan = make_run(args, inputs, responses_per_prompt=args.group_size)

    # ---- policy, reference, optimizer ----
    load = partial(load_sharded, Qwen2, inputs.path, compute_dtype=run.dtype, plan=plan,
                   compile=args.compile)
    policy = load(torch.float32, lora=(args.lora_rank, args.lora_alpha))
    reference = (WithoutAdapters(policy) if args.lora_rank  # adapters off: the initial model
                 else load(run.dtype).requires_grad_(False))
    optimizer = torch.optim.AdamW(policy.trained_parameters(), lr=args.lr, betas=(0.9, 0.999),
                                  weight_decay=args.weight_decay, fused=True)
    run.start(engine, policy, optimizer)

    for step in run.steps():
        # ---- sample group_size responses y ~ pi(.|x) per prompt ----
        with run.phase("generate"):
            batch = [rows[i] for i in batch_at(step, len(rows), args.batch_size, args.seed)
                     for _ in range(args.group_size)]
            seeds = [sampling_seed(args.seed, "grpo", step, row["id"], k % args.group_size)
                     for k, row in enumerate(batch)]
            responses = engine.generate([row["tokens"] for row in batch], seeds,
                                        args.max_response_tokens, args.temperature, logps=True)
        if stop_requested():  # the same answer on all ranks; this step hasn't changed the weights
            break
        engine.sleep()        # until the sync the GPU's memory belongs to the trainer

        # ---- score: r(x, y) in other processes, while the reference runs ----
        wait_for_grades = reward.start_grading(batch, responses)

        # ---- log-probabilities under the reference, in the micro-batches of training ----
        with run.phase("reference"), torch.no_grad():
            updates = make_updates(batch, responses, args.mini_batch_size * args.group_size,
                                   plan.micro_batch_tokens)
            for update in updates:
                for micro in update.micro_batches:
                    micro.ref_logps = reference.token_logps(                                 # (T,)
                        micro.input_ids, micro.cu_seqlens, args.temperature, micro.response_mask)
            reference.reshard()  # FSDP would keep the root gathered until a backward pass
        with run.phase("grade"), run.reward_errors():
            graded = wait_for_grades()
            advantages = group_advantages(torch.tensor(graded.rewards, device=device),
                                          args.group_size)                               # (batch,)

        # ---- make what was better than its group more probable ----
        for group in optimizer.param_groups:
            group["lr"] = args.lr * decay(args, step)
        with run.phase("train"):
            # From the second update on, y comes from a slightly older policy: hence the ratio.
            for update in updates:
                for micro in update.micro_batches:
                    last = micro is update.micro_batches[-1]
                    policy.defer_sharding(plan.defer_sharding and not last)
                    # The logits are divided by the temperature, as vLLM did: pi is what is sampled.
                    logps, entropy = policy.token_logps(
                        micro.input_ids, micro.cu_seqlens, args.temperature, micro.response_mask,
                        entropy=True)                                                  # (T,), (T,)
                    loss = grpo_loss(logps, micro.sampled_logps, micro.ref_logps,
                                     micro.per_token(advantages[micro.index]), args.clip_ratio,
                                     args.kl_coef)                                           # (T,)
                    loss = loss[micro.response_mask].sum() / update.num_tokens
                    bonus = (args.entropy_coef * entropy.sum() / update.num_tokens
                             if args.entropy_coef else 0)
                    # FSDP averages gradients over the ranks; the shares have to be added up.
                    ((loss - bonus) * world_size).backward()
                    run.measure(micro, loss, logps, micro.ref_logps, entropy)
                grad_norm = clip_grad_norm_(policy.parameters(), args.grad_clip).full_tensor()
                run.check_update(update, grad_norm.item())  # or exit, before the weights change
                optimizer.step()
                optimizer.zero_grad()

        # ---- bring the new weights to vLLM ----
        with run.phase("sync"):
            engine.sync(policy.gather_weights(run.dtype))
        run.log(batch, responses, graded)
    finish(run, inputs)


if __name__ == "__main__":
    run_stage(main, configure(__file__))
