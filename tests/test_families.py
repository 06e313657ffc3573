"""The published dense models of Qwen2.5 and Qwen3: each configuration at a small width, against
transformers; and greedy text of an exported model, the same in transformers, vLLM and here."""
import json
import subprocess
import sys

from lib.base_model import byte_tokenizer
from model import Config, Qwen2

import pytest
import torch
from conftest import cpu_only, packed
from transformers import AutoConfig, AutoModelForCausalLM

# From the models' config.json: hidden size, feed-forward size, layers, heads, key/value heads, tied
# embeddings, RoPE base, longest context, norms' epsilon; of Qwen3 also the head size.
KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "tie_word_embeddings", "rope_theta", "max_position_embeddings",
        "rms_norm_eps")
QWEN2 = {
    "Qwen2.5-0.5B": (896, 4864, 24, 14, 2, True, 1e6, 32768, 1e-6),
    "Qwen2.5-1.5B": (1536, 8960, 28, 12, 2, True, 1e6, 131072, 1e-6),
    "Qwen2.5-3B": (2048, 11008, 36, 16, 2, True, 1e6, 32768, 1e-6),
    "Qwen2.5-7B": (3584, 18944, 28, 28, 4, False, 1e6, 131072, 1e-6),
    "Qwen2.5-14B": (5120, 13824, 48, 40, 8, False, 1e6, 131072, 1e-5),
    "Qwen2.5-32B": (5120, 27648, 64, 40, 8, False, 1e6, 131072, 1e-5),
    "Qwen2.5-72B": (8192, 29568, 80, 64, 8, False, 1e6, 131072, 1e-5),
    "Qwen2.5-Math-1.5B": (1536, 8960, 28, 12, 2, True, 1e4, 4096, 1e-6),
    "Qwen2.5-Math-7B": (3584, 18944, 28, 28, 4, False, 1e4, 4096, 1e-6),
    "Qwen2.5-Coder-3B": (2048, 11008, 36, 16, 2, True, 1e6, 32768, 1e-6),
    "DeepSeek-R1-Distill-Qwen-1.5B": (1536, 8960, 28, 12, 2, False, 1e4, 131072, 1e-6),
    "DeepSeek-R1-Distill-Qwen-7B": (3584, 18944, 28, 28, 4, False, 1e4, 131072, 1e-6),
    "DeepSeek-R1-Distill-Qwen-14B": (5120, 13824, 48, 40, 8, False, 1e6, 131072, 1e-5),
    "DeepSeek-R1-Distill-Qwen-32B": (5120, 27648, 64, 40, 8, False, 1e6, 131072, 1e-5)}
QWEN3 = {
    "Qwen3-0.6B": (1024, 3072, 28, 16, 8, True, 1e6, 40960, 1e-6),
    "Qwen3-1.7B": (2048, 6144, 28, 16, 8, True, 1e6, 40960, 1e-6),
    "Qwen3-4B": (2560, 9728, 36, 32, 8, True, 1e6, 40960, 1e-6),
    "Qwen3-8B": (4096, 12288, 36, 32, 8, False, 1e6, 40960, 1e-6),
    "Qwen3-14B": (5120, 17408, 40, 40, 8, False, 1e6, 40960, 1e-6),
    "Qwen3-32B": (5120, 25600, 64, 64, 8, False, 1e6, 40960, 1e-6)}
PARAMETERS = {  # billions, as the model cards round them
    "Qwen2.5-0.5B": 0.49, "Qwen2.5-1.5B": 1.54, "Qwen2.5-3B": 3.09, "Qwen2.5-14B": 14.77,
    "Qwen2.5-32B": 32.76, "Qwen2.5-72B": 72.71, "Qwen3-0.6B": 0.60, "Qwen3-1.7B": 1.72,
    "Qwen3-4B": 4.02, "Qwen3-8B": 8.19, "Qwen3-14B": 14.77, "Qwen3-32B": 32.76}
VOCABULARY = {"Qwen2.5-7B": 152064, "Qwen2.5-14B": 152064, "Qwen2.5-32B": 152064,
              "Qwen2.5-72B": 152064}


def published(name):
    """A config.json as on the hub, as far as it matters."""
    values = QWEN2.get(name) or QWEN3[name]
    config = {"vocab_size": VOCABULARY.get(name, 151936), "hidden_act": "silu",
              "use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28,
              "initializer_range": 0.02, **dict(zip(KEYS, values, strict=True))}
    if name in QWEN2:
        return {**config, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
    return {**config, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"],
            "attention_bias": False, "head_dim": 128, "sliding_window": None, "rope_scaling": None}


def small(name, head_dim=8):
    """The same at a width of 8 numbers per head and less, and with two layers."""
    config, full = published(name), published(name)
    config |= {"vocab_size": 300, "num_hidden_layers": 2, "initializer_range": 0.2,
               "hidden_size": head_dim * full["num_attention_heads"], "intermediate_size": 48,
               "max_position_embeddings": 1024}
    if name in QWEN3:  # heads and hidden size keep their ratio
        config["head_dim"] = head_dim
        config["hidden_size"] = full["hidden_size"] * head_dim // full["head_dim"]
    return config


def transformers_model(config, folder, seed=0):
    """A random model of transformers in `folder`; its norms and biases are random, too."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    for p in model.parameters():
        if p.dim() == 1:
            torch.nn.init.normal_(p, mean=0.5, std=0.3)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", [*QWEN2, *QWEN3])
def test_a_published_configuration_at_a_small_width(name, tmp_path):
    """Logits and every gradient; what we save, transformers opens as the same model."""
    theirs = transformers_model(small(name), tmp_path / "theirs")
    ours = Qwen2.from_pretrained(tmp_path / "theirs")
    lengths = [5, 1, 23]
    ids, cu = packed(lengths, 300)
    a = ours.logits(ids, cu)
    b = torch.cat([theirs(x[None]).logits[0] for x in ids.split(lengths)])
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    weight = torch.randn(a.shape, generator=torch.Generator().manual_seed(1))
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    of_theirs = dict(theirs.named_parameters())
    for key, p in ours.named_parameters():
        g = of_theirs[key].grad
        torch.testing.assert_close(p.grad, g, atol=2e-5 * g.abs().max().item(), rtol=1e-3,
                                   msg=lambda text, key=key: f"{key}: {text}")
    ours.save_pretrained(tmp_path / "ours")
    again, info = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32,
                                                       output_loading_info=True)
    assert type(again) is type(theirs) and not any(info[k] for k in ("missing_keys",
                                                                     "unexpected_keys"))
    torch.testing.assert_close(again(ids[None, -23:]).logits, theirs(ids[None, -23:]).logits)


@pytest.mark.parametrize("name", [*QWEN2, *QWEN3])
def test_parameter_counts(name, tmp_path):
    """At the true shapes, without memory for the weights."""
    with torch.device("meta"):
        ours = Qwen2(Config.from_dict(published(name)))
        (tmp_path / "config.json").write_text(json.dumps(published(name)))
        theirs = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    shapes = {key: p.shape for key, p in ours.named_parameters()}
    assert shapes == {key: p.shape for key, p in theirs.named_parameters()}
    if name in PARAMETERS:
        assert sum(s.numel() for s in shapes.values()) / 1e9 == pytest.approx(PARAMETERS[name],
                                                                             abs=0.006)


@pytest.mark.parametrize("change", [
    {"model_type": "qwen3_moe"}, {"attention_bias": True}, {"use_sliding_window": True},
    {"layer_types": ["full_attention", "sliding_attention"]},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}])
def test_what_is_not_implemented_is_refused(change):
    with pytest.raises(ValueError, match=f"^{[*change][0]} = .* that model.py implements$"):
        Config.from_dict(published("Qwen3-8B") | change)


# In a process of its own: vLLM's engine ends with it.
GENERATE = """
import json, sys
from lib.distributed import init_process_group
from model import Qwen2
from rollout import Engine
init_process_group()
engine = Engine(sys.argv[1], "float32", 64, 0.5)
if len(sys.argv) > 2:
    engine.sync(Qwen2.from_pretrained(sys.argv[2]).gather_weights())
prompts = json.load(open("prompts.json"))
responses = engine.generate(prompts, [0] * len(prompts), 24, temperature=0.0)
json.dump([r.tokens for r in responses], open(f"{sys.argv[1]}.json", "w"))
"""


@cpu_only
@pytest.mark.slow
@pytest.mark.parametrize("name", ["Qwen2.5-1.5B", "DeepSeek-R1-Distill-Qwen-1.5B", "Qwen3-0.6B"])
def test_exported_models_write_the_same_text_everywhere(name, tmp_path, monkeypatch):
    """Greedy tokens of a model after some updates: by our logits, by transformers and by vLLM from
    the exported folder, and by vLLM with the old weights after a sync."""
    monkeypatch.chdir(tmp_path)
    config = small(name, head_dim=32) | {"vocab_size": 257, "initializer_range": 0.1,
                                         "eos_token_id": 256, "bos_token_id": None}
    transformers_model(config, tmp_path / "before")
    model = Qwen2.from_pretrained("before")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for seed in range(3):
        ids, cu = packed([30, 30], 256, seed)
        model.token_logps(ids, cu).mean().neg().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained("after")
    for folder in ("before", "after"):
        byte_tokenizer().save_pretrained(folder)
    prompts = [[*f"prompt {i}".encode()] for i in range(4)]
    with open("prompts.json", "w") as f:
        json.dump(prompts, f)

    def greedy(next_token):
        """24 tokens, or up to EOS, of each prompt."""
        found = []
        for prompt in prompts:
            tokens = []
            while len(tokens) < 24 and tokens[-1:] != [256]:
                tokens.append(next_token(prompt + tokens))
            found.append(tokens)
        return found

    def ours(model):
        return lambda ids: model.logits(torch.tensor(ids), torch.tensor(
            [0, len(ids)], dtype=torch.int32))[-1].argmax().item()

    theirs = AutoModelForCausalLM.from_pretrained("after", dtype=torch.float32)
    with torch.no_grad():
        expected = greedy(ours(model))
        assert expected == greedy(lambda ids: theirs(
            torch.tensor([ids])).logits[0, -1].argmax().item())
        assert expected != greedy(ours(Qwen2.from_pretrained("before")))
    assert len({tuple(tokens) for tokens in expected}) > 1
    engines = [subprocess.Popen([sys.executable, "-c", GENERATE, *folders])
               for folders in (["after"], ["before", "after"])]
    assert [engine.wait() for engine in engines] == [0, 0]
    for folder in ("after", "before"):
        with open(f"{folder}.json") as f:
            assert json.load(f) == expected, folder
