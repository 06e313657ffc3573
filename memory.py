"""What training takes of each process's memory, estimated from the model's shape: train_apo.py prints it at its start.

    python memory.py                                     # what fits where, for the sizes of Qwen2.5
    python memory.py --gpu=24 --micro_batch_tokens=8192

Bytes per process, for N parameters sharded over S processes, b bytes a number in the compute dtype (bfloat16: 2), T tokens in
a micro-batch, and D, F, V, H, K, E, L as in model.py:

    weights, gradients, AdamW   (4 + 4 + 8) N / S, float32; in host memory with offload_optimizer
    reference                   b N / S; in host memory with offload_reference
                                (there pinned memory rounds each weight and gradient up to a power of two bytes)
    gathered                    root (embeddings, head) and two layers: their weights and gradients in b, and in 4 to be reduced
    activations                 what backward needs of every layer; with checkpoint_activations of one, and every layer's input
    logits                      of LOGPS_CHUNK tokens, never of all: logits, softmax and gradient in 4, one of them in b

Measured against it: bench/RESULTS.md.
"""
from contextlib import suppress
from math import ceil, log2

import common  # before torch, to quiet it

import torch

from model import LOGPS_CHUNK, Config, Qwen2

gpu = 80.0                     # GB of one GPU
micro_batch_tokens = 16384
dtype = "bfloat16"
checkpoint_activations = True
# ---------------------------------------------------------------------------------------------------------------------

SIZES = {"0.5B": Config(),
         "1.5B": Config(hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, intermediate_size=8960),
         "3B": Config(hidden_size=2048, num_hidden_layers=36, num_attention_heads=16, intermediate_size=11008),
         "7B": Config(vocab_size=152064, hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4,
                      intermediate_size=18944, tie_word_embeddings=False)}


def estimate(config, shards, tokens, dtype, checkpoint_activations=False, offload_reference=False, offload_optimizer=False):
    """(device, host): {what: bytes} at the peak of a training step. shards: processes that share one copy of the model;
    tokens: of a micro-batch."""
    c, b = config, torch.finfo(getattr(torch, dtype)).bits // 8
    with torch.device("meta"):
        model = Qwen2(c)
    numbers = [p.numel() for p in model.parameters()]
    everything = sum(numbers)
    layer = sum(p.numel() for p in model.model.layers[0].parameters())
    root = everything - c.num_hidden_layers * layer
    device, host = {}, {}
    pinned = {size: sum(2 ** ceil(log2(max(size * n / shards, 1))) for n in numbers) for size in (4, b)}
    (host if offload_optimizer else device)["weights, gradients and AdamW"] = (
        2 * pinned[4] + 8 * everything / shards if offload_optimizer else 16 * everything / shards)
    (host if offload_reference else device)["reference"] = pinned[b] if offload_reference else b * everything / shards
    device["gathered"] = (2 * b + 4) * (root + 2 * layer)
    # A layer's, per token: two norms, each its input in float32 and its output; q, k, v and what attention makes of them; the
    # MLP's gate before and after silu, up, and their product.
    of_layer = (2 * (4 + b) * c.hidden_size + 2 * b * (c.num_attention_heads + c.num_key_value_heads) * c.head_dim
                + 4 * b * c.intermediate_size)
    device["activations"] = tokens * (of_layer + c.num_hidden_layers * b * c.hidden_size if checkpoint_activations else
                                      of_layer * c.num_hidden_layers)
    device["logits"] = min(tokens, LOGPS_CHUNK) * c.vocab_size * (3 * 4 + b)
    return device, host


def in_words(parts):
    """A dictionary of bytes, as text."""
    def gb(size):
        return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
    return f"{gb(sum(parts.values()))} ({', '.join(f'{name} {gb(size)}' for name, size in parts.items())})"


def resident(peak=False):
    """Bytes that torch has allocated on the GPU; without one, of the process in memory. Now, or at most since forget()."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("VmHWM" if peak else "VmRSS"))


def forget():
    """Begin a new peak."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError), open("/proc/self/clear_refs", "w") as f:
            f.write("5")  # the peak of the resident set becomes what it is now; where that is forbidden, it stays


def host_memory():
    """Bytes of host memory that can still be had."""
    with open("/proc/meminfo") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith("MemAvailable"))


def main():
    print(f"GB of each GPU in training, micro-batches of {micro_batch_tokens:,} tokens, {dtype}"
          f"{', activations recomputed' * checkpoint_activations}; * fits {gpu:g} GB\n\n"
          f"{'model':<8}{'GPUs':>5}{'all on the GPU':>18}{'reference on host':>20}{'optimizer on host':>20}{'both':>9}"
          f"{'host, with both':>18}")
    for name, config in SIZES.items():
        for gpus in (1, 2, 4, 8):
            cells = [estimate(config, gpus, micro_batch_tokens, dtype, checkpoint_activations, reference, optimizer)
                     for optimizer in (False, True) for reference in (False, True)]
            used = [sum(device.values()) / 1e9 for device, _ in cells]
            shown = [f"{x:.1f}{'*' if x <= 0.92 * gpu else ' '}" for x in used]  # the rest: libraries, and what is left unused
            print(f"{name:<8}{gpus:>5}{shown[0]:>18}{shown[1]:>20}{shown[2]:>20}{shown[3]:>9}"
                  f"{sum(cells[3][1].values()) * gpus / 1e9:>18.1f}")


if __name__ == "__main__":
    common.configure(globals())
    main()
