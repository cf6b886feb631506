"""The paper's Figure 1: trajectories of students of the toy world (training/toy.py), and of its exact teacher.

    python -m training.toy_figure --out docs/figure1.png

distils 1-, 2- and 4-step students of the one-dimensional mixture with the project's own loss and sampling plans, draws
Figure 1 of the paper from them, and prints how far each is from the exact end points.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion.plans import student_plan
from training.objective import Objective
from training.toy import Mixture, distil, endpoint_error, normal_quantiles, trajectory


def figure_objective(steps: int, iterations: int) -> Objective:
    """Return the objective of Figure 1's students: a DDIM teacher, because aDDIM's norm is no norm in one dimension."""
    return Objective(
        student_steps=steps,
        teacher_rule="ddim",
        distance="snr1_x_huber",
        huber_epsilon=1e-3,
        anneal_iterations=int(0.6 * iterations),
        teacher_steps_start=8,
        teacher_steps_end=256,
    )


INK, PAPER, LIMIT = "#3b3b44", "#ffffff", 2.75
"""Colours of lines and of the ground, and how far to both sides is drawn."""


def draw_figure(mixture: Mixture, paths: dict[str, Tensor], file: Path) -> None:
    """Draw the trajectories (hops + 1, count), one panel each: data on top, noise at the bottom."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update({"font.family": "DejaVu Sans", "font.size": 10, "text.color": INK, "axes.labelcolor": INK})
    figure, axes = plt.subplots(
        3, len(paths), figsize=(11.6, 6.0), dpi=150, height_ratios=(1, 4.6, 1), gridspec_kw={"hspace": 0.0, "wspace": 0.09}
    )  # fmt: skip
    colours = matplotlib.colors.LinearSegmentedColormap.from_list("modes", ["#1d4e89", "#7a6fa8", "#d1495b"])
    for column, (title, path) in enumerate(paths.items()):
        _panel(axes[:, column], mixture, path, colours)
        axes[0, column].set_title(title, fontsize=12, pad=8)
    axes[1, 0].set_yticks([0.0, 0.25, 0.5, 0.75, 1.0], ["t = 0", "¼", "½", "¾", "t = 1"])
    axes[0, 0].set_ylabel("data", rotation=0, ha="right", va="center", labelpad=14)
    axes[2, 0].set_ylabel("noise", rotation=0, ha="right", va="center", labelpad=14)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, bbox_inches="tight", facecolor=PAPER, pil_kwargs={"optimize": True})
    plt.close(figure)


def _panel(axes: Any, mixture: Mixture, path: Tensor, colours: Any) -> None:
    """Draw one network's trajectories between the densities of data, above, and noise."""
    from matplotlib.collections import LineCollection

    points = torch.linspace(-LIMIT, LIMIT, 401, dtype=torch.float64)
    data, middle, noise = axes
    times = torch.linspace(0.0, 1.0, len(path)).flip(0)
    start = path[0].clamp(-2.0, 2.0)
    lines = [torch.stack([path[:, index], times], dim=1).numpy() for index in range(path.shape[1])]
    shade = colours((start / 4.0 + 0.5).numpy())
    middle.add_collection(LineCollection(lines, colors=shade, linewidths=0.75, alpha=0.75))
    if len(path) <= 9:  # where the network is evaluated, and where it lands
        middle.scatter(path, times[:, None].expand_as(path), s=3.0, c=INK, alpha=0.55, linewidths=0, zorder=3)
        for boundary in times[1:-1]:
            middle.axhline(float(boundary), color=INK, linewidth=0.6, alpha=0.35, linestyle=(0, (4, 4)), zorder=0)
    middle.set(xlim=(-LIMIT, LIMIT), ylim=(1.0, 0.0))
    for axis, t, colour in ((data, 0.0, "#d8b4a0"), (noise, 1.0, "#b9c6d6")):
        height = mixture.density(points, t)
        axis.fill_between(points, height, color=colour, linewidth=0)
        axis.plot(points, height, color=INK, linewidth=0.9)
        axis.set(xlim=(-LIMIT, LIMIT), ylim=(0.0, 1.12 * float(height.max())))
    noise.invert_yaxis()
    _bare(data, middle, noise)


def _bare(data: Any, middle: Any, noise: Any) -> None:
    """Take ticks and frames away, but for the sides of the trajectories and the noise's scale."""
    for axis in (data, middle, noise):
        axis.set_facecolor(PAPER)
        axis.tick_params(length=0, labelsize=9, colors=INK)
        axis.set_xticks([])
        axis.set_yticks([])
        for spine in axis.spines.values():
            spine.set_visible(False)
    for side in ("left", "right"):
        middle.spines[side].set(visible=True, color=INK, alpha=0.25, linewidth=0.8)
    noise.set_xticks([-2, 0, 2])


def main() -> None:
    """Train the students, draw the figure, print the end-point errors."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="PNG file to write")
    parser.add_argument("--seeds", type=int, default=1, help="students trained of each step count; the first is drawn")
    parser.add_argument("--iterations", type=int, default=2000, help="training steps of 512 points each")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    mixture, z, many = Mixture(), normal_quantiles(48), 256
    paths, began = {}, time.monotonic()
    print("median distance to the exact end point\nsteps  exact teacher, DDIM  students")
    for steps in (1, 2, 4):
        plan = student_plan("student", steps)
        objective = figure_objective(steps, arguments.iterations)
        students = [
            distil(mixture, objective, iterations=arguments.iterations, seed=seed) for seed in range(arguments.seeds)
        ]
        errors = "  ".join(f"{endpoint_error(mixture, student, plan):.4f}" for student in students)
        print(f"{steps:5d}  {endpoint_error(mixture, mixture, plan):19.4f}  {errors}", flush=True)
        paths[f"{steps} step" + "s" * (steps > 1)] = trajectory(students[0], plan, z).flatten(1)
    fine = student_plan("teacher", many)
    print(f"{many:5d}  {endpoint_error(mixture, mixture, fine):19.4f}")
    paths["∞ steps (the teacher)"] = trajectory(mixture, fine, z).flatten(1)
    draw_figure(mixture, paths, arguments.out)
    print(f"wrote {arguments.out} after {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
