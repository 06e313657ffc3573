"""What only a GPU can show. Skips without CUDA; with one:  bash runs/test.sh tests/test_cuda.py

Checkpoints have the true shapes or small ones, with random weights: enough for parity, plumbing, speed and memory.
"""
import copy
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import REPO, metrics_of, packed, random_model, run, tiny_config

from model import Config, Qwen2, uses_varlen
from prepare import byte_tokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
SHAPES = {"0.5B": Config(),
          "1.5B": Config(hidden_size=1536, num_hidden_layers=28, num_attention_heads=12, intermediate_size=8960)}


def test_bfloat16_through_variable_length_attention(tmp_path):
    """The judge is the same model in float32: ours, packed, in bfloat16 may be no further from it than transformers, one by
    one, in bfloat16 is (a factor for luck). Log-probabilities and gradients."""
    from transformers import Qwen2ForCausalLM
    assert uses_varlen(torch.device("cuda"), torch.bfloat16)
    random_model(tiny_config(hidden_size=512, intermediate_size=1024, num_attention_heads=8, initializer_range=0.05)
                 ).save_pretrained(tmp_path)
    lengths = [5, 170, 1, 64]
    ids, cu = packed(lengths, 300)
    ids, cu = ids.cuda(), cu.cuda()

    def ours(dtype):
        m = Qwen2.from_pretrained(tmp_path, dtype, "cuda")
        logps = m.token_logps(ids, cu)
        logps.sum().backward()
        return logps.detach(), {n: p.grad.float() for n, p in m.named_parameters()}

    def theirs(dtype):
        m = Qwen2ForCausalLM.from_pretrained(tmp_path, dtype=dtype).cuda()
        logps = []
        for x in ids.split(lengths):
            lp = torch.log_softmax(m(x[None]).logits[0].float(), -1)
            logps += [torch.zeros(1, device="cuda"), lp[:-1].gather(-1, x[1:, None]).squeeze(-1)]
        logps = torch.cat(logps)
        logps.sum().backward()
        return logps.detach(), {n: p.grad.float() for n, p in m.named_parameters()}

    exact, exact_grads = theirs(torch.float32)
    plain, plain_grads = ours(torch.float32)
    torch.testing.assert_close(plain, exact, atol=1e-3, rtol=1e-3)
    (a, a_grads), (b, b_grads) = ours(torch.bfloat16), theirs(torch.bfloat16)
    assert (a - exact).abs().mean() < 1.5 * (b - exact).abs().mean() + 1e-3
    for name, g in exact_grads.items():
        assert (a_grads[name] - g).norm() < 2 * (b_grads[name] - g).norm() + 0.01 * g.norm(), name
        assert (plain_grads[name] - g).norm() < 1e-3 * g.norm(), name


@pytest.mark.parametrize("tied", [True, False])
def test_vllm_agrees_after_a_sync_through_sleep_and_wake(tied, tmp_path):
    """The order of the training loop: sleep, change the weights, sync. CUDA graphs on, bfloat16, twice."""
    from common import sampling_seed
    import job
    from rollout import Engine
    job.start()
    tokenizer = byte_tokenizer()
    config = tiny_config(hidden_size=512, intermediate_size=1024, num_attention_heads=8, vocab_size=len(tokenizer),
                         tie_word_embeddings=tied, initializer_range=0.05)
    random_model(config, seed=0).save_pretrained(tmp_path, torch.bfloat16)
    tokenizer.save_pretrained(tmp_path)
    engine = Engine(str(tmp_path), "bfloat16", 400, gpu_memory=0.3)
    master = random_model(config, seed=1).cuda()
    prompts = [list(range(1, n)) for n in (3, 30, 200)] * 8

    def difference():
        model = copy.deepcopy(master).to(torch.bfloat16)
        responses = engine.generate(prompts, [sampling_seed(i) for i in range(len(prompts))], 64, logps=True)
        diffs = []
        for p, r in zip(prompts, responses):
            ids = torch.tensor(p + r.tokens, device="cuda")
            cu = torch.tensor([0, len(ids)], dtype=torch.int32, device="cuda")
            with torch.no_grad():
                diffs.append(model.token_logps(ids, cu)[len(p):].cpu() - torch.tensor(r.logps))
        return torch.cat(diffs).abs().mean().item()

    assert difference() > 0.3
    for _ in range(2):
        free = torch.cuda.mem_get_info()[0]
        engine.sleep()
        assert torch.cuda.mem_get_info()[0] > free + 10 * 2 ** 30  # the KV cache at least is given back
        with torch.no_grad():
            for p in master.parameters():
                p.add_(0.02 * torch.randn_like(p))
        engine.sync(master.full_weights(), tied)
        assert difference() < 0.05
    engine.shutdown()


def test_offloaded_training_goes_on(tmp_path):
    """Under torchrun, reference and optimizer on the host: it goes on from its checkpoint, and does what the first run did."""
    run("prepare.py", cwd=tmp_path)
    run("estimate_value.py", "--max_prompts=256", cwd=tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", str(REPO / "train_apo.py"), "--max_steps=4",
               "--batch_size=64", "--mini_batch_size=32", "--eval_prompts=16", "--save_every=2", "--dtype=bfloat16"]
    subprocess.run(command, cwd=tmp_path, check=True)
    out = tmp_path / "out/arithmetic"
    whole = metrics_of(out)
    shutil.rmtree(out / "ckpt/step-000004"), shutil.rmtree(out / "model")
    again = subprocess.run([*command, "--offload_optimizer=True", "--offload_reference=True"], cwd=tmp_path, check=True,
                           text=True, stdout=subprocess.PIPE).stdout
    assert "going on from out/arithmetic/ckpt/step-000002" in again
    for a, b in zip(whole[2:], metrics_of(out)[2:], strict=True):
        for key in ("loss", "reward"):
            assert a[key] == pytest.approx(b[key], abs=0.05), (a["step"], key)


@pytest.mark.parametrize("size", SHAPES)
def test_ten_steps_at_the_true_shapes(size, tmp_path):
    """All stages through the command line, random weights: it runs, stays finite, and sampler and trainer agree."""
    run("prepare.py", "--base_steps=0", cwd=tmp_path)
    path = tmp_path / "model"
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Qwen2(SHAPES[size])
    model.save_pretrained(path, torch.bfloat16)
    del model
    torch.cuda.empty_cache()
    byte_tokenizer().save_pretrained(path)
    common = ("--model=model", "--out=out", "--dtype=bfloat16", "--max_response_tokens=256")
    run("estimate_value.py", *common, "--samples_per_prompt=2", "--max_prompts=256", cwd=tmp_path)
    done = run("train_apo.py", *common, "--max_steps=10", "--lr=1e-6", "--eval_prompts=16", "--batch_size=256", cwd=tmp_path)
    print(done.stdout)
    metrics = metrics_of(tmp_path / "out")
    assert len(metrics) == 10 and all(m["grad_norm"] < float("inf") for m in metrics)
    assert max(m["logp_diff_mean"] for m in metrics) < 0.05
    if "OUT" in os.environ:  # keep the timings
        shutil.copy(tmp_path / "out/metrics.jsonl", os.path.join(os.environ["OUT"], f"metrics-{size}.jsonl"))
