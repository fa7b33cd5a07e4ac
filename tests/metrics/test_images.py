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
"""Metrics of pictures against closed forms, direct formulas in numpy, and scipy, scikit-learn, scikit-image and torchmetrics."""

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.nn import functional as F
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from diffusers_ddmi.metrics.features import (
    ClipScorer,
    FeatureExtractor,
    FeatureStatistics,
    frechet_distance,
    load_feature_extractor,
)
from diffusers_ddmi.metrics.images import fid, kid, polynomial_mmd, precision_recall, psnr, ssim


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def correlated(rng, number, channels, shift=0.0):
    return rng.normal(size=(number, channels)) @ rng.normal(size=(channels, channels)) + shift


def exact_gaussian(rng, mean, covariance, number):
    """Samples whose own mean and covariance (divided by N − 1) are exactly the given ones."""
    x = rng.normal(size=(number, len(mean)))
    x -= x.mean(0)
    x = np.linalg.solve(np.linalg.cholesky(np.cov(x.T)), x.T).T
    return x @ np.linalg.cholesky(covariance).T + mean


class TestPairs:
    def test_psnr(self, rng):
        target = torch.from_numpy(rng.uniform(-1, 1, (3, 3, 8, 8)))
        prediction = target.clone()
        prediction[1] += 0.02
        prediction[2, :, ::2] -= 0.1
        values = psnr(prediction, target)
        assert values[0] == torch.inf
        np.testing.assert_allclose(values[1:], [40.0, 10 * np.log10(4 / (0.01 / 2))], rtol=1e-12)
        np.testing.assert_allclose(psnr(prediction, target, data_range=1.0)[1:], values[1:] - 20 * np.log10(2))

    def test_ssim_of_the_formula(self, rng):
        one, two = rng.uniform(-1, 1, (2, 2, 3, 17, 14))
        window = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
        window = np.outer(window, window) / window.sum() ** 2

        def smooth(x):
            patches = np.lib.stride_tricks.sliding_window_view(x, (11, 11), axis=(-2, -1))
            return (patches * window).sum((-2, -1))

        mu1, mu2 = smooth(one), smooth(two)
        v1, v2, cov = smooth(one**2) - mu1**2, smooth(two**2) - mu2**2, smooth(one * two) - mu1 * mu2
        c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
        expected = (2 * mu1 * mu2 + c1) * (2 * cov + c2) / ((mu1**2 + mu2**2 + c1) * (v1 + v2 + c2))
        actual = ssim(torch.from_numpy(one), torch.from_numpy(two))
        np.testing.assert_allclose(actual, expected.mean((1, 2, 3)), rtol=1e-10)
        np.testing.assert_allclose(ssim(torch.from_numpy(one), torch.from_numpy(one)), 1.0, rtol=1e-12)

    def test_errors(self):
        with pytest.raises(ValueError, match=r"one shape, got \(2, 3, 8, 8\) and \(1, 3, 8, 8\)"):
            psnr(torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8))
        with pytest.raises(ValueError, match="at least 11×11"):
            ssim(torch.zeros(2, 3, 8, 16), torch.zeros(2, 3, 8, 16))


class TestStatistics:
    @pytest.mark.parametrize("sizes", [[100], [1] * 100, [3, 50, 47]])
    def test_batches_do_not_matter(self, rng, sizes):
        x = correlated(rng, 100, 5, shift=1e4)
        statistics = FeatureStatistics()
        for part in np.split(x, np.cumsum(sizes)[:-1]):
            statistics.update(part.astype(np.float64))
        assert statistics.count == 100
        np.testing.assert_allclose(statistics.mean, x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(statistics.covariance, np.cov(x.T), rtol=1e-9)

    def test_merge_and_state(self, rng):
        x = correlated(rng, 40, 3)
        one, two, empty = FeatureStatistics.of(x[:15]), FeatureStatistics.of(x[15:]), FeatureStatistics()
        restored = FeatureStatistics()
        restored.load_state_dict(empty.state_dict())
        for part in (empty, one, empty, two):
            restored.merge(part)
        copy = FeatureStatistics()
        copy.load_state_dict(restored.state_dict())
        assert copy.count == 40
        np.testing.assert_allclose(copy.covariance, np.cov(x.T), rtol=1e-12)
        np.testing.assert_allclose(one.mean, x[:15].mean(0), rtol=1e-12)  # merging leaves the parts as they were

    def test_errors(self):
        statistics = FeatureStatistics.of(np.zeros((1, 3)))
        with pytest.raises(ValueError, match="at least 2 feature vectors are needed, got 1"):
            statistics.covariance  # noqa: B018
        with pytest.raises(ValueError, match="3 channels were expected, got 4"):
            statistics.update(np.zeros((2, 4)))
        with pytest.raises(ValueError, match="1 of 2 feature vectors hold NaN"):
            statistics.update(np.array([[0, 0, 0], [0, np.nan, 1]]))
        with pytest.raises(ValueError, match=r"\(samples, channels\), got \(5,\)"):
            statistics.update(np.zeros(5))
        with pytest.raises(ValueError, match="same number of channels, got 3 and 2"):
            fid(np.zeros((4, 3)), np.zeros((4, 2)))


class TestFrechet:
    def test_commuting_gaussians_in_closed_form(self, rng):
        """Covariances Q diag(a) Qᵀ and Q diag(b) Qᵀ: the distance is ‖Δμ‖² + Σ (√a − √b)²."""
        q, _ = np.linalg.qr(rng.normal(size=(16, 16)))
        a, b, shift = rng.uniform(0.1, 5, 16), rng.uniform(0.1, 5, 16), rng.normal(size=16)
        one = exact_gaussian(rng, np.zeros(16), q * a @ q.T, 60)
        two = exact_gaussian(rng, shift, q * b @ q.T, 80)
        np.testing.assert_allclose(fid(one, two), shift @ shift + np.sum((np.sqrt(a) - np.sqrt(b)) ** 2), rtol=1e-10)

    def test_general_gaussians_against_scipy(self, rng):
        one, two = correlated(rng, 300, 24), correlated(rng, 200, 24, 0.3)
        c1, c2 = np.cov(one.T), np.cov(two.T)
        root = scipy.linalg.sqrtm(c1 @ c2).real
        expected = np.sum((one.mean(0) - two.mean(0)) ** 2) + np.trace(c1 + c2 - 2 * root)
        np.testing.assert_allclose(fid(one, two), expected, rtol=1e-9)
        np.testing.assert_allclose(fid(two, one), expected, rtol=1e-9)

    def test_fewer_samples_than_channels(self, rng):
        """Singular covariances; each set of two samples is a Gaussian on a line, where the root is a cosine."""
        u, v = rng.normal(size=(2, 64))
        one, two = np.stack([u, -u]), np.stack([v, -v]) + 1.0
        expected = 64 + 2 * (u @ u) + 2 * (v @ v) - 4 * abs(u @ v)
        np.testing.assert_allclose(fid(one, two), expected, rtol=1e-10)

    def test_singular_without_regularisation(self, rng):
        embed = rng.normal(size=(4, 40))
        one, two = correlated(rng, 100, 4), correlated(rng, 100, 4, 0.5)
        orthonormal = np.linalg.qr(embed.T)[0].T
        np.testing.assert_allclose(fid(one @ orthonormal, two @ orthonormal), fid(one, two), rtol=1e-7)

    def test_same_set_is_at_zero(self, rng):
        x = correlated(rng, 50, 20)
        assert fid(x, x) < 1e-10 * np.trace(np.cov(x.T))
        shifted = frechet_distance(FeatureStatistics.of(x), FeatureStatistics.of(x + 0.5))
        assert shifted == pytest.approx(20 * 0.25, rel=1e-9)


class TestKernel:
    def test_unbiased_mmd_against_sklearn(self, rng):
        one, two = correlated(rng, 70, 6), correlated(rng, 50, 6, 0.2)
        k11, k22, k12 = (
            polynomial_kernel(a, b, degree=3, gamma=1 / 6, coef0=1) for a, b in ((one, one), (two, two), (one, two))
        )
        expected = (k11.sum() - np.trace(k11)) / (70 * 69) + (k22.sum() - np.trace(k22)) / (50 * 49) - 2 * k12.mean()
        np.testing.assert_allclose(polynomial_mmd(one, two), expected, rtol=1e-10)

    def test_chunks(self, rng):
        one, two = rng.normal(size=(1500, 2)), rng.normal(size=(1100, 2)) + 0.1
        k11, k22, k12 = (polynomial_kernel(a, b, 3, 0.5, 1) for a, b in ((one, one), (two, two), (one, two)))
        expected = (k11.sum() - np.trace(k11)) / (1500 * 1499) + (k22.sum() - np.trace(k22)) / (1100 * 1099)
        np.testing.assert_allclose(polynomial_mmd(one, two), expected - 2 * k12.mean(), rtol=1e-6)

    def test_subsets(self, rng):
        one, two = rng.normal(size=(40, 3)), rng.normal(size=(60, 3)) + 1
        mean, deviation = kid(one, two, num_subsets=50, subset_size=20, seed=1)
        assert (mean, deviation) == kid(one, two, num_subsets=50, subset_size=20, seed=1)
        assert mean != kid(one, two, num_subsets=50, subset_size=20, seed=2)[0]
        assert abs(mean - polynomial_mmd(one, two)) < 5 * deviation / np.sqrt(50)
        # All samples in every subset: nothing to take a deviation of.
        assert kid(one, two[:40], num_subsets=3) == (polynomial_mmd(one, two[:40]), None)
        with pytest.raises(ValueError, match="at least two samples, got 1 and 5"):
            polynomial_mmd(np.zeros((1, 3)), np.zeros((5, 3)))


class Colours(nn.Module):
    """Features without weights: for torchmetrics, which takes modules of pictures."""

    num_features = 3

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures.flatten(2).mean(2)


class TestAgainstTorchmetrics:
    @pytest.fixture
    def pictures(self):
        generator = torch.Generator().manual_seed(0)
        real = torch.rand(60, 3, 5, 5, generator=generator, dtype=torch.float64)
        return real, 0.8 * torch.rand(50, 3, 5, 5, generator=generator, dtype=torch.float64) ** 2

    @pytest.mark.filterwarnings("ignore")  # of torchmetrics, about what it does not need here
    def test_fid(self, pictures):
        metric = FrechetInceptionDistance(Colours(), normalize=True, input_img_size=(3, 5, 5)).set_dtype(torch.float64)
        for part, real in zip(pictures, (True, False)):
            metric.update(part, real=real)
        ours = fid(*(Colours()(part) for part in pictures))
        assert ours == pytest.approx(float(metric.compute()), rel=1e-6) and ours > 0.01

    @pytest.mark.filterwarnings("ignore")
    def test_kid(self, pictures):
        real, generated = (part[:50] for part in pictures)
        metric = KernelInceptionDistance(Colours(), subsets=1, subset_size=50, normalize=True).set_dtype(torch.float64)
        metric.update(real, real=True)
        metric.update(generated, real=False)
        ours, _ = kid(Colours()(real), Colours()(generated))
        assert ours == pytest.approx(float(metric.compute()[0]), rel=1e-6) and ours > 0.01


class TestPrecisionRecall:
    @pytest.mark.parametrize("neighbours", [1, 3, 5])
    def test_against_sklearn(self, rng, neighbours):
        real, generated = correlated(rng, 1200, 4), correlated(rng, 300, 4, 0.5)

        def share(samples, manifold):
            nearest = NearestNeighbors(n_neighbors=neighbours + 1, algorithm="brute").fit(manifold)
            radii = nearest.kneighbors(manifold)[0][:, -1]
            distances = np.linalg.norm(samples[:, None] - manifold[None], axis=-1)
            return np.mean((distances <= radii).any(1))

        precision, recall = precision_recall(real, generated, neighbours)
        assert precision == share(generated, real)
        assert recall == share(real, generated)
        assert 0.05 < precision < 1 or 0.05 < recall < 1

    def test_constructed(self):
        grid = np.stack(np.meshgrid(np.arange(6.0), np.arange(6.0)), -1).reshape(-1, 2)
        assert precision_recall(grid, grid) == (1.0, 1.0)
        assert precision_recall(grid, grid + 1000) == (0.0, 0.0)
        half = np.concatenate([grid, grid + 1000])
        assert precision_recall(grid, half) == (0.5, 1.0)
        assert precision_recall(half, grid) == (1.0, 0.5)

    def test_repeated_samples_far_from_the_origin(self, rng):
        """Balls of radius 0 hold their own samples, whatever the rounding of large coordinates."""
        x = np.repeat(rng.normal(size=(10, 300)) + 1e3, 6, axis=0)
        assert precision_recall(x, x) == (1.0, 1.0)
        assert precision_recall(x, x + 0.01) == (0.0, 0.0)

    def test_errors(self):
        with pytest.raises(ValueError, match="got 3 and 9 samples, 3 neighbours"):
            precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
        with pytest.raises(ValueError, match="same number of channels, got 2 and 3"):
            precision_recall(np.zeros((9, 2)), np.zeros((9, 3)))


class Script(nn.Module):
    """As the published files: bytes in, with options that change the answer."""

    def forward(self, x: torch.Tensor, return_features: bool = False, resize: bool = False) -> torch.Tensor:
        mean = x.flatten(2).mean(2)
        return mean + (1000.0 if return_features and resize else 0.0)


class TestExtractors:
    @pytest.mark.parametrize(("input_range", "expected"), [("signed", 0.5), ("unit", 0.75), ("byte", 191.0)])
    def test_input_ranges(self, input_range, expected):
        extractor = FeatureExtractor(nn.AdaptiveAvgPool2d(1), input_range)
        features = extractor(torch.full((2, 3, 4, 4), 0.5))
        assert features.shape == (2, 3) and features.dtype == torch.float32
        assert torch.all(features == expected)

    def test_torchscript_by_path(self, tmp_path):
        torch.jit.script(Script()).save(str(tmp_path / "features.pt"))
        features = load_feature_extractor(tmp_path / "features.pt")(torch.ones(2, 3, 4, 5, 5))
        assert torch.all(features == 1255.0)

    def test_module(self):
        module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(48, 7))
        extractor = load_feature_extractor(module)
        pictures = torch.rand(2, 3, 4, 4)
        assert torch.equal(extractor(pictures), extractor(pictures)), "dropout is off"
        assert not extractor(pictures).requires_grad

    def test_hub(self, tmp_path, monkeypatch):
        torch.jit.script(Script()).save(str(tmp_path / "i3d.pt"))
        names = ["README.md", "i3d.pt"]
        asked = []
        monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, repo: names)
        monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a: (asked.append(a), tmp_path / "i3d.pt")[1])
        load_feature_extractor("someone/i3d")
        load_feature_extractor("someone/i3d/sub/i3d.pt")
        assert asked == [("someone/i3d", "i3d.pt"), ("someone/i3d", "sub/i3d.pt")]
        names.append("other.pt")
        with pytest.raises(ValueError, match="2 TorchScript files"):
            load_feature_extractor("someone/i3d")
        names[:] = ["README.md"]
        with pytest.raises(ValueError, match="0 TorchScript files"):
            load_feature_extractor("someone/empty")

    def test_errors(self, tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"no feature extractor 'inception\.pt': neither a file or folder here nor"
        ):
            load_feature_extractor("inception.pt")
        with pytest.raises(FileNotFoundError, match="neither a file or folder here nor"):
            load_feature_extractor(tmp_path / "missing.pt")
        (tmp_path / "text.pt").write_text("no script")
        with pytest.raises(ValueError, match=r"text\.pt is not a TorchScript file"):
            load_feature_extractor(tmp_path / "text.pt")
        with pytest.raises(ValueError, match="input_range must be one of signed, unit, byte, got 'rgb'"):
            load_feature_extractor(nn.Flatten(), "rgb")
        with pytest.raises(ValueError, match=r"clips \(batch, 3, frames, height, width\), got \(2, 1, 4, 4\)"):
            load_feature_extractor(nn.Flatten())(torch.zeros(2, 1, 4, 4))
        with pytest.raises(ValueError, match=r"one vector for each of 2 signals, got \(2, 3, 4, 4\)"):
            load_feature_extractor(nn.Identity())(torch.zeros(2, 3, 4, 4))


class TestClip:
    @pytest.fixture
    def folder(self, tmp_path):
        import json

        from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

        words = ["<|startoftext|>", "<|endoftext|>", "r", "e", "d</w>", "b", "l", "u", "e</w>"]
        (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
        (tmp_path / "merges.txt").write_text("#version: 0.2\n")
        CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")).save_pretrained(tmp_path)
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        text = {**sizes, "vocab_size": len(words), "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
        vision = {**sizes, "image_size": 16, "patch_size": 8}
        CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(tmp_path)
        return tmp_path

    def test_score(self, folder):
        """Against the formula on the model's own embeddings; the preprocessing against Pillow's in the same steps."""
        from PIL import Image

        scorer = ClipScorer(folder)
        x = np.random.default_rng(0).integers(70, 190, (2, 24, 40, 3), dtype=np.uint8)
        images = torch.from_numpy(x).permute(0, 3, 1, 2) / 127.5 - 1
        pixels = []
        for picture in x:
            resized = np.asarray(Image.fromarray(picture).resize((26, 16), Image.Resampling.BICUBIC))[:, 5:21] / 255.0
            pixels.append((resized - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711])
        pixels = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
        torch.testing.assert_close(scorer._pixels(images), pixels, atol=0.02, rtol=0)
        tokens = scorer.tokenizer(["red", "blue blue blue blue"], padding=True, truncation=True, max_length=8)
        with torch.no_grad():
            output = scorer.model(
                torch.tensor(tokens["input_ids"]), scorer._pixels(images), torch.tensor(tokens["attention_mask"])
            )
        image, text = output.image_embeds.double().numpy(), output.text_embeds.double().numpy()
        cosine = (image * text).sum(1) / np.linalg.norm(image, axis=1) / np.linalg.norm(text, axis=1)
        actual = scorer(images, ["red", "blue blue blue blue"])
        np.testing.assert_allclose(actual, 2.5 * np.maximum(cosine, 0), rtol=1e-6, atol=1e-9)
        assert (actual >= 0).all() and np.abs(cosine).max() > 1e-3

    def test_features(self, folder, monkeypatch):
        """As a feature extractor by folder, and by the id of a repository without TorchScript."""
        images = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
        features = load_feature_extractor(folder)(images)
        scorer = ClipScorer(folder)
        with torch.no_grad():
            output = scorer.model(torch.tensor([[0, 1]]), scorer._pixels(images))
        torch.testing.assert_close(F.normalize(features), output.image_embeds)
        assert features.shape == (3, 8)
        names = ["config.json", "model.safetensors"]
        monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, repo: names)
        asked = []
        monkeypatch.setattr(
            "transformers.CLIPModel.from_pretrained", lambda source: (asked.append(source), scorer.model)[1]
        )
        assert torch.equal(load_feature_extractor("someone/clip")(images), features) and asked == ["someone/clip"]

    def test_errors(self, folder):
        with pytest.raises(ValueError, match="got 2 images and 1 captions"):
            ClipScorer(folder)(torch.zeros(2, 3, 16, 16), ["red"])
