"""A scheduler for diffusers that draws a multistep consistency student as it was trained: in its number of steps, no other.

`stepdial export` copies this file into the folders it writes, so it needs torch and diffusers alone.
"""

import math
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput


class MultistepScheduler(SchedulerMixin, ConfigMixin):
    """DDIM from boundary to boundary of a student's segments; the last step returns x_hat, the image or its latent.

    timesteps: at which the network is asked, falling, fractional.  logsnr: log SNR at each of them.  prediction_type: what
    the network predicts: "epsilon", "sample" or "v_prediction".
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config
    def __init__(self, timesteps: list[float], logsnr: list[float], prediction_type: str = "epsilon"):
        self.timesteps = torch.tensor(timesteps, dtype=torch.float32)
        self.num_inference_steps = len(timesteps)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Put the timesteps on the device.  Raises ValueError for any number of steps but the student's."""
        if num_inference_steps != self.num_inference_steps:
            raise ValueError(
                f"this student draws in {self.num_inference_steps} steps and no other number, got {num_inference_steps}; "
                f"call the pipeline with num_inference_steps={self.num_inference_steps}"
            )
        self.timesteps = self.timesteps.to(device)

    def scale_model_input(self, sample: torch.Tensor, timestep: Any = None) -> torch.Tensor:
        """Return the latent as it is: it has variance 1 at every timestep."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: Any,
        sample: torch.Tensor,
        generator: torch.Generator | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor]:
        """Take the latent from one boundary to the next.  Raises ValueError for a timestep that is none of the student's."""
        index = int((self.timesteps - timestep).abs().argmin())
        if abs(float(self.timesteps[index]) - float(timestep)) > 1e-3:
            raise ValueError(f"timestep {float(timestep):g} is not one of this student's {self.config.timesteps}")
        alpha, sigma = _alpha_sigma(self.config.logsnr[index])
        z, said = sample.double(), model_output.double()
        if self.config.prediction_type == "epsilon":
            x_hat, eps_hat = (z - sigma * said) / alpha, said
        elif self.config.prediction_type == "sample":
            x_hat, eps_hat = said, (z - alpha * said) / sigma
        else:
            x_hat, eps_hat = alpha * z - sigma * said, sigma * z + alpha * said
        z_s = x_hat
        if index + 1 < self.num_inference_steps:
            alpha, sigma = _alpha_sigma(self.config.logsnr[index + 1])
            z_s = alpha * x_hat + sigma * eps_hat
        z_s, x_hat = z_s.to(sample.dtype), x_hat.to(sample.dtype)
        return DDIMSchedulerOutput(prev_sample=z_s, pred_original_sample=x_hat) if return_dict else (z_s,)


def _alpha_sigma(logsnr: float) -> tuple[float, float]:
    return math.sqrt(1 / (1 + math.exp(-logsnr))), math.sqrt(1 / (1 + math.exp(logsnr)))
