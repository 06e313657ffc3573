"""What a sharded policy of the 0.5B shape takes, phase by phase, without engine and reference: random weights, 96 tokens.

    MALLOC_MMAP_THRESHOLD_=1000000 torchrun --nproc_per_node=2 bench/shards.py   # without it malloc keeps what is freed
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import common  # noqa: F401  before torch

import torch

import job
from memory import SIZES, forget, resident
from model import Qwen2, shard_model


def main():
    base = resident()
    forget()

    def say(phase):
        print(f"{phase:<16} now {(resident() - base) / 1e9:.2f} GB, peak {(resident(True) - base) / 1e9:.2f} GB", flush=True)
        forget()

    with torch.device("meta"):
        policy = Qwen2(SIZES["0.5B"])
    shard_model(policy, torch.bfloat16)
    policy.to_empty(device=job.device)
    with torch.no_grad():
        for p in policy.parameters():
            p.to_local().normal_(0, 0.02)
    say("policy")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
    ids = torch.randint(1000, (96,), device=job.device)
    cu_seqlens = torch.tensor([0, 48, 96], dtype=torch.int32, device=job.device)
    for _ in range(2):
        logps, _ = policy.token_logps(ids, cu_seqlens, entropy=True)
        say("forward")
        logps.sum().backward()
        say("backward")
        optimizer.step()
        optimizer.zero_grad()
        say("step")
    for _ in policy.full_weights(torch.bfloat16):
        pass
    say("gather weights")


if __name__ == "__main__":
    job.run(main)
