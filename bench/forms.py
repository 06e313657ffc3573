"""train_apo.py --off_policy=True with another rule in the place of limit_push, for bench/lag.py.

    python bench/forms.py sequence config/facts.py --batch_size=256 --mini_batch_size=32

A rule weighs the gradient of each token of the responses that earned less than their V*:
  token      1, and 0 once ln(pi / pi_old) of the token is below -0.2 (limit_push itself)
  sequence   min(1, pi / pi_old) of the whole response
  veto       1, and 0 once ln(pi / pi_old) of the whole response is below -0.5
  mean       min(1, pi / pi_old) of the response, per token on average (a geometric mean)
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train_apo
from lib.cli import configure
from lib.distributed import run_stage

import torch

# log_ratio (T,), micro -> weights (T,)
RULES = {
    "token": lambda x, micro: (x > -0.2).float(),
    "sequence": lambda x, micro: micro.per_token(micro.sum(x).clamp(max=0).exp()),
    "veto": lambda x, micro: micro.per_token((micro.sum(x) > -0.5).float()),
    "mean": lambda x, micro: micro.per_token(
        (micro.sum(x) / micro.sum(micro.response_mask.float())).clamp(max=0).exp())}


def rule(name):
    def limit_push(logps, micro, advantages):
        before = logps.detach()
        weights = RULES[name](before - micro.sampled_logps, micro)
        weights = torch.where(micro.per_token(advantages) < 0, weights, 1.0)
        return before + weights * (logps - before)  # of the value nothing changes
    return limit_push


if __name__ == "__main__":
    train_apo.limit_push = rule(sys.argv.pop(1))
    run_stage(train_apo.main, configure(train_apo.__file__))
