"""Advantages and losses of baselines/ppo.py and baselines/grpo.py against verl's.

    python bench/losses.py

The responses are random. verl comes into the folder .verl, without most of what it depends on: only
its functions of tensors are called (verl/trainer/ppo/core_algos.py). It pads responses, here they
are packed. Exits with status 1 unless values and gradients agree.
"""
import subprocess
import sys
from pathlib import Path

sys.path.pop(0)  # bench/ has a trl.py, which verl would take for the library
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from baselines import grpo, ppo
from lib.batches import pack

import numpy as np
import torch

FOLDER = Path(__file__).resolve().parent.parent / ".verl"
PACKAGES = ["verl==0.9.1", "accelerate", "codetiming", "hydra-core", "msgpack", "omegaconf",
            "antlr4-python3-runtime==4.9.3", "orjson", "peft", "pylatexenc", "pyvers", "ray",
            "tensordict==0.10.0", "torchdata"]
B, GROUP = 32, 8  # responses, of which so many belong to one prompt


def verl_functions():
    if not FOLDER.exists():
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target",
                        FOLDER, *PACKAGES], check=True)
    sys.path.append(str(FOLDER))  # behind everything that is installed
    from verl.trainer.ppo import core_algos
    return core_algos


def main():
    # ---- responses, packed as a step has them, and what turns (T,) into verl's padded (B, L) ----
    g = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 40, (B,), generator=g)
    micro = pack(range(B), [[1] * (1 + i % 5) for i in range(B)], [[2] * n for n in lengths])
    mask = (torch.arange(lengths.max()) < lengths[:, None]).float()                        # (B, L)

    def random(scale=1.0):
        return torch.randn(len(micro.response_mask), generator=g).mul(scale) * micro.response_mask

    def pad(x):
        return torch.zeros(mask.shape).masked_scatter(mask > 0, x[micro.response_mask])

    def mean(x):
        return x[micro.response_mask].mean()

    logps, new_values = (-1 + random(0.4)).requires_grad_(), random().requires_grad_()
    micro.sampled_logps, micro.ref_logps = -1 + random(0.4), -1 + random(0.4)
    micro.values = random()
    rewards = torch.randint(2, (B,), generator=g).float()
    scores = torch.zeros(mask.shape)
    scores[torch.arange(B), lengths - 1] = rewards
    sampled_logps, ref_logps, values = map(pad, (micro.sampled_logps, micro.ref_logps,
                                                 micro.values))

    # ---- ours against verl's ----
    verl, differences = verl_functions(), []

    def compare(name, ours, theirs, parameter=None):
        pairs = [(ours, theirs)]
        if parameter is not None:
            pairs.append([torch.autograd.grad(x, parameter)[0] for x in pairs[0]])
        differences.append(max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs))
        print(f"{name:<45}{differences[-1]:.1e}")

    def policy_loss_of_verl(advantages):  # without its second clip, of very bad tokens
        return verl.compute_policy_loss(sampled_logps, pad(logps), advantages, mask, 0.2,
                                        clip_ratio_c=1e9)[0]

    print("largest relative difference of values, and of gradients where there are some")
    micro.advantages = ppo.gae(ppo.token_rewards(micro, rewards, 0.05), micro.values,
                               micro.response_mask, 0.99, 0.95)
    micro.returns = micro.advantages + micro.values
    ppo.normalise([micro])
    kl = verl.kl_penalty(sampled_logps, ref_logps, "kl")
    advantages, returns = verl.compute_gae_advantage_return(scores - 0.05 * kl * mask, values, mask,
                                                            0.99, 0.95)
    compare("PPO, normalised advantages", pad(micro.advantages), advantages * mask)
    compare("PPO, returns", pad(micro.returns), returns * mask)
    compare("PPO, policy loss",
            mean(ppo.policy_loss(logps, micro.sampled_logps, micro.advantages, 0.2)),
            policy_loss_of_verl(advantages), logps)
    compare("PPO, value loss",
            mean(ppo.value_loss(new_values, micro.values, micro.returns, 0.5)),
            verl.compute_value_loss(pad(new_values), returns, values, mask, 0.5)[0], new_values)

    theirs = verl.compute_grpo_outcome_advantage(scores, mask, np.arange(B) // GROUP)[0]
    advantages = micro.per_token(grpo.group_advantages(rewards, GROUP))
    compare("GRPO, advantages", pad(advantages), theirs)
    kl = verl.kl_penalty(pad(logps), ref_logps, "low_var_kl")
    compare("GRPO, loss with its KL",
            mean(grpo.grpo_loss(logps, micro.sampled_logps, micro.ref_logps, advantages, 0.2, 0.1)),
            policy_loss_of_verl(theirs) + 0.1 * (kl * mask).sum() / mask.sum(), logps)
    sys.exit(not all(d < 1e-4 for d in differences))  # NaN does not pass


if __name__ == "__main__":
    main()
