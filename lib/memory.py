"""Memory of a training process: an estimate from the model's shape, and what is really in use.

    python bench/estimate.py          # what fits where, for the sizes of Qwen2.5

Bytes per process, for N parameters sharded over S processes, b bytes per number in the compute
dtype (bfloat16: 2), T tokens in a micro-batch:

    weights, gradients, AdamW   (4 + 4 + 8) N / S, float32; in host memory with offload_optimizer
    reference                   b N / S; in host memory with offload_reference
                                (pinned host memory rounds each tensor up to a power of two bytes)
    gathered                    root (embeddings, head) and two layers: weights and gradients in b,
                                and gradients in 4 on their way to be reduced
    activations                 what backward needs of every layer; with checkpoint_activations of
                                one layer, and every layer's input
    logits                      of one chunk of tokens: logits, softmax, gradient in 4, one in b

bench/RESULTS.md holds it against measurements.
"""
from contextlib import suppress
from math import ceil, log2

from lib.distributed import cuda

import torch


def estimate(model, shards, tokens, dtype, logps_chunk, checkpoint_activations=False,
             offload_reference=False, offload_optimizer=False):
    """({part: bytes} on the device, the same in host memory) at the peak of a training step.

    model: a Qwen2, on the meta device; shards: processes that share one copy of it; tokens: in a
    micro-batch; logps_chunk: tokens whose logits exist at the same time.
    """
    c, b = model.config, torch.finfo(getattr(torch, dtype)).bits // 8
    sizes = [p.numel() for p in model.parameters()]
    total = sum(sizes)
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    root = total - c.num_hidden_layers * layer

    def pinned(bytes_per_number):
        return sum(2 ** ceil(log2(max(bytes_per_number * n / shards, 1))) for n in sizes)

    device, host = {}, {}
    name = "weights, gradients and AdamW"
    if offload_optimizer:
        host[name] = 2 * pinned(4) + 8 * total / shards
    else:
        device[name] = 16 * total / shards
    if offload_reference:
        host["reference"] = pinned(b)
    else:
        device["reference"] = b * total / shards
    device["gathered"] = (2 * b + 4) * (root + 2 * layer)
    # Of a layer, per token: two norms, each its input in float32 and its output; q, k, v and the
    # attention's output; the MLP's gate before and after silu, up, and their product.
    per_layer = tokens * (2 * (4 + b) * c.hidden_size + 4 * b * c.intermediate_size
                          + 2 * b * (c.num_attention_heads + c.num_key_value_heads) * c.head_dim)
    inputs = tokens * c.num_hidden_layers * b * c.hidden_size
    device["activations"] = (per_layer + inputs if checkpoint_activations
                             else per_layer * c.num_hidden_layers)
    device["logits"] = min(tokens, logps_chunk) * c.vocab_size * (3 * 4 + b)
    return device, host


def in_words(parts):
    """{part: bytes} as text."""
    def gb(size):
        return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
    return f"{gb(sum(parts.values()))} ({', '.join(f'{k} {gb(v)}' for k, v in parts.items())})"


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
