"""model.py against transformers' Qwen2, packed against one by one, sharded against whole.

A model with a mistake in it still trains, and learns something else.
"""
import json

import model as model_module
from lib.weights import weight_files
from model import Config, Qwen2, TokenLogps, shard_model

import pytest
import torch
from conftest import packed, random_model, tiny_config
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode


def transformers_model(folder):
    from transformers import Qwen2ForCausalLM
    return Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)


def plain_logps(logits, input_ids, lengths, temperature=1.0):
    """Log-probabilities and entropies from their definitions. logits (T, V) -> (T,), (T,)"""
    logps, entropies = [], []
    for z, ids in zip(logits.split(lengths), input_ids.split(lengths), strict=True):
        lp = torch.log_softmax(z.float() / temperature, -1)
        logps += [torch.zeros(1), lp[:-1].gather(-1, ids[1:, None]).squeeze(-1)]
        entropies += [torch.zeros(1), -(lp.exp() * lp).sum(-1)[:-1]]
    return torch.cat(logps), torch.cat(entropies)


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_close_gradients(a, b):
    """Of two models, each within 1e-5 of the largest entry."""
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-5 * b[name].abs().max().item(),
                                   rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


# ---- the computation -----------------------------------------------------------------------------

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
    assert_close_gradients(gradients(ours, (a * weight).sum()),
                           gradients(theirs, (b * weight).sum()))


@pytest.mark.slow
def test_the_published_half_billion_shape_matches_transformers(tmp_path):
    """Qwen2.5-0.5B with random weights: logits, and the log-probabilities' gradients."""
    Qwen2(Config()).save_pretrained(tmp_path)
    ours, theirs = Qwen2.from_pretrained(tmp_path), transformers_model(tmp_path)
    lengths = [9, 23]
    ids, cu = packed(lengths, 151936)
    b = torch.cat([theirs(x[None]).logits[0] for x in ids.split(lengths)])
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ids, cu), b, atol=1e-4, rtol=1e-4)
    ours.token_logps(ids, cu).sum().backward()
    plain_logps(b, ids, lengths)[0].sum().backward()
    expected = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        error = (p.grad - expected[name].grad).norm() / expected[name].grad.norm()
        assert error < 1e-4, (name, error)


def test_packing_changes_nothing():
    """A sequence's log-probabilities don't depend on its neighbours or its place."""
    m = random_model(tiny_config())
    lengths = [3, 30, 1, 12]
    ids, cu = packed(lengths, 300)
    together = m.token_logps(ids, cu).split(lengths)
    for x, expected in zip(ids.split(lengths), together, strict=True):
        alone = m.token_logps(x, torch.tensor([0, len(x)], dtype=torch.int32))
        torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-5)
        assert alone[0] == 0


@pytest.mark.parametrize("chunk", [4, 512])
def test_chunked_logps_and_entropy_match_the_definition(chunk, monkeypatch):
    """Values and gradients of both outputs, at a temperature of 0.7; 4 doesn't divide 25 tokens."""
    monkeypatch.setattr(model_module, "LOGPS_CHUNK", chunk)
    m = random_model(tiny_config())
    lengths = [7, 19, 2]
    ids, cu = packed(lengths, 300)
    u, v = torch.randn(2, 28, generator=torch.Generator().manual_seed(2))
    chunked = m.token_logps(ids, cu, 0.7, entropy=True)
    plain = plain_logps(m.logits(ids, cu), ids, lengths, 0.7)
    torch.testing.assert_close(chunked, plain, atol=2e-5, rtol=1e-5)
    assert_close_gradients(*(gradients(m, logps @ u + entropy @ v)
                             for logps, entropy in (chunked, plain)))


def test_the_mask_selects_tokens():
    m = random_model(tiny_config())
    ids, cu = packed([6, 9], 300)
    mask = torch.arange(15) % 2 == 0
    torch.testing.assert_close(m.token_logps(ids, cu, response_mask=mask),
                               m.token_logps(ids, cu) * mask, atol=1e-6, rtol=1e-6)


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


def test_recomputed_activations_give_the_same_gradients():
    m = random_model(tiny_config())
    grads = []
    for m.checkpoint_activations in (False, True):
        grads.append(gradients(m, m.token_logps(*packed([6, 9], 300)).sum()))
    assert all(torch.equal(grads[0][name], grads[1][name]) for name in grads[0])


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
def test_compiled_equals_plain(tied, monkeypatch):
    """Values and every gradient, for several numbers of tokens, with recomputed activations, and
    without the entropy's gradient."""
    monkeypatch.setattr(model_module, "LOGPS_CHUNK", 16)
    plain, fused = (random_model(tiny_config(tie_word_embeddings=tied)) for _ in range(2))
    fused.compile_layers()
    for lengths, temperature in (([7, 19, 2], 1.0), ([40, 5], 0.7), ([7, 19, 2], 0.7)):
        ids, cu = packed(lengths, 300)
        u, v = torch.randn(2, len(ids), generator=torch.Generator().manual_seed(2))
        for fused.checkpoint_activations in (False, True):
            (a, b), (c, d) = (m.token_logps(ids, cu, temperature, entropy=True)
                              for m in (plain, fused))
            torch.testing.assert_close((a, b), (c, d), atol=2e-5, rtol=1e-5)
            assert_close_gradients(gradients(plain, a @ u + b @ v), gradients(fused, c @ u + d @ v))
        assert_close_gradients(*(gradients(m, m.token_logps(ids, cu, temperature) @ u)
                                 for m in (plain, fused)))


# ---- sharded -------------------------------------------------------------------------------------

@pytest.fixture
def one_process():
    if torch.cuda.is_available():
        pytest.skip("shards over GPUs where there are any; test_cuda.py trains there")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0,
                                         world_size=1)
    yield
    torch.distributed.destroy_process_group()


def whole_gradients(sharded):
    return {name: p.grad.full_tensor() for name, p in sharded.named_parameters()}


def test_a_sharded_model_is_the_same_model(one_process, tmp_path):
    """FSDP in one process: the plain model's log-probabilities, gradients (of two micro-batches,
    with recomputed activations, as in training, kept whole in between or not) and files."""
    plain = random_model(tiny_config())
    plain.save_pretrained(tmp_path / "a")
    sharded = Qwen2.from_pretrained(tmp_path / "a", shard=lambda m: shard_model(m, torch.float32))
    torch.testing.assert_close(plain.token_logps(*packed([6, 9], 300)),
                               sharded.token_logps(*packed([6, 9], 300)))
    sharded.checkpoint_activations = True
    for m, keep_whole in ((plain, None), (sharded, False), (sharded, True), (sharded, False)):
        m.zero_grad()
        for length in (6, 9):
            if m is sharded:
                m.keep_whole(keep_whole and length == 6)
            logps, entropy = m.token_logps(*packed([length], 300, seed=length), entropy=True)
            (logps.sum() + entropy.sum()).backward()
            if keep_whole is not None:  # a sharded parameter is a DTensor, a whole one is not
                whole = keep_whole and length == 6
                assert all(isinstance(p, DTensor) != whole for p in m.parameters())
        if m is sharded:
            assert_close_gradients(whole_gradients(sharded),
                                   {name: p.grad for name, p in plain.named_parameters()})
    sharded.save_pretrained(tmp_path / "b")
    again = dict(Qwen2.from_pretrained(tmp_path / "b").named_parameters())
    assert all(torch.equal(p, again[name]) for name, p in plain.named_parameters())


def test_bfloat16_is_for_computation_only(one_process, tmp_path):
    """Weights, gradients and AdamW's state are float32. Gradients that await their reduction are
    added up in its dtype: two micro-batches give the float32 sum of each one's bfloat16 gradient,
    to the last bit; a sum in bfloat16 would lose most of these bits."""
    random_model(tiny_config()).save_pretrained(tmp_path)
    sharded = Qwen2.from_pretrained(tmp_path, shard=lambda m: shard_model(m, torch.bfloat16))
    half = Qwen2.from_pretrained(tmp_path, torch.bfloat16)
    logps = [m.token_logps(*packed([6, 9], 300)) for m in (sharded, half)]
    assert logps[0].dtype == torch.float32
    torch.testing.assert_close(*logps, atol=0.05, rtol=0.02)

    sharded.zero_grad()
    batches = [packed([length], 300, seed=length) for length in (6, 9)]
    each = [gradients(half, half.token_logps(*batch).sum()) for batch in batches]
    for last, batch in enumerate(batches):
        sharded.keep_whole(not last)
        sharded.token_logps(*batch).sum().backward()
    for name, grad in whole_gradients(sharded).items():
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, each[0][name].float() + each[1][name].float())
    optimizer = torch.optim.AdamW(sharded.parameters())
    optimizer.step()
    for p, state in optimizer.state.items():
        assert p.dtype == state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.float32


# ---- files ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("tied", [True, False])
def test_save_and_load_in_several_files(tied, tmp_path, monkeypatch):
    """Large models come in several files with an index: ours and transformers' model open what we
    wrote, bit for bit."""
    m = random_model(tiny_config(tie_word_embeddings=tied))
    save = model_module.save_torch_state_dict
    monkeypatch.setattr(model_module, "save_torch_state_dict",
                        lambda weights, path, **_: save(weights, path, max_shard_size="100KB"))
    m.save_pretrained(tmp_path)
    assert len(weight_files(tmp_path)) > 1
    ours, theirs = (dict(opened.named_parameters()) for opened
                    in (Qwen2.from_pretrained(tmp_path), transformers_model(tmp_path)))
    for name, p in m.named_parameters():
        assert torch.equal(p, ours[name]) and torch.equal(p, theirs[name])


def change_config(folder, **changes):
    """Set fields of config.json; None: remove the field."""
    file = folder / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_opens_what_transformers_saves(tmp_path):
    """transformers 5 has rope_theta in rope_parameters, the published config.json files on the top
    level. Where there is none, transformers' default must be ours, too."""
    from transformers import Qwen2Config, Qwen2ForCausalLM
    Qwen2ForCausalLM(Qwen2Config(
        vocab_size=99, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
        tie_word_embeddings=False, rope_parameters={"rope_type": "default", "rope_theta": 77.0},
    )).save_pretrained(tmp_path)
    ids, cu = packed([40], 99)
    for changes, theta in (({}, 77), ({"rope_parameters": None}, None), ({"rope_theta": 55.0}, 55)):
        change_config(tmp_path, **changes)
        ours, theirs = Qwen2.from_pretrained(tmp_path), transformers_model(tmp_path)
        assert theta is None or ours.config.rope_theta == theta
        torch.testing.assert_close(ours.logits(ids, cu), theirs(ids[None]).logits[0], atol=1e-4,
                                   rtol=1e-4)


SIZES = {  # D, layers, H, K, F, V, tied: parameters, all as published
    "0.5B": (896, 24, 14, 2, 4864, 151936, True, 494_032_768),
    "1.5B": (1536, 28, 12, 2, 8960, 151936, True, 1_543_714_304),
    "3B": (2048, 36, 16, 2, 11008, 151936, True, 3_085_938_688),
    "7B": (3584, 28, 28, 4, 18944, 152064, False, 7_615_616_512),
    "14B": (5120, 48, 40, 8, 13824, 152064, False, 14_770_033_664),
    "32B": (5120, 64, 40, 8, 27648, 152064, False, 32_763_876_352),
    "72B": (8192, 80, 64, 8, 29568, 152064, False, 72_706_203_648)}


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size):
    """The parameter count that follows from each published config.json."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
             "intermediate_size", "vocab_size", "tie_word_embeddings")
    *fields, parameters = SIZES[size]
    config = Config.from_dict({**dict(zip(names, fields, strict=True)), "model_type": "qwen2",
                               "hidden_act": "silu", "rope_theta": 1e6, "rms_norm_eps": 1e-6,
                               "use_sliding_window": False, "sliding_window": 131072})
    with torch.device("meta"):
        assert sum(p.numel() for p in Qwen2(config).parameters()) == parameters


def change_weights(folder, change):
    """Rewrite a checkpoint's weights; change: a function that edits the dictionary of tensors."""
    from safetensors.torch import load_file, save_file
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


EMBEDDING, NORM, DOWN = ("model.embed_tokens.weight", "model.norm.weight",
                         "model.layers.1.mlp.down_proj.weight")


@pytest.mark.parametrize("change, message", [
    (lambda w: w.pop(NORM), f"missing {NORM}"),
    (lambda w: w.pop(DOWN), f"missing {DOWN} (1 in all)"),
    (lambda w: w.update({"model.extra": torch.ones(2)}), "not in the model: model.extra"),
    (lambda w: w.update({NORM: torch.ones(3)}), f"{NORM} has shape [3]"),
    (lambda w: w.update({"lm_head.weight": w[EMBEDDING] + 1}), "not in the model: lm_head.weight"),
])
def test_weights_that_do_not_fit_are_refused(change, message, tmp_path):
    random_model(tiny_config()).save_pretrained(tmp_path)
    change_weights(tmp_path, change)
    with pytest.raises(ValueError) as e:
        Qwen2.from_pretrained(tmp_path)
    assert message in str(e.value) and str(tmp_path) in str(e.value)


def test_a_truncated_file_is_refused(tmp_path):
    random_model(tiny_config()).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="model.safetensors: not a whole safetensors file"):
        Qwen2.from_pretrained(tmp_path)


def test_a_tied_matrix_stored_twice_is_accepted(tmp_path):
    m = random_model(tiny_config())
    m.save_pretrained(tmp_path)
    change_weights(tmp_path, lambda w: w.update({"lm_head.weight": w[EMBEDDING].clone()}))
    assert torch.equal(Qwen2.from_pretrained(tmp_path).output_weight, m.output_weight)


@pytest.mark.parametrize("change", [
    {"use_sliding_window": True}, {"hidden_act": "gelu"}, {"model_type": "llama"},
    {"rope_scaling": {"type": "yarn", "factor": 4.0}}])
def test_other_architectures_are_refused(change, tmp_path):
    random_model(tiny_config()).save_pretrained(tmp_path)
    change_config(tmp_path, **change)
    with pytest.raises(ValueError, match=next(iter(change))):
        Qwen2.from_pretrained(tmp_path)
