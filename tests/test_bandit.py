"""What the regression does, exactly: three prompts, five responses each, a table as policy.

All expectations are sums over the five responses, so nothing is left to chance but the 8 samples of
stage 1. The conclusions are in docs/claims.md, "What the theory says".
"""
from estimate_value import optimal_value
from lib.batches import MicroBatch
from train_apo import apo_loss, limit_push

import pytest
import torch

BETA2 = 0.4
REWARDS = torch.tensor([[1.0, 0, 0, 1, 0], [0, 0, 0, 0, 1], [1, 1, 1, 0, 1]]).double()   # (3, 5)
REF = torch.log_softmax(1.5 * torch.randn(
    3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 1)            # (3, 5)
V_STAR = BETA2 * torch.logsumexp(REF + REWARDS / BETA2, 1)                                # (3,)
OPTIMAL = torch.softmax(REF + REWARDS / BETA2, 1)                                         # (3, 5)
EIGHT = REWARDS.gather(1, torch.multinomial(
    REF.exp(), 8, replacement=True, generator=torch.Generator().manual_seed(1)))          # (3, 8)
# {name: (values of the prompts, the reward where training on the reference's responses ends)}
VALUES = {"exact": (V_STAR, 0.788),
          "beta1 = 1, not beta2": (torch.logsumexp(REF + REWARDS, 1), 0.721),
          "8 samples": (optimal_value(EIGHT, BETA2), 0.705),
          "8 samples, beta1 = 1": (optimal_value(EIGHT, 1.0), 0.679),
          "mean reward": ((REF.exp() * REWARDS).sum(1), 0.689),
          "0": (torch.zeros(3).double(), 0.622)}


def losses(logits, values):
    """apo_loss of every single response, (3, 5)."""
    of_each = torch.vmap(torch.vmap(lambda *x: apo_loss(*(y[None] for y in x), BETA2)))
    return of_each(torch.log_softmax(logits, 1), REF, REWARDS, values[:, None].expand(3, 5))


def train(values, sampled_from=None):
    """The policy at which the expected gradient is 0, (3, 5). The responses are sampled from the
    policy itself, or always from `sampled_from`."""
    logits = REF.clone().requires_grad_()
    for _ in range(200):
        weights = torch.softmax(logits.detach(), 1) if sampled_from is None else sampled_from
        (gradient,) = torch.autograd.grad((weights * losses(logits, values)).sum(), logits)
        with torch.no_grad():  # rare responses learn as fast as frequent ones
            logits -= gradient / weights / (4 * BETA2 ** 2)
    assert gradient.norm() < 1e-8
    return torch.softmax(logits.detach(), 1)


@pytest.mark.parametrize("name", VALUES)
def test_on_policy_the_values_decide_only_the_loss_and_the_noise(name):
    """The fixed point is pi_ref exp(r / beta2) / Z, whatever V is: on-policy a constant per prompt
    has no expected gradient. There the loss of every response is (V - V*)^2. So with the exact V*
    the gradient of each single response is 0, and one response per prompt is enough. Else its
    variance is 4 beta2^2 (V - V*)^2 E |grad ln pi|^2."""
    values, _ = VALUES[name]
    torch.testing.assert_close(train(values), OPTIMAL, atol=1e-7, rtol=0)
    squared_error = (values - V_STAR).square()
    logits = OPTIMAL.log().requires_grad_()
    each = losses(logits, values)
    torch.testing.assert_close(each.detach(), squared_error[:, None].expand(3, 5))
    squares = torch.stack([torch.autograd.grad(x, logits, retain_graph=True)[0].square().sum()
                           for x in each.flatten()]).view(3, 5)
    of_one = 1 - 2 * OPTIMAL + OPTIMAL.square().sum(1, keepdim=True)  # |grad ln pi(y)|^2, a table's
    expected = 4 * BETA2 ** 2 * squared_error * (OPTIMAL * of_one).sum(1)
    torch.testing.assert_close((OPTIMAL * squares).sum(1), expected)
    assert (expected.max() < 1e-12) == (name == "exact")


@pytest.mark.parametrize("name", VALUES)
def test_off_policy_wrong_values_move_the_fixed_point(name):
    """Responses of the reference: with the exact V* the fixed point is the same. With another V
    beta2 ln(pi / pi_ref) + V - r is in proportion to pi / pi_ref instead of 0, and the policy is
    another one."""
    values, reward = VALUES[name]
    found = train(values, sampled_from=REF.exp())
    error = BETA2 * (found.log() - REF) + values[:, None] - REWARDS
    proportion = error / (found / REF.exp())
    torch.testing.assert_close(proportion, proportion.mean(1, keepdim=True).expand(3, 5),
                               atol=1e-6, rtol=0)
    distance = (found - OPTIMAL).abs().sum(1) / 2  # total variation
    assert distance.max() < 1e-7 if name == "exact" else distance.max() > 0.01
    assert (found * REWARDS).sum(1).mean().item() == pytest.approx(reward, abs=5e-4)


def old_samples(v, off_policy, steps):
    """(gradient of the first update, policy after many) on four old samples of five responses: the
    first three, and the first once more. The second one alone is right."""
    ref, y = REF[0], torch.tensor([0, 1, 2, 0])
    micro = MicroBatch(index=y, input_ids=y, cu_seqlens=torch.arange(5, dtype=torch.int32),
                       response_mask=y >= 0, sampled_logps=ref[y])
    logits, rewards, first = ref.clone().requires_grad_(), (y == 1).double(), None
    for _ in range(steps):
        logps = torch.log_softmax(logits, 0)[y]
        if off_policy:
            logps = limit_push(logps, micro, rewards - v)
        loss = apo_loss(logps, ref[y], rewards, torch.tensor(v), 1e-3)
        (gradient,) = torch.autograd.grad(loss, logits)
        first = gradient if first is None else first
        with torch.no_grad():
            logits -= 100 * gradient
    return first, torch.softmax(logits.detach(), 0)


@pytest.mark.parametrize("v, leaks", [(0.15, False), (0.25, False), (0.7, True), (1.0, True)])
def test_old_samples_leak_to_responses_that_nobody_sampled(v, leaks):
    """Their mean reward is 1/4. The logit of a response that is not among them moves by
    2 beta2 pi(y) (V - 1/4): up, if V lies above the mean. With the same samples again and again and
    V far above the mean, all probability ends on such a response, although a right one is among the
    samples. With limit_push it does not, and where V < 1 most of it ends on the right one."""
    gradient, policy = old_samples(v, False, 3000)
    torch.testing.assert_close(gradient[3:], -2e-3 * REF[0, 3:].exp() * (v - 0.25))
    assert policy[3:].sum() > 0.99 if leaks else policy[1] > 0.99
    gradient, policy = old_samples(v, True, 3000)
    torch.testing.assert_close(gradient[3:], -2e-3 * REF[0, 3:].exp() * (v - 0.25))
    assert policy[3:].sum() < 0.35 and (policy[1] > 0.98 or v == 1)
