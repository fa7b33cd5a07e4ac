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
"""Clips to latent planes."""

import math

import pytest
import torch

from diffusers_ddmi.models.video_encoder import VideoEncoder, rotate, space_rotary, time_rotary


TINY = {
    "image_size": 12,
    "num_frames": 5,
    "latent_channels": 2,
    "patch_size": 4,
    "hidden_channels": 16,
    "depth": 2,
    "heads": 2,
    "head_dim": 8,
    "plane_depth": 1,
    "plane_heads": 2,
    "plane_inner_dim": 16,
}


def video_encoder(**options) -> VideoEncoder:
    encoder = VideoEncoder(**{**TINY, **options})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    return encoder


@pytest.fixture(scope="module")
def clip() -> torch.Tensor:
    return torch.randn(2, 3, 5, 12, 12, generator=torch.Generator().manual_seed(1))


def test_planes_and_their_sizes(clip):
    moments = video_encoder()(clip)
    assert [tuple(plane.shape) for plane in moments] == [(2, 4, 3, 3), (2, 4, 5, 3), (2, 4, 5, 3)]


def test_patches_keep_their_places():
    """A video whose pixels carry their own (t, y, x), seen through the patches."""
    encoder = video_encoder()
    t, y, x = torch.meshgrid(torch.arange(5.0), torch.arange(12.0), torch.arange(12.0), indexing="ij")
    patches = encoder._patches(torch.stack([t, y, x]).unsqueeze(0))
    assert patches.shape == (1, 5, 3, 3, 4 * 4 * 3)
    pixels = patches.unflatten(-1, (4, 4, 3))
    assert pixels[0, 2, 1, 0, 3, 1].tolist() == [2.0, 7.0, 1.0]


def test_each_plane_lacks_its_axis():
    """Without space-time blocks, rows of the video can only reach the cells that share their place."""
    encoder = video_encoder(depth=0)
    clip = torch.randn(1, 3, 5, 12, 12, generator=torch.Generator().manual_seed(2))
    changed = clip.clone()
    changed[:, :, 3, 8:, :4] += 1  # frame 3, cell (y 2, x 0)
    xy, xt, yt = ((new - old).abs().sum(1)[0] > 1e-5 for new, old in zip(encoder(changed), encoder(clip)))
    assert xy.nonzero().tolist() == [[2, 0]]
    assert xt.nonzero().tolist() == [[3, 0]]
    assert yt.nonzero().tolist() == [[3, 2]]


def test_order_of_planes(clip):
    usual, crossed = video_encoder(), video_encoder(planes=("xy", "yt", "xt"))
    crossed.load_state_dict(usual.state_dict())
    for modules in (crossed.plane_transformers, crossed.moment_heads):
        modules[1], modules[2] = modules[2], modules[1]
    xy, xt, yt = usual(clip)
    torch.testing.assert_close(crossed(clip), [xy, yt, xt])


def test_frames_and_places_are_told_apart(clip):
    """The embeddings break the symmetry between frames and between places."""
    encoder = video_encoder(patch_size=3)
    moments = encoder(clip)
    assert (encoder(clip.flip(2))[0] - moments[0]).abs().max() > 1e-3
    mirrored = encoder(clip.unflatten(-1, (4, 3)).flip(-2).flatten(-2))  # patches in the other order
    assert (mirrored[0].flip(-1) - moments[0]).abs().max() > 1e-3


def test_summary_or_first_token(clip):
    first = video_encoder(read_first=True)
    summary = video_encoder()
    assert (first(clip)[0] - summary(clip)[0]).abs().max() > 1e-3


def test_time_rotary_is_a_rotation_by_frequency():
    states = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    rotated = rotate(states, time_rotary(6, 8, True, states.device))
    pairs, expected = rotated.unflatten(-1, (-1, 2)), states.unflatten(-1, (-1, 2))
    torch.testing.assert_close(pairs.norm(dim=-1), expected.norm(dim=-1))
    angle = torch.arange(6.0)  # channel pair 0 turns by 1 radian a frame
    torch.testing.assert_close(rotated[:, 0], states[:, 0] * angle.cos() - states[:, 1] * angle.sin())


def test_paired_time_rotary_depends_on_the_distance_alone():
    query, key = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(4))
    for paired in (True, False):
        rotary = time_rotary(7, 8, paired, query.device)
        similarity = rotate(query.expand(7, -1), rotary) @ rotate(key.expand(7, -1), rotary).T
        constant = torch.allclose(similarity[1:, 1:], similarity[:-1, :-1], atol=1e-4)
        assert constant is paired


def test_space_rotary_turns_halves_with_y_and_x():
    cos, sin = space_rotary(3, 5, 8, torch.device("cpu"))
    assert cos.shape == (15, 8)
    sin = sin.view(3, 5, 8)
    assert (sin[:, :1, :4] == sin[:, :, :4]).all()
    assert (sin[:1, :, 4:] == sin[:, :, 4:]).all()
    # place (y = -1, x = -0.5): angles -pi and -0.5 pi times the scales 1 and 5
    expected = [math.sin(-math.pi), math.sin(-5 * math.pi), math.sin(-0.5 * math.pi), math.sin(-2.5 * math.pi)]
    torch.testing.assert_close(sin[0, 1, ::2], torch.tensor(expected), rtol=0, atol=1e-5)


def test_clips_of_a_batch_do_not_mix(clip):
    encoder = video_encoder()
    together = encoder(clip)
    alone = encoder(clip[1:])
    for plane, expected in zip(alone, together):
        torch.testing.assert_close(plane, expected[1:], rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients(clip):
    gradients = []
    for checkpointing in (False, True):
        encoder = video_encoder()
        if checkpointing:
            encoder.gradient_checkpointing = True
            encoder._gradient_checkpointing_func = lambda module, *args: torch.utils.checkpoint.checkpoint(
                module, *args, use_reentrant=False
            )
        sum(plane.square().mean() for plane in encoder(clip)).backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    assert all(gradient.abs().max() > 0 for gradient in gradients[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


def test_published_size():
    with torch.device("meta"):
        encoder = VideoEncoder(image_size=256, num_frames=16, latent_channels=64)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in encoder.named_children()}
    assert counts["patch_embedding"] + counts["blocks"] == 26_865_024
    # The published autoencoder: 88.634240 million, 53.284544 of them in the decoder, whose 1x1 convolutions in front
    # of it are the remaining three times 64 * 64 + 64.
    assert sum(counts.values()) == 88_634_240 - 53_284_544 - 3 * (64 * 64 + 64)


@pytest.mark.parametrize("shape", [(1, 3, 4, 12, 12), (1, 1, 5, 12, 12), (1, 3, 5, 12, 16), (3, 5, 12, 12)])
def test_wrong_clip(shape):
    with pytest.raises(ValueError, match=r"\(batch, 3, 5, 12, 12\)"):
        video_encoder()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 5}, "`image_size` 12 is not a multiple of `patch_size` 5"),
        ({"head_dim": 6}, "`head_dim` is 6"),
        ({"planes": ("xy", "xz")}, "`planes`.*'xz'"),
        ({"planes": ("xy", "xy")}, "`planes`.*different"),
    ],
)
def test_wrong_config(options, message):
    with pytest.raises(ValueError, match=message):
        video_encoder(**options)
