"""What fits where: memory of each GPU in training, for the sizes of Qwen2.5, by lib/memory.py.

    python bench/estimate.py
    python bench/estimate.py --gpu=24 --micro_batch_tokens=8192
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lib.cli import configure
from lib.memory import estimate
from model import Config, Qwen2
from prepare import BASE_MODEL, byte_tokenizer

import torch

gpu = 80.0                     # GB of one GPU
micro_batch_tokens = 16384     # tokens in one forward and backward pass, on each rank
dtype = "bfloat16"             # of computation, float32 or bfloat16
checkpoint_activations = True  # recompute activations in backward
compile = True                 # with torch.compile, as in config/math.py
lora_rank = 32                 # of the last column
# --------------------------------------------------------------------------------------------------

# The embedded tasks' model, and Qwen2.5's.
SIZES = {"1M": Config(vocab_size=257, **BASE_MODEL),
         "0.5B": Config(),
         "1.5B": Config(hidden_size=1536, num_hidden_layers=28, num_attention_heads=12,
                        intermediate_size=8960),
         "3B": Config(hidden_size=2048, num_hidden_layers=36, num_attention_heads=16,
                      intermediate_size=11008),
         "7B": Config(vocab_size=152064, hidden_size=3584, num_hidden_layers=28,
                      num_attention_heads=28, num_key_value_heads=4, intermediate_size=18944,
                      tie_word_embeddings=False)}


def on_meta_device(size):
    """A Qwen2 without memory for its weights."""
    with torch.device("meta"):
        return Qwen2(SIZES[size])


def make_model(size, folder, dtype):
    """A checkpoint with random weights in `dtype`, and a tokenizer, for the scripts in bench/."""
    torch.manual_seed(0)
    Qwen2(SIZES[size]).save_pretrained(folder, dtype)
    byte_tokenizer().save_pretrained(folder)


def main(args):
    print(f"GB of each GPU in training, micro-batches of {args.micro_batch_tokens:,} tokens, "
          f"{args.dtype}{', activations recomputed' * args.checkpoint_activations}"
          f"{', compiled' * args.compile}; "
          f"* fits {args.gpu:g} GB\n\n"
          f"{'model':<8}{'GPUs':>5}{'all on the GPU':>18}{'with offload':>16}"
          f"{'host memory with offload':>28}{'adapters':>12}")
    for size in list(SIZES)[1:]:
        model, lora = on_meta_device(size), on_meta_device(size)
        with torch.device("meta"):
            lora.add_adapters(args.lora_rank, 32.0)
        for gpus in (1, 2, 4, 8):
            (kept, _), (offloaded, on_host), (adapters, _) = (
                estimate(m, gpus, args.micro_batch_tokens, args.dtype, args.checkpoint_activations,
                         offload, args.compile, gpu=True)
                for m, offload in ((model, False), (model, True), (lora, False)))
            used = [sum(parts.values()) / 1e9 for parts in (kept, offloaded, adapters)]
            # A tenth is kept free, as in lib/memory.py.
            cells = [f"{x:.1f}{'*' if x < 0.9 * args.gpu else ' '}" for x in used]
            host = sum(on_host.values()) * gpus / 1e9
            print(f"{size:<8}{gpus:>5}{cells[0]:>18}{cells[1]:>16}{host:>28.1f}{cells[2]:>12}")


if __name__ == "__main__":
    main(configure(__file__))
