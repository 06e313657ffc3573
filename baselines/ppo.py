"""PPO (arXiv 1707.06347) with the loop of train_apo.py, to be read and run beside it.

    python -m baselines.ppo                                         # the embedded arithmetic task
    torchrun --standalone --nproc_per_node=8 -m baselines.ppo config/math.py  # Qwen2.5-1.5B

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

The run's folder is out/<task>_ppo, unless --out names another.
"""
from dataclasses import replace
from functools import partial

import reward
from baselines import configure
from lib.batches import make_updates
from lib.data import batch_at, sampling_seed
from lib.distributed import all_reduce_sum, device, run_stage, stop_requested, world_size
from model import Qwen2, WithoutAdapters, load_sharded
from train_apo import decay, finish, make_run, read_inputs

import torch
import torch.nn as nn
from torch.nn.utils import clip_grad_norm_

# The other constants are those of train_apo.py.
clip_ratio = 0.2
clip_value = 0.5                 # largest change of a value within a step
kl_coef = 1e-3                   # strength of the KL regularisation towards the reference
gamma = 1.0                      # discount per token
gae_lambda = 1.0
critic_lr = 4e-3
# --------------------------------------------------------------------------------------------------


class Critic(Qwen2):
    """The policy's network with a value head in place of the vocabulary's.

    The transformer is loaded from a language model's checkpoint; the head starts at 0.
    """

    def __init__(self, config):
        super().__init__(replace(config, tie_word_embeddings=True))  # without lm_head
        self.value_head = nn.Linear(config.hidden_size, 1, bias=False)

    def add_adapters(self, rank, alpha):
        super().add_adapters(rank, alpha)
        self.value_head.float().requires_grad_(True)

    def forward(self, input_ids, cu_seqlens):
        """Entry t (of T, float32) is the value of the state before token t: of the tokens before it
        in its own sequence. 0 for the first token of a sequence."""
        values = self.value_head(self.hidden_states(input_ids, cu_seqlens)).squeeze(-1).float()
        return values.roll(1).index_fill(0, cu_seqlens[:-1].long(), 0.0)

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        critic = super().from_pretrained(*args, **kwargs)
        nn.init.zeros_(critic.value_head.weight)
        return critic


def token_rewards(micro, rewards, kl_coef):
    """Reward of each token, (T,): the KL penalty, and for the last token of a response also the
    response's reward, of rewards (B,)."""
    penalty = -kl_coef * (micro.sampled_logps - micro.ref_logps)
    return penalty.index_add(0, micro.cu_seqlens[1:].long() - 1, rewards)


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
    """Give the advantages of the step's response tokens, on all ranks, mean 0 and variance 1."""
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


def main(args):
    # ---- prompts, the checkpoint to continue from, and the engine ----
    inputs = read_inputs(args, "PPO")
    rows = inputs.rows
    run, engine, plan = make_run(args, inputs, critic=True)

    # ---- policy, critic, reference, optimizer ----
    load = partial(load_sharded, path=inputs.path, compute_dtype=run.dtype, plan=plan,
                   compile=args.compile)
    policy, critic = (load(kind, dtype=torch.float32, lora=(args.lora_rank, args.lora_alpha))
                      for kind in (Qwen2, Critic))
    reference = (WithoutAdapters(policy) if args.lora_rank  # adapters off: the initial model
                 else load(Qwen2, dtype=run.dtype).requires_grad_(False))
    trained = nn.ModuleDict({"policy": policy, "critic": critic})
    optimizer = torch.optim.AdamW([{"params": m.trained_parameters()} for m in trained.values()],
                                  betas=(0.9, 0.999), weight_decay=args.weight_decay, fused=True)
    run.start(engine, policy, optimizer, trained)

    for step in run.steps():
        # ---- sample one response y ~ pi(.|x) per prompt ----
        with run.phase("generate"):
            batch = [rows[i] for i in batch_at(step, len(rows), args.batch_size, args.seed)]
            seeds = [sampling_seed(args.seed, "ppo", step, row["id"]) for row in batch]
            responses = engine.generate([row["tokens"] for row in batch], seeds,
                                        args.max_response_tokens, args.temperature, logps=True)
        if stop_requested():  # the same answer on all ranks; this step hasn't changed the weights
            break
        engine.sleep()        # until the sync the GPU's memory belongs to the trainer

        # ---- score: r(x, y) in other processes, while the reference runs ----
        wait_for_grades = reward.start_grading(batch, responses)

        # ---- log-probabilities under the reference, and values, in the micro-batches of training
        with run.phase("reference"), torch.no_grad():
            updates = make_updates(batch, responses, args.mini_batch_size, plan.micro_batch_tokens)
            micro_batches = [micro for update in updates for micro in update.micro_batches]
            for micro in micro_batches:
                micro.ref_logps = reference.token_logps(
                    micro.input_ids, micro.cu_seqlens, args.temperature, micro.response_mask)
                micro.values = critic(micro.input_ids, micro.cu_seqlens)                     # (T,)
            reference.reshard()  # FSDP would keep the root gathered until a backward pass
            critic.reshard()
        with run.phase("grade"), run.reward_errors():
            graded = wait_for_grades()
            rewards = torch.tensor(graded.rewards, device=device)                        # (batch,)
            for micro in micro_batches:
                micro.advantages = gae(token_rewards(micro, rewards[micro.index], args.kl_coef),
                                       micro.values, micro.response_mask, args.gamma,
                                       args.gae_lambda)                                      # (T,)
                micro.returns = micro.advantages + micro.values                              # (T,)
            normalise(micro_batches)

        # ---- make what was better than its value more probable ----
        for group, lr in zip(optimizer.param_groups, (args.lr, args.critic_lr), strict=True):
            group["lr"] = lr * decay(args, step)
        critic_loss = torch.zeros((), device=device)
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
                    loss = policy_loss(logps, micro.sampled_logps, micro.advantages,
                                       args.clip_ratio)                                      # (T,)
                    loss = loss[micro.response_mask].sum() / update.num_tokens
                    bonus = (args.entropy_coef * entropy.sum() / update.num_tokens
                             if args.entropy_coef else 0)
                    # FSDP averages gradients over the ranks; the shares have to be added up.
                    ((loss - bonus) * world_size).backward()
                    run.measure(micro, loss, logps, micro.ref_logps, entropy)
                grad_norm = clip_grad_norm_(policy.parameters(), args.grad_clip).full_tensor()
                run.check_update(update, grad_norm.item())  # or exit, before the weights change
                # The critic learns from the same micro-batches, and both take their step.
                for micro in update.micro_batches:
                    last = micro is update.micro_batches[-1]
                    critic.defer_sharding(plan.defer_sharding and not last)
                    values = critic(micro.input_ids, micro.cu_seqlens)                       # (T,)
                    loss = value_loss(values, micro.values, micro.returns, args.clip_value)  # (T,)
                    loss = loss[micro.response_mask].sum() / update.num_tokens
                    (loss * world_size).backward()
                    critic_loss += loss.detach() / len(updates)
                clip_grad_norm_(critic.parameters(), args.grad_clip)
                optimizer.step()
                optimizer.zero_grad()

        # ---- bring the new weights to vLLM ----
        with run.phase("sync"):
            engine.sync(policy.gather_weights(run.dtype))
        run.log(batch, responses, graded, critic_loss=all_reduce_sum(critic_loss).item())
    finish(run, inputs)


if __name__ == "__main__":
    run_stage(main, configure(__file__))
