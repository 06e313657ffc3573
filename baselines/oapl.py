"""OAPL (arXiv 2602.19362) with the loop of train_apo.py, to be read and run beside it.

    python -m baselines.oapl                                       # the embedded arithmetic task
    python -m baselines.oapl --batch_size=512                      # 16 updates per sampling
    torchrun --standalone --nproc_per_node=8 -m baselines.oapl config/math.py  # Qwen2.5-1.5B

It is A*-PO with the policy that sampled in the place of the reference. Each step samples group_size
responses y for each prompt x of a batch from pi_old, and minimises

    ( beta2 ln( pi(y|x) / pi_old(y|x) )  -  (r(x, y) - V*(x)) )^2

with V*(x) = beta1 ln mean exp(r / beta1) over the group. If V* is exact, r - V* is the right
log-ratio for any y, whoever wrote it. So a step may have many updates, without importance ratio or
clipping: the paper brings weights to the sampler every 50 to 400 updates. There is no stage 1, and
no second model: ln pi_old is what vLLM returned with the samples.

beta1, beta2, 256 responses an update, the gradient's clip and leaving out groups without a
difference are the paper's; its learning rate is 1e-6, with models of billions of parameters. Its
samplers run beside the trainer; here they alternate, so all updates of a step have samples of one
policy. The metrics' kl is KL(pi_old || pi), on the samples, and not from the initial model.

The run's folder is out/<task>_oapl, unless --out names another.
"""
from functools import partial

import reward
from baselines import configure
from estimate_value import optimal_value
from lib.batches import make_updates
from lib.data import batch_at, sampling_seed
from lib.distributed import device, exit_with_error, run_stage, stop_requested, world_size
from model import Qwen2, load_sharded
from train_apo import apo_loss, decay, finish, make_run, read_inputs

import torch
from torch.nn.utils import clip_grad_norm_

# The other constants are those of train_apo.py.
batch_size = 64                  # prompts per step, group_size responses each
mini_batch_size = 32             # prompts per update of the weights
group_size = 8                   # responses per prompt
beta1 = 1.0                      # of V*
beta2 = 1e-3                     # strength of the pull towards pi_old
grad_clip = 1e-3                 # largest norm of an update's gradient
drop_equal = True                # leave out groups whose responses all earn the same
# --------------------------------------------------------------------------------------------------


def group_values(rewards, group_size, beta1):
    """V* of each response's prompt, from the rewards of its group. (batch,) -> (batch,)"""
    return optimal_value(rewards.view(-1, group_size), beta1).repeat_interleave(group_size)


def main(args):
    # ---- prompts, the checkpoint to continue from, and the engine ----
    if args.group_size < 2:
        exit_with_error(f"--group_size={args.group_size}: it must be at least 2")
    inputs = read_inputs(args, "OAPL")
    rows = inputs.rows
    run, engine, plan = make_run(args, inputs, responses_per_prompt=args.group_size,
                                 reference=False)

    # ---- policy, optimizer ----
    load = partial(load_sharded, Qwen2, inputs.path, compute_dtype=run.dtype, plan=plan,
                   compile=args.compile)
    policy = load(torch.float32, lora=(args.lora_rank, args.lora_alpha))
    optimizer = torch.optim.AdamW(policy.trained_parameters(), lr=args.lr, betas=(0.9, 0.999),
                                  weight_decay=args.weight_decay, fused=True)
    run.start(engine, policy, optimizer)

    for step in run.steps():
        # ---- sample group_size responses y ~ pi_old(.|x) per prompt ----
        with run.phase("generate"):
            batch = [rows[i] for i in batch_at(step, len(rows), args.batch_size, args.seed)
                     for _ in range(args.group_size)]
            seeds = [sampling_seed(args.seed, "oapl", step, row["id"], k % args.group_size)
                     for k, row in enumerate(batch)]
            responses = engine.generate([row["tokens"] for row in batch], seeds,
                                        args.max_response_tokens, args.temperature, logps=True)
        if stop_requested():  # the same answer on all ranks; this step hasn't changed the weights
            break
        engine.sleep()        # until the sync the GPU's memory belongs to the trainer

        # ---- score: r(x, y), and V*(x) of its group ----
        with run.phase("grade"), run.reward_errors():
            graded = reward.start_grading(batch, responses)()
        rewards = torch.tensor(graded.rewards, device=device)                            # (batch,)
        v_star = group_values(rewards, args.group_size, args.beta1)
        # Where all responses earn the same, V* is their reward: the loss pulls towards pi_old.
        groups = rewards.view(-1, args.group_size)
        differ = (groups.amax(1) > groups.amin(1)).repeat_interleave(args.group_size)
        kept = differ.float() if args.drop_equal else torch.ones_like(rewards)

        # ---- regress beta2 ln(pi / pi_old) on r - V* ----
        updates = make_updates(batch, responses, args.mini_batch_size * args.group_size,
                               plan.micro_batch_tokens)
        for group in optimizer.param_groups:
            group["lr"] = args.lr * decay(args, step)
        with run.phase("train"):
            for update in updates:
                for micro in update.micro_batches:
                    last = micro is update.micro_batches[-1]
                    policy.defer_sharding(plan.defer_sharding and not last)
                    # The logits are divided by the temperature, as vLLM did: pi is what is sampled.
                    logps, entropy = policy.token_logps(
                        micro.input_ids, micro.cu_seqlens, args.temperature, micro.response_mask,
                        entropy=True)                                                  # (T,), (T,)
                    loss = apo_loss(*(kept[micro.index] * x for x in (
                        micro.sum(logps), micro.sum(micro.sampled_logps), rewards[micro.index],
                        v_star[micro.index])), args.beta2)
                    # Its share of the mean.
                    loss = loss * len(micro) / (args.mini_batch_size * args.group_size)
                    bonus = (args.entropy_coef * entropy.sum() / update.num_tokens
                             if args.entropy_coef else 0)
                    # FSDP averages gradients over the ranks; the shares have to be added up.
                    ((loss - bonus) * world_size).backward()
                    run.measure(micro, loss, logps, logps.detach(), entropy)
                grad_norm = clip_grad_norm_(policy.parameters(), args.grad_clip).full_tensor()
                run.check_update(update, grad_norm.item())  # or exit, before the weights change
                optimizer.step()
                optimizer.zero_grad()

        # ---- bring the new weights to vLLM ----
        with run.phase("sync"):
            engine.sync(policy.gather_weights(run.dtype))
        run.log(batch, responses, graded, v_star=v_star.mean().item())
    finish(run, inputs)


if __name__ == "__main__":
    run_stage(main, configure(__file__))
