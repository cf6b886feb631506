"""The training objective: every method here is a setting of Algorithm 1's loss.

Algorithm 1 walks from z_t one teacher step to z_s, from there with the student's own prediction to the segment's
boundary t_step, and asks which x at z_t would have led there.  With rho = alpha / sigma that walk is a convex
combination (docs/method.md; the literal walk is the tests' reference):

    lambda   = (rho_s - rho_t) / (rho_t_step - rho_t)
    x_target = (1 - lambda) x_ref + lambda x_teacher  [+ (kappa - 1) eps_hat / (rho_t_step - rho_t)  for aDDIM]

lambda = 1 next to the boundary: there the target is the teacher's x (CD) or the data (CT), which is the diffusion loss.
The methods differ in who says x_teacher at z_t and x_ref at z_s, and in the law of t, s and t_step (training/times.py):

    method       x_teacher    x_ref              t, s
    diffusion    data         -                  s = t_step: lambda = 1
    ct           data         student            teacher steps of a segment
    ect          data         student            s from Easy Consistency Tuning's schedule
    cd           teacher      student            teacher steps of a segment
    tract        teacher      student's average  teacher steps of a segment
    pd           teacher      teacher            top and middle of a segment

training/target.py computes it, training/loss.py asks the networks, training/distance.py measures what is left.  Every ambiguity of
the paper is a field of `Objective`.
"""

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from diffusion.plans import ALL_TIMES

Method = Literal["diffusion", "ct", "ect", "cd", "tract", "pd"]
DISTILLING = ("cd", "tract", "pd")
"""Methods that learn from a teacher; the others learn from data alone."""


class Objective(BaseModel):
    """What is learnt, with every choice the paper leaves open."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    method: Method = "cd"
    """diffusion trains a teacher; ct and ect (Easy Consistency Tuning) train a student on data alone; cd, tract (transitive
    closure, the student's average says x_ref) and pd (progressive distillation, two teacher steps become one) distil a teacher."""
    student_steps: int = Field(default=1, ge=1, le=1024)
    """Number of segments, which is the number of sampling steps (all but diffusion)."""
    teacher_steps_start: int = Field(default=64, ge=1)
    """N_teacher at iteration 0: teacher steps over the whole of [0, 1] (ct, cd, tract)."""
    teacher_steps_end: int = Field(default=1280, ge=1)
    """N_teacher when annealing ends."""
    anneal_iterations: int = Field(default=100_000, ge=0)
    """Iterations over which N_teacher goes, log-linearly, from start to end, or over which ect passes its stages; 0 keeps it
    at the end."""
    ect_shrink: float = Field(default=2.0, gt=1.0)
    """ect's q: by what the distance from t to s is divided at each stage, relative to that to the boundary."""
    ect_stages: int = Field(default=8, ge=1, le=32)
    """Stages that ect passes, equally long."""
    self_teacher_decay: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Decay of the average of the student's weights that says x_ref (tract); 0 is the student itself, as in cd."""
    teacher_rule: Literal["addim", "ddim"] = "addim"
    """How the teacher steps: from t to s, and with pd from s to t_step too."""
    x_var: Literal["sample", "analytic"] = "sample"
    """aDDIM's variance: eta * ||x_teacher - x||^2 / d of each sample (Algorithm 1), or 0.1 / (2 + SNR) (Algorithm 3)."""
    eta: float = Field(default=0.75, ge=0.0, le=1.0)
    """Fraction of the measured variance that aDDIM adds (xvar_frac); the analytic form has its own 0.1."""
    guidance: float = Field(default=0.0, ge=0.0)
    """Classifier-free guidance w baked into the student: x_cond + w (x_cond - x_uncond); x_var stays unguided."""
    guidance_range: tuple[float, float] | None = None
    """Range from which each image's w is drawn, of which the student is told; instead of one w that is baked in."""
    guidance_interval: tuple[float, float] = ALL_TIMES
    """Times t, both ends included, at which that guidance acts; at others the teacher is asked unguided."""
    teacher_told: bool = False
    """Whether the network that is distilled is itself a student that is told w, and guided so."""
    distance: Literal["v_mean_huber", "snr1_x_huber", "v_mean_squared"] = "v_mean_huber"
    """v_mean_huber: sqrt(mean ||v_diff||^2 + epsilon^2) - epsilon, the weight SNR + 1 inside the norm; snr1_x_huber: the
    printed formula, (SNR + 1) times the same of x_diff; v_mean_squared: the plain v-loss."""
    huber_epsilon: float = Field(default=1e-4, gt=0.0)
    """epsilon of the pseudo-Huber distances."""
    poolings: int = Field(default=0, ge=0, le=8)
    """Multiscale loss: how many times differences are also compared after another 2x2 average pool; 0 is the plain loss."""
    weight: int = Field(default=1, ge=1)
    """Parts of a batch of several objectives that are this one's."""


def teacher_steps(objective: Objective, iteration: int) -> int:
    """Return N_teacher(i) = exp(log start + clip(i / anneal, 0, 1) (log end - log start)), rounded (appendix A.1)."""
    start, end = math.log(objective.teacher_steps_start), math.log(objective.teacher_steps_end)
    return round(math.exp(start + _annealed(objective, iteration) * (end - start)))


def ect_stage(objective: Objective, iteration: int) -> int:
    """Return the stage of Easy Consistency Tuning at an iteration, from 1 to the last."""
    return min(objective.ect_stages, 1 + int(_annealed(objective, iteration) * objective.ect_stages))


def _annealed(objective: Objective, iteration: int) -> float:
    """How much of the annealing is done, from 0 to 1."""
    return 1.0 if objective.anneal_iterations == 0 else min(max(iteration / objective.anneal_iterations, 0.0), 1.0)


def part_sizes(objectives: Sequence[Objective], batch: int) -> list[int]:
    """Return how many samples of a batch are each objective's, by weight.  Raises ValueError where they are not whole."""
    weights = [objective.weight for objective in objectives]
    if batch % sum(weights):
        shares = "equally" if len(set(weights)) == 1 else f"in the proportions {':'.join(map(str, weights))}"
        raise ValueError(f"a batch of {batch} cannot be parted {shares} among {len(objectives)} objectives")
    return [batch // sum(weights) * weight for weight in weights]
