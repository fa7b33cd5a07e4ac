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
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import evaluation_measures
import numpy as np
import pytest
import torch
import trimesh
from evaluation_report import Figure, update_model_card, write_reports
from evaluation_stages import Stages, check_settings
from PIL import Image
from running import run, start, start_ranks, wait_for
from safetensors.torch import load_file
from tiny import tiny_tokenizer
from toy_networks import Means

import diffusers_ddmi
from diffusers_ddmi import DDMIImagePipeline
from diffusers_ddmi.checkpointing import CheckpointError
from diffusers_ddmi.data import load_signals
from diffusers_ddmi.data.scenes import load_procedural_scenes, open_row
from diffusers_ddmi.metrics.images import psnr
from diffusers_ddmi.rendering.raster import render_mesh
from diffusers_ddmi.training_utils import sample_generators


SHARED = {
    "dataset_name": "procedural",
    "num_samples": 5,
    "batch_size": 2,
    "num_inference_steps": 2,
    "num_reconstructions": 3,
}
IMAGE = {**SHARED, "feature_extractor": "toy_networks:Means", "resolutions": [8, 24]}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other processes, whose numbers are compared bit for bit
    yield
    torch.set_num_threads(threads)


def make_pipeline(modality: str, folder: Path, captions: list[str] | None = None) -> Path:
    """An untrained pipeline of the smallest preset."""
    from train_ldm import PIPELINES, build_denoiser
    from training_setup import build, preset_folder, read_config
    from training_text import build_tokenizer, create_text_encoder

    torch.manual_seed(0)
    preset = preset_folder("tiny", modality)
    vae = build(read_config(preset, "vae"), modality=modality)
    scheduler = build(read_config(preset, "scheduler"))
    text: dict = {}
    if captions:
        config = read_config(preset, "text_encoder")
        tokenizer = build_tokenizer(captions, max_length=config["max_position_embeddings"])
        text = {"tokenizer": tokenizer, "text_encoder": create_text_encoder(config, tokenizer)}
    width = text["text_encoder"].config.hidden_size if text else None
    unet = build_denoiser(SimpleNamespace(config_overrides=None), preset, vae, scheduler, width)
    getattr(diffusers_ddmi, PIPELINES[modality])(vae, unet, scheduler, **text).save_pretrained(folder)
    return folder


def write_clip(folder: Path, tokenizer) -> None:
    """An untrained CLIP model."""
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = {**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 32}
    config = CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8})
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    return make_pipeline("image", tmp_path_factory.mktemp("pipelines") / "ddmi-image")


@pytest.fixture(scope="module")
def report(pipeline, tmp_path_factory) -> Path:
    """The folder of an undisturbed evaluation."""
    folder = tmp_path_factory.mktemp("reports") / "report"
    torch.set_num_threads(1)
    run("evaluate", pipeline=pipeline, output_dir=folder, **IMAGE)
    return folder


def table(folder: Path) -> dict:
    """A report without the command, which names the folder."""
    report = json.loads((folder / "report.json").read_text())
    report.pop("command")
    return report


def value(folder: Path, metric: str, resolution: int | None = None) -> float:
    figures = json.loads((folder / "report.json").read_text())["figures"]
    (found,) = [f["value"] for f in figures if f["metric"] == metric and f.get("resolution") == resolution]
    return found


class TestImageTable:
    def test_contents(self, report):
        facts = json.loads((report / "report.json").read_text())
        rows = {(f["metric"], f["resolution"], f["samples"], f.get("references")) for f in facts["figures"]}
        sets = {(name, size, 5, 5) for name in ("FID", "KID", "precision", "recall") for size in (8, 24)}
        sizes = {"reconstruction": (16, 24), "bicubic enlargement of the input": (24,)}
        scores = {(f"{name}, {what}", what) for name in ("PSNR (dB)", "SSIM") for what in sizes}
        # Pictures of 8 pixels are too small for SSIM's window.
        small = {("PSNR (dB), reconstruction", 8, 3, None)}
        assert rows == sets | small | {(name, size, 3, None) for name, what in scores for size in sizes[what]}
        assert all(figure["seed"] == 0 for figure in facts["figures"])
        assert facts["modality"] == "image" and facts["data"] == {
            "source": "procedural",
            "split": "test",
            "length": 2048,
        }
        assert "--num_inference_steps 2" in facts["command"] and str(report) in facts["command"]
        assert any("CLIP-S" in sentence and "--clip" in sentence for sentence in facts["left_out"])

    def test_markdown_and_timing(self, report):
        text = (report / "report.md").read_text()
        assert "| FID | ↓ |" in text and "evaluate.py --pipeline" in text and "--clip" in text
        stages = json.loads((report / "timing.json").read_text())["stages"]
        assert stages["samples"]["items"] == 5 and stages["samples"]["seconds"] > 0

    def test_fid_by_hand(self, pipeline, report):
        """Samples from the pipeline itself, each from its own generator, in other batches; the formula by numpy."""
        pipe = DDMIImagePipeline.from_pretrained(pipeline)
        pipe.set_progress_bar_config(disable=True)
        images = pipe(
            batch_size=5,
            num_inference_steps=2,
            generator=sample_generators(0, range(5), "evaluation"),
            height=24,
            width=24,
            output_type="pt",
        ).images
        data = load_signals("image", "procedural", split="test", resolution=24, purpose="evaluation")
        order = np.random.default_rng(0).permutation(2048)[:5]
        real = torch.stack([data[int(place)]["inputs"] for place in order])
        ours, theirs = (Means()(pictures).double().numpy() for pictures in (images * 2 - 1, real))
        covariances = [np.cov(features.T) for features in (ours, theirs)]
        root = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)).real.sum()
        expected = ((ours.mean(0) - theirs.mean(0)) ** 2).sum() + sum(c.trace() for c in covariances) - 2 * root
        assert value(report, "FID", 24) == pytest.approx(expected, rel=1e-3)

    def test_psnr_by_hand(self, pipeline, report):
        """At the native size by the field's coordinates; beyond it, bicubic enlargement by Pillow."""
        vae = DDMIImagePipeline.from_pretrained(pipeline).vae.eval()
        native, large = (
            load_signals("image", "procedural", split="test", resolution=size, purpose="evaluation")
            for size in (16, 24)
        )
        scores, enlarged = [], []
        for place in np.random.default_rng(0).permutation(2048)[:3]:
            example = native[int(place)]
            with torch.no_grad():
                field = vae.decode(vae.encode(example["inputs"][None]).latent_dist.mode()).field
            scores.append(psnr(field(example["coords"]).clamp(-1, 1), example["targets"][None]))
            channels = [
                np.asarray(Image.fromarray(channel.numpy()).resize((24, 24), Image.Resampling.BICUBIC))
                for channel in example["inputs"]
            ]
            picture = torch.from_numpy(np.stack(channels)).clamp(-1, 1)
            enlarged.append(psnr(picture[None], large[int(place)]["inputs"][None]))
        expected = {("reconstruction", 16): scores, ("bicubic enlargement of the input", 24): enlarged}
        for (what, size), values in expected.items():
            mean = float(torch.cat(values).mean())
            assert value(report, f"PSNR (dB), {what}", size) == pytest.approx(mean, rel=1e-4)


class TestPerceptual:
    """With a stand-in for the `lpips` package."""

    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        def install(text: str) -> None:
            (tmp_path / "lpips.py").write_text(text)
            monkeypatch.syspath_prepend(tmp_path)
            monkeypatch.delitem(sys.modules, "lpips", raising=False)

        yield install
        sys.modules.pop("lpips", None)

    def test_row(self, package, pipeline, report, tmp_path):
        package(
            "import torch\n"
            "class LPIPS(torch.nn.Module):\n"
            "    def __init__(self, net, verbose):\n"
            "        super().__init__()\n"
            "    def forward(self, one, two):\n"
            "        return (one - two).square().mean((1, 2, 3), keepdim=True)\n"
        )
        run("evaluate", pipeline=pipeline, output_dir=tmp_path / "report", metrics=["lpips", "psnr"], **IMAGE)
        lpips = value(tmp_path / "report", "LPIPS, reconstruction", 16)
        assert abs(10 * np.log10(4 / lpips) - value(report, "PSNR (dB), reconstruction", 16)) < 1

    def test_weights_that_cannot_be_had(self, package, pipeline, tmp_path):
        package("def LPIPS(net, verbose):\n    raise OSError('no network')\n")
        options = {**IMAGE, "feature_extractor": None, "resolutions": None}
        run("evaluate", pipeline=pipeline, output_dir=tmp_path / "report", **options)
        (sentence,) = [s for s in table(tmp_path / "report")["left_out"] if s.startswith("LPIPS")]
        assert "no network" in sentence and value(tmp_path / "report", "PSNR (dB), reconstruction", 16) > 0
        run("evaluate", pipeline=pipeline, output_dir=tmp_path / "report", metrics=["psnr"], **options)
        with pytest.raises(OSError, match="no network"):
            run("evaluate", pipeline=pipeline, output_dir=tmp_path / "report", metrics=["lpips"], **options)


class TestResuming:
    def test_same_seed_same_table(self, pipeline, report, tmp_path):
        run("evaluate", pipeline=pipeline, output_dir=tmp_path, **IMAGE)
        assert table(tmp_path) == table(report)

    def test_other_seed_other_table(self, pipeline, report, tmp_path):
        run("evaluate", pipeline=pipeline, output_dir=tmp_path, seed=1, **IMAGE)
        assert value(tmp_path, "FID", 8) != value(report, "FID", 8)

    def test_killed_twice_and_rerun(self, pipeline, report, tmp_path):
        folder, options = tmp_path / "report", {**IMAGE, "pipeline": pipeline}
        killed = start("evaluate", tmp_path / "output", output_dir=folder, **options)
        wait_for(lambda: list(folder.glob("stages/samples/*.safetensors")) or not killed.is_alive())
        os.kill(killed.pid, signal.SIGKILL)
        killed.join()
        killed = start("evaluate", tmp_path / "output", {"KILL_AT_CALL": "5"}, output_dir=folder, **options)
        killed.join()
        assert killed.exitcode == -signal.SIGKILL, (tmp_path / "output").read_text()
        assert not (folder / "report.json").exists()
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
        assert 3 < len(before) < len(list(report.rglob("*.safetensors")))
        run("evaluate", output_dir=folder, **options)
        assert table(folder) == table(report)
        assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing was done twice

    def test_two_processes(self, pipeline, report, tmp_path):
        ranks = start_ranks("evaluate", 2, tmp_path / "output", output_dir=tmp_path, pipeline=pipeline, **IMAGE)
        for rank in ranks:
            rank.join()
        assert [rank.exitcode for rank in ranks] == [0, 0], (tmp_path / "output.0").read_text()
        assert table(tmp_path) == table(report)
        assert json.loads((tmp_path / "timing.json").read_text())["processes"] == 2

    def test_more_samples_keep_those_that_are_there(self, pipeline, report, tmp_path):
        shutil.copytree(report, tmp_path / "report")
        kept = tmp_path / "report" / "stages" / "samples" / "0000002-0000004.safetensors"
        before = kept.stat().st_mtime_ns
        run(
            "evaluate",
            pipeline=pipeline,
            output_dir=tmp_path / "report",
            metrics=["fid"],
            **{**IMAGE, "num_samples": 8},
        )
        assert kept.stat().st_mtime_ns == before
        whole = load_file(tmp_path / "report" / "stages" / "samples" / "0000004-0000006.safetensors")["latents"]
        part = load_file(tmp_path / "report" / "stages" / "samples" / "0000004-0000005.safetensors")["latents"]
        torch.testing.assert_close(whole[:1], part, rtol=1e-4, atol=1e-3)  # another batch, other rounding
        rows = json.loads((tmp_path / "report" / "report.json").read_text())["figures"]
        assert {(row["metric"], row["samples"]) for row in rows} == {("FID", 8)}


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"seed": 1}, "flags/--seed was 0 and is 1"),
            ({"dataset_name": "digits"}, "data/source was 'procedural' and is 'digits'"),
            ({"feature_extractor": "toy_networks:NoModule"}, "--feature_extractor was 'toy_networks:Means'"),
        ],
    )
    def test_changed_settings(self, change, message, pipeline, report):
        before = (report / "report.json").read_bytes()
        with pytest.raises(CheckpointError, match=message):
            run("evaluate", pipeline=pipeline, output_dir=report, **{**IMAGE, **change})
        assert (report / "report.json").read_bytes() == before

    @pytest.mark.parametrize("part", ["unet", "scheduler"])
    def test_changed_pipeline(self, part, pipeline, report, tmp_path):
        shutil.copytree(pipeline, tmp_path / "pipeline")
        if part == "unet":
            weights = next((tmp_path / "pipeline" / "unet").glob("*.safetensors"))
            weights.write_bytes(weights.read_bytes()[:-4] + bytes(4))
        else:
            config = tmp_path / "pipeline" / "scheduler" / "scheduler_config.json"
            config.write_text(json.dumps({**json.loads(config.read_text()), "beta_end": 0.5}))
        with pytest.raises(CheckpointError, match=f"pipeline/{part}/"):
            run("evaluate", pipeline=tmp_path / "pipeline", output_dir=report, **IMAGE)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"metrics": ["mmd"]}, ValueError, "for image there are clip-s, fid"),
            ({"metrics": ["clip-s"]}, ValueError, "pass --clip"),
            ({"num_samples": 1}, ValueError, "--num_samples must be at least 2"),
            ({"resolutions": [0]}, ValueError, "--resolutions"),
            ({"dataset_name": None}, ValueError, "exactly one of"),
            ({"scheduler": "NoScheduler"}, ValueError, "no scheduler 'NoScheduler'"),
            ({"prompts": "prompts.txt"}, ValueError, "trained on text"),
            ({"feature_extractor": "toy_networks:NoModule"}, ValueError, "expected a torch.nn.Module"),
            ({"feature_extractor": "toy_networks:Absent"}, ValueError, "Absent"),
            ({"dataset_name": None, "data_dir": "empty"}, ValueError, "no pictures in"),
            ({"dataset_name": None, "data_dir": "absent"}, FileNotFoundError, "no such folder"),
            ({"pipeline": "empty"}, FileNotFoundError, "no model_index.json"),
        ],
    )
    def test_bad_input(self, change, error, message, pipeline, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty").mkdir()
        (tmp_path / "prompts.txt").write_text("a cat\n")
        with pytest.raises(error, match=message):
            run("evaluate", output_dir=tmp_path / "report", **{"pipeline": pipeline, **IMAGE, **change})
        assert not (tmp_path / "report" / "report.json").exists()

    def test_unknown_metric(self, pipeline, tmp_path):
        with pytest.raises(SystemExit):
            run("evaluate", pipeline=pipeline, output_dir=tmp_path, metrics=["beauty"], **IMAGE)


class TestOtherModalities:
    def test_shapes_with_text(self, tmp_path):
        captions = ["a round table with four legs", "a chair"]
        pipeline = make_pipeline("shape", tmp_path / "pipeline", captions)
        pipe = diffusers_ddmi.DDMIShapePipeline.from_pretrained(pipeline)
        write_clip(tmp_path / "clip", pipe.tokenizer)
        (tmp_path / "prompts.txt").write_text("\n".join(captions))
        run(
            "evaluate",
            pipeline=pipeline,
            output_dir=tmp_path / "report",
            prompts=tmp_path / "prompts.txt",
            samples_per_prompt=2,
            clip=tmp_path / "clip",
            mesh_resolution=16,
            num_metric_points=64,
            num_points=128,
            num_views=3,
            **{**SHARED, "num_samples": 4, "num_reconstructions": 2},
        )
        figures = {f["metric"]: f for f in table(tmp_path / "report")["figures"]}
        assert table(tmp_path / "report")["left_out"] == []
        assert {"IoU, reconstruction", "F-score, reconstruction", "CLIP-S", "shapes without a surface"} <= set(figures)
        assert figures["CLIP-S"]["note"].startswith("3 views of each")
        if figures["shapes without a surface"]["value"] == 0:
            assert {"MMD", "COV", "1-NNA", "TMD"} <= set(figures)
            assert figures["MMD"]["samples"] == 4 and figures["TMD"]["samples"] == 2
        assert 0 <= figures["IoU, reconstruction"]["value"] <= 1

    def test_distances_of_other_points_are_other_distances(self, tmp_path):
        """In the same folder, with fewer points, as in a folder of its own."""
        pipeline = make_pipeline("shape", tmp_path / "pipeline")
        options = {**SHARED, "num_samples": 3, "mesh_resolution": 16, "metrics": ["mmd"], "num_points": 128}
        for folder, points in (("one", 200), ("one", 20), ("two", 20)):
            run("evaluate", pipeline=pipeline, output_dir=tmp_path / folder, num_metric_points=points, **options)
        assert table(tmp_path / "one")["figures"] == table(tmp_path / "two")["figures"]
        assert any(figure["metric"] == "MMD" for figure in table(tmp_path / "one")["figures"])

    @pytest.mark.parametrize(
        ("modality", "metrics"),
        [
            (
                "video",
                {
                    "FVD",
                    "PSNR (dB), frames of reconstructions",
                    "temporal consistency, samples",
                    "frame consistency, samples",
                    "frame consistency, data",
                    "frame doubling, inserted frames between their neighbours, samples",
                },
            ),
            ("nerf", {"FID, views", "KID, views", "PSNR (dB), 2 views of reconstructions"}),
        ],
    )
    def test_video_and_nerf(self, modality, metrics, tmp_path):
        pipeline = make_pipeline(modality, tmp_path / "pipeline")
        write_clip(tmp_path / "clip", tiny_tokenizer(tmp_path))
        run(
            "evaluate",
            pipeline=pipeline,
            output_dir=tmp_path / "report",
            feature_extractor="toy_networks:Means",
            clip=tmp_path / "clip",
            num_views=2,
            num_ray_samples=4,
            num_points=128,
            **{**SHARED, "num_samples": 2, "num_reconstructions": 2},
        )
        assert not [s for s in table(tmp_path / "report")["left_out"] if "not defined" in s]
        figures = {f["metric"]: f["value"] for f in table(tmp_path / "report")["figures"]}
        assert metrics <= set(figures)
        assert all(np.isfinite(float(value)) for value in figures.values())

    def test_scenes_may_differ_in_the_number_and_size_of_their_pictures(self, tmp_path):
        for index, (views, size) in enumerate([(1, 12), (3, 16)]):
            scene = open_row(load_procedural_scenes(num_scenes=1, num_views=views, size=size, seed=index)[0]).read()
            poses, focal = scene.cameras.camera_to_world.numpy(), scene.cameras.focal.numpy()
            (tmp_path / "data").mkdir(exist_ok=True)
            path = tmp_path / f"data/{index}.npz"
            np.savez(path, images=scene.images, cam_poses=poses, data=scene.points, focal=focal)
        run(
            "evaluate",
            pipeline=make_pipeline("nerf", tmp_path / "pipeline"),
            data_dir=tmp_path / "data",
            output_dir=tmp_path / "report",
            feature_extractor="toy_networks:Means",
            num_samples=3,
            num_inference_steps=2,
            num_views=2,
            num_ray_samples=4,
            num_points=128,
        )
        figures = {f["metric"]: f for f in table(tmp_path / "report")["figures"]}
        fid = figures["FID, views"]
        assert fid["references"] == 3  # one view of the first scene, two of the second
        first = np.random.default_rng(0).permutation(2)[0]  # the samples' cameras: its, the other's, its again
        assert fid["samples"] == (4 if first == 0 else 5)
        assert np.isfinite(float(fid["value"]))
        assert np.isfinite(float(figures["PSNR (dB), 2 views of reconstructions"]["value"]))


class TestModelCard:
    def test_filled_and_replaced(self, pipeline, report, tmp_path):
        shutil.copytree(pipeline, tmp_path / "pipeline")
        shutil.copytree(report, tmp_path / "report")
        card = tmp_path / "pipeline" / "README.md"
        original = card.read_text()
        options = {"pipeline": tmp_path / "pipeline", "output_dir": tmp_path / "report", "update_model_card": True}
        run("evaluate", **options, **IMAGE)
        assert card.read_text().startswith(original.rstrip()) and "| FID | ↓ |" in card.read_text()
        run("evaluate", **options, metrics=["psnr"], **IMAGE)
        text = card.read_text()
        assert text.startswith(original.rstrip()) and text.count("## Evaluation") == 1
        assert "| PSNR" in text and "| FID" not in text

    def test_text_around_it_is_kept(self, tmp_path):
        card = tmp_path / "README.md"
        update_model_card(card, "first")
        card.write_text(card.read_text() + "\nmine\n")
        update_model_card(card, r"second \1")
        assert card.read_text().startswith(f"# {tmp_path.name}\n") and card.read_text().endswith("\nmine\n")
        assert "first" not in card.read_text() and r"second \1" in card.read_text()
        assert os.listdir(tmp_path) == ["README.md"]


class TestTextAgreement:
    def test_views_of_a_sample_meet_its_prompt_and_are_averaged(self, tmp_path, monkeypatch):
        from accelerate import Accelerator

        def show(e, fields):
            return torch.tensor([[10.0 * number + view for view in range(4)] for number in fields])[
                ..., None, None, None
            ]

        def clip(pictures, captions):
            return pictures.flatten() - torch.tensor([10.0 * int(caption) for caption in captions])

        monkeypatch.setitem(evaluation_measures.SHOWN_TO_CLIP, "shape", show)
        stages = Stages(tmp_path, Accelerator(cpu=True), 2)
        e = SimpleNamespace(pipe=SimpleNamespace(modality="shape"), stages=stages, num_samples=3, clip=clip)
        e.device, e.fields, e.prompts = "cpu", lambda numbers: numbers, ["0", "1", "2"]
        (figure,) = evaluation_measures.text_agreement(e)()
        assert (figure.value, figure.deviation, figure.samples) == (1.5, 0.0, 3)

    def test_a_mesh_is_seen_from_all_around(self, monkeypatch):
        mesh = trimesh.creation.box((0.8, 0.3, 0.1))
        monkeypatch.setattr(evaluation_measures, "extract", lambda e, fields: [mesh, trimesh.Trimesh()])
        shown = evaluation_measures._show_meshes(SimpleNamespace(args=SimpleNamespace(num_views=4)), None)
        assert shown.shape == (2, 4, 3, 224, 224)
        expected = torch.from_numpy(render_mesh(mesh, azimuth=125, size=224)).movedim(-1, 0) / 127.5 - 1
        torch.testing.assert_close(shown[0, 1], expected)
        assert (shown[0, 0] - shown[0, 1]).abs().mean() > 0.05
        assert (shown[1] == 1).all(), "nothing, in white"


class TestPieces:
    def test_reports_hold_no_bare_infinity(self, tmp_path):
        facts = {"pipeline": "p", "data": {"source": "d", "split": "test", "length": 1}, "settings": {"seed": 3}}
        facts |= {"versions": {}, "command": "c"}
        timing = {"stages": {}, "processes": 1, "device": "cpu"}
        write_reports(tmp_path, facts, [Figure("PSNR (dB)", float("inf"), 1)], [], timing)
        (row,) = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)["figures"]
        assert row == {"metric": "PSNR (dB)", "value": "inf", "samples": 1, "seed": 3}

    def test_reports_cut_off_rounding(self, tmp_path):
        facts = {"pipeline": "p", "data": {"source": "d", "split": "test", "length": 1}, "settings": {"seed": 0}}
        facts |= {"versions": {}, "command": "c"}
        texts = []
        for noise in (0.0, 3e-15):
            figures = [Figure("KID", 1.3699 + noise, 5, deviation=noise), Figure("x", 1234.5678912, 1)]
            write_reports(tmp_path, facts, figures, [], {"stages": {}, "processes": 1, "device": "cpu"})
            texts.append((tmp_path / "report.json").read_text())
        assert texts[0] == texts[1]
        assert [row["value"] for row in json.loads(texts[0])["figures"]] == [1.3699, 1234.5679]

    def test_a_stage_must_give_a_result_for_each_item(self, tmp_path):
        from accelerate import Accelerator

        stages = Stages(tmp_path, Accelerator(cpu=True), 4)
        with pytest.raises(ValueError, match="4 items"):
            stages.run("wrong", 6, lambda numbers: {"x": torch.zeros(1)})
        stage = stages.run("right", 6, lambda numbers: {"x": torch.tensor(list(numbers))})
        assert stage.tensors["x"].tolist() == [0, 1, 2, 3, 4, 5] and len(stage.files) == 2

    def test_settings_may_gain_parts(self, tmp_path):
        from accelerate import Accelerator

        accelerator, path = Accelerator(cpu=True), tmp_path / "settings.json"
        check_settings(accelerator, path, {"a": {"b": 1}})
        check_settings(accelerator, path, {"a": {"b": 1}, "clip": "x"})
        with pytest.raises(CheckpointError, match="clip was 'x' and is 'y'"):
            check_settings(accelerator, path, {"clip": "y"})
