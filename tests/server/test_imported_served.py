"""Families that were imported from diffusers, served: pixels and latents, labels and prompts of any words."""

from collections.abc import Callable
from pathlib import Path
from threading import current_thread
from typing import Any

import numpy as np
import pytest
import torch

from diffusion.autoencoder import Autoencoder
from diffusion.family import Family, FamilyError, open_family
from diffusion.manifest import GoldenSample
from server.content import edition
from server.crew import THREADS, Crew
from server.engine import Engine, choose_device
from server.pace import DECODER
from server.roster import weights_bytes
from server.samples import Sample, Turn
from tests.checkpoints import write_dit, write_pixels, write_stable, write_xl
from tests.server.desk import blamed, client_of, pixels
from tests.server.tiny import draw_alone
from training.checkpoint import Checkpoint
from training.importing import import_family

KINDS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "pixels": (write_pixels, {}),
    "dit": (write_dit, {"label": "goldfish"}),
    "stable": (write_stable, {"prompt": "a cat, a mat"}),
    "xl": (write_xl, {"prompt": "a cat, a mat"}),
}


@pytest.fixture(scope="module", params=KINDS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, Engine, dict]:
    """A family, its prepared engine, and what to ask it for."""
    write, wish = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    family = import_family(Checkpoint(write(folder / "pipeline")), folder / "imported")
    engine = Engine(family, device=choose_device("cpu"), max_wave=4)
    decoded = [timing.seconds > 0 for timing in engine.prepare() if timing.network == DECODER]
    assert decoded == [True] * (family.manifest.autoencoder is not None)
    return family, engine, wish


def test_what_is_served_is_what_the_sampler_draws(served: tuple[Family, Engine, dict]) -> None:
    family, engine, wish = served
    with client_of(family, engine) as client:
        model = client.get("/models").json()["data"][0]
        assert model["image"] == {"height": 8, "width": 8, "channels": 3}
        asked = wish | {"steps": 32, "seed": 7, "n": 3}
        answer = client.post("/generate", json=asked | {"n": 1}, headers={"Accept": "image/png"})
        assert answer.status_code == 200, answer.text
        condition = family.manifest.conditioning.encode(**wish)
        expected = draw_alone(family, GoldenSample(steps=32, condition=condition, seed=7)).numpy()
        assert np.abs(pixels(answer.content).astype(int) - expected.astype(int)).max() <= 1
        several = client.post("/generate", json=asked).json()["data"]
        assert len({image["b64_json"] for image in several}) == 3


def test_an_image_has_the_same_bits_in_a_crowd_as_alone(served: tuple[Family, Engine, dict]) -> None:
    family, engine, wish = served
    plan = family.positions[32]
    others = [tuple(1 + (place * 7 + size) % size for size in family.manifest.conditioning.sizes) for place in range(3)]
    asked = family.manifest.conditioning.encode(**wish)
    guidance = family.guidance(plan)
    last = plan.steps - 1
    latent = engine.draw_wave([Turn(Sample(plan, asked, seed=1, guidance=guidance), 0, None)])[0]
    alone = engine.draw_wave([Turn(Sample(plan, asked, seed=1, guidance=guidance), last, latent)])[0]
    crowd = [Turn(Sample(plan, other, seed=9, guidance=guidance), last, latent) for other in others]
    together = engine.draw_wave([*crowd, Turn(Sample(plan, asked, seed=1, guidance=guidance), last, latent)])[-1]
    assert alone.shape == (8, 8, 3) and alone.dtype == np.uint8 and np.array_equal(alone, together)


def test_a_preview_of_a_latent_is_an_image(served: tuple[Family, Engine, dict]) -> None:
    family, engine, wish = served
    plan, asked = family.positions[32], family.manifest.conditioning.encode(**wish)
    turn = Turn(Sample(plan, asked, seed=1, guidance=family.guidance(plan)), 0, None, preview=True)
    shown = engine.draw_wave([turn])[0]
    assert shown.pixels.shape == (8, 8, 3) and shown.latent.shape == family.manifest.shape


def test_latents_are_decoded_where_all_threads_are(
    served: tuple[Family, Engine, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    family, _, _ = served
    if family.manifest.autoencoder is None or family.manifest.text:  # one family will do
        return
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # what a machine of two cores has; tests run with one
    monkeypatch.setattr(Crew, "lead", staticmethod(lambda: None))  # which here is the tests' own thread
    threads, decode = set(), Autoencoder.decode
    monkeypatch.setattr(Autoencoder, "decode", lambda self, z: threads.add(current_thread().name) or decode(self, z))
    Engine(family, device=choose_device("cpu"), max_wave=1).prepare()
    assert threads and all(name.startswith(THREADS) for name in threads)


def test_the_parts_beside_the_networks_count_in_memory_and_in_what_tells_families_apart(
    served: tuple[Family, Engine, dict],
) -> None:
    family, _, _ = served
    manifest = family.manifest
    parts = [part for part in (manifest.autoencoder, manifest.text) if part]
    assert weights_bytes(family) == 4 * sum(part.parameters for part in (*manifest.members, *parts))
    for name in ("autoencoder", "text"):
        part = getattr(manifest, name)
        if part:
            weights = part.weights.model_copy(update={"sha256": "0" * 64})
            other = manifest.model_copy(update={name: part.model_copy(update={"weights": weights})})
            assert edition(Family(family.folder, other, None)) != edition(family)


def test_a_prompt_that_cannot_be_read_is_a_422(tmp_path: Path) -> None:
    family = import_family(Checkpoint(write_stable(tmp_path / "pipeline")), tmp_path / "imported")
    engine = Engine(family, device=choose_device("cpu"), max_wave=1)
    with client_of(family, engine) as client:
        for wish in ({}, {"label": 1}, {"prompt": "a long prompt of more letters than are read"}):
            answer = client.post("/generate", json=wish | {"steps": 32})
            assert blamed(answer) == ["/label" if "label" in wish else "/prompt"]
    conditioning = open_family(family.folder).manifest.conditioning
    assert conditioning.describe(conditioning.encode(prompt="A cat")) == "a cat"


def test_diffusers_networks_are_not_drawn_in_bf16(served: tuple[Family, Engine, dict]) -> None:
    family = open_family(served[0].folder, "bf16")
    with pytest.raises(FamilyError, match="cannot be drawn in bf16"):
        Engine(family, device=choose_device("cpu"), max_wave=1).prepare()
