"""Networks of diffusers behind this project's call: what they predict, and where that leads, is what diffusers says."""

import json
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from diffusion.backbone import Backbone, BackboneConfig
from diffusion.plans import plan
from diffusion.sampler import follow
from diffusion.schedule import alpha_sigma_from_logsnr
from diffusion.timesteps import TimestepTable, timesteps_at
from kernels import eps_from_v, noise, x_from_v
from tests.checkpoints import tiny_unet
from training.exporting import plain_network
from training.importing import sampling_schedule

SCALED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PREDICTIONS = ["epsilon", "sample", "v_prediction"]


def backbone(prediction: str = "epsilon", schedule: dict[str, Any] = SCALED, **changes: Any) -> Backbone:
    """A tiny U-Net of diffusers, and around it ours."""
    unet = tiny_unet()
    config = BackboneConfig(
        architecture="UNet2DModel",
        settings=json.loads(json.dumps({key: value for key, value in unet.config.items() if key[0] != "_"})),
        prediction=prediction,
        timesteps=TimestepTable(**schedule),
        **changes,
    )
    ours = Backbone(config)
    ours.network.load_state_dict(unet.state_dict())
    return ours.eval().requires_grad_(False)


def latents(count: int = 3) -> Tensor:
    return noise([7] * count, range(count), (3, 8, 8))


@pytest.mark.parametrize("schedule", [{}, SCALED, {"beta_schedule": "squaredcos_cap_v2"}])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_one_evaluation_says_of_image_and_noise_what_diffusers_says(prediction: str, schedule: dict):
    network, z = backbone(prediction, schedule), latents()
    theirs = DDIMScheduler(prediction_type=prediction, clip_sample=False, **schedule)
    theirs.set_timesteps(1000)
    for timestep in (1, 250, 700, 999):
        level = network.config.timesteps.logsnr[timestep].float()
        alpha, sigma = (part.item() for part in alpha_sigma_from_logsnr(level))
        v = network(z, level.expand(3))
        x_hat = x_from_v(v, z, alpha_t=alpha, sigma_t=sigma)
        said = network.network(z, timestep).sample
        step = theirs.step(said, timestep, z)
        assert torch.allclose(x_hat, step.pred_original_sample, rtol=1e-4, atol=1e-4 / alpha)
        if prediction == "epsilon":
            assert torch.allclose(eps_from_v(v, z, alpha_t=alpha, sigma_t=sigma), said, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim_trajectories_are_those_of_diffusers_own_scheduler(prediction: str, steps: int, clip: bool):
    network, z = backbone(prediction), latents()
    theirs = DDIMScheduler(prediction_type=prediction, clip_sample=clip, timestep_spacing="trailing", **SCALED)
    theirs.set_timesteps(steps)
    schedule, levels = sampling_schedule(network.config), network.config.timesteps.logsnr
    times = schedule.time(levels[theirs.timesteps])
    assert times[0].item() == pytest.approx(1.0, abs=1e-12)  # both begin where the checkpoint's schedule ends
    way = plan("teacher", [1.0, *times[1:].tolist(), 0.0], clip=clip)
    ours = follow(
        {"teacher": network},
        way.hops,
        schedule,
        z,
        torch.zeros(3, 0, dtype=torch.int64),
        seeds=[7] * 3,
        indices=[0, 1, 2],
        decode=lambda x_hat: x_hat,
    )
    for timestep in theirs.timesteps:
        said = network.network(z, timestep).sample
        z = theirs.step(said, timestep, z, use_clipped_model_output=True).prev_sample
    assert (ours - z).abs().max() < 1e-4 * max(1.0, z.abs().max().item())


def test_between_two_timesteps_the_network_is_asked_between_them():
    network, z = backbone(), latents(1)
    levels = network.config.timesteps.logsnr
    middle = (0.3 * levels[400] + 0.7 * levels[401]).float()
    alpha, sigma = (part.item() for part in alpha_sigma_from_logsnr(middle))
    eps = eps_from_v(network(z, middle[None]), z, alpha_t=alpha, sigma_t=sigma)
    assert torch.allclose(eps, network.network(z, torch.tensor([400.7])).sample, atol=1e-4)


def test_a_network_for_the_whole_dial_begins_as_its_teacher_at_every_count_to_the_bit():
    teacher = backbone()
    student = Backbone(teacher.config.model_copy(update={"segments": (0, 1, 4)})).eval()
    lacking = student.load_state_dict(teacher.state_dict(), strict=False)
    assert lacking.missing_keys == ["segments.weight"] and not lacking.unexpected_keys
    z, level = latents(4), torch.tensor([-4.0, -1.0, 1.0, 3.0])
    told = torch.tensor([[0], [1], [4], [4]])
    assert torch.equal(student(z, level, told), teacher(z, level))
    torch.nn.init.normal_(student.segments.weight)
    together = student(z, level, told)
    assert not torch.allclose(together, teacher(z, level), atol=1e-3)
    for row in range(4):  # each image is told its own count
        alone = student(z[row : row + 1], level[row : row + 1], told[row : row + 1])
        assert torch.allclose(together[row : row + 1], alone, atol=1e-4)
    together.square().mean().backward()
    assert student.segments.weight.grad.abs().min(dim=1).values.max() > 0


def test_a_network_that_is_told_its_guidance_begins_without_it_and_goes_back_to_diffusers_with_one():
    teacher = backbone()
    student = Backbone(teacher.config.model_copy(update={"segments": (1, 2), "guidance": (0.0, 4.0)})).eval()
    student.load_state_dict(teacher.state_dict(), strict=False)
    z, level = latents(2), torch.tensor([-4.0, 1.0])
    told = torch.tensor([[1500, 2], [3000, 2]])
    assert torch.equal(student(z, level, told), teacher(z, level))
    for parameter in (student.segments.weight, student.guidance_out.weight):
        torch.nn.init.normal_(parameter)
    other = torch.tensor([[3000, 2], [3000, 2]])
    assert not torch.allclose(student(z, level, told)[0], student(z, level, other)[0], atol=1e-3)
    assert torch.allclose(student(z, level, told)[1], student(z, level, other)[1], atol=1e-5)
    timesteps = timesteps_at(level, student.config.timesteps.logsnr).float()
    plain = plain_network(student, 2, 3.0)(z, timesteps).sample
    alpha, sigma = (part[:, None, None, None] for part in alpha_sigma_from_logsnr(level))
    assert torch.allclose(sigma * z + alpha * student(z, level, other), plain, atol=1e-4)
    with pytest.raises(
        ValueError, match="1 columns, the network has 0 slots and is told its guidance and takes a segment"
    ):
        student(z, level, told[:, :1])


def test_columns_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="condition has 1 columns, the network has 0 slots"):
        backbone()(latents(1), torch.zeros(1), torch.zeros(1, 1, dtype=torch.int64))
