"""The algorithms against closed forms and plain re-derivations: V*, the losses, whole steps of
training, stage 1's bookkeeping, and the statistics of an evaluation. Nothing here needs vLLM.
"""
import math
import os
import statistics
import sys
from itertools import combinations
from types import SimpleNamespace
from typing import NamedTuple

import estimate_value
import evaluate
import reward
import train_apo
from baselines import grpo, ppo, rebel
from estimate_value import finish, optimal_value
from lib.arithmetic import row
from lib.base_model import byte_tokenizer
from lib.cli import configure
from lib.data import fingerprint_prompts, load_prompts
from lib.distributed import init_process_group
from lib.files import read_jsonl, write_jsonl
from lib.samples import sample
from lib.statistics import pass_at_k, wilson
from lib.values import PARTS, add_v_star, read_samples
from lib.weights import fingerprint
from model import Qwen2
from tasks import TASKS

import pytest
import torch
from conftest import cpu_only, metrics_of, random_model, tiny_config, what_counts
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader


class Response(NamedTuple):
    """As rollout.Response, which can't be imported without vLLM."""
    tokens: list
    text: str
    truncated: bool
    logps: list


# ---- V* and the losses ---------------------------------------------------------------------------

@pytest.mark.parametrize("right, value", [(0, 0.0), (1, 0.294), (4, 0.717), (8, 1.0)])
def test_optimal_value_of_binary_rewards(right, value):
    """What follows from the formula with 0/1 rewards, N = 8 and beta1 = 1/2."""
    rewards = torch.tensor([[1.0] * right + [0.0] * (8 - right)])
    assert optimal_value(rewards, 0.5).item() == pytest.approx(value, abs=5e-4)


def test_optimal_value_lies_between_mean_and_maximum():
    rewards = torch.rand(50, 8, generator=torch.Generator().manual_seed(0))
    direct = 0.5 * torch.log(torch.exp(rewards / 0.5).mean(1))
    torch.testing.assert_close(optimal_value(rewards, 0.5), direct)
    for beta1, limit in ((1e3, rewards.mean(1)), (1e-4, rewards.max(1).values)):
        torch.testing.assert_close(optimal_value(rewards, beta1), limit, atol=1e-3, rtol=0)
    assert optimal_value(torch.ones(1, 8), 1e-6).item() == pytest.approx(1)  # no overflow


def test_apo_loss_and_gradient():
    """By hand, and d loss / d ln pi = 2 beta2 (beta2 ln(pi/pi_ref) - (r - V*)) / B."""
    logps, ref, rewards, v_star = torch.randn(4, 16, dtype=torch.float64,
                                              generator=torch.Generator().manual_seed(0))
    logps.requires_grad_()
    loss = train_apo.apo_loss(logps, ref, rewards, v_star, 0.1)
    by_hand = sum((0.1 * (a - b) + v - r) ** 2 for a, b, r, v in zip(
        *(x.tolist() for x in (logps, ref, rewards, v_star)), strict=True)) / 16
    assert loss.item() == pytest.approx(by_hand)
    loss.backward()
    expected = 2 * 0.1 * (0.1 * (logps.detach() - ref) - (rewards - v_star)) / 16
    torch.testing.assert_close(logps.grad, expected)


def test_the_regression_finds_the_optimal_policy():
    """Over all responses to one prompt, with the exact V*, the loss is smallest at
    pi* = pi_ref e^(r / beta) / Z, which solves the KL-regularised problem."""
    beta, rewards = 0.5, torch.tensor([1.0, 0, 0, 1, 0, 0])
    ref = torch.log_softmax(torch.randn(6, generator=torch.Generator().manual_seed(0)), 0)
    v_star = beta * torch.logsumexp(ref + rewards / beta, 0)
    z = torch.zeros(6, requires_grad=True)
    optimizer = torch.optim.LBFGS([z], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = train_apo.apo_loss(torch.log_softmax(z, 0), ref, rewards, v_star.expand(6), beta)
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(torch.softmax(z, 0), torch.softmax(ref + rewards / beta, 0),
                               atol=1e-3, rtol=0)


def test_group_advantages():
    """(r - mean) / std within each group; 0 where all rewards are equal."""
    groups = [[0.0, 1.0, 1.0, 1.0], [1.0] * 4, [0.0] * 4, [0.5, 0.0, 2.0, 1.0]]
    expected = [(r - statistics.mean(g)) / (statistics.stdev(g) or 1) for g in groups for r in g]
    found = grpo.group_advantages(torch.tensor(groups).flatten(), 4).tolist()
    assert found == pytest.approx(expected, rel=1e-4) and found[4:12] == [0.0] * 8


def test_grpo_loss_and_gradient():
    """By hand and by finite differences, on both sides of both clips and for both signs of the
    advantage. Where the ratio is clipped, only the KL term has a gradient."""
    def by_hand(logp, sampled, ref, advantage, clip, kl_coef):
        ratio = math.exp(logp - sampled)
        clipped = max(1 - clip, min(1 + clip, ratio))
        kl = math.exp(ref - logp) - (ref - logp) - 1
        return kl_coef * kl - min(ratio * advantage, clipped * advantage)

    for kl_coef in (0.0, 0.3):
        for log_ratio in (-0.5, -0.1, 0.1, 0.5):
            for advantage in (-1.5, 0.0, 2.0):
                arguments = (-2.0 + log_ratio, -2.0, -1.2, advantage)
                tensors = torch.tensor(arguments, dtype=torch.float64)[:, None].requires_grad_()
                loss = grpo.grpo_loss(*tensors, 0.2, kl_coef)
                assert loss.shape == (1,)
                assert loss.item() == pytest.approx(by_hand(*arguments, 0.2, kl_coef))
                loss.backward()
                up, down = (by_hand(arguments[0] + d, *arguments[1:], 0.2, kl_coef)
                            for d in (1e-6, -1e-6))
                slope = tensors.grad[0].item()
                assert slope == pytest.approx((up - down) / 2e-6, abs=1e-8)
                clipped = (advantage > 0 and log_ratio > 0.2) or (advantage < 0 and log_ratio < -.3)
                if kl_coef == 0 and advantage:
                    assert (slope == 0) == clipped


def random_tensors(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_rebel_loss_and_gradient():
    """By hand, and by finite differences: a pair's gradients are opposite, and V* plays no part."""
    tensors = random_tensors(4, 10).requires_grad_()
    logps, sampled, ref, rewards = tensors
    loss = rebel.rebel_loss(logps, sampled, ref, rewards, 5.0, 0.3)

    def by_hand(rows):
        total = 0
        for i in range(0, 10, 2):
            (a, b), (s, t), (p, q), (x, y) = (row[i:i + 2] for row in rows)
            difference = (x - 0.3 * (s - p)) - (y - 0.3 * (t - q))
            total += ((a - s - (b - t)) / 5 - difference) ** 2
        return total / 5

    rows = tensors.tolist()
    assert loss.item() == pytest.approx(by_hand(rows))
    loss.backward()
    for i in range(10):
        up, down = ([[x + d * (j == i) for j, x in enumerate(rows[0])], *rows[1:]]
                    for d in (1e-5, -1e-5))
        assert tensors.grad[0, i].item() == pytest.approx((by_hand(up) - by_hand(down)) / 2e-5,
                                                          abs=1e-8)
    torch.testing.assert_close(tensors.grad[0, ::2], -tensors.grad[0, 1::2])
    moved = rebel.rebel_loss(logps, sampled, ref, rewards + 7, 5.0, 0.3)
    assert moved.item() == pytest.approx(loss.item())


def test_gae():
    """The sum of discounted errors, response by response; with lambda 1 and gamma 1, what is still
    to come less the value, with lambda 0 one step's error."""
    mask = torch.tensor([0, 0, 1, 1, 1, 0, 1, 0, 0, 0, 1, 1]).bool()
    rewards, values = random_tensors(2, 12)
    rewards, values = rewards * mask, values * mask

    def by_hand(gamma, gae_lambda):
        advantages = [0.0] * 12
        for first, last in ((2, 4), (6, 6), (10, 11)):
            errors = [rewards[t] + (gamma * values[t + 1] if t < last else 0) - values[t]
                      for t in range(first, last + 1)]
            for t in range(first, last + 1):
                advantages[t] = sum(((gamma * gae_lambda) ** k * e).item()
                                    for k, e in enumerate(errors[t - first:]))
        return advantages

    for gamma, gae_lambda in ((1.0, 1.0), (0.9, 0.8), (1.0, 0.0)):
        found = ppo.gae(rewards, values, mask, gamma, gae_lambda).tolist()
        assert found == pytest.approx(by_hand(gamma, gae_lambda), rel=1e-5)
    to_come = torch.stack((rewards[2:5].sum() - values[2], rewards[6] - values[6]))
    torch.testing.assert_close(ppo.gae(rewards, values, mask, 1.0, 1.0)[[2, 6]], to_come.float())


def test_ppo_losses_and_gradients():
    """By hand and by finite differences, on both sides of both clips. A value that has moved more
    than clip_value, and by that comes nearer to its return, has no gradient any more."""
    def policy(logp, sampled, advantage):
        ratio = math.exp(logp - sampled)
        return -min(ratio * advantage, max(0.8, min(1.2, ratio)) * advantage)

    def value(v, old, target):
        clipped = max(old - 0.5, min(old + 0.5, v))
        return 0.5 * max((v - target) ** 2, (clipped - target) ** 2)

    cases = [(policy, ppo.policy_loss, 0.2, (-2.0 + d, -2.0, a))
             for d in (-0.5, -0.1, 0.1, 0.5) for a in (-1.5, 2.0)]
    cases += [(value, ppo.value_loss, 0.5, (0.2 + d, 0.2, target))
              for d in (-0.9, -0.2, 0.2, 0.9) for target in (-3.0, 0.15, 0.45, 3.0)]
    flat = 0
    for by_hand, function, clip, arguments in cases:
        tensors = torch.tensor(arguments, dtype=torch.float64)[:, None].requires_grad_()
        loss = function(*tensors, clip)
        assert loss.shape == (1,) and loss.item() == pytest.approx(by_hand(*arguments))
        loss.backward()
        up, down = (by_hand(arguments[0] + d, *arguments[1:]) for d in (1e-6, -1e-6))
        slope = tensors.grad[0].item()
        assert slope == pytest.approx((up - down) / 2e-6, abs=1e-8)
        flat += slope == 0
    assert flat == 4


# ---- whole steps of training ---------------------------------------------------------------------

class FakeEngine:
    """Random responses with right and wrong answers, and their log-probabilities under the weights
    of the last sync."""
    memory = 0

    def __init__(self, path, *_):
        self.model, self.batches = Qwen2.from_pretrained(path), []

    def sync(self, weights):
        self.model.load_state_dict(dict(weights))

    def sleep(self):
        pass

    def generate(self, prompts, seeds, max_tokens, temperature=1.0, logps=False):
        responses = []
        assert len(set(seeds)) == len(seeds)
        for prompt, seed in zip(prompts, seeds, strict=True):
            g = torch.Generator().manual_seed(seed)
            length = torch.randint(1, max_tokens + 1, (1,), generator=g).item()
            tokens = torch.randint(257, (length,), generator=g).tolist()
            text = f"#### {sum(summands(prompt)) + seed % 2}"
            with torch.no_grad():
                logp = plain_logps(self.model, prompt, tokens)[0].tolist()
            responses.append(Response(tokens, text, length % 3 == 0, logp))
        if logps:
            self.batches.append((prompts, responses))
        return responses


def summands(prompt):
    """(10, 20) of the tokens of "10+20=?\n", which are its bytes."""
    return tuple(map(int, bytes(prompt).decode().removesuffix("=?\n").split("+")))


def plain_logps(model, prompt, response):
    """Of each response token at temperature 0.7, and the entropy of its distribution."""
    ids = torch.tensor(prompt + response)
    z = model.logits(ids, torch.tensor([0, len(ids)], dtype=torch.int32))[len(prompt) - 1:-1]
    lp = torch.log_softmax(z / 0.7, -1)
    return lp[range(len(response)), response], -(lp.exp() * lp).sum(-1)


def apo_by_hand(prompts, logps, sampled, ref, rewards):
    """Loss of a mini-batch; logps, sampled, ref: for each response a tensor of its tokens'."""
    v_star = [0.1 * (summands(prompt)[0] - 10) for prompt in prompts]
    return sum((0.1 * (a - b).sum() + v - r) ** 2 for a, b, v, r in zip(
        logps, ref, v_star, rewards, strict=True)) / len(prompts)


def grpo_by_hand(prompts, logps, sampled, ref, rewards):
    total = 0
    for i, (a, b, c) in enumerate(zip(logps, sampled, ref, strict=True)):
        group = rewards[:2] if i < 2 else rewards[2:]
        advantage = (rewards[i] - statistics.mean(group)) / (statistics.stdev(group) + 1e-6)
        ratio, kl = (a - b).exp(), (c - a).exp() - (c - a) - 1
        objective = torch.minimum(ratio * advantage, ratio.clamp(0.9, 1.1) * advantage)
        total = total - (objective - 0.3 * kl).sum()
    return total / sum(map(len, logps))


def rebel_by_hand(prompts, logps, sampled, ref, rewards):
    total = 0
    for i in range(0, len(prompts), 2):
        a, b = (((logps[k] - sampled[k]).sum() / 4,
                 rewards[k] - 0.3 * (sampled[k] - ref[k]).sum()) for k in (i, i + 1))
        total = total + (a[0] - b[0] - (a[1] - b[1])) ** 2
    return total / (len(prompts) / 2)


def train_by_hand(loss_by_hand, batches):
    """(trained model, metrics), one sequence at a time."""
    policy, reference = Qwen2.from_pretrained("model"), Qwen2.from_pretrained("model")
    optimizer = torch.optim.AdamW(policy.parameters(), betas=(0.8, 0.9), weight_decay=0.1)
    metrics = []
    for step, (prompts, responses) in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / 2)
        rewards = [float(r.text == f"#### {sum(summands(p))}")
                   for p, r in zip(prompts, responses, strict=True)]
        kl, entropy, loss, norm = [], [], [], []
        for update in (slice(0, 4), slice(4, 8)):
            pairs = list(zip(prompts[update], responses[update], strict=True))
            sampled = [torch.tensor(r.logps) for _, r in pairs]
            logps, entropies = zip(*(plain_logps(policy, p, r.tokens) for p, r in pairs),
                                   strict=True)
            with torch.no_grad():
                ref = [plain_logps(reference, p, r.tokens)[0] for p, r in pairs]
            loss.append(loss_by_hand(prompts[update], logps, sampled, ref, rewards[update]))
            (loss[-1] - 0.2 * torch.cat(entropies).mean()).backward()
            norm.append(torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.5))
            optimizer.step()
            optimizer.zero_grad()
            entropy += entropies
            kl += [a - b for a, b in zip(sampled, ref, strict=True)]
        metrics.append({
            "step": step, "lr": 1e-3 * (1 - step / 2), "reward": sum(rewards) / 8,
            "loss": sum(loss).item() / 2, "grad_norm": sum(norm).item() / 2,
            "kl": torch.cat(kl).mean().item(), "entropy": torch.cat(entropy).mean().item(),
            "tokens": sum(map(len, kl)), "truncated": sum(r.truncated for r in responses) / 8})
    return policy, metrics


@pytest.fixture
def train(tmp_path, monkeypatch):
    """train(stage, **constants) -> its FakeEngine: a run of two steps of two updates with four
    responses each, in the current folder, with data, a random model and a values.pt."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["x"])
    tokenizer, engines = byte_tokenizer(), []
    random_model(tiny_config(vocab_size=len(tokenizer))).save_pretrained("model")
    tokenizer.save_pretrained("model")
    write_jsonl("data/arithmetic/train.jsonl", [row("train", 10 + i, 20) for i in range(16)])
    write_jsonl("data/arithmetic/test.jsonl", [row("test", 50, 60)])
    rows = load_prompts("arithmetic", "train", tokenizer, 0, False, 100, reward.reward_of)
    meta = {"model": fingerprint("model"), "prompts": fingerprint_prompts(rows),
            "reward": reward.fingerprint(rows), "temperature": 0.7, "max_response_tokens": 12}
    shuffled = [*range(8, 16), *range(8)]
    save_values("out", [rows[i]["id"] for i in shuffled], torch.ones(16, 2),
                [0.1 * i for i in shuffled], meta)

    def engine(*arguments):
        engines.append(FakeEngine(*arguments))
        return engines[-1]

    def train(stage, **constants):
        settings = dict(
            model="model", out="out", max_steps=2, lr=1e-3, weight_decay=0.1, adam_beta1=0.8,
            adam_beta2=0.9, grad_clip=0.5, entropy_coef=0.2, temperature=0.7, save_every=1,
            eval_every=9, max_response_tokens=12, micro_batch_tokens=30)
        for name, value in {**settings, **constants}.items():
            monkeypatch.setattr(stage, name, value)
        stage.main(configure(vars(stage)))
        return engines[-1]

    monkeypatch.setitem(sys.modules, "rollout", SimpleNamespace(Engine=engine))
    init_process_group()
    yield train
    torch.distributed.destroy_process_group()


def save_values(folder, ids, rewards, v_star, meta):
    os.makedirs(folder, exist_ok=True)
    torch.save({"ids": ids, "rewards": rewards, "lengths": rewards.int(), "finished": rewards > 0,
                "v_star": torch.tensor(v_star), "meta": meta}, os.path.join(folder, "values.pt"))


@cpu_only
@pytest.mark.parametrize("stage, by_hand, constants", [
    (train_apo, apo_by_hand, dict(batch_size=8, mini_batch_size=4, beta2=0.1)),
    (rebel, rebel_by_hand, dict(batch_size=4, mini_batch_size=2, eta=4.0, kl_coef=0.3)),
    (grpo, grpo_by_hand, dict(batch_size=4, mini_batch_size=2, group_size=2, clip_ratio=0.1,
                              kl_coef=0.3))], ids=["apo", "rebel", "grpo"])
def test_training_is_what_its_formulas_say(stage, by_hand, constants, train):
    """Two steps: the same weights and metrics as one sequence at a time, from the definitions."""
    engine = train(stage, **constants)
    expected, metrics = train_by_hand(by_hand, engine.batches)
    for ours, plain in zip(metrics_of("out"), metrics, strict=True):
        assert {name: ours[name] for name in plain} == pytest.approx(plain, rel=1e-4, abs=1e-6)
    before, after = (dict(Qwen2.from_pretrained(path).named_parameters())
                     for path in ("model", "out/model"))
    for name, p in expected.named_parameters():
        # Of near-zero gradients AdamW keeps little more than the sign: hence not entry by entry.
        assert (after[name] - p).norm() < 0.005 * (p - before[name]).norm(), name
        assert torch.equal(after[name], engine.model.state_dict()[name])


@cpu_only
def test_ppo_training_is_what_its_formulas_say(train):
    """The same for PPO, whose critic learns beside the policy, and decides the second step."""
    engine = train(ppo, batch_size=8, mini_batch_size=4, clip_ratio=0.1, clip_value=0.1,
                   kl_coef=0.3, gamma=0.9, gae_lambda=0.8, critic_lr=2e-3)
    policy, reference, trunk = (Qwen2.from_pretrained("model") for _ in range(3))
    head = torch.zeros(trunk.config.hidden_size, requires_grad=True)
    critic = [*trunk.parameters(), head]
    optimizer = torch.optim.AdamW([{"params": policy.parameters()}, {"params": critic}],
                                  betas=(0.8, 0.9), weight_decay=0.1)

    def values_of(prompt, response):
        ids = torch.tensor(prompt + response)
        states = trunk.hidden_states(ids, torch.tensor([0, len(ids)], dtype=torch.int32))
        return states[len(prompt) - 1:-1] @ head

    def advantages_of(rewards, values):
        errors = [r + 0.9 * v_next - v for r, v, v_next
                  in zip(rewards, values, [*values[1:], 0.0], strict=True)]
        return torch.stack([sum(0.72 ** k * e for k, e in enumerate(errors[t:]))
                            for t in range(len(errors))])

    for step, (prompts, responses) in enumerate(engine.batches):
        for group, lr in zip(optimizer.param_groups, (1e-3, 2e-3), strict=True):
            group["lr"] = lr * (1 - step / 2)
        sampled = [torch.tensor(r.logps) for r in responses]
        with torch.no_grad():
            old = [values_of(p, r.tokens) for p, r in zip(prompts, responses, strict=True)]
            kls = [s - plain_logps(reference, p, r.tokens)[0]
                   for p, r, s in zip(prompts, responses, sampled, strict=True)]
        rewards = [-0.3 * kl for kl in kls]
        for p, r, x in zip(prompts, responses, rewards, strict=True):
            x[-1] += r.text == f"#### {sum(summands(p))}"
        advantages = [advantages_of(x, v) for x, v in zip(rewards, old, strict=True)]
        returns = [a + v for a, v in zip(advantages, old, strict=True)]
        std, mean = torch.std_mean(torch.cat(advantages))
        found = {"loss": 0, "critic_loss": 0, "grad_norm": 0}
        for update in (range(4), range(4, 8)):
            loss, value_loss, bonus, tokens = 0, 0, 0, sum(len(sampled[i]) for i in update)
            for i in update:
                logps, entropy = plain_logps(policy, prompts[i], responses[i].tokens)
                ratio, a = (logps - sampled[i]).exp(), (advantages[i] - mean) / std
                loss = loss - torch.minimum(ratio * a, ratio.clamp(0.9, 1.1) * a).sum() / tokens
                bonus = bonus + entropy.sum() / tokens
                v = values_of(prompts[i], responses[i].tokens)
                near = torch.minimum(torch.maximum(v, old[i] - 0.1), old[i] + 0.1)
                errors = torch.stack(((v - returns[i]) ** 2, (near - returns[i]) ** 2))
                value_loss = value_loss + errors.amax(0).sum() / 2 / tokens
            (loss - 0.2 * bonus).backward()
            value_loss.backward()
            found["grad_norm"] += torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.5).item()
            torch.nn.utils.clip_grad_norm_(critic, 0.5)
            optimizer.step()
            optimizer.zero_grad()
            found["loss"] += loss.item()
            found["critic_loss"] += value_loss.item()
        ours = metrics_of("out")[step]
        for name, total in found.items():
            assert ours[name] == pytest.approx(total / 2, rel=1e-3, abs=1e-5), (step, name)
        assert ours["kl"] == pytest.approx(torch.cat(kls).mean().item(), rel=1e-4,
                                           abs=1e-6)
    before, after = (dict(Qwen2.from_pretrained(path).named_parameters())
                     for path in ("model", "out/model"))
    for name, p in policy.named_parameters():
        assert (after[name] - p).norm() < 0.005 * (p - before[name]).norm(), name


@cpu_only
def test_running_means_of_rewards(train):
    """Each prompt's mean goes on from stage 1's two samples, also over a checkpoint; the other
    choices are constants."""
    constants = dict(batch_size=8, mini_batch_size=4, lr_decay=False, save_rollouts=1)
    train(train_apo, **constants, baseline="running_mean", max_steps=2)
    train(train_apo, **constants, baseline="running_mean", max_steps=5)
    seen = {}
    for step in range(1, 6):
        for r in read_jsonl(f"out/rollouts/step-{step:06d}.jsonl", ("id", "reward", "v_star")):
            rewards = seen.setdefault(r["id"], [1.0, 1.0])
            assert r["v_star"] == pytest.approx(statistics.mean(rewards)), (step, r["id"])
            rewards.append(r["reward"])
    assert sorted(map(len, seen.values())) == [4] * 8 + [5] * 8
    for baseline, value in (("mean", 1.0), ("zero", 0.0), ("v_star", 0.75)):
        train(train_apo, **constants, baseline=baseline, max_steps=2, resume=False)
        assert sum(m["v_star"] for m in metrics_of("out")) / 2 == pytest.approx(value)


@cpu_only
@pytest.mark.parametrize("stage", [train_apo, grpo, rebel, ppo])
def test_master_weights_and_adamw_are_float32(stage, train):
    """Also with bfloat16 compute: at the papers' lr of 1e-6, bfloat16 weights would hardly move."""
    train(stage, dtype="bfloat16", batch_size=4, mini_batch_size=4, logp_tolerance=1.0)
    saved = FileSystemReader("out/ckpt/step-000002").read_metadata().state_dict_metadata
    tensors = {name: x.properties.dtype for name, x in saved.items() if hasattr(x, "properties")}
    assert sum("exp_avg" in name for name in tensors) == 2 * sum(n.startswith("policy.")
                                                                 for n in tensors) > 9
    assert set(tensors.values()) == {torch.float32}


@cpu_only
def test_a_run_is_not_made_longer_if_its_learning_rate_decays(train):
    """It would have been another one from the first step on."""
    train(train_apo, batch_size=4, mini_batch_size=4, max_steps=1)
    with pytest.raises(SystemExit, match="was trained with max_steps = 1, this run has 2"):
        train(train_apo, batch_size=4, mini_batch_size=4, max_steps=2)
    assert len(metrics_of("out")) == 1


@cpu_only
@pytest.mark.parametrize("stage", [train_apo, grpo, rebel, ppo])
def test_a_run_continues_bit_for_bit(stage, train):
    """From the checkpoint of its first steps it does what it would have done without stopping."""
    constants = dict(batch_size=4, mini_batch_size=2, lr_decay=False)
    train(stage, **constants, max_steps=4)
    whole, weights = what_counts("out"), load_file("out/model/model.safetensors")
    train(stage, **constants, max_steps=2, resume=False)
    train(stage, **constants, max_steps=4)
    assert what_counts("out") == whole and len(whole) == 4
    again = load_file("out/model/model.safetensors")
    assert all(torch.equal(again[name], weights[name]) for name in weights)


# ---- data and stage 1 ----------------------------------------------------------------------------

def test_answers_of_the_data():
    """MATH's is what the last box holds, GSM8K's what stands after ####, without commas."""
    solution = r"\boxed{1} is wrong, it is \boxed{\frac{1}{2}}."
    assert TASKS["math"].row({"problem": "p", "solution": solution})["answer"] == r"\frac{1}{2}"
    assert TASKS["gsm8k"].row({"question": "q", "answer": "1 + 1\n#### 1,234"})["answer"] == "1234"


META = {"model": "m", "prompts": "p", "temperature": 1.0, "max_response_tokens": 32,
        "dtype": "float32", "seed": 0, "reward": "r", "beta1": 0.5}


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("key", ["model", "prompts", "temperature", "max_response_tokens", "dtype",
                                 "seed"])
def test_samples_with_other_settings_are_not_mixed(key, finished, tmp_path):
    """Neither those of an interrupted nor those of a finished stage 1; reward and beta1 may differ,
    as the samples don't depend on them."""
    samples = {("a", 0): {"sample": 0, "text": "#### 13", "length": 5, "finished": True}}
    if finished:
        save_values(tmp_path, ["a"], torch.ones(1, 1), [1.0], META)
        write_jsonl(tmp_path / "responses.jsonl", [{"id": "a", "responses": [*samples.values()]}])
    else:
        write_jsonl(tmp_path / "responses.part.0.jsonl",
                    [META, {"id": "a", **samples["a", 0], "tokens": [5, 6, 7, 8, 9]}])
    assert read_samples(tmp_path, {**META, "reward": "new", "beta1": 0.1}) == samples
    with pytest.raises(ValueError, match=f"was sampled with {key} = "):
        read_samples(tmp_path, {**META, key: "another"})


def test_stage_1_from_samples_to_v_star(tmp_path, monkeypatch):
    """A truncated response earns nothing on MATH, whatever it says; each prompt gets its own V*;
    and a new reward grades all samples anew, those of a finished stage 1, too."""
    class Engine:
        engine_index, num_engines, tp_rank = 0, 1, 0

        share = list

        def stream(prompts, seeds, *_):
            assert seeds == list(range(len(prompts)))
            for k in reversed(range(len(prompts))):  # responses finish in any order
                yield k, Response([1] * (k + 1), rf"\boxed{{{prompts[k][0]}}}", k % 2 == 1, [])

    monkeypatch.setattr(estimate_value, "samples_per_prompt", 2)
    rows = [{"id": i, "task": "math", "prompt": "p", "answer": "5", "tokens": [t]}
            for i, t in (("b", 5), ("c", 6), ("a", 5))]
    todo = [(r, i, 2 * k + i) for k, r in enumerate(rows) for i in (0, 1)]
    assert sample(Engine, todo, str(tmp_path / PARTS), META, 32, 1.0)[1] == 1 + 2 + 3 + 4 + 5 + 6
    values, _ = finish(tmp_path, rows, rows, read_samples(tmp_path, META), META)
    assert values["finished"].tolist() == [[True, False]] * 3
    assert values["lengths"].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert values["rewards"].tolist() == [[1, 0], [0, 0], [1, 0]]
    v = 0.5 * math.log((math.e ** 2 + 1) / 2)
    assert values["v_star"].tolist() == pytest.approx([v, 0, v])
    assert sorted(os.listdir(tmp_path)) == ["responses.jsonl", "values.pt"]

    now = [{**r, "answer": "6"} for r in rows]
    values, _ = finish(tmp_path, now, now, read_samples(tmp_path, META), META)
    assert values["rewards"].tolist() == [[0, 0], [1, 0], [0, 0]]
    for r, rewards in zip(read_jsonl(tmp_path / "responses.jsonl", ()), values["rewards"].tolist(),
                          strict=True):
        assert [s["reward"] for s in r["responses"]] == rewards


@pytest.mark.parametrize("filter_incorrect, expected", [
    (False, {"a": 0.25, "b": 0.5, "c": 0.0}), (True, {"a": 0.25, "b": 0.5})])
def test_v_star_reaches_its_prompt(filter_incorrect, expected, tmp_path):
    """By id, whatever the order in the file; filter_incorrect leaves out what was never solved."""
    rows = [{"id": i, "prompt": f"prompt {i}"} for i in "abcd"]
    save_values(tmp_path, ["c", "a", "b"], torch.tensor([[0.0, 0], [1, 0], [0, 1]]),
                [0.0, 0.25, 0.5], META)
    found, _ = add_v_star(rows, tmp_path, {"reward": "r"}, filter_incorrect, "v_star")
    assert {r["id"]: r["v_star"] for r in found} == expected and len(found) == len(expected)
    assert all(r["prompt"] == f"prompt {r['id']}" for r in found)


def test_what_a_truncated_response_earns():
    """On its way from the sampler to the reward `truncated` becomes `not finished`."""
    responses = [Response([], r"\boxed{5}", truncated, []) for truncated in (True, False)]
    graded = reward.start_grading([{"task": "math", "answer": "5"}] * 2, responses)()
    assert graded.rewards == [0.0, 1.0]


# ---- evaluation ----------------------------------------------------------------------------------

def test_pass_at_k_is_unbiased():
    """Against the definition: the mean over all subsets of k of n samples."""
    n, c = 7, 2
    for k in range(1, n + 1):
        subsets = list(combinations([1] * c + [0] * (n - c), k))
        expected = sum(any(s) for s in subsets) / len(subsets)
        assert pass_at_k(n, c, k) == pytest.approx(expected)


def test_wilson_interval_against_the_normal_one():
    half = 1.96 * math.sqrt(0.25 / 10_000)
    assert wilson(0.5, 10_000) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)
    low, high = wilson(0.0, 100)
    assert low == pytest.approx(0, abs=1e-9) and 0.03 < high < 0.04


@pytest.mark.parametrize("k", [2, 8])
def test_intervals_count_prompts_not_samples(k, tmp_path):
    """Where all samples of a prompt are equal, more of them don't narrow an interval. All responses
    are kept with what they earned, and levels are measured one by one."""
    rows = [{**row("test", 10 + i, 20), "tokens": [i], "level": "23"[i > 1]} for i in range(4)]
    right = {0: (0, 1, 2), 1.0: (0, 3)}  # the prompts that are answered right, by temperature

    def generate(prompts, seeds, max_tokens, temperature=1.0, logps=False, desc=None):
        return [Response([1] * 5, f"#### {30 + p if p in right[temperature] else 9}", p == 0, [])
                for [p] in prompts]

    prompts = [row["tokens"] for row in rows]
    responses = {kind: [[r] * n for r in generate(prompts, None, 0, t)]
                 for kind, n, t in (("greedy", 1, 0), ("samples", k, 1.0))}
    results, records = evaluate.measure(rows, responses)
    assert results["greedy"]["value"] == 0.75
    assert results["greedy"]["ci95"] == pytest.approx([0.3006, 0.9544], abs=1e-4)  # Wilson, 4
    half = 1.96 * statistics.stdev([1, 0, 0, 1]) / math.sqrt(4)
    for name in (f"avg@{k}", f"pass@{k}", "pass@2"):
        assert results[name]["value"] == 0.5
        assert results[name]["ci95"] == pytest.approx([0.5 - half, 0.5 + half])
    assert results["truncated"] == 0.25 and "reward" not in results
    assert results["groups"] == {
        "level 2": {"prompts": 2, "greedy": 1.0, f"avg@{k}": 0.5},
        "level 3": {"prompts": 2, "greedy": 0.5, f"avg@{k}": 0.5}}
    path, engine = tmp_path / "eval-000004.jsonl", SimpleNamespace(generate=generate)
    assert evaluate.held_out_accuracy(engine, rows, 0, 32, path) == {"accuracy": 0.75,
                                                                     "accuracy_sampled": 0.5}
    for kept, number in ((records, k), (read_jsonl(path, ()), 1)):
        assert [record["id"] for record in kept] == [r["id"] for r in rows]
        for name, right in (("greedy", [1, 1, 1, 0]), ("samples", [1, 0, 0, 1])):
            assert [[s["reward"] for s in record[name]] for record in kept] == [
                [r] * (1 if name == "greedy" else number) for r in right]
        assert kept[3]["greedy"] == [{"text": "#### 9", "reward": 0.0, "truncated": False,
                                      "tokens": 5}]
    assert reward.explain("gsm8k", "#### 9", "33", True) == "'9' is not equal to '33'"
    assert reward.explain("math", r"\boxed{1}", "1", False) == "it was truncated"
    assert reward.explain("math", "1", "1", True) == "it has no final answer"
