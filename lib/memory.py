"""Memory of a training process: an estimate from the model's shape, and what is really in use.

    python bench/estimate.py          # what fits where, for the sizes of Qwen2.5

bench/RESULTS.md holds the estimate against measurements.
"""
from contextlib import suppress
from math import ceil, log2
from pathlib import Path
from typing import NamedTuple

from lib.distributed import all_gather, cuda, device, local_world_size, world_size

import torch

# Tokens whose logits exist at the same time, by whether they are on a GPU. Of Qwen2.5's, 512 x
# 151,936 in float32 are 311 MB; on CUDA few large chunks are faster, since each adds once to the
# float32 gradient of the head.
LOGPS_CHUNK = {False: 512, True: 2048}
# (tokens of a micro-batch, whether to recompute activations), the fastest first.
CHOICES = ((16384, False), (8192, False), (16384, True), (8192, True), (4096, True), (2048, True))


class Plan(NamedTuple):
    """How a training run uses memory."""
    micro_batch_tokens: int
    recompute: bool        # activations, in backward
    defer_sharding: bool   # of weights and gradients, to the end of an update
    offload: bool          # weights, AdamW's state and reference stay in host memory
    pin: bool              # that memory: the host has room, although each tensor is rounded up
    on_device: dict        # {part: bytes} that it needs, by estimate()
    on_host: dict


def estimate(model, shards, tokens, dtype, recompute=False, offload=False, compile=False,
             defer_sharding=False, critic=False, reference=True, gpu=cuda):
    """({part: bytes} on the device, the same in host memory) at the peak of a training step.

    model: a Qwen2, on the meta device, with its adapters if it has some; shards: processes that
    share one copy of it; tokens: in a micro-batch; critic: whether a network of the same shape is
    trained, too, after the policy; reference: whether the policy is compared with the initial
    model; gpu: whether it trains there.
    """
    c, b = model.config, torch.finfo(getattr(torch, dtype)).bits // 8  # b: bytes of a number
    all_weights, trained = list(model.parameters()), model.trained_parameters()
    n, num_trained = (sum(p.numel() for p in weights) for weights in (all_weights, trained))
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    lora = num_trained < n  # frozen weights have no gradients

    def part(width, weights):
        """Bytes of a process's part. Pinned memory rounds each tensor up to a power of two."""
        sizes = [width * p.numel() / shards for p in weights]
        return sum(2 ** ceil(log2(max(size, 1))) if offload else size for size in sizes)

    # What is trained is in float32. Frozen is the reference, a second model, or the policy's own
    # weights if only its adapters are trained; then the critic needs a copy of its own.
    kept = {"trained weights, gradients and AdamW":
            (1 + critic) * (2 * part(4, trained) + 8 * num_trained / shards),
            "frozen weights": ((reference or lora) + (critic and lora)) * part(b, all_weights)}
    on_device, on_host = ({}, kept) if offload else (kept, {})
    # FSDP gathers the root (embeddings, head) and two layers: weights and gradients, and these once
    # more in float32 on their way to be reduced.
    root = n - c.num_hidden_layers * layer
    on_device["gathered"] = (b if lora else 2 * b + 4) * (root + 2 * layer)
    if lora:  # the largest merged weight, twice in float32 and once rounded
        on_device["gathered"] += (8 + b) * c.hidden_size * c.intermediate_size
    if defer_sharding:  # whole weights and gradients; the sharded gradients above don't exist then
        on_device["whole"] = round(b * n if lora else (b + 4 - (0 if offload else 4 / shards)) * n)
    # For its backward pass a layer keeps, per token: of two norms the input in float32 and the
    # output; q, k, v and the attention's output; the MLP's gate before and after silu, up, and
    # their product. A compiled layer computes one of the last four again.
    per_layer = tokens * (2 * (4 + b) * c.hidden_size + (3 if compile else 4) * b
                          * c.intermediate_size + 2 * b * c.head_dim
                          * (c.num_attention_heads + c.num_key_value_heads))
    inputs = tokens * c.num_hidden_layers * b * c.hidden_size
    on_device["activations"] = (per_layer + inputs if recompute
                                else per_layer * c.num_hidden_layers)
    if lora:  # gradients of the MLP's; else the gathered gradients of weights leave room for them
        on_device["activations"] += 4 * b * tokens * c.intermediate_size
    # A chunk has its logits and their gradient, three float32 copies of them unless they are fused,
    # and its part of the head's gradient, if there is one.
    chunk = min(tokens, LOGPS_CHUNK[gpu]) * (2 * b + (0 if compile else 3 * 4))
    head = 0 if lora else c.hidden_size * (4 if gpu else b)
    on_device["logits"] = c.vocab_size * (chunk + head)
    return on_device, on_host


def make_plan(model, longest, largest, dtype, micro_batch_tokens, recompute, offload, compile,
              critic=False, reference=True):
    """The Plan of a training run, printed with the memory that it takes.

    model: a Qwen2, on the meta device; longest: tokens of a sequence at most, which is never split;
    largest: tokens that a process can have in a mini-batch; micro_batch_tokens: 0 means the fastest
    of CHOICES that fits the GPU; the others as in estimate().
    """
    def needs(tokens, recompute, defer_sharding=False):
        return estimate(model, world_size, min(max(tokens, longest), largest), dtype, recompute,
                        offload, compile, defer_sharding, critic, reference)

    def fits(*choice):
        # A tenth is for CUDA itself, NCCL, the sleeping engine, and gaps between allocations.
        return sum(needs(*choice)[0].values()) < 0.9 * room

    room = min(all_gather(gpu_memory() if cuda else available_host_memory() / local_world_size))
    # On a CPU short sequences in a micro-batch of their own need less padding.
    tokens = micro_batch_tokens or 8192
    if cuda and not micro_batch_tokens:
        tokens, recompute = choose(fits, recompute)
    defer_sharding = largest > tokens and fits(tokens, recompute, True)
    on_device, on_host = needs(tokens, recompute, defer_sharding)
    print(f"micro-batches of {tokens:,} tokens, activations {'recomputed' if recompute else 'kept'}"
          f"\neach process needs about {in_words(on_device)} beside its engine"
          + (f", and {in_words(on_host)} of host memory" if on_host else ""), flush=True)
    pin = sum(on_host.values()) * local_world_size < 0.8 * available_host_memory()
    return Plan(tokens, recompute, defer_sharding, offload, pin and cuda, on_device, on_host)


def choose(fits, recompute):
    """The first of CHOICES for which fits(*choice), or the last. recompute: only choices that
    recompute activations."""
    choices = [choice for choice in CHOICES if choice[1] or not recompute]
    return next((choice for choice in choices if fits(*choice)), choices[-1])


def in_words(parts):
    """{part: bytes} as text."""
    def gb(size):
        return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
    return f"{gb(sum(parts.values()))} ({', '.join(f'{k} {gb(v)}' for k, v in parts.items() if v)})"


def gpu_memory():
    """Bytes of this rank's GPU."""
    return torch.cuda.get_device_properties(device).total_memory


def memory_in_use():
    """Bytes that torch has allocated on the GPU; without one, resident bytes of the process."""
    return torch.cuda.memory_allocated() if cuda else proc_bytes("/proc/self/status", "VmRSS")


def peak_memory():
    """The largest memory_in_use() since reset_peak_memory()."""
    return torch.cuda.max_memory_allocated() if cuda else proc_bytes("/proc/self/status", "VmHWM")


def reset_peak_memory():
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError), open("/proc/self/clear_refs", "w") as f:
            f.write("5")  # resets VmHWM; where that is not permitted, the earlier peak stays


def available_host_memory():
    """Bytes of host memory that can still be allocated."""
    limits = [proc_bytes("/proc/meminfo", "MemAvailable")]
    with suppress(OSError, ValueError):  # no container, or one without a limit
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def proc_bytes(path, field):
    with open(path) as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field))
