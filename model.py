"""Qwen2.5, Qwen3 and Llama, written by hand: packed sequences, token log-probabilities, sharding.

    model = Qwen2.from_pretrained("Qwen/Qwen2.5-1.5B", dtype=torch.bfloat16)
    logps = model.token_logps(input_ids, cu_seqlens)     # (T,) ln p of each token given the earlier

There is no padding and no batch dimension. B sequences lie end to end in one row of T tokens:
sequence i is input_ids[cu_seqlens[i]:cu_seqlens[i + 1]]. Parameters have the checkpoint's names, so
loading, saving and streaming into vLLM need no table. The dense models of both Qwen families load
(base, instruct, Math, Coder, DeepSeek-R1-Distill-Qwen; not Qwen2.5-1M), and those of the Llama
family without RoPE scaling (SmolLM2, TinyLlama, Llama 2 and 3; not Llama 3.1 and later). Left out:
generation and its KV cache (vLLM does that); sliding windows and RoPE scaling, which are refused.

Shapes: T packed tokens, B sequences, L longest sequence, D hidden size, H query heads, K key/value
heads, E head size, F feed-forward size, V vocabulary, N tokens whose log-probability is wanted.
"""
import inspect
import json
import os
import shutil
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from itertools import chain
from typing import NamedTuple

from lib import memory
from lib.cli import check
from lib.distributed import cuda, device, rank, world_size
from lib.weights import check_weights, find_model, read_weights, weight_files

import torch
import torch.nn as nn
import torch.nn.functional as F
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.attention.varlen import varlen_attn
from torch.utils.checkpoint import checkpoint

# Releases of torch differ in how they spell causal attention and grouped queries.
accepted = inspect.signature(varlen_attn).parameters
VARLEN_ARGUMENTS = ({"window_size": (-1, 0)} if "window_size" in accepted else {"is_causal": True}
                    ) | ({"enable_gqa": True} if "enable_gqa" in accepted else {})

LOGPS_CHUNK = memory.LOGPS_CHUNK[cuda]  # tokens whose logits exist at the same time


@dataclass
class Config:
    """The fields of a config.json that the computation needs. Defaults: Qwen2.5-0.5B."""
    model_type: str = "qwen2"  # biases on q, k, v; "qwen3": norms on q, k; "llama": neither
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
    head_dim: int = 0          # 0: hidden_size / num_attention_heads

    def __post_init__(self):
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, d):
        """Read a parsed config.json. Raises ValueError on what this file doesn't implement."""
        # transformers reads the first of these that is there; version 5 writes the second.
        ropes = {name: d[name] for name in ("rope_scaling", "rope_parameters") if d.get(name)}
        rope = next(iter(ropes.values()), {})
        layers = set(d.get("layer_types") or ["full_attention"])
        architectures, model_type = d.get("architectures") or [], d.get("model_type", "qwen2")
        check(d.get("quantization_config") is None, "quantised weights can't be trained: take the "
              "original model")
        for name, supported in (("model_type", model_type in ("qwen2", "qwen3", "llama")),
                                ("architectures", all("CausalLM" in a for a in architectures)),
                                ("hidden_act", d.get("hidden_act", "silu") == "silu"),
                                ("attention_bias", not d.get("attention_bias", False)),
                                ("mlp_bias", not d.get("mlp_bias", False)),
                                ("layer_types", layers == {"full_attention"}),
                                ("use_sliding_window", not d.get("use_sliding_window", False)),
                                ("dual_chunk_attention_config",
                                 not d.get("dual_chunk_attention_config")),
                                *((name, r.get("rope_type", r.get("type", "default")) == "default")
                                  for name, r in ropes.items())):
            check(supported, f"{name} = {d.get(name)!r} is not a Qwen2.5, Qwen3 or Llama that "
                  "model.py implements")
        heads = d.get("num_attention_heads", 32)
        # Defaults of transformers. With those of other fields the weights would not fit.
        known = {"num_attention_heads": heads, "num_key_value_heads": heads,
                 "max_position_embeddings": 2048 if model_type == "llama" else 32768,
                 "head_dim": 128 if model_type == "qwen3" else 0, "tie_word_embeddings": False}
        known |= {f.name: d[f.name] for f in fields(cls) if d.get(f.name) is not None}
        known["rope_theta"] = rope.get("rope_theta", d.get("rope_theta", 10000.0))
        return cls(**known)

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
    """Where the packed sequences lie. Made once per forward pass, for all layers."""
    cu_seqlens: torch.Tensor    # (B + 1,) int32
    max_len: int                # L
    cos: torch.Tensor           # (T, 1, E) in the compute dtype
    sin: torch.Tensor           # (T, 1, E)
    pad: torch.Tensor | None    # (B * L,) packed index of each padded position, for `attention`
    unpad: torch.Tensor | None  # (T,) padded index of each packed position


def make_packing(cu_seqlens, total, config, dtype):
    """cu_seqlens (B + 1,), total = T -> Packing. Positions begin at 0 in each sequence."""
    device, lengths = cu_seqlens.device, cu_seqlens.diff()
    max_len = int(lengths.max())  # device sync: kernels and padding are sized on the host
    seq = torch.arange(len(lengths), device=device)
    seq = torch.repeat_interleave(seq, lengths, output_size=total)                    # (T,)
    pos = torch.arange(total, device=device) - cu_seqlens[seq]                        # (T,)
    half = torch.arange(0, config.head_dim, 2, device=device, dtype=torch.float32)    # (E / 2,)
    angles = pos[:, None].float() * config.rope_theta ** (-half / config.head_dim)    # (T, E / 2)
    angles = torch.cat((angles, angles), dim=-1)[:, None]                             # (T, 1, E)
    pad = unpad = None
    if not (cu_seqlens.is_cuda and dtype == torch.bfloat16):  # only bfloat16 on CUDA has a kernel
        grid = cu_seqlens[:-1, None] + torch.arange(max_len, device=device)           # (B, L)
        pad = grid.clamp(max=total - 1).flatten()  # beyond a sequence's end: any token will do
        unpad = seq * max_len + pos
    return Packing(cu_seqlens, max_len, angles.cos().to(dtype), angles.sin().to(dtype), pad, unpad)


@torch.compiler.disable  # a compiled layer calls it as it is: the kernels are fast already
def attention(q, k, v, packing):
    """Causal attention within each packed sequence. q (T, H, E), k and v (T, K, E) -> (T, H, E)."""
    cu, max_len, dtype = packing.cu_seqlens, packing.max_len, q.dtype
    if packing.pad is None:
        return varlen_attn(q, k, v, cu, cu, max_len, max_len, **VARLEN_ARGUMENTS)
    # On the CPU padding just for the attention is ten times faster than a block-diagonal mask. The
    # padding is on the right, where causal attention doesn't look, so it needs no mask. In bfloat16
    # torch's backward would take four times as long as in float32.
    q, k, v = (x.float().index_select(0, packing.pad).unflatten(0, (-1, max_len)).transpose(1, 2)
               for x in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)      # (B, H, L, E)
    return y.transpose(1, 2).flatten(0, 1).index_select(0, packing.unpad).to(dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, with the mean in float32.

    Zhang and Sennrich 2019, arXiv 1910.07467.
    """
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):  # (T, D) -> (T, D)
        x32 = x.float()
        scale = torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * (x32 * scale).to(x.dtype)


def apply_rotary(x, cos, sin):
    """Rotate each pair (x[i], x[i + E/2]) by its position's angle.

    x (T, heads, E), cos and sin (T, 1, E). RoFormer (arXiv 2104.09864) in the half-split layout of
    the Hugging Face checkpoints.
    """
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


def merge(weight, lora_A, lora_B, scale):
    """W + s B A, added in float32 and rounded to W's dtype. (out, in), (r, in), (out, r)"""
    return torch.addmm(weight.float(), lora_B.float(), lora_A.float(), alpha=scale).to(weight.dtype)


class MergedLinear(torch.autograd.Function):
    """x (W + s B A)^T + bias, with the merged weight rounded as vLLM gets it: the policy that is
    trained is the one that samples. W x + s B A x would differ from it in bfloat16, where most of a
    small change is lost by rounding.

    The gradients of A and B are as if nothing were rounded, and without W's own, dy^T x.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, lora_A, lora_B, scale):
        ctx.save_for_backward(x, weight, lora_A, lora_B)  # the merged weight is made once more
        ctx.scale = scale
        return F.linear(x, merge(weight, lora_A, lora_B, scale), bias)

    @staticmethod
    def backward(ctx, dy):
        x, weight, lora_A, lora_B = ctx.saved_tensors
        d_lora_A = ctx.scale * (dy @ lora_B).T @ x                                       # (r, in)
        d_lora_B = ctx.scale * dy.T @ (x @ lora_A.T)                                     # (out, r)
        return dy @ merge(weight, lora_A, lora_B, ctx.scale), None, None, d_lora_A, d_lora_B, None


class Linear(nn.Linear):
    """W x + b, and with an adapter (W + (alpha / rank) B A) x + b: LoRA (arXiv 2106.09685), 4.1."""
    scale = 0.0  # alpha / rank while the adapter is on

    def add_adapter(self, rank):
        check(rank <= min(self.in_features, self.out_features), f"--lora_rank={rank} is larger "
              f"than a layer of {self.in_features} x {self.out_features}")
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features))   # (rank, in)
        self.lora_B = nn.Parameter(torch.empty(self.out_features, rank))  # (out, rank)

    def forward(self, x):  # (T, in) -> (T, out)
        if not self.scale:
            return super().forward(x)
        return MergedLinear.apply(x, self.weight, self.bias, self.lora_A, self.lora_B, self.scale)


class Attention(nn.Module):
    """Grouped-query attention: H query heads share K <= H key/value heads. Qwen2.5 has biases on
    q, k, v; Qwen3 normalises each head of q and k; Llama does neither."""
    def __init__(self, c):
        super().__init__()
        self.head_dim, bias, qwen3 = c.head_dim, c.model_type == "qwen2", c.model_type == "qwen3"
        self.q_proj = Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=bias)
        self.k_proj = Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=bias)
        self.v_proj = Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=bias)
        self.q_norm, self.k_norm = (RMSNorm(c.head_dim, c.rms_norm_eps) if qwen3 else nn.Identity()
                                    for _ in range(2))
        self.o_proj = Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=False)

    def forward(self, x, packing):  # (T, D) -> (T, D)
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim))
                   for proj in (self.q_proj, self.k_proj, self.v_proj))    # (T, H or K, E)
        q, k = (apply_rotary(norm(y), packing.cos, packing.sin)
                for norm, y in ((self.q_norm, q), (self.k_norm, k)))
        return self.o_proj(attention(q, k, v, packing).flatten(-2))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). Shazeer 2020, arXiv 2002.05202."""
    def __init__(self, c):
        super().__init__()
        self.gate_proj = Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = Linear(c.intermediate_size, c.hidden_size, bias=False)

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
    """Embeddings, layers and last norm: what is named `model.` in a checkpoint."""
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)


def log_probabilities(z, temperature):
    """ln softmax(z / temperature) in float32. z (chunk, V), in any dtype."""
    z = z.float()
    return F.log_softmax(z if temperature == 1 else z / temperature, dim=-1)


def logps_and_entropy(z, targets, temperature, want_entropy):
    """Of one chunk: logits z (chunk, V), targets (chunk,) -> ln p[target], entropy (chunk,)."""
    ln_p = log_probabilities(z, temperature)
    logps = ln_p.gather(-1, targets[:, None]).squeeze(-1)
    return logps, -ln_p.exp().mul_(ln_p).sum(-1) if want_entropy else torch.zeros_like(logps)


def logits_gradient(z, targets, temperature, logps, entropy, g_logps, g_entropy):
    """d loss / d z (chunk, V), in z's dtype. With p the softmax and H its entropy, of one token:
    (g_logps (onehot - p) - g_entropy p (ln p + H)) / temperature. g_entropy may be None."""
    g_logps = (g_logps / temperature)[:, None]                                        # (chunk, 1)
    if g_entropy is not None:
        g_entropy = (g_entropy / temperature)[:, None]

    def without_onehot(ln_p):
        p = ln_p.exp()
        if g_entropy is None:
            return p.mul_(-g_logps)
        return p.mul_((ln_p + entropy[:, None]).mul_(-g_entropy).sub_(g_logps))

    dz = without_onehot(log_probabilities(z, temperature)).to(z.dtype)
    # The target's entry is computed in float32 and then rounded: g (1 - p) may be tiny.
    at_target = (g_logps + without_onehot(logps[:, None])).to(z.dtype)
    return dz.scatter_(1, targets[:, None], at_target)


@cache
def fused(function):
    """torch.compile fuses elementwise operations. dynamic: for any number of tokens."""
    return torch.compile(function, dynamic=True)


class TokenLogps(torch.autograd.Function):
    """ln softmax(h W^T / temperature)[target] and the softmax's entropy, without all the logits.

    Logits exist for LOGPS_CHUNK tokens at a time, and are computed again in backward.
    """

    @staticmethod
    def forward(ctx, h, weight, targets, temperature, want_entropy, fuse):
        # h (N, D), weight (V, D), targets (N,) -> logps (N,) float32, entropy (N,) float32
        logps, entropy = (torch.zeros(len(targets), device=h.device) for _ in range(2))
        function = fused(logps_and_entropy) if fuse else logps_and_entropy
        for i in range(0, len(targets), LOGPS_CHUNK):
            c = slice(i, i + LOGPS_CHUNK)
            logps[c], entropy[c] = function(h[c] @ weight.T, targets[c], temperature, want_entropy)
        ctx.save_for_backward(h, weight, targets, logps, entropy)
        ctx.temperature, ctx.fuse = temperature, fuse
        ctx.set_materialize_grads(False)  # an output that the loss doesn't use has gradient None
        return logps, entropy

    @staticmethod
    def backward(ctx, g_logps, g_entropy):
        h, weight, targets, logps, entropy = ctx.saved_tensors
        if g_logps is None:
            g_logps = torch.zeros_like(logps)
        dh = torch.empty_like(h)
        # The weight's gradient is a sum over many chunks: in float32, whatever the weight's dtype.
        dw = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        # On CUDA the product itself can be float32, too.
        product = {"out_dtype": torch.float32} if cuda and h.dtype != torch.float32 else {}
        function = fused(logits_gradient) if ctx.fuse else logits_gradient
        for i in range(0, len(targets), LOGPS_CHUNK):
            c = slice(i, i + LOGPS_CHUNK)
            dz = function(h[c] @ weight.T, targets[c], ctx.temperature, logps[c], entropy[c],
                          g_logps[c], None if g_entropy is None else g_entropy[c])    # (chunk, V)
            dh[c] = dz @ weight
            if dw is not None:
                dw += torch.mm(dz.T, h[c], **product)
        return dh, None if dw is None else dw.to(weight.dtype), None, None, None, None


class Qwen2(nn.Module):
    """A language model of the Qwen2.5, Qwen3 or Llama family, named after the first one. It is in
    float32 and has random weights until some are loaded."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.checkpoint_activations = False  # recompute each layer in backward, to save memory
        self.fuse = False                    # whether compile_layers was called
        self.lora_scale = 0.0                # alpha / rank; 0: no adapters, all weights are trained
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
        tied = self.config.tie_word_embeddings
        return self.model.embed_tokens.weight if tied else self.lm_head.weight

    def hidden_states(self, input_ids, cu_seqlens):
        """input_ids (T,), cu_seqlens (B + 1,) -> (T, D), after the last norm."""
        x = self.model.embed_tokens(input_ids)
        packing = make_packing(cu_seqlens, len(x), self.config, x.dtype)
        for layer in self.model.layers:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(layer, x, packing, use_reentrant=False, preserve_rng_state=False)
            else:
                x = layer(x, packing)
        return self.model.norm(x)

    def logits(self, input_ids, cu_seqlens):
        """All logits at once, (T, V): for small inputs and for tests. Training uses token_logps."""
        return self.hidden_states(input_ids, cu_seqlens) @ self.output_weight.T

    def forward(self, input_ids, cu_seqlens, temperature=1.0, response_mask=None, entropy=False):
        """See token_logps. It is the root's forward, because FSDP gathers parameters only there."""
        if response_mask is None:
            response_mask = torch.ones_like(input_ids, dtype=torch.bool)
        wanted = response_mask.index_fill(0, cu_seqlens[:-1].long(), False)  # not the first tokens
        t = wanted.nonzero().squeeze(-1)                      # (N,) device sync
        h = self.hidden_states(input_ids, cu_seqlens)[t - 1]  # (N, D): position t - 1 predicts t
        logps, ent = TokenLogps.apply(h, self.output_weight, input_ids[t], temperature, entropy,
                                      self.fuse)
        zeros = torch.zeros(len(input_ids), dtype=torch.float32, device=input_ids.device)
        logps = zeros.index_put((t,), logps)                  # (T,)
        return (logps, zeros.index_put((t,), ent)) if entropy else logps

    def token_logps(self, input_ids, cu_seqlens, temperature=1.0, response_mask=None,
                    entropy=False):
        """Log-probability of every token given the tokens before it in its own sequence.

        input_ids      (T,) int64, all sequences end to end
        cu_seqlens     (B + 1,) int32, from 0 to T
        temperature    the logits are divided by it, as the sampler's were
        response_mask  (T,) bool: the tokens that are wanted; for the others no logits are computed,
                       the most expensive part. None: all
        entropy        return the entropy of each token's distribution, too, differentiable

        Returns (T,) float32 in nats: entry t is ln p(input_ids[t] | ...), 0 for the first token of
        a sequence and where not wanted; with entropy=True a pair of such tensors.
        """
        return self(input_ids, cu_seqlens, temperature, response_mask, entropy)

    def defer_sharding(self, on):
        """Keep weights and gradients unsharded after a micro-batch, for the update's next one.

        The gradients add up in float32. All ranks call it, with False before an update's last
        micro-batch. Only for a sharded model. FSDP2's terms: no reduce-scatter, no reshard.
        """
        self.set_requires_gradient_sync(not on)
        self.set_reshard_after_backward(not on)
        for layer in self.model.layers:  # FSDP never reshards the root after forward
            layer.set_reshard_after_forward(not on)

    def compile_layers(self):
        """Let torch.compile fuse norms, rotary embedding, SwiGLU and softmax. The first forward and
        the first backward pass take up to a minute longer."""
        self.fuse = True
        for layer in self.model.layers:  # their forward alone: FSDP's hooks stay outside
            layer.forward = torch.compile(layer.forward, dynamic=True)

    # ---- adapters: low-rank changes of the layers' weights, trained in their place ---------------

    def add_adapters(self, rank, alpha):
        """Freeze the weights, and give each linear layer of attention and MLP an adapter, float32.

        Raises ValueError if the rank is larger than a layer.
        """
        self.requires_grad_(False)
        self.lora_scale = alpha / rank
        for module in self.adapted():
            module.add_adapter(rank)
        self.use_adapters(True)

    def adapted(self):
        return [m for m in self.model.layers.modules() if isinstance(m, Linear)]

    def use_adapters(self, on):
        """Switch the adapters on or off. Without them this is the model that was loaded."""
        for module in self.adapted():
            module.scale = self.lora_scale * on

    def initial_adapters(self):
        """Yield (name, tensor) of new adapters: A random, B zero, so that they change nothing."""
        generator = torch.Generator().manual_seed(0)  # the same on all ranks
        for name, p in self.named_parameters():
            if name.endswith("lora_A"):
                a = p.shape[1] ** -0.5
                yield name, torch.empty(p.shape).uniform_(-a, a, generator=generator)
            elif name.endswith("lora_B"):
                yield name, torch.zeros(p.shape)

    def trained_parameters(self):
        return [p for p in self.parameters() if p.requires_grad]

    # ---- weights in and out ----------------------------------------------------------------------

    @classmethod
    def from_pretrained(cls, path_or_hub_name, dtype=torch.float32, device="cpu", shard=None,
                        lora=(0, 0.0)):
        """Load a Hugging Face checkpoint; every name and shape must be there, and no other.

        lora: (rank, alpha) of the adapters that it is to have, which are float32 and trained;
        rank 0: none.
        shard, if given, is called with the model before memory is allocated for it (shard_model);
        then each process keeps only its own part. Raises FileNotFoundError or ValueError.
        """
        path = find_model(path_or_hub_name)
        check_checkpoint(path)
        with torch.device("meta"):
            model = cls(Config.from_pretrained(path)).to(dtype)
            if lora[0]:
                model.add_adapters(*lora)
        with open(os.path.join(path, "config.json")) as f:
            model.hf_config = json.load(f)
        if shard:
            shard(model)
        model.to_empty(device=device)
        params = dict(model.named_parameters())
        for name, tensor in chain(read_weights(path, model.config.tie_word_embeddings),
                                  model.initial_adapters()):
            p = params[name]
            if isinstance(p, DTensor):  # each rank has read the tensor and cuts its own part out
                tensor = distribute_tensor(tensor.to(p.device, p.dtype), p.device_mesh,
                                           p.placements, src_data_rank=None)
            with torch.no_grad():
                p.copy_(tensor)
        return model

    def gather_weights(self, dtype=None):
        """Yield (name, whole tensor), in `dtype` or as it is, in the checkpoint's order.

        Adapters are merged into their layers' frozen weights as in a forward pass.
        Of a sharded model one parameter at a time is gathered, and all ranks must iterate to the
        end.
        """
        def gathered(p, dtype=None):
            p = p.detach()
            if isinstance(p, DTensor):  # cast before gathering, and gather on the GPU if offloaded
                p = p.to(p.device_mesh.device_type, dtype).full_tensor()
            return p.to(dtype or p.dtype)

        for name, p in self.named_parameters():
            parent, _, last = name.rpartition(".")
            module = self.get_submodule(parent)
            if last == "weight" and hasattr(module, "lora_B"):
                lora_A, lora_B = (gathered(x, p.dtype) for x in (module.lora_A, module.lora_B))
                merged = merge(gathered(p), lora_A, lora_B, self.lora_scale)
                yield name, merged.to(dtype or p.dtype)
            elif not last.startswith("lora_"):
                yield name, gathered(p, dtype)

    def save_pretrained(self, path, dtype=None):
        """Write config.json and safetensors (files of at most 5 GB) into the folder `path`, in
        `dtype` or as they are. All ranks call it, rank 0 writes."""
        dtype, weights = dtype or next(self.parameters()).dtype, {}
        for name, tensor in self.gather_weights(dtype):
            if rank == 0:
                weights[name] = tensor.cpu().clone()  # it may be a view of a larger buffer
        if rank > 0:
            return
        config = {"architectures": [f"{self.config.model_type.title()}ForCausalLM"],
                  "hidden_act": "silu", **getattr(self, "hf_config", {}), **asdict(self.config),
                  "dtype": str(dtype).removeprefix("torch.")}
        config.pop("torch_dtype", None)  # the older name of dtype
        os.makedirs(path, exist_ok=True)
        with open(os.path.join(path, "config.json"), "w") as f:
            json.dump(config, f, indent=2)
        save_torch_state_dict(weights, path, max_shard_size="5GB")
        for file in weight_files(path):  # it keeps them from other users
            shutil.copymode(os.path.join(path, "config.json"), file)

    def save_adapters(self, path, initial_model):
        """Write the adapters alone, in PEFT's format. initial_model: the name of the model that
        they change. All ranks call it, rank 0 writes."""
        weights = {f"base_model.model.{name}.weight": p.full_tensor() if isinstance(p, DTensor)
                   else p for name, p in self.named_parameters() if "lora_" in name}
        if rank > 0:
            return
        os.makedirs(path)
        save_file({name: p.detach().cpu().clone() for name, p in weights.items()},
                  os.path.join(path, "adapter_model.safetensors"), {"format": "pt"})
        r = len(self.adapted()[0].lora_A)
        file = os.path.join(path, "adapter_config.json")
        with open(file, "w") as f:
            json.dump({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": r,
                       "lora_alpha": self.lora_scale * r, "base_model_name_or_path": initial_model,
                       "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj",
                                          "up_proj", "down_proj"]}, f, indent=2)
        shutil.copymode(file, os.path.join(path, "adapter_model.safetensors"))


class WithoutAdapters:
    """A policy with its adapters off, as a reference: the model that it was before training."""

    def __init__(self, policy):
        self.policy, self.reshard = policy, policy.reshard

    def token_logps(self, *arguments):
        self.policy.use_adapters(False)
        logps = self.policy.token_logps(*arguments)
        self.policy.use_adapters(True)
        return logps


def check_checkpoint(path):
    """Raises ValueError unless the tensors of a local checkpoint have the names and shapes that its
    config.json asks for."""
    with torch.device("meta"):
        model = Qwen2(Config.from_pretrained(path))
    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    check_weights(path, shapes, model.config.tie_word_embeddings)


def open_model(path_or_hub_name):
    """(local path, Config, tokenizer) of a checkpoint, whose weights are checked, not loaded.

    Raises FileNotFoundError or ValueError with one line.
    """
    from transformers import AutoTokenizer  # takes seconds to import
    path = find_model(path_or_hub_name)
    config = Config.from_pretrained(path)
    check({"tokenizer.json", "vocab.json", "tokenizer.model"} & {*os.listdir(path)},
          f"{path}: no tokenizer there (tokenizer.json); copy the files of its base model")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as e:  # transformers and tokenizers raise whatever they meet
        raise ValueError(f"{path}: its tokenizer doesn't open ({type(e).__name__}: {e})") from e
    check(len(tokenizer) <= config.vocab_size,
          f"{path}: the tokenizer has {len(tokenizer)} entries, the model's vocabulary only "
          f"{config.vocab_size}; they don't belong together")
    check_checkpoint(path)
    return path, config, tokenizer


def shard_model(model, compute_dtype, offload=False, pin=False):
    """Shard a model over all ranks, in place (FSDP2): every layer is a unit, the rest is the root.

    Parameters keep their dtype and are gathered in `compute_dtype` for use; gradients are averaged
    over the ranks in float32.
    offload  parameters, gradients and optimizer state stay in host memory; layers come to the GPU
             when they are used
    pin      pin that memory: faster, but it rounds each tensor up to a power of two bytes
    """
    settings = {"mesh": init_device_mesh("cuda" if cuda else "cpu", (world_size,)),
                "mp_policy": MixedPrecisionPolicy(param_dtype=compute_dtype,
                                                  reduce_dtype=torch.float32)}
    if offload:
        settings["offload_policy"] = CPUOffloadPolicy(pin_memory=pin)
    for layer in model.model.layers:
        fully_shard(layer, **settings)
    fully_shard(model, **settings)


def load_sharded(kind, path, dtype, compute_dtype, plan, compile=False, lora=(0, 0.0)):
    """A model of the class `kind` with the weights in `path`, kept in `dtype` and sharded over all
    ranks. plan: how it uses memory (lib.memory.Plan); compile: see compile_layers; lora: (rank,
    alpha) of its adapters, under which its frozen weights are kept in compute_dtype; rank 0: none.
    """
    model = kind.from_pretrained(path, compute_dtype if lora[0] else dtype,
                                 "cpu" if plan.offload else device,
                                 partial(shard_model, compute_dtype=compute_dtype,
                                         offload=plan.offload, pin=plan.pin), lora)
    model.checkpoint_activations = plan.recompute
    if compile:
        model.compile_layers()
    return model
