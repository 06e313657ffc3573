"""Memory of a sharded policy of the shape of Qwen2.5-0.5B, phase by phase, without an engine and a
reference: random weights, 96 tokens.

    MALLOC_MMAP_THRESHOLD_=1000000 torchrun --standalone --nproc_per_node=2 bench/shards.py

Without that variable the C library keeps memory that was freed, and it is counted, too.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.estimate import on_meta_device
from lib.distributed import device, run_stage
from lib.memory import memory_in_use, peak_memory, reset_peak_memory
from model import shard_model

import torch


def main(size):
    start = memory_in_use()
    reset_peak_memory()

    def report(phase):
        print(f"{phase:<16} now {(memory_in_use() - start) / 1e9:.2f} GB, peak "
              f"{(peak_memory() - start) / 1e9:.2f} GB", flush=True)
        reset_peak_memory()

    policy = on_meta_device(size)
    shard_model(policy, torch.bfloat16)
    policy.to_empty(device=device)
    with torch.no_grad():
        for p in policy.parameters():
            p.to_local().normal_(0, 0.02)
    report("policy")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
    ids = torch.randint(1000, (96,), device=device)
    cu_seqlens = torch.tensor([0, 48, 96], dtype=torch.int32, device=device)
    for _ in range(2):
        logps, _ = policy.token_logps(ids, cu_seqlens, entropy=True)
        report("forward")
        logps.sum().backward()
        report("backward")
        optimizer.step()
        optimizer.zero_grad()
        report("step")
    for _ in policy.gather_weights(torch.bfloat16):
        pass
    report("gather weights")


if __name__ == "__main__":
    run_stage(main, "0.5B")
