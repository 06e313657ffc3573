"""What only a GPU can show. Skips without CUDA; with one:  bash runs/test.sh tests/test_cuda.py

Models have small shapes or the true ones, and random weights.
"""
import copy
import multiprocessing
import os
import shutil

from lib.distributed import init_process_group
from model import Config, Qwen2, make_packing
from prepare import byte_tokenizer

import pytest
import torch
from conftest import by_definition, logp_errors, metrics_of, packed, random_model, run, tiny_config

pytestmark = [pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
              pytest.mark.slow]
SHAPES = {"0.5B": Config(),
          "1.5B": Config(hidden_size=1536, num_hidden_layers=28, num_attention_heads=12,
                         intermediate_size=8960)}


def middle_config(**changes):
    return tiny_config(hidden_size=512, intermediate_size=1024, num_attention_heads=8,
                       initializer_range=0.05, **changes)


def test_bfloat16_through_variable_length_attention(tmp_path):
    """The judge is transformers in float32: ours in bfloat16, packed, plain and compiled, is hardly
    further from it than transformers in bfloat16, one by one. Log-probabilities and gradients."""
    from transformers import Qwen2ForCausalLM
    random_model(middle_config()).save_pretrained(tmp_path)
    lengths = [5, 170, 1, 64]
    ids, cu = (x.cuda() for x in packed(lengths, 300))
    assert make_packing(cu, len(ids), middle_config(), torch.bfloat16).pad is None  # no padding

    def measure(kind, dtype, compile=False):
        """(log-probabilities, {name: gradient of their sum})"""
        m = kind.from_pretrained(tmp_path, dtype=dtype).cuda()
        if compile:
            m.compile_layers()
        if kind is Qwen2:
            logps = m.token_logps(ids, cu)
        else:
            logits = torch.cat([m(x[None]).logits[0] for x in ids.split(lengths)])
            logps, _ = by_definition(logits, ids, lengths)
        logps.sum().backward()
        return logps.detach(), {name: p.grad.float() for name, p in m.named_parameters()}

    exact, exact_grads = measure(Qwen2ForCausalLM, torch.float32)
    plain, plain_grads = measure(Qwen2, torch.float32)
    theirs, their_grads = measure(Qwen2ForCausalLM, torch.bfloat16)
    torch.testing.assert_close(plain, exact, atol=1e-3, rtol=1e-3)
    for name, g in exact_grads.items():
        assert (plain_grads[name] - g).norm() < 1e-3 * g.norm(), name
    for compile in (False, True):
        ours, our_grads = measure(Qwen2, torch.bfloat16, compile)
        assert (ours - exact).abs().mean() < 1.5 * (theirs - exact).abs().mean() + 1e-3
        for name, g in exact_grads.items():
            error, allowed = (our_grads[name] - g).norm(), (their_grads[name] - g).norm()
            assert error < 2 * allowed + 0.01 * g.norm(), name


@pytest.mark.parametrize("tied", [True, False])
def test_vllm_agrees_after_a_sync_through_sleep_and_wake(tied, tmp_path):
    """The order of the training loop: sleep, change the weights, sync. With CUDA graphs, in
    bfloat16, twice. In a process of its own: vLLM's allocator serves one engine per process."""
    process = multiprocessing.get_context("spawn").Process(target=sleep_and_wake,
                                                           args=(tied, str(tmp_path)))
    process.start()
    process.join()
    assert process.exitcode == 0


def sleep_and_wake(tied, folder):
    from rollout import Engine
    init_process_group()
    tokenizer = byte_tokenizer()
    config = middle_config(vocab_size=len(tokenizer), tie_word_embeddings=tied)
    random_model(config, seed=0).save_pretrained(folder, torch.bfloat16)
    tokenizer.save_pretrained(folder)
    engine = Engine(folder, "bfloat16", 400, gpu_memory_utilization=0.3)
    master = random_model(config, seed=1).cuda()
    prompts = [list(range(1, n)) for n in (3, 30, 200)] * 8

    def mean_error():
        return logp_errors(engine, copy.deepcopy(master).to(torch.bfloat16), prompts, 64).mean()

    assert mean_error() > 0.3
    for _ in range(2):
        free = torch.cuda.mem_get_info()[0]
        engine.sleep()
        assert torch.cuda.mem_get_info()[0] > free + 10 * 2 ** 30  # the KV cache at least is freed
        with torch.no_grad():
            for p in master.parameters():
                p.add_(0.02 * torch.randn_like(p))
        engine.sync(master.gather_weights())
        assert mean_error() < 0.05
    os._exit(0)  # as the stages end


def test_offloaded_training_continues(workdir):
    """Under torchrun, with --offload: from the checkpoint of a run without, it does what that one
    did."""
    options = ("train_apo.py", "--max_steps=4", "--batch_size=64", "--mini_batch_size=32",
               "--eval_prompts=16", "--save_every=2", "--dtype=bfloat16")
    out = workdir / "out/arithmetic"
    run(*options, cwd=workdir, processes=1)
    whole = metrics_of(out)
    shutil.rmtree(out / "ckpt/step-000004")
    done = run(*options, "--offload=True", cwd=workdir, processes=1)
    assert "continuing from out/arithmetic/ckpt/step-000002" in done.stdout
    for a, b in zip(whole[2:], metrics_of(out)[2:], strict=True):
        for key in ("loss", "reward"):
            assert a[key] == pytest.approx(b[key], abs=0.05), (a["step"], key)


@pytest.mark.parametrize("size", SHAPES)
def test_ten_steps_at_the_true_shapes(size, tmp_path):
    """All stages with random weights: they run, stay finite, and sampler and trainer agree."""
    run("prepare.py", "--base_steps=0", cwd=tmp_path)
    torch.manual_seed(0)
    with torch.device("cuda"):
        Qwen2(SHAPES[size]).save_pretrained(tmp_path / "model", torch.bfloat16)
    torch.cuda.empty_cache()
    byte_tokenizer().save_pretrained(tmp_path / "model")
    common = ("--model=model", "--out=out", "--dtype=bfloat16", "--max_response_tokens=256")
    run("estimate_value.py", *common, "--samples_per_prompt=2", "--max_prompts=256", cwd=tmp_path)
    run("train_apo.py", *common, "--max_steps=10", "--lr=1e-6", "--eval_prompts=16",
        "--batch_size=256", cwd=tmp_path)
    metrics = metrics_of(tmp_path / "out")
    assert len(metrics) == 10 and all(m["grad_norm"] < float("inf") for m in metrics)
    assert max(m["logp_diff_mean"] for m in metrics) < 0.05
