"""model.py against transformers' Qwen2, and packed against one by one: a wrong model trains, and learns something else."""
import json
import os

import pytest
import torch
from conftest import packed, random_model, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode

import model as model_module
from model import Config, Qwen2, shard_model, weight_files


def transformers_model(folder, dtype=torch.float32):
    from transformers import Qwen2ForCausalLM
    return Qwen2ForCausalLM.from_pretrained(folder, dtype=dtype)


def plain_logps(logits, input_ids, lengths, temperature):
    """Log-probabilities and entropies straight from the definition. logits (T, V) -> (T,), (T,)"""
    logps, entropies = [], []
    for z, ids in zip(logits.split(lengths), input_ids.split(lengths)):
        lp = torch.log_softmax(z.float() / temperature, -1)
        logps += [torch.zeros(1), lp[:-1].gather(-1, ids[1:, None]).squeeze(-1)]
        entropies += [torch.zeros(1), -(lp.exp() * lp).sum(-1)[:-1]]
    return torch.cat(logps), torch.cat(entropies)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_and_every_gradient_match_transformers(tied, tmp_path):
    """Packed through ours, one by one through theirs, from the same files; lengths include 1."""
    random_model(tiny_config(tie_word_embeddings=tied)).save_pretrained(tmp_path)
    ours, theirs = Qwen2.from_pretrained(tmp_path), transformers_model(tmp_path)
    lengths = [5, 17, 1, 40]
    ids, cu = packed(lengths, 300)
    a = ours.logits(ids, cu)
    b = torch.cat([theirs(x[None]).logits[0] for x in ids.split(lengths)])
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-5)
    weight = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    expected = dict(theirs.named_parameters())
    assert {n for n, _ in ours.named_parameters()} == set(expected)
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, expected[name].grad, atol=1e-5 * expected[name].grad.abs().max().item(), rtol=1e-4)


def test_true_half_billion_configuration_matches_transformers(tmp_path):
    """The published Qwen2.5-0.5B shape with random weights: logits, and the log-probabilities' gradients."""
    Qwen2(Config()).save_pretrained(tmp_path)
    ours, theirs = Qwen2.from_pretrained(tmp_path), transformers_model(tmp_path)
    lengths = [9, 23]
    ids, cu = packed(lengths, 151936)
    b = torch.cat([theirs(x[None]).logits[0] for x in ids.split(lengths)])
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ids, cu), b, atol=1e-4, rtol=1e-4)
    ours.token_logps(ids, cu).sum().backward()
    plain_logps(b, ids, lengths, 1.0)[0].sum().backward()
    expected = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        error = (p.grad - expected[name].grad).norm() / expected[name].grad.norm()
        assert error < 1e-4, (name, error)


def test_packing_changes_nothing():
    """A sequence's log-probabilities do not depend on its neighbours or its place."""
    m = random_model(tiny_config())
    lengths = [3, 30, 1, 12]
    ids, cu = packed(lengths, 300)
    together = m.token_logps(ids, cu).split(lengths)
    for x, expected in zip(ids.split(lengths), together):
        alone = m.token_logps(x, torch.tensor([0, len(x)], dtype=torch.int32))
        torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)
        assert alone[0] == 0


@pytest.mark.parametrize("chunk", [4, 512])
def test_chunked_logps_and_entropy_match_the_plain_computation(chunk, monkeypatch):
    """Values and all gradients, with both outputs in the loss, at a temperature other than 1, chunks that don't divide."""
    monkeypatch.setattr(model_module, "LOGPS_CHUNK", chunk)
    m = random_model(tiny_config())
    lengths = [7, 19, 2]
    ids, cu = packed(lengths, 300)
    g = torch.Generator().manual_seed(2)
    u, v = torch.randn(28, generator=g), torch.randn(28, generator=g)

    def gradients(logps, entropy):
        m.zero_grad()
        (logps @ u + entropy @ v).backward()
        return {n: p.grad.clone() for n, p in m.named_parameters()}

    chunked, plain = m.token_logps(ids, cu, 0.7, entropy=True), plain_logps(m.logits(ids, cu), ids, lengths, 0.7)
    torch.testing.assert_close(chunked, plain, atol=2e-5, rtol=1e-5)
    a, b = gradients(*chunked), gradients(*plain)
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5 * b[name].abs().max().item(), rtol=1e-4)


def test_where_selects_tokens():
    m = random_model(tiny_config())
    ids, cu = packed([6, 9], 300)
    where = torch.arange(15) % 2 == 0
    full = m.token_logps(ids, cu)
    torch.testing.assert_close(m.token_logps(ids, cu, where=where), full * where, atol=1e-6, rtol=1e-6)


def test_no_full_logits_are_ever_made(monkeypatch):
    """Forward and backward of token_logps never make a (tokens, vocabulary) matrix: it would be 20 GB for 32k tokens."""
    monkeypatch.setattr(model_module, "LOGPS_CHUNK", 16)
    m = random_model(tiny_config(vocab_size=5000, num_hidden_layers=1))
    ids, cu = packed([200, 100], 5000)
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for t in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(t, torch.Tensor) and 5000 in t.shape:
                    largest = max(largest, t.numel())
            return result

    with Watch():
        logps, entropy = m.token_logps(ids, cu, entropy=True)
        (logps.sum() + entropy.sum()).backward()
    assert 0 < largest <= 64 * 5000  # the transposed head; all logits would be 298 x 5000


def test_checkpointed_activations_give_the_same_gradients():
    m = random_model(tiny_config())
    ids, cu = packed([6, 9], 300)
    grads = []
    for m.checkpoint_activations in (False, True):
        m.zero_grad()
        m.token_logps(ids, cu).sum().backward()
        grads.append([p.grad.clone() for p in m.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))


@pytest.fixture
def one_process():
    if torch.cuda.is_available():
        pytest.skip("shards over GPUs where there are any; test_cuda.py trains there")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_sharded_model_is_the_same_model(one_process, tmp_path):
    """FSDP2 in one process: log-probabilities and gradients of the plain model; bfloat16 compute keeps float32 weights;
    what it saves is what it loaded."""
    plain = random_model(tiny_config())
    plain.save_pretrained(tmp_path / "a")
    sharded = Qwen2.from_pretrained(tmp_path / "a", shard=lambda m: shard_model(m, torch.float32))
    ids, cu = packed([6, 9], 300)
    a, b = plain.token_logps(ids, cu), sharded.token_logps(ids, cu)
    torch.testing.assert_close(a, b)
    a.sum().backward()
    b.sum().backward()
    for p, q in zip(plain.parameters(), sharded.parameters()):
        torch.testing.assert_close(p.grad, q.grad.full_tensor(), atol=1e-5, rtol=1e-4)
    sharded.save_pretrained(tmp_path / "b")
    again = dict(Qwen2.from_pretrained(tmp_path / "b").named_parameters())
    assert all(torch.equal(p, again[n]) for n, p in plain.named_parameters())

    # The presets' way: recomputed activations, and gradients of two micro-batches in float32.
    for m in (plain, sharded):
        m.zero_grad()
        m.checkpoint_activations = m is sharded
        for length in (6, 9):
            logps, entropy = m.token_logps(*packed([length], 300, seed=length), entropy=True)
            (logps.sum() + entropy.sum()).backward()
    for p, q in zip(plain.parameters(), sharded.parameters()):
        torch.testing.assert_close(p.grad, q.grad.full_tensor(), atol=1e-4, rtol=1e-4)

    half = Qwen2.from_pretrained(tmp_path / "a", shard=lambda m: shard_model(m, torch.bfloat16))
    assert all(p.dtype == torch.float32 for p in half.parameters())
    logps = half.token_logps(ids, cu)
    assert logps.dtype == torch.float32
    assert 1e-4 < (logps - a).abs().max() < 1.0
    exact = Qwen2.from_pretrained(tmp_path / "a", torch.bfloat16).token_logps(ids, cu)
    torch.testing.assert_close(logps, exact, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load_in_shards(tied, tmp_path, monkeypatch):
    """Large models come in several files with an index; transformers opens ours, we open it again, bit for bit."""
    m = random_model(tiny_config(tie_word_embeddings=tied))
    save = model_module.save_torch_state_dict
    monkeypatch.setattr(model_module, "save_torch_state_dict", lambda w, path, **_: save(w, path, max_shard_size="100KB"))
    m.save_pretrained(tmp_path)
    assert len(weight_files(tmp_path)) > 1
    ours, theirs = (dict(x.named_parameters()) for x in (Qwen2.from_pretrained(tmp_path), transformers_model(tmp_path)))
    for name, p in m.named_parameters():
        assert torch.equal(p, ours[name]) and torch.equal(p, theirs[name])


def test_loads_what_transformers_saves(tmp_path):
    """transformers 5 writes rope_theta elsewhere in config.json than the published files have it."""
    from transformers import Qwen2Config, Qwen2ForCausalLM
    theirs = Qwen2ForCausalLM(Qwen2Config(vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                          num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False,
                                          rope_parameters={"rope_type": "default", "rope_theta": 77.0}))
    theirs.save_pretrained(tmp_path)
    ids, cu = packed([20], 99)
    ours = Qwen2.from_pretrained(tmp_path)
    assert ours.config.rope_theta == 77.0
    torch.testing.assert_close(ours.logits(ids, cu), theirs(ids[None]).logits[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size, parameters", [("0.5B", 494_032_768), ("1.5B", 1_543_714_304), ("3B", 3_085_938_688),
                                              ("7B", 7_615_616_512), ("14B", 14_770_033_664), ("32B", 32_763_876_352),
                                              ("72B", 72_706_203_648)])
def test_published_sizes(size, parameters):
    """From the published config.json fields to the published parameter counts (without memory: on the meta device)."""
    shapes = {"0.5B": (896, 24, 14, 2, 4864, 151936, True), "1.5B": (1536, 28, 12, 2, 8960, 151936, True),
              "3B": (2048, 36, 16, 2, 11008, 151936, True), "7B": (3584, 28, 28, 4, 18944, 152064, False),
              "14B": (5120, 48, 40, 8, 13824, 152064, False), "32B": (5120, 64, 40, 8, 27648, 152064, False),
              "72B": (8192, 80, 64, 8, 29568, 152064, False)}[size]
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
             "vocab_size", "tie_word_embeddings")
    config = Config.from_dict({**dict(zip(names, shapes)), "model_type": "qwen2", "hidden_act": "silu", "rope_theta": 1e6,
                               "rms_norm_eps": 1e-6, "use_sliding_window": False, "sliding_window": 131072})
    with torch.device("meta"):
        assert sum(p.numel() for p in Qwen2(config).parameters()) == parameters


def spoil(folder, change):
    """Rewrite a checkpoint's weights by `change`, a function on the dictionary of tensors."""
    from safetensors.torch import load_file, save_file
    weights = load_file(os.path.join(folder, "model.safetensors"))
    change(weights)
    save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})


@pytest.mark.parametrize("change, message", [
    (lambda w: w.pop("model.norm.weight"), "missing model.norm.weight"),
    (lambda w: w.pop("model.layers.1.mlp.down_proj.weight"), "missing model.layers.1.mlp.down_proj.weight (1 in all)"),
    (lambda w: w.update({"model.extra": torch.ones(2)}), "not in the model: model.extra"),
    (lambda w: w.update({"model.norm.weight": torch.ones(3)}), "model.norm.weight has shape [3]"),
    (lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"] + 1}), "not in the model: lm_head.weight"),
])
def test_checkpoints_that_do_not_fit_are_refused(change, message, tmp_path):
    random_model(tiny_config()).save_pretrained(tmp_path)
    spoil(tmp_path, change)
    with pytest.raises(ValueError) as e:
        Qwen2.from_pretrained(tmp_path)
    assert message in str(e.value) and str(tmp_path) in str(e.value)


def test_a_cut_file_is_refused(tmp_path):
    random_model(tiny_config()).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.safetensors: not a whole safetensors file"):
        Qwen2.from_pretrained(tmp_path)


def test_a_tied_matrix_stored_twice_is_accepted(tmp_path):
    m = random_model(tiny_config())
    m.save_pretrained(tmp_path)
    spoil(tmp_path, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    assert torch.equal(Qwen2.from_pretrained(tmp_path).output_weight, m.output_weight)


@pytest.mark.parametrize("change", [{"use_sliding_window": True}, {"hidden_act": "gelu"}, {"model_type": "llama"},
                                    {"rope_scaling": {"type": "yarn", "factor": 4.0}}])
def test_other_architectures_are_refused(change, tmp_path):
    random_model(tiny_config()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ValueError, match=next(iter(change))):
        Qwen2.from_pretrained(tmp_path)
