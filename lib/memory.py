"""Memory of a training process: an estimate from the model's shape, and what is really in use.

    python bench/estimate.py          # what fits where, for the sizes of Qwen2.5

Bytes per process, for N parameters sharded over S processes, b bytes per number in the compute
dtype (bfloat16: 2), T tokens in a micro-batch:

    weights, gradients, AdamW   (4 + 4 + 8) N / S in float32, twice as much with a critic
    reference                   b N / S
    gathered                    root (embeddings, head) and two layers: weights and gradients in b,
                                and gradients in 4 on their way to be reduced
    whole                       if sharding is deferred: weights in b N and gradients in 4 N, which
                                are sharded at the end of an update only
    activations                 what backward needs of every layer, less of it if compiled; if they
                                are recomputed, of one layer, and every layer's input
    logits                      of one chunk of tokens: logits and their gradient in b, and unless
                                compiled three times in 4; the chunk's part of the head's gradient

With offload the first two are in host memory (which, if pinned, rounds each tensor up to a power of
two bytes). bench/RESULTS.md holds the estimate against measurements.
"""
from contextlib import suppress
from math import ceil, log2
from typing import NamedTuple

from lib.cli import check
from lib.distributed import all_gather, cuda, device, local_world_size, world_size

import torch

# (tokens of a micro-batch, whether to recompute activations), the fastest first.
CHOICES = ((16384, False), (8192, False), (16384, True), (8192, True), (4096, True), (2048, True))


class Plan(NamedTuple):
    """How a training run uses memory."""
    micro_batch_tokens: int
    recompute: bool        # activations, in backward
    defer_sharding: bool   # of weights and gradients, to the end of an update
    offload: bool          # weights, AdamW's state and reference stay in host memory
    pin: bool              # that memory: the host has room, although each tensor is rounded up


def estimate(model, shards, tokens, dtype, logps_chunk, recompute=False, offload=False,
             compile=False, defer_sharding=False, critic=False):
    """({part: bytes} on the device, the same in host memory) at the peak of a training step.

    model: a Qwen2, on the meta device; shards: processes that share one copy of it; tokens: in a
    micro-batch; logps_chunk: tokens whose logits exist at the same time; critic: whether a network
    of the same shape is trained, too, after the policy.
    """
    c, b = model.config, torch.finfo(getattr(torch, dtype)).bits // 8
    sizes = [p.numel() for p in model.parameters()]
    total = sum(sizes)
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    root = total - c.num_hidden_layers * layer

    def pinned(bytes_per_number):
        return sum(2 ** ceil(log2(max(bytes_per_number * n / shards, 1))) for n in sizes)

    if offload:
        on_host = {"weights, gradients and AdamW": (1 + critic) * (2 * pinned(4)
                                                                   + 8 * total / shards),
                   "reference": pinned(b)}
        on_device = {}
    else:
        on_host = {}
        on_device = {"weights, gradients and AdamW": (1 + critic) * 16 * total / shards,
                     "reference": b * total / shards}
    on_device["gathered"] = (2 * b + 4) * (root + 2 * layer)
    if defer_sharding:  # while these gradients exist, the sharded ones, counted above, do not
        sharded = 0 if offload else 4 / shards
        on_device["whole"] = round((b + 4 - sharded) * total)
    # Of a layer, per token: two norms, each its input in float32 and its output; q, k, v and the
    # attention's output; the MLP's gate before and after silu, up, and their product. What is
    # compiled computes one of the last four again.
    of_mlp = (3 if compile else 4) * b * c.intermediate_size
    per_layer = tokens * (2 * (4 + b) * c.hidden_size + of_mlp
                          + 2 * b * (c.num_attention_heads + c.num_key_value_heads) * c.head_dim)
    inputs = tokens * c.num_hidden_layers * b * c.hidden_size
    on_device["activations"] = (per_layer + inputs if recompute
                                else per_layer * c.num_hidden_layers)
    chunk = min(tokens, logps_chunk) * (2 * b + (0 if compile else 3 * 4))
    on_device["logits"] = c.vocab_size * (chunk + c.hidden_size * (4 if cuda else b))
    return on_device, on_host


def make_plan(model, largest, logps_chunk, dtype, micro_batch_tokens, recompute, offload, compile,
              gpu_memory_utilization, critic=False):
    """The Plan of a training run, printed with the memory that it takes.

    model: a Qwen2, on the meta device; largest: tokens that a process can have in a mini-batch;
    micro_batch_tokens: 0 means the fastest of CHOICES that fits the GPU; gpu_memory_utilization:
    the engine's share; the others as in estimate(). Raises ValueError if the engine doesn't fit
    beside what stays on the GPU while it generates.
    """
    def needs(tokens, recompute, defer_sharding=False):
        return estimate(model, world_size, min(tokens, largest), dtype, logps_chunk, recompute,
                        offload, compile, defer_sharding, critic)

    def fits(*choice):
        # A tenth is for CUDA itself, NCCL, the sleeping engine, and gaps between allocations.
        return sum(needs(*choice)[0].values()) < 0.9 * room

    tokens = micro_batch_tokens
    if cuda:
        room = min(all_gather(gpu_memory()))
        check_engine_share(model, room, dtype, offload, gpu_memory_utilization, critic)
        if not tokens:
            tokens, recompute = choose(fits, recompute)
    else:
        room = min(all_gather(available_host_memory())) / local_world_size
        # Short sequences in a micro-batch of their own need less padding.
        tokens = tokens or 8192
    defer_sharding = largest > tokens and fits(tokens, recompute, True)
    on_device, on_host = needs(tokens, recompute, defer_sharding)
    in_host_memory = f", and {in_words(on_host)} of host memory" if on_host else ""
    print(f"micro-batches of {tokens:,} tokens, activations {'recomputed' if recompute else 'kept'}"
          f"\neach process needs about {in_words(on_device)} beside its engine{in_host_memory}",
          flush=True)
    pin = sum(on_host.values()) * local_world_size < 0.8 * available_host_memory()
    return Plan(tokens, recompute, defer_sharding, offload, pin and cuda)


def choose(fits, recompute):
    """The first of CHOICES for which fits(*choice), or the last. recompute: only choices that
    recompute activations."""
    choices = [choice for choice in CHOICES if choice[1] or not recompute]
    return next((choice for choice in choices if fits(*choice)), choices[-1])


def check_engine_share(model, gpu, dtype, offload, gpu_memory_utilization, critic=False):
    """Raises ValueError if the engine's share of the GPU's `gpu` bytes and what stays there while
    it generates (float32 weights, AdamW's state, the reference) are more than the GPU has."""
    total = sum(p.numel() for p in model.parameters())
    bytes_per_number = 12 * (1 + critic) + torch.finfo(getattr(torch, dtype)).bits // 8
    stays = 0 if offload else bytes_per_number * total / world_size
    share, most = gpu_memory_utilization, 0.97 - stays / gpu
    room = (f"--gpu_memory_utilization={most - 0.005:.2f} would fit" if most > 0.1 else
            "set --offload=True, or use more GPUs")
    check(share <= most, f"--gpu_memory_utilization={share}: the engine's {share * gpu / 1e9:.1f} "
          f"GB and the {stays / 1e9:.1f} GB of weights, AdamW's state and reference that stay on "
          f"the GPU meanwhile are more than its {gpu / 1e9:.1f} GB; {room}")


def in_words(parts):
    """{part: bytes} as text."""
    def gb(size):
        return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
    return f"{gb(sum(parts.values()))} ({', '.join(f'{k} {gb(v)}' for k, v in parts.items())})"


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
    return proc_bytes("/proc/meminfo", "MemAvailable")


def proc_bytes(path, field):
    with open(path) as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(field))
