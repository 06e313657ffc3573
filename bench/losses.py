"""Advantages and losses of baselines/ppo.py and baselines/grpo.py against verl's.

    python bench/losses.py

The responses are random. verl comes into the folder .verl, without most of what it depends on: only
its functions of tensors are called (verl/trainer/ppo/core_algos.py). It pads responses, here they
are packed. Exits with status 1 unless values and gradients agree.
"""
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[0] = str(REPO)

from baselines import grpo, ppo  # noqa: E402
from lib.batches import pack  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

FOLDER = REPO / ".verl"
PACKAGES = ["verl==0.9.1", "accelerate", "codetiming", "hydra-core", "msgpack", "omegaconf",
            "antlr4-python3-runtime==4.9.3", "orjson", "peft", "pylatexenc", "pyvers", "ray",
            "tensordict==0.10.0", "torchdata"]


def verl_functions():
    if not FOLDER.exists():
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target",
                        FOLDER, *PACKAGES], check=True)
    sys.path.append(str(FOLDER))  # behind everything that is installed
    from verl.trainer.ppo import core_algos
    return core_algos


class Responses:
    """32 responses in groups of 8, packed as a step has them, and the same padded."""

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        lengths = torch.randint(1, 40, (32,), generator=g).tolist()
        self.micro = pack(range(32), [[1] * (1 + i % 5) for i in range(32)],
                          [[2] * n for n in lengths])
        mask = self.micro.response_mask

        def random(scale=1.0):
            return torch.randn(len(mask), generator=g).mul(scale) * mask

        self.logps = (-1 + random(0.4)).requires_grad_()
        self.new_values = random().requires_grad_()
        self.micro.sampled_logps, self.micro.ref_logps = (-1 + random(0.4) for _ in range(2))
        self.micro.values = random()
        self.micro.rewards = torch.randint(2, (32,), generator=g).float()
        self.mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]          # (B, L)

    def pad(self, x):
        """(T,) -> (B, L)"""
        return torch.zeros(self.mask.shape).masked_scatter(self.mask, x[self.micro.response_mask])

    def mean(self, x):
        return x[self.micro.response_mask].mean()


def main():
    verl, r = verl_functions(), Responses()
    micro, mask, results = r.micro, r.mask.float(), {}

    def compare(name, ours, theirs, parameter=None):
        if parameter is not None:
            ours, theirs = ((x.detach(), torch.autograd.grad(x, parameter)[0])
                            for x in (ours, theirs))
        else:
            ours, theirs = (ours,), (theirs,)
        results[name] = max(((a - b).abs().max() / b.abs().max()).item()
                            for a, b in zip(ours, theirs, strict=True))
        print(f"{name:<45}{results[name]:.1e}")

    print("largest relative difference of values, and of gradients where there are some")
    token_rewards = ppo.token_rewards(micro, 0.05)
    micro.advantages = ppo.gae(token_rewards, micro.values, micro.response_mask, 0.99, 0.95)
    micro.returns = micro.advantages + micro.values
    ppo.normalise([micro])
    scores = torch.zeros(mask.shape)
    scores[torch.arange(32), mask.sum(1).long() - 1] = micro.rewards
    kl = verl.kl_penalty(r.pad(micro.sampled_logps), r.pad(micro.ref_logps), "kl")
    advantages, returns = verl.compute_gae_advantage_return(
        scores - 0.05 * kl * mask, r.pad(micro.values), mask, 0.99, 0.95)
    compare("PPO, normalised advantages", r.pad(micro.advantages), advantages * mask)
    compare("PPO, returns", r.pad(micro.returns), returns * mask)
    ours = r.mean(ppo.policy_loss(r.logps, micro.sampled_logps, micro.advantages, 0.2))
    theirs = verl.compute_policy_loss(  # without the second clip of its own, of very bad tokens
        r.pad(micro.sampled_logps), r.pad(r.logps), advantages, mask, 0.2, clip_ratio_c=1e9)[0]
    compare("PPO, policy loss", ours, theirs, r.logps)
    ours = r.mean(ppo.value_loss(r.new_values, micro.values, micro.returns, 0.5))
    theirs = verl.compute_value_loss(r.pad(r.new_values), returns, r.pad(micro.values), mask,
                                     0.5)[0]
    compare("PPO, value loss", ours, theirs, r.new_values)

    of_response = grpo.group_advantages(micro.rewards, 8)
    theirs = verl.compute_grpo_outcome_advantage(scores, mask, np.arange(32) // 8)[0]
    advantages = micro.per_token(of_response)
    compare("GRPO, advantages", r.pad(advantages), theirs)
    ours = r.mean(grpo.grpo_loss(r.logps, micro.sampled_logps, micro.ref_logps, advantages, 0.2,
                                 0.1))
    policy = verl.compute_policy_loss(r.pad(micro.sampled_logps), r.pad(r.logps), theirs, mask, 0.2,
                                      clip_ratio_c=1e9)[0]
    penalty = verl.kl_penalty(r.pad(r.logps), r.pad(micro.ref_logps), "low_var_kl")
    compare("GRPO, loss with its KL", ours, policy + 0.1 * (penalty * mask).sum() / mask.sum(),
            r.logps)
    sys.exit(max(results.values()) > 1e-4)


if __name__ == "__main__":
    main()
