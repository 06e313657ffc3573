"""A step's responses as packed micro-batches: this rank's share, filled by tokens.

B sequences lie end to end in one row of T tokens, without padding (see model.py).
"""
from dataclasses import dataclass
from itertools import accumulate

from lib.distributed import device, rank, world_size

import torch


@dataclass
class MicroBatch:
    """Sequences, each a prompt and its response, that go through the model together."""
    index: torch.Tensor          # (B,) their places in the step's list of responses
    input_ids: torch.Tensor      # (T,)
    cu_seqlens: torch.Tensor     # (B + 1,) int32: where each sequence begins, and T
    response_mask: torch.Tensor  # (T,) bool: tokens of responses, EOS included
    sampled_logps: torch.Tensor  # (T,) ln p of each response token when vLLM sampled it, else 0
    # (T,) ln p of each response token under the reference, else 0: the loop computes it before the
    # weights change. PPO adds values, advantages and returns.
    ref_logps: torch.Tensor = None

    def __len__(self):
        return len(self.index)

    def sum(self, x):
        """Sum over each sequence: (T,) -> (B,)."""
        return torch.segment_reduce(x, "sum", lengths=self.cu_seqlens.diff().long())

    def per_token(self, x):
        """Repeat each sequence's value for its tokens: (B,) -> (T,)."""
        return x.repeat_interleave(self.cu_seqlens.diff().long())


@dataclass
class Update:
    """One step of the optimizer: a mini-batch in micro-batches whose gradients add up."""
    micro_batches: list  # this rank's
    num_tokens: int      # response tokens of the whole mini-batch, on all ranks


def make_updates(rows, responses, mini_batch_size, micro_batch_tokens, together=1):
    """Split a step into Updates of mini_batch_size responses, in their order.

    rows: the prompts, with "tokens"; responses: the Response to each; together: this many
    neighbours stay neighbours in one micro-batch.
    """
    prompts, tokens = [row["tokens"] for row in rows], [r.tokens for r in responses]
    logps = [r.logps for r in responses]
    lengths = [len(p) + len(t) for p, t in zip(prompts, tokens, strict=True)]
    sums = [sum(lengths[i:i + together]) for i in range(0, len(rows), together)]
    updates = []
    for i in range(0, len(rows), mini_batch_size):
        mini_batch = range(i, i + mini_batch_size)
        groups = pack_by_tokens(range(i // together, (i + mini_batch_size) // together), sums,
                                micro_batch_tokens, world_size)
        own = [[k for g in group[rank] for k in range(g * together, (g + 1) * together)]
               for group in groups]
        updates.append(Update([pack(index, prompts, tokens, logps) for index in own],
                              sum(len(tokens[k]) for k in mini_batch)))
    return updates


def pack(index, prompts, responses, logps=None):
    """MicroBatch of the sequences `index`. prompts, responses: token ids of the whole step; logps:
    of the response tokens.

    The mask comes from lengths, not from token values: in Qwen2.5 the EOS token is also the PAD.
    """
    parts = [(prompts[i], responses[i], logps[i] if logps else [0.0] * len(responses[i]))
             for i in index]
    return MicroBatch(
        torch.tensor(index),
        torch.tensor([t for p, r, _ in parts for t in p + r], device=device),
        torch.tensor([0, *accumulate(len(p) + len(r) for p, r, _ in parts)], dtype=torch.int32,
                     device=device),
        torch.tensor([b for p, r, _ in parts for b in [False] * len(p) + [True] * len(r)],
                     device=device),
        torch.tensor([x for p, _, logp in parts for x in [0.0] * len(p) + logp], device=device))


def pack_by_tokens(index, lengths, limit, ranks=1):
    """Split the sequences `index` into micro-batches of at most `limit` tokens (or one sequence).

    Returns [k][rank] -> list of sequences: that rank's micro-batch k. All ranks get equally many,
    because FSDP gathers each layer on all ranks at once; for the same reason the slowest rank sets
    the pace, so the longest sequence goes first, each to the rank with the fewest tokens so far
    (LPT; Graham 1969). The sequences of a micro-batch are neighbours in length, since attention on
    the CPU pads them to the longest. lengths: tokens of every sequence of the step. len(index) must
    be a multiple of ranks; then no micro-batch is empty.
    """
    order, micro_batches = sorted(index, key=lambda i: -lengths[i]), []
    while order:
        groups, tokens = [[] for _ in range(ranks)], [0] * ranks
        while order:  # add as many sequences at a time as there are ranks, while they all fit
            longer, total = [[*group] for group in groups], [*tokens]
            for i in order[:ranks]:
                r = total.index(min(total))
                longer[r].append(i)
                total[r] += lengths[i]
            if groups[0] and max(total) > limit:
                break
            groups, tokens, order = longer, total, order[ranks:]
        micro_batches.append(groups)
    return micro_batches
