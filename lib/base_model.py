"""Small base models, pretrained on the spot, for trying a task without a GPU."""
import random

from lib.batches import pack
from lib.cli import progress

import torch

# Fields of model.Config: 1M parameters.
BASE_MODEL = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4,
              "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
              "rope_theta": 10000.0, "initializer_range": 0.08}


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


def pretrain(model, tokenizer, pretraining_batch, steps, seed, batch_size=32, lr=4e-3):
    """Pretrain a model.Qwen2 with next-token cross-entropy on the responses.

    pretraining_batch(rng, size): `size` pairs (prompt, response), both text; lr: the peak, after
    100 steps of warm-up; then it decays linearly to 0.
    """
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    bar = progress(range(steps), desc="pretraining the base model", unit="step")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 100, (steps - step) / max(steps - 100, 1), 1)
        texts = zip(*pretraining_batch(rng, batch_size), strict=True)
        prompts, responses = (tokenizer(list(column))["input_ids"] for column in texts)
        responses = [r + [tokenizer.eos_token_id] for r in responses]
        batch = pack(range(batch_size), prompts, responses)
        logps = model.token_logps(batch.input_ids, batch.cu_seqlens,
                                  response_mask=batch.response_mask)                      # (T,)
        loss = -logps.sum() / batch.response_mask.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
