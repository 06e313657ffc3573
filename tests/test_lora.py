"""Adapters against PEFT's, closed forms and training all weights. Nothing here needs vLLM."""
import train_apo
from baselines import ppo
from export import export
from lib.files import read_json
from lib.memory import estimate
from model import Config, Qwen2, WithoutAdapters

import pytest
import torch
from conftest import (MODEL, OUT, arguments, cpu_only, packed, random_model, tiny_config,
                      what_counts)
from peft import LoraConfig, PeftModel, get_peft_model
from torch.distributed.checkpoint import FileSystemReader
from transformers import AutoModelForCausalLM

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LENGTHS = [5, 1, 23]
IDS, CU = packed(LENGTHS, 300)


def with_adapters(path, rank=3, alpha=5.0, dtype=torch.float32):
    """A model with adapters that are not zero."""
    model = Qwen2.from_pretrained(path, dtype, lora=(rank, alpha))
    torch.manual_seed(1)
    for p in model.trained_parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_against_peft(family, tmp_path):
    """Logits and the gradient of every A and B, which also follow from those of the whole merged
    weights. PEFT opens the exported adapters, which give the logits of the merged model."""
    base = random_model(tiny_config(model_type=family))
    base.save_pretrained(tmp_path / "base")
    ours = with_adapters(tmp_path / "base")
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(
        r=3, lora_alpha=5, target_modules=TARGETS, task_type="CAUSAL_LM"))
    adapters = {name: p for name, p in ours.named_parameters() if p.requires_grad}
    of_theirs = {name.removeprefix("base_model.model.").replace(".default.weight", ""): p
                 for name, p in theirs.named_parameters() if p.requires_grad}
    assert adapters.keys() == of_theirs.keys() and len(adapters) == 3 * 7 * 2
    for name, p in of_theirs.items():
        p.data.copy_(adapters[name])

    def logits(model):
        return torch.cat([model(x[None]).logits[0] for x in IDS.split(LENGTHS)])

    a, b = ours.logits(IDS, CU), logits(theirs)
    torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
    assert (a - base.logits(IDS, CU)).abs().max() > 0.1
    weight = torch.randn(a.shape, generator=torch.Generator().manual_seed(2))
    for x in (a, b):
        (x * weight).sum().backward()
    for name, p in of_theirs.items():
        torch.testing.assert_close(adapters[name].grad, p.grad, rtol=1e-3,
                                   atol=2e-5 * p.grad.abs().max().item())
    assert all(p.grad is None for p in ours.parameters() if not p.requires_grad)
    ours.save_adapters(str(tmp_path / "adapter"), "base")
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
                                       tmp_path / "adapter")
    ours.save_pretrained(tmp_path / "merged")
    whole = Qwen2.from_pretrained(tmp_path / "merged")
    (whole.logits(IDS, CU) * weight).sum().backward()
    for name, module in ours.named_modules():
        if hasattr(module, "lora_A"):
            dw = whole.get_parameter(f"{name}.weight").grad
            for p, expected in ((module.lora_A, 5 / 3 * module.lora_B.T @ dw),
                                (module.lora_B, 5 / 3 * dw @ module.lora_A.T)):
                torch.testing.assert_close(p.grad, expected, rtol=1e-4,
                                           atol=1e-5 * expected.abs().max().item())
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    for model in (opened, merged):
        torch.testing.assert_close(logits(model), a, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_adapters_it_is_the_model_that_was_loaded(dtype, tmp_path):
    """Bit for bit, also after training; and new adapters change nothing, so that the log-ratio is
    exactly 0 at the first step. All ranks begin with the same."""
    base = random_model(tiny_config())
    base.save_pretrained(tmp_path)
    base = base.to(dtype)
    new, other = (Qwen2.from_pretrained(tmp_path, dtype, lora=(4, 32.0)) for _ in range(2))
    trained = with_adapters(tmp_path, dtype=dtype)
    expected = base.token_logps(IDS, CU)
    for p, q in zip(new.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q) and p.dtype == (torch.float32 if p.requires_grad else dtype)
    assert new.model.layers[0].mlp.up_proj.lora_A.std() > 0
    if dtype == torch.float32:  # FSDP casts the adapters to the others' dtype
        assert torch.equal(new.token_logps(IDS, CU), expected)
        assert not torch.equal(trained.token_logps(IDS, CU), expected)
    trained.reshard = None  # FSDP's
    assert torch.equal(WithoutAdapters(trained).token_logps(IDS, CU), expected)
    for (name, p), (theirs, q) in zip(base.named_parameters(), new.gather_weights(), strict=True):
        assert name == theirs and torch.equal(p, q)


def test_merging_is_in_float32(tmp_path):
    """W + s B A is rounded once. The forward pass of a bfloat16 model has these weights, too: even
    a change that is lost by rounding is the same for the trainer and for vLLM."""
    random_model(tiny_config()).save_pretrained(tmp_path)
    half = with_adapters(tmp_path, rank=3, alpha=6.0, dtype=torch.bfloat16)
    module = half.model.layers[1].mlp.up_proj
    merged = dict(half.gather_weights(torch.bfloat16))["model.layers.1.mlp.up_proj.weight"]
    half.bfloat16()  # FSDP gathers the adapters in the others' dtype
    change = module.lora_B.float() @ module.lora_A.float()
    assert torch.equal(merged, (module.weight.float() + 2 * change).bfloat16())
    x = torch.randn(5, 64).bfloat16()
    assert torch.equal(module(x), torch.nn.functional.linear(x, merged))
    assert not torch.equal(merged, module.weight)


@cpu_only
@pytest.mark.parametrize("stage", [train_apo, pytest.param(ppo, marks=pytest.mark.slow)])
def test_a_run_with_adapters(stage, train):
    """It continues bit for bit. It changes nothing but the adapters, which are all that its
    checkpoints hold. The exported model is the merged one."""
    constants = dict(lora_rank=2, lora_alpha=4.0, lr=1e-2, lr_decay=False, eval_every=2)
    engine = train(stage, **constants | dict(max_steps=4))
    whole = what_counts(OUT)
    synced = {key: p.clone() for key, p in engine.model.named_parameters()}
    train(stage, **constants | dict(resume=False))
    engine = train(stage, **constants | dict(max_steps=4))
    assert whole == what_counts(OUT) and len(whole) == 4
    before, after = Qwen2.from_pretrained(MODEL), Qwen2.from_pretrained(f"{OUT}/model")
    for (key, p), q in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(q, synced[key]) and torch.equal(q, engine.model.state_dict()[key])
        assert torch.equal(p, q) == (not key.rpartition(".")[0].endswith(tuple(TARGETS))
                                     or key.endswith("bias")), key
    opened = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(MODEL),
                                       f"{OUT}/model/adapter").merge_and_unload()
    for (key, p), q in zip(after.named_parameters(), opened.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=lambda text, key=key: f"{key}: {text}")
    adapter = read_json(f"{OUT}/model/adapter/adapter_config.json")
    assert adapter["base_model_name_or_path"] == MODEL
    saved = FileSystemReader(f"{OUT}/ckpt/step-000004").read_metadata().state_dict_metadata
    weights = [key for key in saved if key.startswith("policy.")]
    assert all("lora_" in key or "value_head" in key for key in weights)
    assert len(weights) == (3 * 7 * 2 if stage is train_apo else 2 * 3 * 7 * 2 + 1)
    exported = Qwen2.from_pretrained(export(OUT))
    assert all(map(torch.equal, exported.parameters(), after.parameters()))
    for change, message in ((dict(lora_rank=3), "lora_rank = 2, this run has 3"),
                            (dict(lora_rank=0), "lora_rank = 2, this run has 0")):
        with pytest.raises(SystemExit, match=f"was trained with {message}"):
            train(stage, **constants | change)
    with pytest.raises(SystemExit, match="--lora_rank=65 is larger than a layer of 64 x 64"):
        train(stage, **constants | dict(lora_rank=65, resume=False))


def test_memory_of_adapters():
    """16 bytes for each of their numbers, 2 for each weight, and no second model."""
    with torch.device("meta"):
        whole, lora = (Qwen2(Config()) for _ in range(2))
        lora.add_adapters(32, 32.0)
    n = sum(p.numel() for p in whole.parameters())
    adapters = sum(p.numel() for p in lora.trained_parameters())
    assert adapters == 24 * 32 * (4 * 896 + 896 + 128 + 896 + 128 + 3 * (896 + 4864))
    for model, size in ((whole, 18 * n), (lora, 16 * adapters + 2 * (n + adapters))):
        parts, _ = estimate(model, 1, 4096, "bfloat16")
        assert sum(v for k, v in parts.items() if k.startswith(("trained", "frozen"))) == size
    assert arguments(train_apo, "config/lora.py").lora_rank == 32
