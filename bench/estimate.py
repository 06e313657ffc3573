"""What fits where: memory of each GPU in training, for the sizes of Qwen2.5, by lib/memory.py.

    python bench/estimate.py
    python bench/estimate.py --gpu=24 --micro_batch_tokens=8192
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.base_model import BASE_MODEL
from lib.cli import configure
from lib.memory import estimate
from model import LOGPS_CHUNK, Config, Qwen2

import torch

gpu = 80.0                     # GB of one GPU
micro_batch_tokens = 16384     # tokens in one forward and backward pass, on each rank
dtype = "bfloat16"             # of computation, float32 or bfloat16
checkpoint_activations = True  # recompute activations in backward
# --------------------------------------------------------------------------------------------------

SIZES = {"0.5B": Config(),
         "1.5B": Config(hidden_size=1536, num_hidden_layers=28, num_attention_heads=12,
                        intermediate_size=8960),
         "3B": Config(hidden_size=2048, num_hidden_layers=36, num_attention_heads=16,
                      intermediate_size=11008),
         "7B": Config(vocab_size=152064, hidden_size=3584, num_hidden_layers=28,
                      num_attention_heads=28, num_key_value_heads=4, intermediate_size=18944,
                      tie_word_embeddings=False)}


TINY = Config(vocab_size=257, **BASE_MODEL)  # the embedded task's


def on_meta_device(config):
    """A Qwen2 without memory for its weights."""
    with torch.device("meta"):
        return Qwen2(config)


def main():
    print(f"GB of each GPU in training, micro-batches of {micro_batch_tokens:,} tokens, {dtype}"
          f"{', activations recomputed' * checkpoint_activations}; * fits {gpu:g} GB\n\n"
          f"{'model':<8}{'GPUs':>5}{'all on the GPU':>18}{'reference on host':>20}"
          f"{'optimizer on host':>20}{'both':>9}{'host, with both':>18}")
    for name, config in SIZES.items():
        model = on_meta_device(config)
        for gpus in (1, 2, 4, 8):
            parts = [estimate(model, gpus, micro_batch_tokens, dtype, LOGPS_CHUNK,
                              checkpoint_activations, offload_reference, offload_optimizer)
                     for offload_optimizer in (False, True) for offload_reference in (False, True)]
            used = [sum(on_device.values()) / 1e9 for on_device, _ in parts]
            # 8% of the GPU are for libraries, and for what torch's allocator can't use.
            cells = [f"{x:.1f}{'*' if x <= 0.92 * gpu else ' '}" for x in used]
            host = sum(parts[-1][1].values()) * gpus / 1e9
            print(f"{name:<8}{gpus:>5}{cells[0]:>18}{cells[1]:>20}{cells[2]:>20}{cells[3]:>9}"
                  f"{host:>18.1f}")


if __name__ == "__main__":
    configure(globals())
    main()
