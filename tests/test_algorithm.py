"""The algorithms against closed forms and plain re-derivations: V*, the losses, whole steps of
training, stage 1's bookkeeping, and the statistics of an evaluation. Nothing here needs vLLM.
"""
import math
import os
import statistics
import sys
from itertools import combinations
from types import SimpleNamespace

import estimate_value
import evaluate
import lib.run
import reward
import train_apo
from baselines import grpo, oapl, ppo, rebel
from estimate_value import optimal_value
from evaluate import pass_at_k, wilson
from lib.cli import configure
from lib.data import fingerprint_prompts, load_prompts
from lib.distributed import init_process_group
from lib.files import read_jsonl, write_jsonl
from lib.samples import PARTS, Response, match_values, read_samples, sample
from lib.weights import fingerprint
from model import Qwen2
from prepare import byte_tokenizer

import pytest
import torch
from conftest import cpu_only, metrics_of, random_model, tiny_config, what_counts
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.utils._pytree import tree_leaves


def arguments(stage, *presets, **constants):
    """The constants of a stage, as its own command line would set them."""
    base = {"base": train_apo.__file__, "without": ("beta2", "filter_incorrect")}
    options = [f"--{name}={value}" for name, value in constants.items()]
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sys, "argv", ["x", *map(str, presets), *options])
        return configure(stage.__file__, **base if "baselines" in stage.__name__ else {})


# ---- V* and the losses ---------------------------------------------------------------------------

@pytest.mark.parametrize("rewards, beta1, value", [
    ([0.0] * 8, 0.5, 0.0), ([0.0] * 7 + [1.0], 0.5, 0.294), ([0.0, 1.0] * 4, 0.5, 0.717),
    ([1.0] * 8, 0.5, 1.0), ([1.0] * 8, 1e-6, 1.0), ([0.1, 0.7, 0.4], 1e-4, 0.7),
    ([0.1, 0.7, 0.4], 1e3, 0.4), ([0.1, 0.7, 0.4], 0.0, 0.4), ([0.1, 0.7, 0.4], -1.0, 0.0)])
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

class FakeEngine:
    """Random responses with right and wrong answers, and their log-probabilities under the weights
    of the last sync, which are 0.1 off for every second response."""
    memory = 0

    def __init__(self, path, *_):
        self.model, self.batches, FakeEngine.latest = Qwen2.from_pretrained(path), [], self

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
            with torch.no_grad():
                logp = plain_logps(self.model, prompt, tokens)[0] + 0.1 * (seed % 2)
            responses.append(Response(tokens, f"#### {sum(summands(prompt)) + seed % 2}",
                                      length % 3 == 0, logp.tolist()))
        if logps:
            self.batches.append([*zip(prompts, responses, strict=True)])
        return responses


def summands(prompt):
    """(10, 20) of the tokens of "10+20=?\n", which are its bytes."""
    return tuple(map(int, bytes(prompt).decode().removesuffix("=?\n").split("+")))


def plain_logps(model, prompt, tokens):
    """Of each response token at temperature 0.7, and the entropy of its distribution."""
    ids = torch.tensor(prompt + tokens)
    z = model.logits(ids, torch.tensor([0, len(ids)], dtype=torch.int32))[len(prompt) - 1:-1]
    lp = torch.log_softmax(z / 0.7, -1)
    return lp[range(len(tokens)), tokens], -(lp.exp() * lp).sum(-1)


SETTINGS = dict(model="model", out="out", max_steps=2, lr=1e-3, weight_decay=0.1, grad_clip=0.5,
                entropy_coef=0.2, temperature=0.7, save_every=1, eval_every=9,
                max_response_tokens=12, micro_batch_tokens=30, logp_tolerance=1)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """train(stage, **constants) -> its FakeEngine: a run of two steps of two updates with four
    responses each, in the current folder, with data, a random model and a values.pt."""
    monkeypatch.chdir(tmp_path)
    tokenizer = byte_tokenizer()
    random_model(tiny_config(vocab_size=len(tokenizer))).save_pretrained("model")
    tokenizer.save_pretrained("model")
    for split, first, second, number in (("train", 10, 20, 16), ("test", 50, 60, 8)):
        write_jsonl(f"data/arithmetic/{split}.jsonl", [
            {"id": f"{split}/{i}", "task": "arithmetic", "prompt": f"{first + i}+{second}=?\n",
             "answer": str(first + i + second)} for i in range(number)])
    rows = load_prompts("arithmetic", "train", tokenizer, 0, 100, 12)
    meta = {"model": fingerprint("model"), "prompts": fingerprint_prompts(rows),
            "reward": reward.fingerprint(rows), "temperature": 0.7, "max_response_tokens": 12}
    shuffled = [*range(8, 16), *range(8)]
    save_values("out", [rows[i]["id"] for i in shuffled], torch.ones(16, 2),
                [0.1 * i for i in shuffled], meta)

    def train(stage, **constants):
        stage.main(arguments(stage, **SETTINGS | constants))
        return FakeEngine.latest

    monkeypatch.setitem(sys.modules, "rollout", SimpleNamespace(Engine=FakeEngine))
    monkeypatch.setitem(sys.modules, "report", SimpleNamespace(write_report=str))  # takes a second
    init_process_group()
    yield train
    torch.distributed.destroy_process_group()


def save_values(folder, ids, rewards, v_star, meta):
    os.makedirs(folder, exist_ok=True)
    torch.save({"ids": ids, "rewards": rewards, "lengths": rewards.int(), "finished": rewards > 0,
                "v_star": torch.tensor(v_star), "meta": meta}, os.path.join(folder, "values.pt"))


def tokens_of(ys, *names):
    """Attributes of all responses ys, end to end."""
    return [torch.cat([getattr(y, name) for y in ys]) for name in names]


def sums_of(ys, *names):
    """Attributes of each of the responses ys, summed over its tokens."""
    return [[getattr(y, name).sum() for y in ys] for name in names]


def apo_update(ys):
    v_star = [0.1 * (summands(y.prompt)[0] - 10) for y in ys]
    return apo_by_hand(*sums_of(ys, "logps", "ref", "reward"), v_star, 0.1)


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
        self.trunk = Qwen2.from_pretrained("model")
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
    policy, reference = (Qwen2.from_pretrained("model") for _ in range(2))
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
        off = torch.cat([y.logps - y.sampled for y in ys[:4]]).abs()  # before the first update
        metrics.append({
            "step": step, "lr": 1e-3 * (1 - step / 2), "tokens": len(kl), "kl": kl.mean().item(),
            "loss": loss, "grad_norm": norm, "entropy": statistics.mean(entropy),
            "reward": statistics.mean(y.reward.item() for y in ys),
            "truncated": statistics.mean(y.truncated for y in ys),
            "logp_diff_mean": off.mean().item(), "logp_diff_max": off.max().item(),
            **({"critic_loss": critic_loss} if critic else {})})
    return policy, metrics


STAGES = {
    "apo": (train_apo, apo_update, dict(batch_size=8, mini_batch_size=4, beta2=0.1)),
    "rebel": (rebel, rebel_update, dict(batch_size=4, mini_batch_size=2, eta=4.0, kl_coef=0.3)),
    "grpo": (grpo, grpo_update, dict(batch_size=4, mini_batch_size=2, group_size=2, clip_ratio=0.1,
                                     kl_coef=0.3)),
    "oapl": (oapl, oapl_update, dict(batch_size=4, mini_batch_size=2, group_size=2, beta1=0.25,
                                     beta2=0.1, drop_equal=True)),
    "ppo": (ppo, ppo_update, dict(batch_size=8, mini_batch_size=4, clip_ratio=0.1, clip_value=0.1,
                                  kl_coef=0.3, gamma=0.9, gae_lambda=0.8, critic_lr=2e-3))}


@cpu_only
@pytest.mark.parametrize("name", STAGES)
def test_training_is_what_its_formulas_say(name, train):
    """Two steps leave the same weights and metrics as one sequence at a time, computed from the
    definitions. PPO's critic learns beside the policy, and decides the second step. A run whose
    learning rate decays is not made longer: it would have been another one."""
    stage, loss_of, constants = STAGES[name]
    engine = train(stage, **constants)
    expected, metrics = train_by_hand(loss_of, engine.batches,
                                      CriticByHand() if name == "ppo" else None)
    for ours, plain in zip(metrics_of("out"), metrics, strict=True):
        assert {key: ours[key] for key in plain} == pytest.approx(plain, rel=1e-4, abs=1e-6)
    before, after = (dict(Qwen2.from_pretrained(path).named_parameters())
                     for path in ("model", "out/model"))
    for key, p in expected.named_parameters():
        # Of near-zero gradients AdamW keeps little more than the sign: hence not entry by entry.
        assert (after[key] - p).norm() < 0.005 * (p - before[key]).norm(), key
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
        dcp_to_torch_save(f"out/ckpt/step-{max_steps:06d}", "whole.pt")
        leaves = tree_leaves(torch.load("whole.pt", weights_only=False))
        return what_counts("out"), [x for x in leaves if isinstance(x, torch.Tensor)]

    stage, _, constants = STAGES[name]
    constants = constants | dict(dtype="bfloat16", lr_decay=False, eval_every=2)
    whole, saved = run(4)
    assert len(saved) > 9 and {x.dtype for x in saved} == {torch.float32}
    run(2, resume=False)
    again, continued = run(4)
    assert again == whole and len(whole) == 4
    assert all(torch.equal(a, b) for a, b in zip(saved, continued, strict=True))


@cpu_only
@pytest.mark.slow
def test_weights_and_biases(train, monkeypatch, capsys):
    """Every step is logged, to one run also when it continues; --resume=False begins another one.
    An error of wandb is one warning, and the run goes on. A missing package is named."""
    import wandb
    constants = dict(batch_size=16, mini_batch_size=16,  # a batch may be all prompts
                     lr_decay=False, wandb="some-project")
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
    assert [m for _, _, m in logged] == metrics_of("out") and "accuracy" in logged[-1][2]
    train(train_apo, **constants, max_steps=3, resume=False)
    assert [step for _, step, _ in logged] == [0, 1, 2, 3, 0, 1] and len(metrics_of("out")) == 3
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
    response = {"sample": 0, "text": "#### 13", "length": 2, "finished": True}
    part = tmp_path / "responses.part.0.jsonl"
    if finished:
        save_values(tmp_path, ["a"], torch.ones(1, 1), [1.0], META)
        write_jsonl(tmp_path / "responses.jsonl", [{"id": "a", "responses": [response]}])
    else:
        write_jsonl(part, [META, {"id": "a", **response, "tokens": [5, 6]}])
        part.write_text(part.read_text() + '{"id": "b", "sam')
    assert read_samples(tmp_path, META | {"reward": "new", "beta1": 0.1}) == {("a", 0): response}
    with pytest.raises(ValueError, match=f"was sampled with {key} = "):
        read_samples(tmp_path, META | {key: "another"})


def test_stage_1_from_samples_to_v_star(tmp_path):
    """A truncated response earns nothing on MATH, whatever it says; each prompt gets its own V*;
    and a new reward grades all samples anew, those of a finished stage 1, too."""
    class Engine:
        engine_index, num_engines, tp_rank = 0, 1, 0

        share = list

        def stream(prompts, seeds, *_):
            assert seeds == list(range(len(prompts)))
            for k in reversed(range(len(prompts))):  # responses finish in any order
                yield k, Response([1] * (k + 1), rf"\boxed{{{prompts[k][0]}}}", k % 2 == 1)

    rows = [{"id": i, "task": "math", "prompt": "p", "answer": "5", "tokens": [t]}
            for i, t in (("b", 5), ("c", 6), ("a", 5))]
    todo = [(r, i, 2 * k + i) for k, r in enumerate(rows) for i in (0, 1)]
    assert sample(Engine, todo, str(tmp_path / PARTS), META, 32, 1.0)[1] == 1 + 2 + 3 + 4 + 5 + 6
    args = SimpleNamespace(samples_per_prompt=2, keep_rewards=False, beta1=0.5)
    v = 0.5 * math.log((math.e ** 2 + 1) / 2)
    for answer, rewards in (("5", [[1, 0], [0, 0], [1, 0]]), ("6", [[0, 0], [1, 0], [0, 0]])):
        now = [{**r, "answer": answer} for r in rows]
        values, _ = estimate_value.finish(args, tmp_path, now, now, read_samples(tmp_path, META),
                                          META)
        assert values["finished"].tolist() == [[True, False]] * 3
        assert values["lengths"].tolist() == [[1, 2], [3, 4], [5, 6]]
        assert values["rewards"].tolist() == rewards
        assert values["v_star"].tolist() == pytest.approx([v * right for right, _ in rewards])
        kept = read_jsonl(tmp_path / "responses.jsonl", ())
        assert [[s["reward"] for s in r["responses"]] for r in kept] == rewards
        assert sorted(os.listdir(tmp_path)) == ["responses.jsonl", "values.pt"]


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


def test_held_out_prompts_do_not_depend_on_the_seed(train):
    """Runs of several seeds are measured on the same prompts. Greedy responses serve all seeds and
    temperatures, samples do not."""
    chosen, greedy, samples = set(), set(), set()
    for changes in ({}, {"seed": 1}, {"temperature": 0.5}):
        of_run = arguments(train_apo, **SETTINGS | {"eval_prompts": 4} | changes)
        of_evaluation = arguments(evaluate, max_prompts=4, **changes)
        [job] = evaluate.make_jobs(of_evaluation, "model", ["arithmetic"])[0]
        for rows in (train_apo.read_inputs(of_run).test, job.rows):
            chosen.add(tuple(row["id"] for row in rows))
        greedy.add(str(job.settings["greedy"]))
        samples.add(str(job.settings["samples"]))
    assert len(chosen) == len(greedy) == 1 and len(samples) == 3
