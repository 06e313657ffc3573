"""model.py: log-probabilities against their definition, sharded against plain, and its files.

test_families.py holds the network itself against transformers.
"""
import json
from functools import partial

import model as model_module
from lib.weights import fingerprint
from model import Qwen2, TokenLogps, shard_model
from prepare import byte_tokenizer

import pytest
import torch
from conftest import by_definition, cpu_only, packed, random_model, tiny_config
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode


def gradients(model, loss):
    """{name: gradient}"""
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_close_gradients(a, b):
    """Each within 1e-5 of its largest entry."""
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5 * b[name].abs().max().item(),
                                   rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def assert_equal_weights(a, b):
    """Bit for bit, under the same names."""
    a, b = (dict(model.named_parameters()) for model in (a, b))
    assert [*a] == [*b] and all(torch.equal(a[name], b[name]) for name in a)


# ---- log-probabilities ---------------------------------------------------------------------------

@pytest.mark.parametrize("chunk", [4, 24, 25, 26])
def test_logps_and_entropy_match_the_definition(chunk, monkeypatch):
    """Values and gradients of both outputs, with a mask and without. 25 tokens are wanted: the
    chunks divide them or not, and one chunk is exactly as long."""
    monkeypatch.setattr(model_module, "LOGPS_CHUNK", chunk)
    m = random_model(tiny_config())
    lengths = [7, 1, 19, 2]
    ids, cu = packed(lengths, 300)
    u, v = torch.randn(2, 29, generator=torch.Generator().manual_seed(2))
    chunked = m.token_logps(ids, cu, 0.7, entropy=True)
    plain = by_definition(m.logits(ids, cu), ids, lengths, 0.7)
    torch.testing.assert_close(chunked, plain, atol=2e-5, rtol=1e-5)
    assert_close_gradients(*(gradients(m, logps @ u + entropy @ v)
                             for logps, entropy in (chunked, plain)))
    mask = torch.arange(29) % 2 == 0
    for a, b in zip(m.token_logps(ids, cu, 0.7, mask, entropy=True), plain, strict=True):
        torch.testing.assert_close(a, b * mask, atol=2e-5, rtol=1e-5)
    assert not m.token_logps(ids, cu, response_mask=torch.zeros(29, dtype=torch.bool)).any()


def test_the_heads_gradient_is_summed_in_float32(monkeypatch):
    """In bfloat16 a sum over 1,024 chunks would stop growing after the first few hundred. Held
    against float64; the bound is what rounding the result to bfloat16 costs."""
    monkeypatch.setattr(model_module, "LOGPS_CHUNK", 4)
    g = torch.Generator().manual_seed(0)
    h = torch.rand(4096, 8, generator=g).bfloat16()
    weight = (torch.randn(50, 8, generator=g) / 8).bfloat16().requires_grad_()
    targets = torch.randint(5, (4096,), generator=g)
    TokenLogps.apply(h, weight, targets, 1.0, False, False)[0].sum().backward()
    exact = weight.detach().double().requires_grad_()
    torch.log_softmax(h.double() @ exact.T, -1).gather(-1, targets[:, None]).sum().backward()
    assert (weight.grad - exact.grad).norm() < 2 ** -8 * exact.grad.norm()


def test_no_full_logits_are_ever_made(monkeypatch):
    """Neither forward nor backward of token_logps makes a (tokens, vocabulary) matrix: for 32k
    tokens it would be 20 GB."""
    monkeypatch.setattr(model_module, "LOGPS_CHUNK", 16)
    m = random_model(tiny_config(vocab_size=5000, num_hidden_layers=1))
    ids, cu = packed([200, 100], 5000)
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for t in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(t, torch.Tensor) and 5000 in t.shape:
                    sizes.append(t.numel())
            return result

    with Watch():
        logps, entropy = m.token_logps(ids, cu, entropy=True)
        (logps.sum() + entropy.sum()).backward()
    assert 0 < max(sizes) <= 64 * 5000  # the transposed head; all logits would be 298 x 5000


@pytest.mark.slow
def test_compiled_equals_plain(monkeypatch):
    """Values and every gradient, for two numbers of tokens and two temperatures, with recomputed
    activations or without, and without the entropy's gradient."""
    monkeypatch.setattr(model_module, "LOGPS_CHUNK", 16)
    plain, fused = (random_model(tiny_config(num_hidden_layers=1)) for _ in range(2))
    fused.compile_layers()
    for lengths, temperature, fused.checkpoint_activations in (
            ([7, 19, 2], 1.0, False), ([40, 5], 0.7, True)):
        ids, cu = packed(lengths, 300)
        u, v = torch.randn(2, len(ids), generator=torch.Generator().manual_seed(2))
        (a, b), (c, d) = (m.token_logps(ids, cu, temperature, entropy=True) for m in (plain, fused))
        torch.testing.assert_close((a, b), (c, d), atol=2e-5, rtol=1e-5)
        assert_close_gradients(gradients(plain, a @ u + b @ v), gradients(fused, c @ u + d @ v))
        assert_close_gradients(*(gradients(m, m.token_logps(ids, cu, temperature) @ u)
                                 for m in (plain, fused)))


# ---- sharded -------------------------------------------------------------------------------------

@pytest.fixture
def sharded_by(tmp_path):
    """(a plain model, a function that shards it over this process for a compute dtype)"""
    plain = random_model(tiny_config())
    plain.save_pretrained(tmp_path)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0,
                                         world_size=1)
    yield plain, lambda dtype: Qwen2.from_pretrained(
        tmp_path, shard=partial(shard_model, compute_dtype=dtype))
    torch.distributed.destroy_process_group()


def loss_of(model, length):
    logps, entropy = model.token_logps(*packed([length], 300, seed=length), entropy=True)
    return logps.sum() + entropy.sum()


def update_of(sharded, defer):
    """Gradients of an update of two micro-batches, which defers its sharding or not."""
    sharded.zero_grad()
    for length, whole in ((6, defer), (9, False)):
        sharded.defer_sharding(whole)
        loss_of(sharded, length).backward()
        # A sharded parameter is a DTensor, a whole one is not.
        assert all(isinstance(p, DTensor) != whole for p in sharded.parameters())
    return {name: p.grad.full_tensor() for name, p in sharded.named_parameters()}


@cpu_only  # with a GPU shard_model shards over GPUs, and test_cuda.py trains there
def test_a_sharded_model_is_the_same_model(sharded_by, tmp_path):
    """The plain model's log-probabilities, its gradients with recomputed activations, sharded after
    each micro-batch or after an update only, and its files."""
    plain, shard = sharded_by
    sharded = shard(torch.float32)
    torch.testing.assert_close(*(m.token_logps(*packed([6, 9], 300)) for m in (plain, sharded)))
    expected = gradients(plain, loss_of(plain, 6) + loss_of(plain, 9))
    for sharded.checkpoint_activations in (False, True):
        for defer in (False, True, False):
            assert_close_gradients(update_of(sharded, defer), expected)
    sharded.save_pretrained(tmp_path / "again")
    assert_equal_weights(plain, Qwen2.from_pretrained(tmp_path / "again"))


@cpu_only
def test_bfloat16_is_for_computation_only(sharded_by):
    """Weights, gradients and AdamW's state are float32. Gradients that await their reduction are
    added up in its dtype: two micro-batches give the float32 sum of each one's bfloat16 gradient,
    to the last bit; a sum in bfloat16 would lose most of these bits."""
    plain, shard = sharded_by
    sharded, half = shard(torch.bfloat16), plain.bfloat16()
    logps = [m.token_logps(*packed([6, 9], 300)) for m in (sharded, half)]
    assert logps[0].dtype == torch.float32
    torch.testing.assert_close(*logps, atol=0.05, rtol=0.02)

    each = [gradients(half, loss_of(half, length)) for length in (6, 9)]
    for name, grad in update_of(sharded, True).items():
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, each[0][name].float() + each[1][name].float())
    optimizer = torch.optim.AdamW(sharded.parameters())
    optimizer.step()
    for p, state in optimizer.state.items():
        assert p.dtype == state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float32


# ---- files ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("tied, dtype", [(True, "float32"), (False, "bfloat16")])
def test_saved_in_several_files(tied, dtype, tmp_path, monkeypatch):
    """Large models come in several files with an index: we and transformers open what we wrote, bit
    for bit, in the dtype that it was written in. A file that is missing is named."""
    from transformers import Qwen2ForCausalLM
    m = random_model(tiny_config(tie_word_embeddings=tied))
    m.hf_config = {"torch_dtype": "float16", "eos_token_id": 7}
    save = model_module.save_torch_state_dict
    monkeypatch.setattr(model_module, "save_torch_state_dict",
                        lambda weights, path, **_: save(weights, path, max_shard_size="100KB"))
    m.save_pretrained(tmp_path, getattr(torch, dtype))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["dtype"] == dtype and "torch_dtype" not in config and config["eos_token_id"] == 7
    m = m.to(getattr(torch, dtype))
    assert_equal_weights(m, Qwen2.from_pretrained(tmp_path, m.model.norm.weight.dtype))
    assert_equal_weights(m, Qwen2ForCausalLM.from_pretrained(tmp_path, dtype="auto"))
    first, *_, last = sorted(tmp_path.glob("*.safetensors"))
    before, data = fingerprint(tmp_path, byte_tokenizer()), last.read_bytes()
    last.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert first != last
    assert fingerprint(tmp_path, byte_tokenizer()) != before  # it covers every file
    first.unlink()
    with pytest.raises(FileNotFoundError, match=first.name):
        Qwen2.from_pretrained(tmp_path)
