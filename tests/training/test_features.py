"""The judge."""

import torch

from training.datasets import FiniteSet
from training.features import Judge, train_judge


def test_a_judge_learns_the_digits_and_training_it_is_deterministic(digit_set: FiniteSet):
    judge, again = (train_judge(digit_set, iterations=120) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(judge.state_dict().values(), again.state_dict().values(), strict=True))
    x, condition = digit_set.batch(0, 500, seed=1)
    assert judge.agrees(x, condition).float().mean() > 0.85
    assert judge.agrees(x, condition % 10 + 1).float().mean() < 0.1
    assert judge.agrees(x, torch.zeros_like(condition)).all()  # nothing asked for is always there
    assert judge.features(x).shape == (500, 64)


def test_every_slot_has_to_agree():
    torch.manual_seed(0)
    judge, x = Judge(3, (4, 5)).eval(), torch.randn(30, 3, 16, 16)
    with torch.no_grad():
        right = torch.stack([logits.argmax(1) + 1 for logits in judge(x)], dim=1)
        wrong = right.clone()
        wrong[:, 1] = wrong[:, 1] % 5 + 1
        assert judge.agrees(x, right).all() and not judge.agrees(x, wrong).any()
