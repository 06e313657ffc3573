"""REBEL (arXiv 2404.16767) with the loop of train_apo.py, to be read and run beside it.

    python -m baselines.rebel                                       # the embedded arithmetic task
    torchrun --standalone --nproc_per_node=8 -m baselines.rebel config/math.py  # Qwen2.5-1.5B

Each step samples two responses y and y' for each prompt x of a batch from the current policy
pi_old, and minimises

    ( 1/eta ( ln pi(y|x) / pi_old(y|x) - ln pi(y'|x) / pi_old(y'|x) )  -  (R(y) - R(y')) )^2

where R(y) = r(x, y) - kl_coef ln( pi_old(y|x) / pi_ref(y|x) ). In the difference of two responses
to one prompt V* cancels out. So there is no stage 1 and no values.pt as in A*-PO, but a prompt
whose responses earn the same reward teaches nothing.

The loss is that of the paper's Algorithm 1, and the KL in the reward that of its authors' code
(github.com/ZhaolinGao/REBEL, src/tldr). Batch, learning rate and sampling are A*-PO's. The A*-PO
paper's repository keeps no settings for REBEL: 1/eta is A*-PO's beta2 here, and kl_coef is GRPO's.

The run's folder is out/<task>_rebel, unless --out names another.
"""
from functools import partial

import reward
from baselines import configure
from lib.batches import make_updates
from lib.data import batch_at, sampling_seed
from lib.distributed import device, run_stage, stop_requested, world_size
from model import Qwen2, WithoutAdapters, load_sharded
from train_apo import decay, finish, make_run, read_inputs

import torch
from torch.nn.utils import clip_grad_norm_

# The other constants are those of train_apo.py.
batch_size = 128                 # prompts per step, two responses each
mini_batch_size = 64             # prompts per update of the weights
eta = 1e3                        # size of a step; 1/eta is the strength of the pull towards pi_old
kl_coef = 1e-3                   # strength of the KL regularisation towards the reference
# --------------------------------------------------------------------------------------------------


def rebel_loss(logps, sampled_logps, ref_logps, rewards, eta, kl_coef):
    """Mean over pairs of the squared error above. REBEL (arXiv 2404.16767), Algorithm 1.

    All (B,), where two neighbours are responses to one prompt; log-probabilities are summed over
    the response, EOS included.
    """
    rewards = rewards - kl_coef * (sampled_logps - ref_logps)
    first, second = ((logps - sampled_logps) / eta - rewards).view(-1, 2).T
    return (first - second).square().mean()


def main(args):
    # ---- prompts, the checkpoint to continue from, and the engine ----
    inputs = read_inputs(args, "REBEL")
    rows = inputs.rows
    run, engine, plan = make_run(args, inputs, responses_per_prompt=2)

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
        # ---- sample two responses y, y' ~ pi(.|x) per prompt ----
        with run.phase("generate"):
            batch = [rows[i] for i in batch_at(step, len(rows), args.batch_size, args.seed)
                     for _ in range(2)]
            seeds = [sampling_seed(args.seed, "rebel", step, row["id"], k % 2)
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
            updates = make_updates(batch, responses, 2 * args.mini_batch_size,
                                   plan.micro_batch_tokens, together=2)
            for update in updates:
                for micro in update.micro_batches:
                    micro.ref_logps = reference.token_logps(                                 # (T,)
                        micro.input_ids, micro.cu_seqlens, args.temperature, micro.response_mask)
            reference.reshard()  # FSDP would keep the root gathered until a backward pass
        with run.phase("grade"), run.reward_errors():
            graded = wait_for_grades()
            rewards = torch.tensor(graded.rewards, device=device)                        # (batch,)

        # ---- regress the difference of log-ratios on the difference of rewards ----
        for group in optimizer.param_groups:
            group["lr"] = args.lr * decay(args, step)
        with run.phase("train"):
            # The log-ratio is to the policy that sampled, also from the second update on.
            for update in updates:
                for micro in update.micro_batches:
                    last = micro is update.micro_batches[-1]
                    policy.defer_sharding(plan.defer_sharding and not last)
                    # The logits are divided by the temperature, as vLLM did: pi is what is sampled.
                    logps, entropy = policy.token_logps(
                        micro.input_ids, micro.cu_seqlens, args.temperature, micro.response_mask,
                        entropy=True)                                                  # (T,), (T,)
                    loss = rebel_loss(micro.sum(logps), micro.sum(micro.sampled_logps),
                                      micro.sum(micro.ref_logps), rewards[micro.index], args.eta,
                                      args.kl_coef)
                    loss = loss * len(micro) / (2 * args.mini_batch_size)  # its share of the mean
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
