# Copyright 2026 The diffusers_ddmi Authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
import torch
from tiny import build

from diffusers_ddmi.data import load_signals
from diffusers_ddmi.metrics.videos import betweenness, frame_psnr
from diffusers_ddmi.rendering.grids import render_pixels


STEPS, POINTS = 80, 2048


def test_frames_read_between_those_of_a_moving_object_lie_between_them():
    """An autoencoder that learned four frames of a moving shape by heart, read at twice their rate."""
    torch.manual_seed(0)
    vae = build("video", "vae")
    size, frames = vae.config.sample_size, vae.config.num_frames
    example = load_signals("video", "procedural", purpose="evaluation", resolution=size, num_frames=frames)[0]
    clip, coords, targets = (example[name][None] for name in ("inputs", "coords", "targets"))
    optimizer = torch.optim.Adam(vae.parameters(), lr=4e-3)
    for _ in range(STEPS):
        chosen = torch.randint(coords.shape[1], (POINTS,))
        values = vae(clip, coords[:, chosen], sample_posterior=False).sample
        (values - targets[:, chosen]).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    # The centres of the native frames, and halfway between them.
    times = torch.linspace(-1, 1, 4 * frames + 1)[2:-2:2]
    with torch.no_grad():
        field = vae.decode(vae.encode(clip).latent_dist.mode()).field
        doubled = render_pixels(field, size, size, size, times=times).movedim(-1, 1)  # (1, 3, 2T - 1, H, W)
    native = doubled[:, :, ::2]
    still = native.roll(1, dims=2)  # each frame in its neighbour's place
    assert frame_psnr(native, clip).min() > frame_psnr(still, clip)[:, 1:].max() + 6  # it moves, as the clip does
    assert (betweenness(doubled)[:, ::2] < 0.8).all()
