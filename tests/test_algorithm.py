"""The algorithms against closed forms and plain re-derivations: V*, the losses, whole steps of
training, stage 1's bookkeeping, and the statistics of an evaluation. Nothing here needs vLLM.
"""
import math
import os
import re
import shutil
import statistics
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import evaluate
import lib.run
import train_apo
from baselines import grpo, oapl, ppo, rebel
from estimate_value import optimal_value
from evaluate import pass_at_k, wilson
from lib.files import read_jsonl, write_jsonl
from lib.samples import Response, match_values, read_samples
from model import Qwen2

import pytest
import torch
from conftest import (MODEL, OUT, FakeEngine, arguments, cpu_only, metrics_of, plain_logps,
                      save_values, summands, what_counts)
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.utils._pytree import tree_leaves


# ---- V* and the losses ---------------------------------------------------------------------------

@pytest.mark.parametrize("rewards, beta1, value", [
    ([0.0] * 8, 0.5, 0.0), ([0.0] * 7 + [1.0], 0.5, 0.294), ([0.0, 1.0] * 4, 0.5, 0.717),
    ([1.0] * 8, 0.5, 1.0), ([1.0] * 8, 1e-6, 1.0), ([0.1, 0.7, 0.4], 1e-4, 0.7),
    ([0.1, 0.7, 0.4], 1e3, 0.4), ([0.1, 0.7, 0.4], 0.0, 0.4), ([0.1, 0.7, 0.4], -1.0, 0.0),
    ([0.0] * 5 + [1.0] * 3, 1e6, 0.375)])
def test_optimal_value(rewards, beta1, value):
    """V* has the values that follow from its formula, and it lies between the mean and the largest
    reward, without an overflow. As in the paper's code, beta1 = 0 is the mean, and < 0 is 0."""
    found = optimal_value(torch.tensor([[0.3] * len(rewards), rewards]), beta1)
    assert found.tolist() == pytest.approx([0.3 if beta1 >= 0 else 0.0, value], abs=5e-4)


# The losses from their definitions, one element at a time. Arguments are those of the functions
# that they check.

def apo_by_hand(logps, ref, rewards, v_star, beta2):
    return sum((beta2 * (a - b) + v - r) ** 2
               for a, b, r, v in zip(logps, ref, rewards, v_star, strict=True)) / len(logps)


def rebel_by_hand(logps, sampled, ref, rewards, eta, kl_coef):
    error = [(a - b) / eta - (r - kl_coef * (b - c))
             for a, b, c, r in zip(logps, sampled, ref, rewards, strict=True)]
    return sum((a - b) ** 2 for a, b in zip(error[::2], error[1::2], strict=True)) / len(error) * 2


def policy_by_hand(logps, sampled, advantages, clip):
    ratios = [((a - b).exp(), x) for a, b, x in zip(logps, sampled, advantages, strict=True)]
    return torch.stack([-min(r * x, max(1 - clip, min(1 + clip, r)) * x) for r, x in ratios])


def grpo_by_hand(logps, sampled, ref, advantages, clip, kl_coef):
    kl = torch.stack([(b - a).exp() - (b - a) - 1 for a, b in zip(logps, ref, strict=True)])
    return policy_by_hand(logps, sampled, advantages, clip) + kl_coef * kl


def value_by_hand(values, old_values, returns, clip):
    columns = zip(values, old_values, returns, strict=True)
    return torch.stack([max((v - to) ** 2, (max(old - clip, min(old + clip, v)) - to) ** 2) / 2
                        for v, old, to in columns])


def grid(difference, *others):
    """Columns of all combinations; the first row is the second one plus `difference`."""
    rows = torch.cartesian_prod(*(torch.tensor(x).double() for x in (difference, *others))).T
    return torch.cat((rows[:1] + rows[1], rows[1:]))


RANDOM = torch.randn(4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
RATIOS = [-0.5, -0.05, 0.05, 0.5]  # their logarithms, on both sides of a clip of 0.1


@pytest.mark.parametrize("loss, by_hand, constants, tensors, flat", [
    (train_apo.apo_loss, apo_by_hand, (0.1,), RANDOM, 0),
    (rebel.rebel_loss, rebel_by_hand, (4.0, 0.3), RANDOM, 0),
    (grpo.grpo_loss, grpo_by_hand, (0.1, 0.3),
     grid(RATIOS, [-2.0], [-1.2], [-1.5, 0.0, 2.0]), 0),
    (ppo.policy_loss, policy_by_hand, (0.1,), grid(RATIOS, [-2.0], [-1.5, 2.0]), 2),
    (ppo.value_loss, value_by_hand, (0.5,),
     grid([-0.9, -0.2, 0.2, 0.9], [0.2], [-3.0, 0.15, 0.45, 3.0]), 2),
], ids=lambda x: getattr(x, "__name__", ""))
def test_losses_and_gradients(loss, by_hand, constants, tensors, flat):
    """A loss has the values of its formula, and the gradient of finite differences, on both sides
    of every clip and for both signs of the advantage. Where a clip holds, the gradient is 0."""
    first, *others = tensors.clone().requires_grad_()
    found = loss(first, *others, *constants)
    torch.testing.assert_close(found, by_hand(first, *others, *constants))
    assert torch.autograd.gradcheck(lambda x: loss(x, *others, *constants), first)
    [gradient] = torch.autograd.grad(found.sum(), first)
    assert (gradient == 0).sum() == flat


# ---- whole steps of training ---------------------------------------------------------------------

def tokens_of(ys, *names):
    """Attributes of all responses ys, end to end."""
    return [torch.cat([getattr(y, name) for y in ys]) for name in names]


def sums_of(ys, *names):
    """Attributes of each of the responses ys, summed over its tokens."""
    return [[getattr(y, name).sum() for y in ys] for name in names]


def apo_update(ys):
    v_star = [0.1 * (summands(y.prompt)[0] - 10) for y in ys]
    return apo_by_hand(*sums_of(ys, "logps", "ref", "reward"), v_star, 0.1)


def off_policy_update(ys):
    """The sampler's ln p is 0.3 higher in wrong responses: these are not pushed down further."""
    for y in ys:
        v_star = 0.1 * (summands(y.prompt)[0] - 10)
        far = (y.logps - y.sampled < -0.2) & (y.reward < v_star)
        y.logps = torch.stack([a.detach() if held else a
                               for a, held in zip(y.logps, far, strict=True)])
    return apo_update(ys)


def rebel_update(ys):
    return rebel_by_hand(*sums_of(ys, "logps", "sampled", "ref", "reward"), 4.0, 0.3)


def oapl_update(ys):
    for group in (ys[:2], ys[2:]):
        rewards = torch.stack([y.reward for y in group])
        for y in group:  # one of two is right, both or none
            y.v_star = 0.25 * math.log(sum(math.exp(r / 0.25) for r in rewards.tolist()) / 2)
            y.kept = float(rewards[0] != rewards[1])
            y.ref = y.logps.detach()  # of the KL in the metrics
    return sum(y.kept * (0.1 * (y.logps - y.sampled).sum() + y.v_star - y.reward) ** 2
               for y in ys) / len(ys)


def grpo_update(ys):
    for group in (ys[:2], ys[2:]):
        std, mean = torch.std_mean(torch.stack([y.reward for y in group]))
        for y in group:
            y.advantage = ((y.reward - mean) / (std + 1e-6)).expand(len(y.tokens))
    return grpo_by_hand(*tokens_of(ys, "logps", "sampled", "ref", "advantage"), 0.1, 0.3).mean()


def ppo_update(ys):
    return policy_by_hand(*tokens_of(ys, "logps", "sampled", "advantage"), 0.1).mean()


class CriticByHand:
    """PPO's second network: a trunk as the policy's, and a linear head that starts at 0."""

    def __init__(self):
        self.trunk = Qwen2.from_pretrained(MODEL)
        self.head = torch.zeros(self.trunk.config.hidden_size, requires_grad=True)
        self.parameters = [*self.trunk.parameters(), self.head]

    def values(self, y):
        ids = torch.tensor(y.prompt + y.tokens)
        states = self.trunk.hidden_states(ids, torch.tensor([0, len(ids)], dtype=torch.int32))
        return states[len(y.prompt) - 1:-1] @ self.head

    def judge(self, ys):
        """Give each response of a step its values, returns and normalised advantages."""
        for y in ys:
            rewards, y.old = -0.3 * (y.sampled - y.ref), self.values(y).detach()
            rewards[-1] += y.reward
            errors = rewards + 0.9 * torch.cat((y.old[1:], torch.zeros(1))) - y.old
            y.advantage = torch.stack([sum(0.72 ** k * e for k, e in enumerate(errors[t:]))
                                       for t in range(len(errors))])
            y.returns = y.advantage + y.old
        std, mean = torch.std_mean(*tokens_of(ys, "advantage"))
        for y in ys:
            y.advantage = (y.advantage - mean) / std

    def loss(self, ys):
        values = torch.cat([self.values(y) for y in ys])
        return value_by_hand(values, *tokens_of(ys, "old", "returns"), 0.1).mean()


def train_by_hand(loss_of, batches, critic):
    """(trained model, metrics), one sequence at a time."""
    policy, reference = (Qwen2.from_pretrained(MODEL) for _ in range(2))
    networks = [[*policy.parameters()], critic.parameters if critic else []]
    optimizer = torch.optim.AdamW([{"params": parameters} for parameters in networks],
                                  betas=(0.9, 0.999), weight_decay=0.1)
    metrics = []
    for step, batch in enumerate(batches):
        for group, lr in zip(optimizer.param_groups, (1e-3, 2e-3), strict=True):
            group["lr"] = lr * (1 - step / 2)
        ys = [SimpleNamespace(prompt=p, tokens=r.tokens, truncated=r.truncated,
                              reward=torch.tensor(float(r.text == f"#### {sum(summands(p))}")),
                              sampled=torch.tensor(r.logps),
                              ref=plain_logps(reference, p, r.tokens)[0].detach())
              for p, r in batch]
        if critic:
            critic.judge(ys)
        entropy, of_updates = [], []
        for update in (ys[:4], ys[4:]):
            for y in update:
                y.logps, y.entropy = plain_logps(policy, y.prompt, y.tokens)
            loss, entropies = loss_of(update), torch.cat([y.entropy for y in update])
            critic_loss = critic.loss(update) if critic else torch.zeros(())
            (loss - 0.2 * entropies.mean() + critic_loss).backward()
            norm, _ = (torch.nn.utils.clip_grad_norm_(parameters, 0.5) for parameters in networks)
            optimizer.step()
            optimizer.zero_grad()
            of_updates.append((loss.item(), norm.item(), critic_loss.item()))
            entropy += entropies.tolist()
        loss, norm, critic_loss = map(statistics.mean, zip(*of_updates, strict=True))
        kl = torch.cat([y.sampled - y.ref for y in ys])
        # Before the first update the trainer has the sampler's weights. What is left is the error
        # that FakeEngine adds to the log-probabilities of its wrong answers.
        off = torch.cat([FakeEngine.off * (1 - y.reward).expand(len(y.tokens)) for y in ys[:4]])
        metrics.append({
            "step": step, "lr": 1e-3 * (1 - step / 2), "tokens": len(kl), "kl": kl.mean().item(),
            "loss": loss, "grad_norm": norm, "entropy": statistics.mean(entropy),
            "reward": statistics.mean(y.reward.item() for y in ys),
            "truncated": statistics.mean(y.truncated for y in ys),
            "logp_diff_mean": off.mean().item(), "logp_diff_max": off.max().item(),
            **({"critic_loss": critic_loss} if critic else {})})
    return policy, metrics


STAGES = {
    "apo": (train_apo, apo_update, dict(beta2=0.1)),
    "apo, off-policy": (train_apo, off_policy_update, dict(beta2=0.1, off_policy=True)),
    "rebel": (rebel, rebel_update, dict(batch_size=4, mini_batch_size=2, eta=4.0, kl_coef=0.3)),
    "grpo": (grpo, grpo_update, dict(batch_size=4, mini_batch_size=2, group_size=2, clip_ratio=0.1,
                                     kl_coef=0.3)),
    "oapl": (oapl, oapl_update, dict(batch_size=4, mini_batch_size=2, group_size=2, beta1=0.25,
                                     beta2=0.1, drop_equal=True)),
    "ppo": (ppo, ppo_update, dict(clip_ratio=0.1, clip_value=0.1, kl_coef=0.3, gamma=0.9,
                                  gae_lambda=0.8, critic_lr=2e-3))}


@cpu_only
@pytest.mark.parametrize("name", STAGES)
def test_training_is_what_its_formulas_say(name, train, monkeypatch):
    """Two steps leave the same weights and metrics as one sequence at a time, computed from the
    definitions. PPO's critic learns beside the policy, and decides the second step. A run whose
    learning rate decays is not made longer: it would have been another one."""
    stage, loss_of, constants = STAGES[name]
    if "off_policy" in constants:
        monkeypatch.setattr(FakeEngine, "off", 0.3)
    engine = train(stage, **constants)
    expected, metrics = train_by_hand(loss_of, engine.batches,
                                      CriticByHand() if name == "ppo" else None)
    for ours, plain in zip(metrics_of(OUT), metrics, strict=True):
        assert {key: ours[key] for key in plain} == pytest.approx(plain, rel=1e-4, abs=1e-6)
    before, after = (dict(Qwen2.from_pretrained(path).named_parameters())
                     for path in (MODEL, f"{OUT}/model"))
    for key, p in expected.named_parameters():
        # Of near-zero gradients AdamW keeps little more than the sign: hence not entry by entry.
        # Key biases have such gradients, because softmax cancels most of what they add.
        limit = 0.05 if key.endswith("k_proj.bias") else 0.005
        assert (after[key] - p).norm() < limit * (p - before[key]).norm(), key
        assert torch.equal(after[key], engine.model.state_dict()[key])
    with pytest.raises(SystemExit, match="was trained with max_steps = 2, this run has 3"):
        train(stage, **constants, max_steps=3)


@cpu_only
@pytest.mark.parametrize("name", ["apo", *(pytest.param(name, marks=pytest.mark.slow)
                                           for name in ("rebel", "grpo", "oapl", "ppo"))])
def test_a_run_continues_bit_for_bit(name, train):
    """From the checkpoint of its first steps a run does what it would have done without stopping.
    Weights and AdamW's state are float32 also when the computation is in bfloat16, in which the
    papers' lr of 1e-6 would hardly move them."""
    def run(max_steps, **more):
        train(stage, **(constants | more), max_steps=max_steps)
        dcp_to_torch_save(f"{OUT}/ckpt/step-{max_steps:06d}", "whole.pt")
        leaves = tree_leaves(torch.load("whole.pt", weights_only=False))
        return what_counts(OUT), [x for x in leaves if isinstance(x, torch.Tensor)]

    stage, _, constants = STAGES[name]
    constants = constants | dict(dtype="bfloat16", lr_decay=False, eval_every=2)
    whole, saved = run(4)
    assert len(saved) > 9 and {x.dtype for x in saved} == {torch.float32}
    run(2, resume=False)
    again, continued = run(4)
    assert again == whole and len(whole) == 4
    assert all(torch.equal(a, b) for a, b in zip(saved, continued, strict=True))


@cpu_only
def test_the_first_steps_take_stage_1s_samples(train, capsys):
    """Sample k of each prompt in epoch k. Nothing is generated, the policy that sampled is the
    reference, and the sampler is checked from its first sampling on. Before and after the change a
    run continues bit for bit. More steps than there are samples are refused."""
    def run(max_steps, **more):
        train(train_apo, max_steps=max_steps, stage_1_steps=4, off_policy=True, lr_decay=False,
              **more)
        return [{k: v for k, v in m.items() if "accuracy" not in k} for m in what_counts(OUT)]

    rows = read_jsonl("data/arithmetic/train.jsonl", ())
    kept = [{"id": row["id"], "responses": [
        {"sample": k, "text": f"#### {row['answer']}" if k else "", "finished": True,
         "tokens": [40 + i, k]} for k in range(2)]} for i, row in enumerate(rows)]
    write_jsonl(f"{OUT}/responses.jsonl", kept)
    whole = run(6, save_rollouts=1)
    batches = [read_jsonl(f"{OUT}/rollouts/step-00000{k}.jsonl", ()) for k in range(1, 7)]
    for epoch in range(2):
        seen = [(r["id"], r["tokens"], r["text"]) for b in batches[2 * epoch:][:2] for r in b]
        assert sorted(seen) == sorted((k["id"], s["tokens"], s["text"]) for k in kept
                                      for s in k["responses"][epoch:epoch + 1])
    assert [[m["responses_from"], m["logp_diff_mean"] > 0]
            for m in whole] == 4 * [["stage 1", False]] + 2 * [["policy", True]]
    assert [m["reward"] for m in whole[:4]] == [0, 0, 1, 1]
    assert len(FakeEngine.latest.batches) == 2
    for steps in (3, 5):
        run(steps, resume=False)
        assert run(6) == whole
    with pytest.raises(SystemExit, match="--stage_1_steps=5: .*responses.jsonl has fewer samples "
                       "than the 3 of each prompt that these steps need \\(2 steps are an epoch"):
        train(train_apo, stage_1_steps=5)


@cpu_only
def test_what_a_run_may_change_and_what_it_may_not(train, capsys):
    """Other micro-batches and recomputed activations change rounding only. A finished run says what
    is possible: with a decaying learning rate there are no more steps. With another learning rate
    or other values its folder is refused, by the name of what differs. Accuracy during training is
    that of the test rows. A batch may be all 16 prompts."""
    constants = dict(max_steps=4, batch_size=16, mini_batch_size=8)
    train(train_apo, save_every=0, **constants)
    assert os.listdir(f"{OUT}/ckpt") == []
    whole, test = metrics_of(OUT), Path("data/arithmetic/test.jsonl")
    test.write_text(re.sub(r'"answer": "\d+"', '"answer": "-1"', test.read_text()))
    train(train_apo, save_every=3, micro_batch_tokens=100, checkpoint_activations=True,
          resume=False, **constants)
    again = metrics_of(OUT)
    for a, b in zip(whole, again, strict=True):
        for key in ("loss", "kl", "reward", "grad_norm", "entropy"):
            assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-6), key
    names = ("accuracy_start", "accuracy_start_sampled", "accuracy", "accuracy_sampled")
    assert any(m.get(name) for m in whole for name in names)
    assert {m[name] for m in again for name in names if name in m} == {0} and {
        *names} <= again[0].keys() | again[-1].keys()
    assert sorted(os.listdir(f"{OUT}/ckpt")) == ["step-000003", "step-000004"]

    for checkpoints in sorted(os.listdir(f"{OUT}/ckpt")), []:  # a user may delete them
        assert sorted(os.listdir(f"{OUT}/ckpt")) == checkpoints
        with pytest.raises(SystemExit, match="lr = 0.001, this run has 1e-05"):
            train(train_apo, lr=1e-5, **constants)
        with pytest.raises(SystemExit):
            train(train_apo, **constants)
        assert (f"{OUT} is trained: 4 steps; start anew with --resume=False or another --out"
                in capsys.readouterr().out and again == metrics_of(OUT))
        shutil.rmtree(f"{OUT}/ckpt")
        os.mkdir(f"{OUT}/ckpt")
    values = torch.load(f"{OUT}/values.pt")
    torch.save(values | {"v_star": values["v_star"] + 0.1}, f"{OUT}/values.pt")
    with pytest.raises(SystemExit, match="with fingerprint of values = '16 prompts, SHA"):
        train(train_apo, **constants)
    assert os.path.exists(f"{OUT}/eval-000004.jsonl")
    train(train_apo, lr_decay=False, resume=False)  # two steps: what the older run left is deleted
    assert not os.path.exists(f"{OUT}/eval-000004.jsonl")
    with pytest.raises(SystemExit):
        train(train_apo, lr_decay=False)
    assert "2 steps; raise --max_steps to continue, or start anew" in capsys.readouterr().out
    os.remove(f"{OUT}/metrics.jsonl")
    with pytest.raises(SystemExit, match="metrics.jsonl is missing, but .*/step-000002 continues"):
        train(train_apo, lr_decay=False)


@cpu_only
def test_stale_weights_stop_the_run(train, monkeypatch):
    """A sampler that did not take the new weights raises no error by itself. Training must stop
    before it updates the weights."""
    monkeypatch.setattr(FakeEngine, "off", 0.0)
    monkeypatch.setattr(FakeEngine, "sync", lambda engine, weights: list(weights))
    with pytest.raises(SystemExit, match="error: step 1: vLLM's log-probabilities differ"):
        train(train_apo, logp_tolerance=0)
    assert [m["step"] for m in metrics_of(OUT)] == [0]


@cpu_only
@pytest.mark.slow
def test_weights_and_biases(train, monkeypatch, capsys):
    """Every step is logged, to one run also when it continues; --resume=False begins another one.
    An error of wandb is one warning, and the run goes on. A missing package is named."""
    import wandb
    constants = dict(lr_decay=False, wandb="some-project")
    logged, log = [], wandb.Run.log

    def spy(run, metrics, step):
        logged.append((run.id, step, metrics))
        if len(logged) == 6:
            raise OSError("No space left\non device")
        log(run, metrics, step=step)

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(wandb.Run, "log", spy)
    for max_steps in (2, 4):
        train(train_apo, **constants, max_steps=max_steps)
    assert [m for _, _, m in logged] == metrics_of(OUT) and "accuracy" in logged[-1][2]
    train(train_apo, **constants, max_steps=3, resume=False)
    assert [step for _, step, _ in logged] == [0, 1, 2, 3, 0, 1] and len(metrics_of(OUT)) == 3
    assert [i == logged[0][0] for i, _, _ in logged] == [True] * 4 + [False] * 2
    assert capsys.readouterr().out.count("W&B is switched off (OSError: No space left on dev") == 1
    monkeypatch.setattr(lib.run, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="error: --wandb=some-project: pip install wandb"):
        train(train_apo, **constants, max_steps=4)


# ---- stage 1 -------------------------------------------------------------------------------------

META = {"model": "m", "prompts": "p", "temperature": 1.0, "max_response_tokens": 32,
        "dtype": "float32", "seed": 0, "reward": "r", "beta1": 0.5}


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("key", ["model", "prompts", "temperature", "max_response_tokens", "dtype",
                                 "seed"])
def test_samples_with_other_settings_are_not_mixed(key, finished, tmp_path):
    """Neither those of an interrupted nor those of a finished stage 1; reward and beta1 may differ,
    as the samples don't depend on them. A line that a kill left incomplete is no sample."""
    response = {"sample": 0, "text": "#### 13", "length": 2, "finished": True, "tokens": [5, 6]}
    part = tmp_path / "responses.part.1.0.jsonl"
    if finished:
        save_values(tmp_path, ["a"], torch.ones(1, 1), [1.0], META)
        write_jsonl(tmp_path / "responses.jsonl", [{"id": "a", "responses": [response]}])
    else:
        write_jsonl(part, [META, {"id": "a", **response}])
        part.write_text(part.read_text() + '{"id": "b", "sam')
    assert read_samples(tmp_path, META | {"reward": "new", "beta1": 0.1}) == {("a", 0): response}
    with pytest.raises(ValueError, match=f"was sampled with {key} = "):
        read_samples(tmp_path, META | {key: "another"})


def test_v_star_reaches_its_prompt(tmp_path):
    """It does so by id, whatever the order in the file. filter_incorrect leaves out what was never
    solved. The digest is another one when prompts or values change."""
    digests, rewards = [], torch.tensor([[0.9, 0], [1, 0], [0, 1]])  # 0.9 is no solution
    for v_star, filter_incorrect in (([0.0, 0.2, 0.5], False), ([0.0, 0.2, 0.7], False),
                                     ([0.0, 0.2, 0.5], True), ([0.0, 0.2, 0.5], False)):
        save_values(tmp_path, ["c", "a", "b"], rewards, v_star, META)
        rows, found, digest = match_values(tmp_path, [{"id": i} for i in "abcd"], {"reward": "r"},
                                           filter_incorrect)
        assert [row["id"] for row in rows] == ["c", "a", "b"][filter_incorrect:]
        assert found.tolist() == pytest.approx(v_star[filter_incorrect:])
        digests.append(digest)
    assert digests[0] == digests[3] and len(set(digests)) == 3


# ---- evaluation ----------------------------------------------------------------------------------

@pytest.mark.parametrize("right", [0, 2, 7])
def test_pass_at_k_is_unbiased(right):
    """It is the mean over all subsets of k of n samples, which is the definition."""
    for k in range(1, 8):
        subsets = list(combinations([1] * right + [0] * (7 - right), k))
        assert pass_at_k(7, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_intervals():
    """Of many trials Wilson's interval is the normal one; of few it stays within 0 and 1, and for 3
    of 4 right it is [0.30, 0.95]. One prompt has no spread."""
    half = 1.96 * math.sqrt(0.25 / 10_000)
    for p, n, interval in ((0.5, 10_000, [0.5 - half, 0.5 + half]), (0.75, 4, [0.3006, 0.9544]),
                           (0.0, 1, [0.0, 0.7935]), (1.0, 100, [0.9630, 1.0])):
        assert wilson(p, n) == pytest.approx(interval, abs=1e-4)
    assert evaluate.mean_with_interval([0.25]) == {"value": 0.25, "ci95": [0.25, 0.25]}


@pytest.mark.parametrize("k", [2, 8])
def test_intervals_count_prompts_not_samples(k, tmp_path):
    """Where all samples of a prompt are equal, more of them don't narrow an interval. All responses
    are kept with what they earned, and what is right but truncated earns nothing on MATH."""
    rows = [{"id": f"test/{i}", "task": "math", "prompt": "p", "answer": str(30 + i),
             "tokens": [i]} for i in range(4)]
    right = {0: [1, 1, 1, 0], 1.0: [1, 0, 0, 1]}  # of the four prompts, by temperature

    def generate(prompts, seeds, max_tokens, temperature):
        return [Response([1] * 5, rf"\boxed{{{30 + p if right[temperature][p] else 9}}}",
                         temperature == 0 and p == 2) for [p] in prompts]

    responses = {kind: [[r] * n for r in generate([[0], [1], [2], [3]], None, 0, t)]
                 for kind, n, t in (("greedy", 1, 0), ("samples", k, 1.0))}
    results, records = evaluate.measure(rows, responses)
    half = 1.96 * statistics.stdev([1, 0, 0, 1]) / math.sqrt(4)
    for name in (f"avg@{k}", f"pass@{k}", "pass@2"):
        assert results[name]["value"] == 0.5
        assert results[name]["ci95"] == pytest.approx([0.5 - half, 0.5 + half])
    assert results["greedy"] == {"value": 0.5, "ci95": wilson(0.5, 4)}
    assert evaluate.accuracies("samples", torch.zeros(4, k, dtype=bool).numpy()) == dict.fromkeys(
        ("pass@2", *([f"pass@{m}" for m in (4, 8) if m <= k]), f"avg@{k}"),
        {"value": 0.0, "ci95": wilson(0.0, 4)})  # not an interval of width 0
    assert results["truncated"] == 0 and not {"reward", "pass@1"} & results.keys()
    path, engine = tmp_path / "eval-000004.jsonl", SimpleNamespace(generate=generate)
    assert evaluate.held_out_accuracy(engine, rows, 0, 32, path) == dict.fromkeys(
        ("accuracy", "accuracy_sampled"), 0.5) | dict.fromkeys(
        ("accuracy_ci95", "accuracy_sampled_ci95"), wilson(0.5, 4))
    for kept, n in ((records, k), (read_jsonl(path, ()), 1)):
        assert [[record["id"], *([s["reward"] for s in record[kind]] for kind in responses)]
                for record in kept] == [["test/0", [1], [1] * n], ["test/1", [1], [0] * n],
                                        ["test/2", [0], [0] * n], ["test/3", [0], [1] * n]]
        assert kept[2]["greedy"] == [{"text": r"\boxed{32}", "reward": 0.0, "truncated": True,
                                      "tokens": 5}]


def test_held_out_prompts_do_not_depend_on_the_seed(small):
    """Runs of several seeds are measured on the same prompts. Greedy responses serve all seeds and
    temperatures, samples do not."""
    chosen, greedy, samples = set(), set(), set()
    for changes in ({}, {"seed": 1}, {"temperature": 0.5}):
        of_evaluation = arguments(evaluate, max_prompts=4, **changes)
        [job] = evaluate.make_jobs(of_evaluation, MODEL, ["arithmetic"])[0]
        of_run = train_apo.read_inputs(arguments(train_apo, eval_prompts=4, **changes))
        for rows in (of_run.test, job.rows):
            chosen.add(tuple(row["id"] for row in rows))
        greedy.add(str(job.settings["greedy"]))
        samples.add(str(job.settings["samples"]))
    assert len(chosen) == len(greedy) == 1 and len(samples) == 3
