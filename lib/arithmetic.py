"""The embedded task: sums of two 2-digit numbers, and a small base model that half knows how.

A prompt is "47+86=?" and a newline. The response is "7+6+0=13,4+8+1=13", a newline and "#### 133":
units first, with the carry as third summand, then GSM8K's answer format. The base model is
pretrained on solutions that are right one time in five, and else forget the carry or only guess. So
it knows the method but seldom uses it, as a real base model does with reasoning, and reinforcement
learning has something to find.
"""
import random
import zlib

from lib.cli import progress

import torch

# Fields of model.Config: 1M parameters.
BASE_MODEL = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
              "rope_theta": 10000.0, "initializer_range": 0.08}


def sums(seed):
    """{"train": [(a, b), ...], "test": [...]}: all pairs of 2-digit numbers, shuffled.

    A tenth is held out, also from pretraining. By CRC: a simpler hash of a and b would hold out all
    sums with a certain digit.
    """
    pairs = [(a, b) for a in range(10, 100) for b in range(10, 100)]
    random.Random(seed).shuffle(pairs)
    held_out = [zlib.crc32(f"{a}+{b}".encode()) % 10 == 0 for a, b in pairs]
    return {"train": [p for p, test in zip(pairs, held_out, strict=True) if not test],
            "test": [p for p, test in zip(pairs, held_out, strict=True) if test]}


def row(split, a, b):
    """A data row, as prepare.py writes it."""
    return {"id": f"arithmetic/{split}/{a}+{b}", "task": "arithmetic", "prompt": f"{a}+{b}=?\n",
            "answer": str(a + b), "solution": solution(a, b)}


def solution(a, b, carry=True, slip=0):
    """Worked solution of a + b; wrong without the carry, or with a slip in the sum of the units."""
    units = a % 10 + b % 10 + slip
    c = units // 10 if carry else 0
    tens = a // 10 + b // 10 + c
    return f"{a % 10}+{b % 10}+0={units},{a // 10}+{b // 10}+{c}={tens}\n#### {tens}{units % 10}"


def base_solution(a, b, rng):
    """What the base model learns: 20% right, 40% without the carry, 40% a guess; 3% of the worked
    ones have a slip."""
    kind = rng.random()
    if kind < 0.4:
        return f"#### {a + b + rng.choice((-20, -10, -2, -1, 0, 1, 2, 10, 20))}"
    slip = rng.choice((-1, 1)) if rng.random() < 0.03 else 0
    return solution(a, b, carry=kind < 0.6, slip=slip)


def byte_tokenizer():
    """A Qwen2 tokenizer without merges: one token per byte, and <|endoftext|>.

    It must be a real Qwen2Tokenizer: transformers opens any checkpoint of this model type as one,
    and would replace the rules of a tokenizer made otherwise.
    """
    from transformers import Qwen2Tokenizer
    # GPT-2's byte alphabet: printable bytes are themselves, the others characters from 256 on.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    char = {**{b: chr(b) for b in printable}, **{b: chr(256 + i) for i, b in enumerate(others)}}
    end = "<|endoftext|>"
    return Qwen2Tokenizer(vocab={char[b]: b for b in range(256)}, merges=[], eos_token=end,
                          pad_token=end, unk_token=end)


def pretrain(model, tokenizer, pairs, steps, batch_size, lr, seed):
    """Pretrain a model.Qwen2 on base solutions of `pairs`, with next-token cross-entropy.

    lr: peak, after 100 steps of warm-up; it decays linearly to 0.
    """
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    bar = progress(range(steps), desc="pretraining the base model", unit="step")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 100, (steps - step) / max(steps - 100, 1), 1)
        batch = [rng.choice(pairs) for _ in range(batch_size)]
        prompts = tokenizer([f"{a}+{b}=?\n" for a, b in batch])["input_ids"]
        responses = tokenizer([base_solution(a, b, rng) for a, b in batch])["input_ids"]
        responses = [r + [tokenizer.eos_token_id] for r in responses]
        rows = [p + r for p, r in zip(prompts, responses, strict=True)]
        input_ids = torch.tensor([t for row in rows for t in row])                        # (T,)
        cu_seqlens = torch.tensor([0] + [len(row) for row in rows]).cumsum(0).int()       # (B + 1,)
        mask = torch.tensor([i >= len(p) for p, row in zip(prompts, rows, strict=True)
                             for i in range(len(row))])                                   # (T,)
        logps = model.token_logps(input_ids, cu_seqlens, response_mask=mask)              # (T,)
        loss = -logps.sum() / mask.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
