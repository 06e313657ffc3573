"""The algorithm itself, against closed forms and definitions: V*, the loss and its gradient, data order, packing."""
import math

import numpy as np
import pytest
import torch

import common
import train_apo
from common import sampling_seed
from estimate_value import optimal_value
from evaluate import pass_at_k, wilson
from model import deal, pack, sum_per_sequence
from train_apo import apo_loss


@pytest.mark.parametrize("right, value", [(0, 0.0), (1, 0.294), (4, 0.717), (8, 1.0)])
def test_optimal_value_of_binary_rewards(right, value):
    """The four values that follow from the formula with 0/1 rewards, N = 8 and beta1 = 1/2."""
    rewards = torch.tensor([[1.0] * right + [0.0] * (8 - right)])
    assert optimal_value(rewards, 0.5).item() == pytest.approx(value, abs=5e-4)


def test_optimal_value_between_mean_and_maximum():
    rewards = torch.rand(50, 8, generator=torch.Generator().manual_seed(0))
    direct = 0.5 * torch.log(torch.exp(rewards / 0.5).mean(1))
    torch.testing.assert_close(optimal_value(rewards, 0.5), direct)
    torch.testing.assert_close(optimal_value(rewards, 1e3), rewards.mean(1), atol=1e-3, rtol=0)
    torch.testing.assert_close(optimal_value(rewards, 1e-4), rewards.max(1).values, atol=1e-3, rtol=0)
    assert optimal_value(torch.ones(1, 8), 1e-6).item() == pytest.approx(1.0)  # exp(1e6) would overflow


def test_loss_and_gradient():
    """The formula by hand, and d loss / d ln pi = 2 beta2 (beta2 ln(pi/pi_ref) - (r - V*)) / B."""
    g = torch.Generator().manual_seed(0)
    logps, ref, rewards, v_star = (torch.randn(16, generator=g, dtype=torch.float64) * s for s in (9, 9, 1, 1))
    logps.requires_grad_()
    loss = apo_loss(logps, ref, rewards, v_star, 0.1)
    by_hand = sum((0.1 * (l - f) + v - r) ** 2 for l, f, r, v in zip(logps.tolist(), ref.tolist(), rewards.tolist(),
                                                                    v_star.tolist())) / 16
    assert loss.item() == pytest.approx(by_hand)
    loss.backward()
    expected = 2 * 0.1 * (0.1 * (logps.detach() - ref) - (rewards - v_star)) / 16
    torch.testing.assert_close(logps.grad, expected)


def test_the_regression_finds_the_optimal_policy():
    """With all responses of one prompt and the exact V*, minimising the loss over a free policy gives
    pi* = pi_ref e^(r/beta)/Z, the solution of the KL-regularised problem that the paper starts from."""
    beta = 0.5
    ref = torch.log_softmax(torch.randn(6, generator=torch.Generator().manual_seed(0)), 0)
    rewards = torch.tensor([1.0, 0, 0, 1, 0, 0])
    v_star = beta * torch.logsumexp(ref + rewards / beta, 0)
    z = torch.zeros(6, requires_grad=True)
    optimizer = torch.optim.LBFGS([z], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = apo_loss(torch.log_softmax(z, 0), ref, rewards, v_star.expand(6), beta)
        loss.backward()
        return loss

    optimizer.step(closure)
    optimal = torch.softmax(ref + rewards / beta, 0)
    torch.testing.assert_close(torch.softmax(z, 0), optimal, atol=1e-3, rtol=0)


def test_each_epoch_visits_every_prompt_once(monkeypatch):
    """And the order is a function of (seed, step): a resumed run sees what an uninterrupted one sees."""
    monkeypatch.setattr(train_apo, "batch_size", 25)
    epochs = [[i for step in range(e * 4, e * 4 + 4) for i in train_apo.batch_at(step, 110)] for e in range(2)]
    for epoch in epochs:
        assert len(set(epoch)) == 100 and set(epoch) <= set(range(110))  # 10 of 110 don't fill a batch
    assert epochs[0] != epochs[1]
    assert train_apo.batch_at(6, 110) == train_apo.batch_at(6, 110)
    monkeypatch.setattr(train_apo, "seed", 1)
    assert [i for step in range(4) for i in train_apo.batch_at(step, 110)] != epochs[0]


def test_micro_batches_hold_every_sequence_once():
    lengths = np.random.default_rng(0).integers(1, 120, 300).tolist() + [500]
    groups = [group for [group] in deal(range(100, 301), lengths, 256)]
    assert sorted(i for g in groups for i in g) == list(range(100, 301))
    assert all(sum(lengths[i] for i in g) <= 256 or len(g) == 1 for g in groups)
    assert len(groups) < 1.1 * sum(lengths[100:]) / 256 + 2


def test_pack_marks_the_response_by_length():
    """EOS equals PAD in Qwen, and may stand in a prompt: only lengths say what the response is."""
    micro = pack([2, 0], [[7, 0], [9], [0]], [[5, 0], [1], [0, 0, 3]], "cpu")
    assert micro.input_ids.tolist() == [0, 0, 0, 3, 7, 0, 5, 0]
    assert micro.cu_seqlens.tolist() == [0, 4, 8] and micro.cu_seqlens.dtype == torch.int32
    assert micro.where.tolist() == [False, True, True, True, False, False, True, True]
    assert sum_per_sequence(torch.arange(8.0), micro.cu_seqlens).tolist() == [6.0, 22.0]


def test_sampling_seeds_do_not_collide():
    seeds = {sampling_seed(s, "stage 1", f"gsm8k/train/{i}", k) for s in range(3) for i in range(500) for k in range(16)}
    assert len(seeds) == 3 * 500 * 16 and all(0 <= s < 2 ** 63 for s in seeds)


def test_pass_at_k_is_unbiased():
    """Against the definition: the mean over all subsets of k of n samples."""
    from itertools import combinations
    n, c = 7, 2
    for k in range(1, n + 1):
        subsets = list(combinations([1] * c + [0] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets))


def test_wilson_interval_against_the_normal_one():
    low, high = wilson(0.5, 10_000)
    half = 1.96 * math.sqrt(0.25 / 10_000)
    assert (low, high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-4)
    low, high = wilson(0.0, 100)
    assert low == pytest.approx(0, abs=1e-9) and 0.03 < high < 0.04


def test_subsets_are_nested_and_mixed():
    """The first rows of MATH's test set are all algebra: a subset must not be the first rows."""
    rows = [{"id": f"t/{i}"} for i in range(1000)]
    small, large = common.subset(rows, 50, 0), common.subset(rows, 200, 0)
    assert len(small) == 50 and [r for r in large if r in small] == small and common.subset(rows, 0, 0) == rows
    assert 300 < np.mean([int(r["id"][2:]) for r in small]) < 700
    assert small != common.subset(rows, 50, 1)


def test_sampler_check(monkeypatch):
    """In bfloat16 one fixed limit can't tell drift from rounding: the first step is the measure. A NaN stops the run, too."""
    monkeypatch.setattr(train_apo, "dtype", "bfloat16")
    train_apo.check_sampler(5, 0.02, 0.3, 0.012)
    for mean, first in ((0.05, 0.012), (0.11, 0.11), (float("nan"), 0.012)):
        with pytest.raises(SystemExit, match="other weights"):
            train_apo.check_sampler(5, mean, 0.3, first)
    monkeypatch.setattr(train_apo, "logp_tolerance", 0.2)
    train_apo.check_sampler(5, 0.11, 0.3, 0.012)
