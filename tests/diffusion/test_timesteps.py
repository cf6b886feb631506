"""Timesteps of diffusers checkpoints: their log SNR is diffusers' own to the bit, and every log SNR finds its timestep."""

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from pydantic import ValidationError

from diffusion.timesteps import NO_SIGNAL, TimestepTable, timesteps_at

SCHEDULES = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"num_train_timesteps": 250, "beta_start": 4e-4, "beta_end": 0.08},
]


def table_of(settings: dict) -> TimestepTable:
    words = {"num_train_timesteps": "count", "rescale_betas_zero_snr": "zero_terminal_snr"}
    return TimestepTable.model_validate({words.get(key, key): value for key, value in settings.items()})


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("settings", SCHEDULES)
def test_the_signal_of_every_timestep_is_that_of_diffusers_to_the_bit(settings: dict, zero: bool):
    given = settings | {"rescale_betas_zero_snr": zero}
    table, theirs = table_of(given), DDIMScheduler(**given)
    assert torch.equal(table.alphas_cumprod, theirs.alphas_cumprod)
    assert (table.logsnr[-1].item() == NO_SIGNAL) == zero


@pytest.mark.parametrize("settings", SCHEDULES)
def test_every_timestep_is_found_again_by_its_log_snr(settings: dict):
    levels = table_of(settings).logsnr
    assert (timesteps_at(levels, levels) - torch.arange(len(levels))).abs().max() < 1e-9
    halves = 0.5 * (levels[1:] + levels[:-1])
    assert (timesteps_at(halves, levels) - torch.arange(len(halves)) - 0.5).abs().max() < 1e-9
    beyond = torch.tensor([[99.0, -99.0]], dtype=torch.float64)
    assert timesteps_at(beyond, levels).tolist() == [[0.0, len(levels) - 1.0]]


def test_betas_without_a_formula_are_kept_themselves():
    theirs = DDPMScheduler(beta_schedule="sigmoid", num_train_timesteps=100)
    table = TimestepTable(count=100, betas=tuple(theirs.betas.tolist()))
    assert torch.equal(table.alphas_cumprod, theirs.alphas_cumprod)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"betas": (0.1, 0.2)}, "2 betas for 1000 timesteps"),
        ({"count": 2, "betas": (0.1, 0.0)}, "does not fall"),
        ({"count": 2, "betas": (0.1, float("nan"))}, "does not fall"),
        ({"beta_schedule": "sideways"}, "linear"),
    ],
)
def test_a_table_that_is_none_is_refused(wrong: dict, said: str):
    with pytest.raises(ValidationError, match=said):
        TimestepTable.model_validate(wrong)
