"""Qwen2.5 by hand: the model that A*-PO trains, on packed sequences, with Hugging Face files at both ends.

    from model import Qwen2
    model = Qwen2.from_pretrained("Qwen/Qwen2.5-1.5B", dtype=torch.bfloat16)
    logps = model.token_logps(input_ids, cu_seqlens)     # (T,) ln p of every token given those before it

There is no padding and no batch dimension. B sequences lie end to end in one row of T tokens, and cu_seqlens says where
each begins: sequence i is input_ids[cu_seqlens[i]:cu_seqlens[i + 1]]. Parameters have the checkpoint's names, so loading,
saving and streaming into vLLM need no table. Left out, because training doesn't need it: generation and its KV cache
(vLLM does that), sliding windows and RoPE scaling (no published Qwen2.5 checkpoint turns them on; refused when loaded).

Shapes: T packed tokens, B sequences, L longest sequence, D hidden size, H query heads, K key/value heads, E head size,
F feed-forward size, V vocabulary.
"""
import hashlib
import inspect
import json
import os
from dataclasses import asdict, dataclass, fields
from glob import glob
from heapq import heapreplace
from itertools import accumulate
from math import ceil
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from huggingface_hub import save_torch_state_dict, snapshot_download
from safetensors import SafetensorError, safe_open
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

try:
    from flash_attn import flash_attn_varlen_func
except ImportError:
    flash_attn_varlen_func = None
try:
    from torch.nn.attention.varlen import varlen_attn
    # "Causal" was spelled is_causal before it became a window, and later releases want grouped queries announced.
    accepted = inspect.signature(varlen_attn).parameters
    VARLEN_CAUSAL = {"window_size": (-1, 0)} if "window_size" in accepted else {"is_causal": True}
    VARLEN_CAUSAL |= {"enable_gqa": True} if "enable_gqa" in accepted else {}
except ImportError:
    varlen_attn = None

LOGPS_CHUNK = 512  # tokens whose logits exist at the same time: 512 x 151,936 float32 are 311 MB


@dataclass
class Config:
    """The fields of a Qwen2 config.json that decide the shape of the computation. Defaults: Qwen2.5-0.5B."""
    vocab_size: int = 151936
    hidden_size: int = 896
    intermediate_size: int = 4864
    num_hidden_layers: int = 24
    num_attention_heads: int = 14
    num_key_value_heads: int = 2
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02

    @property
    def head_dim(self):
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, d):
        """Read a parsed config.json. Raises ValueError on anything that this file doesn't implement."""
        rope = d.get("rope_parameters") or d.get("rope_scaling") or {}  # transformers 5 moved rope_theta in there
        unsupported = {"model_type": d.get("model_type", "qwen2") != "qwen2",
                       "hidden_act": d.get("hidden_act", "silu") != "silu",
                       "use_sliding_window": d.get("use_sliding_window", False),
                       "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default"}
        if any(unsupported.values()):
            name = next(k for k, bad in unsupported.items() if bad)
            raise ValueError(f"{name} = {d.get(name, rope)!r} is not a Qwen2.5 that model.py implements")
        known = {f.name: d[f.name] for f in fields(cls) if f.name in d}
        return cls(**{**known, "rope_theta": rope.get("rope_theta", d.get("rope_theta", 10000.0)),
                      "tie_word_embeddings": d.get("tie_word_embeddings", False)})

    @classmethod
    def from_pretrained(cls, path):
        """Read <path>/config.json. Raises ValueError naming it."""
        file = os.path.join(path, "config.json")
        with open(file) as f:
            try:
                return cls.from_dict(json.load(f))
            except ValueError as e:
                raise ValueError(f"{file}: {e}") from None


class Packing(NamedTuple):
    """What every layer needs to know about where the packed sequences lie. Made once per forward pass."""
    cu_seqlens: torch.Tensor  # (B + 1,) int32
    max_len: int              # L
    cos: torch.Tensor         # (T, 1, E) in the compute dtype
    sin: torch.Tensor         # (T, 1, E)
    pad: torch.Tensor | None    # (B * L,) packed index of each padded position; None where attention needs no padding
    unpad: torch.Tensor | None  # (T,) padded index of each packed position


def make_packing(cu_seqlens, total, config, dtype):
    """cu_seqlens (B + 1,) int32 up to total = T -> Packing. Positions, so the rotary angles, begin at 0 in each sequence."""
    device, lengths = cu_seqlens.device, cu_seqlens.diff()
    max_len = int(lengths.max())  # device sync: kernels and padding are sized on the host
    seq = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths, output_size=total)  # (T,)
    pos = torch.arange(total, device=device) - cu_seqlens[seq]                                            # (T,)
    half = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32)
    angles = pos[:, None].float() * config.rope_theta ** (-half / config.head_dim)                        # (T, E / 2)
    angles = torch.cat((angles, angles), dim=-1)[:, None]                                                 # (T, 1, E)
    pad = unpad = None
    if not uses_varlen(device, dtype):
        grid = cu_seqlens[:-1, None] + torch.arange(max_len, device=device)                               # (B, L)
        pad = grid.clamp(max=total - 1).flatten()  # what lies beyond a sequence's end is computed and thrown away
        unpad = seq * max_len + pos
    return Packing(cu_seqlens, max_len, angles.cos().to(dtype), angles.sin().to(dtype), pad, unpad)


def uses_varlen(device, dtype):
    """Flash attention kernels take packed sequences as they are, but exist only for CUDA and 16 bits."""
    return (device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)
            and (flash_attn_varlen_func or varlen_attn) is not None)


def attention(q, k, v, packing):
    """Causal attention within each packed sequence. q (T, H, E), k and v (T, K, E) -> (T, H, E)."""
    cu, max_len = packing.cu_seqlens, packing.max_len
    if packing.pad is None:
        if flash_attn_varlen_func:
            return flash_attn_varlen_func(q, k, v, cu, cu, max_len, max_len, causal=True)
        return varlen_attn(q, k, v, cu, cu, max_len, max_len, **VARLEN_CAUSAL)
    # On the CPU padding just for the attention beats a block-diagonal mask tenfold. Causality hides the padding, which is
    # on the right, from every real token, so no mask is needed.
    q, k, v = (x.index_select(0, packing.pad).unflatten(0, (-1, max_len)).transpose(1, 2) for x in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)                          # (B, H, L, E)
    return y.transpose(1, 2).flatten(0, 1).index_select(0, packing.unpad)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, with the mean in float32. Zhang and Sennrich 2019, arXiv 1910.07467."""
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):  # (T, D) -> (T, D)
        x32 = x.float()
        return self.weight * (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def apply_rotary(x, cos, sin):
    """Turn each pair (x[i], x[i + E/2]) by its position's angle. x (T, heads, E), cos and sin (T, 1, E).
    RoFormer (arXiv 2104.09864) in the half-split layout of the Hugging Face checkpoints."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Attention(nn.Module):
    """Grouped-query attention: H query heads share K <= H key/value heads. Biases on q, k and v only."""
    def __init__(self, c):
        super().__init__()
        self.head_dim = c.head_dim
        self.q_proj = nn.Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=True)
        self.k_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=True)
        self.v_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=True)
        self.o_proj = nn.Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=False)

    def forward(self, x, packing):  # (T, D) -> (T, D)
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = apply_rotary(q, packing.cos, packing.sin), apply_rotary(k, packing.cos, packing.sin)
        return self.o_proj(attention(q, k, v, packing).flatten(-2))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). Shazeer 2020, arXiv 2002.05202."""
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x):  # (T, D) -> (T, D)
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = MLP(c)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def forward(self, x, packing):  # (T, D) -> (T, D)
        x = x + self.self_attn(self.input_layernorm(x), packing)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """Embeddings, layers and the last norm: everything whose name begins with `model.` in a checkpoint."""
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class TokenLogps(torch.autograd.Function):
    """ln softmax(h W^T / temperature)[target] and the softmax's entropy, without ever holding all the logits.

    Logits are made LOGPS_CHUNK tokens at a time, in the backward pass once more. With p the softmax, one row's gradient
    with respect to its logits is  g_logp (onehot - p)  for the log-probability and  -g_H p (ln p + H)  for the entropy.
    """
    @staticmethod
    def forward(ctx, h, weight, targets, temperature, want_entropy):
        # h (N, D), weight (V, D), targets (N,) -> logps (N,) float32, entropy (N,) float32 (zeros unless wanted)
        logps, lse, entropy = (torch.zeros(len(targets), dtype=torch.float32, device=h.device) for _ in range(3))
        for i in range(0, len(targets), LOGPS_CHUNK):
            c = slice(i, i + LOGPS_CHUNK)
            z = (h[c] @ weight.T).float().div_(temperature)                             # (C, V)
            lse[c] = z.logsumexp(-1)
            logps[c] = z.gather(-1, targets[c, None]).squeeze(-1) - lse[c]
            if want_entropy:
                p = (z - lse[c, None]).exp_()
                entropy[c] = lse[c] - p.mul_(z).sum(-1)
        ctx.save_for_backward(h, weight, targets, lse, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)  # an output that the loss doesn't use has gradient None
        return logps, entropy

    @staticmethod
    def backward(ctx, g_logps, g_entropy):
        h, weight, targets, lse, entropy = ctx.saved_tensors
        if g_logps is None:
            g_logps = torch.zeros_like(lse)
        dh = torch.empty_like(h)
        dw = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None  # a sum of many chunks
        for i in range(0, len(targets), LOGPS_CHUNK):
            c = slice(i, i + LOGPS_CHUNK)
            z = (h[c] @ weight.T).float().div_(ctx.temperature).sub_(lse[c, None])      # (C, V) ln p
            p = z.exp()
            if g_entropy is not None:
                dz = p.mul_(z.add_(entropy[c, None]).mul_(-g_entropy[c, None]).sub_(g_logps[c, None]))
            else:
                dz = p.mul_(-g_logps[c, None])
            dz.scatter_add_(1, targets[c, None], g_logps[c, None])
            dz = dz.div_(ctx.temperature).to(h.dtype)
            dh[c] = dz @ weight
            if dw is not None:
                dw += dz.T @ h[c]
        return dh, None if dw is None else dw.to(weight.dtype), None, None, None


class Qwen2(nn.Module):
    """A Qwen2.5 causal language model. Parameters are float32 and randomly initialised until something is loaded."""
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.checkpoint_activations = False  # recompute each layer in backward: a third more compute, far less memory
        self.model = Transformer(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=config.initializer_range)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def output_weight(self):  # (V, D)
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def hidden_states(self, input_ids, cu_seqlens):
        """input_ids (T,), cu_seqlens (B + 1,) -> (T, D), after the last norm."""
        x = self.model.embed_tokens(input_ids)
        packing = make_packing(cu_seqlens, len(x), self.config, x.dtype)
        for layer in self.model.layers:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(layer, x, packing, use_reentrant=False)
            else:
                x = layer(x, packing)
        return self.model.norm(x)

    def logits(self, input_ids, cu_seqlens):
        """All logits at once, (T, V): for small inputs and for tests. Training uses token_logps."""
        return self.hidden_states(input_ids, cu_seqlens) @ self.output_weight.T

    def forward(self, input_ids, cu_seqlens, temperature=1.0, where=None, entropy=False):
        """See token_logps. This is `forward`, the root's, because only that gathers a sharded model's parameters."""
        first = cu_seqlens[:-1].long()
        if where is None:
            where = torch.ones_like(input_ids, dtype=torch.bool)
        where = where.index_fill(0, first, False)
        t = where.nonzero().squeeze(-1)                                                 # (N,) device sync
        h = self.hidden_states(input_ids, cu_seqlens)[t - 1]                            # (N, D): t - 1 predicts t
        logps, ent = TokenLogps.apply(h, self.output_weight, input_ids[t], temperature, entropy)
        spread = torch.zeros(len(input_ids), dtype=torch.float32, device=input_ids.device)
        logps = spread.index_put((t,), logps)
        return (logps, spread.index_put((t,), ent)) if entropy else logps

    def token_logps(self, input_ids, cu_seqlens, temperature=1.0, where=None, entropy=False):
        """Log-probability of every token given the tokens before it in its own sequence.

        input_ids    (T,) int64, all sequences end to end
        cu_seqlens   (B + 1,) int32, from 0 to T
        temperature  the logits are divided by it, as the sampler's were
        where        (T,) bool: only these tokens are wanted (the others' logits, the costly part, aren't computed)
        entropy      return the entropy of each token's distribution too, differentiable

        Returns (T,) float32 in nats: entry t is ln p(input_ids[t] | ...), 0 for the first token of a sequence and
        where not wanted; with entropy=True a pair of such tensors.
        """
        return self(input_ids, cu_seqlens, temperature, where, entropy)

    # ---- weights in and out --------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path_or_hub_name, dtype=torch.float32, device="cpu", shard=None):
        """Load a Hugging Face checkpoint, strictly: every name and shape must be there, and no other.

        shard, if given, is called with the model before any memory is taken for it (see shard_model); each process
        then keeps just its own part. Raises FileNotFoundError or ValueError with one line that says what is wrong.
        """
        path = resolve(path_or_hub_name)
        check_weights(path)
        with torch.device("meta"):
            model = cls(Config.from_pretrained(path)).to(dtype)
        with open(os.path.join(path, "config.json")) as f:
            model.hf_config = json.load(f)
        if shard:
            shard(model)
        model.to_empty(device=device)
        params = dict(model.named_parameters())
        for name, tensor in read_weights(path):
            p = params[name]
            if isinstance(p, DTensor):
                tensor = distribute_tensor(tensor.to(p.device, dtype), p.device_mesh, p.placements,
                                           src_data_rank=None)  # each rank cuts its part out of its own copy
            with torch.no_grad():
                p.copy_(tensor)
        return model

    def full_weights(self, dtype=None):
        """Yield (name, whole tensor), in `dtype` or as it is, in the checkpoint's order, layer by layer. Of a sharded model
        only one parameter is gathered at a time, and every process must iterate to the end."""
        for name, p in self.named_parameters():
            p = p.detach()
            if isinstance(p, DTensor):  # cast before it is gathered; if it is offloaded, gather it on the GPU all the same
                p = p.to(p.device_mesh.device_type, dtype).full_tensor()
            yield name, p.to(dtype or p.dtype)

    def save_pretrained(self, path, dtype=None):
        """Write config.json and safetensors (shards of at most 5 GB) into the folder `path`, in `dtype` or as they are.
        Sharded: every process must call it, the first one writes."""
        dtype = dtype or next(self.parameters()).dtype
        first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        weights = {name: w.cpu().clone() for name, w in self.full_weights(dtype) if first}  # w may be part of a buffer
        if not first:
            return
        config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
                  **getattr(self, "hf_config", {}), **asdict(self.config), "dtype": str(dtype).removeprefix("torch.")}
        config.pop("torch_dtype", None)
        os.makedirs(path, exist_ok=True)
        with open(os.path.join(path, "config.json"), "w") as f:
            json.dump(config, f, indent=2)
        save_torch_state_dict(weights, path, max_shard_size="5GB")


def shard_model(model, compute_dtype, offload=False, pin=True, replicas=1):
    """Shard a model over all processes, in place (FSDP2): every layer is a unit, the rest is the root.

    Parameters keep their dtype at rest and are gathered in `compute_dtype` for use; gradients are averaged over processes in
    float32. offload: parameters, and with them gradients and optimizer state, stay in host memory, and layers come to the GPU
    as they are needed; faster if pinned (pin), which rounds each up to a power of two bytes. replicas: processes are split
    into so many groups, consecutive ranks together, each of which shards a copy of its own (HSDP): layers are gathered
    within a group only, gradients are averaged over all.
    """
    world, kind = torch.distributed.get_world_size(), "cuda" if torch.cuda.is_available() else "cpu"
    mesh = (init_device_mesh(kind, (world,)) if replicas == 1 else
            init_device_mesh(kind, (replicas, world // replicas), mesh_dim_names=("replicas", "shards")))
    settings = {"mesh": mesh, "mp_policy": MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)}
    if offload:
        settings["offload_policy"] = CPUOffloadPolicy(pin_memory=pin and kind == "cuda")
    for layer in model.model.layers:
        fully_shard(layer, **settings)
    fully_shard(model, **settings)


def resolve(path_or_hub_name):
    """Local folder of a checkpoint: the given one, or the hub's, downloaded once. Raises FileNotFoundError."""
    if os.path.isfile(os.path.join(path_or_hub_name, "config.json")):
        return path_or_hub_name
    if os.path.isdir(path_or_hub_name) or path_or_hub_name.count("/") != 1 or path_or_hub_name.startswith((".", "/")):
        raise FileNotFoundError(f"{path_or_hub_name}: no config.json there (a model is a folder in Hugging Face format, "
                                "or a name on the hub such as Qwen/Qwen2.5-1.5B)")
    try:
        return snapshot_download(path_or_hub_name, allow_patterns=["*.json", "*.safetensors", "merges.txt"])
    except Exception as e:  # offline, no such repository, no access: many exceptions, one meaning
        raise FileNotFoundError(f"{path_or_hub_name}: not a local folder, and the hub didn't give it "
                                f"({type(e).__name__})") from e


def weight_files(path):
    """The safetensors files of a checkpoint: those that its index lists, or all. Raises FileNotFoundError."""
    index = os.path.join(path, "model.safetensors.index.json")
    if os.path.isfile(index):
        with open(index) as f:
            files = [os.path.join(path, name) for name in sorted(set(json.load(f)["weight_map"].values()))]
    else:
        files = sorted(glob(os.path.join(path, "*.safetensors")))
    if not files:
        raise FileNotFoundError(f"{path}: no .safetensors file there")
    for file in files:
        if not os.path.isfile(file):
            raise FileNotFoundError(f"{file}: listed in {index}, but missing")
    return files


def read_weights(path):
    """Yield (name, tensor) of a local checkpoint from its files, one at a time: never a second full copy."""
    tied = Config.from_pretrained(path).tie_word_embeddings
    for file in weight_files(path):
        with safe_open(file, framework="pt") as f:
            for name in f.keys():
                if not (tied and name == "lm_head.weight"):  # some tied checkpoints store the shared matrix twice
                    yield name, f.get_tensor(name)


def check_weights(path):
    """Raises ValueError unless a local checkpoint's tensors are exactly those, by name and shape, that its config.json asks
    for. Reads the files' headers only. vLLM, which samples from whatever memory holds for a missing tensor, doesn't check."""
    with torch.device("meta"):
        config = Config.from_pretrained(path)
        wanted = {name: list(p.shape) for name, p in Qwen2(config).named_parameters()}
    found = {}
    for file in weight_files(path):
        try:
            with safe_open(file, framework="pt") as f:
                found.update({name: f.get_slice(name).get_shape() for name in f.keys()})
                pair = {"lm_head.weight", "model.embed_tokens.weight"}
                if config.tie_word_embeddings and pair <= set(f.keys()) and torch.equal(*map(f.get_tensor, pair)):
                    del found["lm_head.weight"]  # stored twice, but alike: read_weights leaves it out
        except SafetensorError as e:
            raise ValueError(f"{file}: not a whole safetensors file ({e})") from None
    for kind, names in (("missing", wanted.keys() - found.keys()), ("not in the model:", found.keys() - wanted.keys())):
        if names:
            raise ValueError(f"{path}: the weights don't fit config.json: {kind} {', '.join(sorted(names)[:3])}"
                             f"{', ...' if len(names) > 3 else ''} ({len(names)} in all)")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise ValueError(f"{path}: {name} has shape {found[name]}, config.json asks for {shape}")


def fingerprint(path):
    """SHA-256 over a local checkpoint's configuration and every byte of its weights (a second or so per GiB)."""
    total = hashlib.sha256()
    for file in [os.path.join(path, "config.json"), *weight_files(path)]:
        with open(file, "rb") as f:
            total.update(hashlib.file_digest(f, "sha256").digest())
    return total.hexdigest()


# ---- batches of prompts and responses ----------------------------------------------------------------------------

class MicroBatch(NamedTuple):
    """Some of a batch's sequences, packed."""
    index: torch.Tensor       # (B,) which of the batch's
    input_ids: torch.Tensor   # (T,) prompts and responses, end to end
    cu_seqlens: torch.Tensor  # (B + 1,) int32
    where: torch.Tensor       # (T,) bool: the response's tokens, EOS included; from lengths, since EOS may equal PAD


def pack(index, prompts, responses, device):
    """MicroBatch of the sequences `index`. prompts, responses: token id lists of the whole batch."""
    tokens = [t for i in index for t in prompts[i] + responses[i]]
    where = [k >= len(prompts[i]) for i in index for k in range(len(prompts[i]) + len(responses[i]))]
    lengths = [len(prompts[i]) + len(responses[i]) for i in index]
    return MicroBatch(torch.tensor(index), torch.tensor(tokens, device=device),
                      torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device),
                      torch.tensor(where, device=device))


def deal(index, lengths, limit, ranks=1):
    """Deal the sequences `index` into micro-batches of at most `limit` tokens (or one sequence), for each rank equally many.

    Returns [k][rank] -> list of sequences: those of micro-batch k. As layers are gathered by all ranks together, the
    slowest sets the pace: so all are filled alike, the longest sequence first and each into the one with the fewest tokens so
    far (LPT; Graham 1969), and those that run at the same time are neighbours in size. lengths: tokens of every sequence of
    the batch. len(index) must be a multiple of ranks; then no micro-batch is empty.
    """
    number = ranks * max(1, ceil(sum(lengths[i] for i in index) / (limit * ranks)))
    while True:
        filled = [(0, k, []) for k in range(min(number, len(index)))]  # a heap: (tokens, k, sequences)
        for i in sorted(index, key=lambda i: -lengths[i]):
            tokens, k, group = filled[0]
            group.append(i)
            heapreplace(filled, (tokens + lengths[i], k, group))
        if all(tokens <= limit or len(group) == 1 for tokens, _, group in filled):
            groups = [group for _, _, group in sorted(filled, reverse=True)]
            return [groups[k:k + ranks] for k in range(0, len(groups), ranks)]
        number += ranks


def sum_per_sequence(x, cu_seqlens):
    """(T,) -> (B,)"""
    return torch.segment_reduce(x, "sum", lengths=cu_seqlens.diff().long())
