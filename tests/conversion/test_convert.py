"""The conversion as a whole: what it writes, and what it refuses."""

import copy
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    ModelMixin,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from safetensors.torch import load_file

from diffusers_ddmi import AutoencoderD2C
from diffusers_ddmi.conversion import ConversionError, convert, read_official_config
from diffusers_ddmi.conversion.__main__ import main
from diffusers_ddmi.conversion.autoencoder import ENCODER_PLANES, autoencoder_config
from diffusers_ddmi.conversion.checkpoint import read_checkpoint
from diffusers_ddmi.conversion.denoiser import denoiser_config


def files(official: Path, domain: str) -> tuple[Path, Path]:
    return official / domain / "ldm-last.pt", official / domain / "config.yaml"


def edited_config(official: Path, domain: str, folder: Path, *path_and_value) -> Path:
    """A copy of a domain's YAML files in `folder` with one value changed (or removed, if it is `...`)."""
    *path, key, value = path_and_value
    contents = yaml.safe_load((official / domain / "config.yaml").read_text())
    section = contents
    for name in path:
        section = section[name]
    if value is ...:
        del section[key]
    else:
        section[key] = value
    points = official / domain / "encoder.yaml"
    if points.exists():
        (folder / "encoder.yaml").write_text(points.read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump(contents))
    return folder / "config.yaml"


def edited_checkpoint(official: Path, domain: str, folder: Path, edit) -> Path:
    contents = read_checkpoint(official / domain / "ldm-last.pt")
    contents = {key: copy.copy(value) for key, value in contents.items() if key != "args"}
    edit(contents)
    torch.save(contents, folder / "ldm-last.pt")
    return folder / "ldm-last.pt"


class TestFolder:
    def test_command_and_loading_in_a_new_process(self, official, tmp_path, capsys):
        checkpoint, config = files(official, "occupancy")
        target = tmp_path / "ddmi-shape"
        main(["--checkpoint", str(checkpoint), "--config", str(config), "--output_dir", str(target)])
        assert "unet: MixedUNet2DModel" in capsys.readouterr().out
        script = (
            "import diffusers_ddmi\n"
            "from diffusers import DiffusionPipeline\n"
            f"pipe = DiffusionPipeline.from_pretrained({str(target)!r})\n"
            "latents = pipe(num_inference_steps=2, output_type='latent', return_dict=False)[0]\n"
            "assert latents.isfinite().all()\n"
            "print(type(pipe).__name__, tuple(latents.shape))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "DDMIShapePipeline (1, 12, 8, 8)"

    def test_command_refuses_without_a_traceback(self, official, converted):
        checkpoint, config = files(official, "image")
        folder = converted.path("image")
        with pytest.raises(SystemExit, match=r"Not converted: .*exists already"):
            main(["--checkpoint", str(checkpoint), "--config", str(config), "--output_dir", str(folder)])

    def test_contents(self, converted):
        folder = converted.path("image")
        index = json.loads((folder / "model_index.json").read_text())
        assert index["vae"] == ["diffusers_ddmi", "AutoencoderD2C"]
        assert index["unet"] == ["diffusers_ddmi", "MixedUNet2DModel"]
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        assert scheduler["timestep_spacing"] == "trailing"
        assert not list(folder.rglob("*.bin")) + list(folder.rglob("*.pt"))
        card = (folder / "README.md").read_text()
        assert "Converted by `python -m diffusers_ddmi.conversion` from `ldm-last.pt`" in card
        assert "moving average" in card
        assert str(folder.parent) not in card + json.dumps(index)

    # diffusers' schedulers under NumPy 2
    @pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
    @pytest.mark.parametrize(
        "scheduler", [DDPMScheduler, PNDMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler]
    )
    def test_other_schedulers(self, converted, scheduler):
        pipeline = DiffusionPipeline.from_pretrained(converted.path("video"))
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
        generator = torch.Generator().manual_seed(0)
        latents = pipeline(num_inference_steps=5, generator=generator, output_type="latent", return_dict=False)[0]
        assert latents.isfinite().all()
        assert latents.std() > 0.1

    def test_average_or_last_weights(self, official, converted, tmp_path):
        checkpoint, config = files(official, "image")
        report = convert(checkpoint, config, tmp_path / "last", use_ema=False)
        assert "ema" in report.ignored
        contents = read_checkpoint(checkpoint)
        last = load_file(tmp_path / "last" / "unet" / "diffusion_pytorch_model.safetensors")
        average = load_file(converted.path("image") / "unet" / "diffusion_pytorch_model.safetensors")
        assert torch.equal(last["mixing.logit"], contents["diffusion"]["mixing_logit"].flatten())
        assert torch.equal(average["mixing.logit"], contents["ema"]["ema_model.mixing_logit"].flatten())
        assert not torch.equal(last["mixing.logit"], average["mixing.logit"])

    def test_half_precision_in_shards(self, official, converted, tmp_path):
        checkpoint, config = files(official, "nerf")
        convert(checkpoint, config, tmp_path / "half", dtype="fp16", max_shard_size="300KB")
        assert len(list((tmp_path / "half" / "vae").glob("*.safetensors"))) > 1
        half = DiffusionPipeline.from_pretrained(tmp_path / "half")
        full = DiffusionPipeline.from_pretrained(converted.path("nerf"))
        shards = (tmp_path / "half" / "unet").glob("*.safetensors")
        saved = {key: tensor for shard in shards for key, tensor in load_file(shard).items()}
        assert saved["conv_in.weight"].dtype == torch.float16
        assert saved["mixing.logit"].dtype == torch.float32
        for name, parameter in full.vae.named_parameters():
            torch.testing.assert_close(half.vae.get_parameter(name), parameter.half().float())

    def test_first_stage(self, official, converted, tmp_path):
        _, config = files(official, "image")
        report = convert(official / "image" / "model-last.pt", config, tmp_path / "vae")
        assert list(report.components) == ["vae"]
        vae = AutoencoderD2C.from_pretrained(tmp_path / "vae")
        image = converted.golden("image")["in/image"]
        mean = vae.encode(image).latent_dist.mean
        expected = DiffusionPipeline.from_pretrained(converted.path("image")).vae.encode(image).latent_dist.mean
        torch.testing.assert_close(mean, expected)
        assert "(first stage;" in (tmp_path / "vae" / "README.md").read_text()

    @pytest.mark.parametrize(
        ("planes", "name"), [(None, "stage1_order_xy_yz_xz"), (("xy", "xz", "yz"), "stage2_order_xy_xz_yz")]
    )
    def test_order_of_planes_in_first_stage_shapes(self, official, converted, tmp_path, planes, name):
        def first_stage(contents):
            del contents["diffusion"], contents["ema"]

        checkpoint = edited_checkpoint(official, "occupancy", tmp_path, first_stage)
        convert(checkpoint, files(official, "occupancy")[1], tmp_path / "vae", encoder_planes=planes)
        vae, golden = AutoencoderD2C.from_pretrained(tmp_path / "vae"), converted.golden("occupancy")
        mean = vae.encode(golden["in/points"]).latent_dist.mean
        torch.testing.assert_close(mean, golden[f"out/reconstruct/{name}/z"], rtol=1e-4, atol=1e-4)
        logits = vae.decode(mean).field(golden["in/query"])[..., 0]
        expected = golden[f"out/reconstruct/{name}/logits"]
        assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()

    def test_dry_run_writes_nothing(self, official, tmp_path):
        report = convert(*files(official, "image"), tmp_path / "out", dry_run=True)
        assert report.components["vae"][2] == 478928 + 33061
        assert report.components["unet"][2] == 286248
        assert not list(tmp_path.iterdir())


class TestOutput:
    @pytest.fixture
    def existing(self, tmp_path) -> Path:
        folder = tmp_path / "existing"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "old.txt").write_text("old")
        return folder

    def test_existing_folder_is_refused_before_anything_is_read(self, existing):
        with pytest.raises(FileExistsError, match=r"existing.*exists already"):
            convert("missing.pt", "missing.yaml", existing)

    def test_overwriting_replaces_the_whole_folder(self, official, existing):
        convert(*files(official, "image"), existing, overwrite=True)
        assert (existing / "model_index.json").is_file()
        assert not (existing / "old.txt").exists()
        assert list(existing.parent.iterdir()) == [existing]

    def test_only_diffusers_folders_are_replaced(self, official, existing):
        (existing / "config.json").unlink()
        with pytest.raises(FileExistsError, match="not a diffusers folder"):
            convert(*files(official, "image"), existing, overwrite=True)
        assert (existing / "old.txt").read_text() == "old"

    def test_a_failure_leaves_the_old_folder(self, official, existing, monkeypatch):
        def full_disk(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(ModelMixin, "save_pretrained", full_disk)
        with pytest.raises(OSError, match="No space left"):
            convert(*files(official, "image"), existing, overwrite=True)
        assert sorted(path.name for path in existing.iterdir()) == ["config.json", "old.txt"]
        assert list(existing.parent.iterdir()) == [existing]

    def test_a_folder_that_cannot_be_moved_into_place(self, official, existing, monkeypatch):
        replace = os.replace

        def refuse(source, target):
            if Path(source).name == "new":
                raise OSError(13, "Permission denied")
            replace(source, target)

        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="Permission denied"):
            convert(*files(official, "image"), existing, overwrite=True)
        assert (existing / "old.txt").read_text() == "old"


class WritesAFile:
    """Unpickled without care, writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "was here")


class TestCheckpoint:
    def test_omegaconf_is_not_needed(self, official):
        contents = read_checkpoint(official / "image" / "ldm-last.pt")
        assert "omegaconf" not in sys.modules
        assert type(contents["args"].ddconfig).__name__ == "DictConfig"
        assert contents["step"] == 1234 or isinstance(contents["step"], int)

    def test_reading_changes_what_torch_allows_for_nobody_else(self, official):
        before = set(torch.serialization.get_safe_globals())
        read_checkpoint(official / "image" / "ldm-last.pt")
        assert set(torch.serialization.get_safe_globals()) == before

    @pytest.mark.parametrize("legacy", [False, True])
    def test_malicious_pickle(self, official, tmp_path, legacy):
        target = tmp_path / "written"
        contents = {"vaemodel": {}, "args": WritesAFile(target)}
        torch.save(contents, tmp_path / "bad.pt", _use_new_zipfile_serialization=not legacy)
        with pytest.raises(ConversionError, match="was refused, and nothing in it was run"):
            convert(tmp_path / "bad.pt", files(official, "image")[1], tmp_path / "out")
        assert not target.exists()
        torch.load(tmp_path / "bad.pt", weights_only=False)  # the pickle would have worked
        assert target.exists()

    def test_malicious_pickle_inside_of_a_true_checkpoint(self, official, tmp_path):
        """The pickle of an official file, with an attack as the value of `step`."""
        target = tmp_path / "written"

        def attack(contents):
            contents["step"] = WritesAFile(target)

        checkpoint = edited_checkpoint(official, "image", tmp_path, attack)
        with pytest.raises(ConversionError, match="was refused"):
            read_checkpoint(checkpoint)
        assert not target.exists()

    def test_stand_ins_run_nothing(self, tmp_path):
        """`typing.Any` and the OmegaConf classes may be called by a pickle; that builds empty objects."""
        stream = b"ctyping\nAny\n(S'touch /'\ntR."
        with pytest.raises(ConversionError), zipfile.ZipFile(tmp_path / "odd.pt", "w") as archive:
            archive.writestr("archive/data.pkl", stream)
            archive.writestr("archive/version", "3")
            archive.close()
            read_checkpoint(tmp_path / "odd.pt")

    @pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
    def test_truncated(self, official, tmp_path, kept):
        checkpoint, config = files(official, "image")
        data = checkpoint.read_bytes()
        (tmp_path / "cut.pt").write_bytes(data[: int(kept * len(data)) if kept < 1 else kept])
        with pytest.raises(ConversionError, match=r"cut\.pt"):
            convert(tmp_path / "cut.pt", config, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_not_a_checkpoint(self, official, tmp_path):
        config = files(official, "image")[1]
        (tmp_path / "list.pt").write_bytes(pickle.dumps([1, 2], protocol=2))
        torch.save([torch.zeros(1)], tmp_path / "tensors.pt")
        torch.save({"state": torch.zeros(1)}, tmp_path / "other.pt")
        for name, message in (
            ("list.pt", "list.pt"),
            ("tensors.pt", "holds a list"),
            ("other.pt", "no state dict 'mlp'"),
        ):
            with pytest.raises(ConversionError, match=message):
                convert(tmp_path / name, config, tmp_path / "out")
        with pytest.raises(FileNotFoundError, match=r"nothing\.pt"):
            convert(tmp_path / "nothing.pt", config, tmp_path / "out")

    @pytest.mark.parametrize("found", ["image", "occupancy", "video", "nerf"])
    def test_checkpoint_of_another_domain(self, official, tmp_path, found):
        for described in {"image", "occupancy", "video", "nerf"} - {found}:
            with pytest.raises(
                ConversionError, match=f"checkpoint is of the domain '{found}'.*describes '{described}'"
            ):
                convert(files(official, found)[0], files(official, described)[1], tmp_path / "out", dry_run=True)


class TestTensors:
    def check(self, official, tmp_path, edit, message, domain="image"):
        checkpoint = edited_checkpoint(official, domain, tmp_path, edit)
        with pytest.raises(ConversionError, match=message):
            convert(checkpoint, files(official, domain)[1], tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("part", "key"),
        [
            ("vaemodel", "encoder.down.0.block.0.conv1.weight"),
            ("mlp", "net_res2.conv3.noise.weight"),
            ("ema", "ema_model.mixing_logit"),
            ("ema", "ema_model.model.out.2.bias"),
            ("ema", "ema_model.posterior_variance"),
        ],
    )
    def test_missing(self, official, tmp_path, part, key):
        name = key.removeprefix("ema_model.")
        self.check(official, tmp_path, lambda contents: contents[part].pop(key), f"lacks the tensor.*{name}")

    @pytest.mark.parametrize("part", ["vaemodel", "mlp", "ema"])
    def test_unexpected(self, official, tmp_path, part):
        def add(contents):
            contents[part]["ema_model.extra.weight" if part == "ema" else "extra.weight"] = torch.zeros(1)

        self.check(official, tmp_path, add, r"no use for the tensors .*extra\.weight")

    def test_wrong_shape(self, official, tmp_path):
        def widen(contents):
            contents["pointnet"]["fc_c.bias"] = torch.zeros(9)

        message = r"pointnet\.fc_c\.bias' has shape \(9,\); the configuration asks for \(8,\)"
        self.check(official, tmp_path, widen, message, "occupancy")

    def test_other_noise_schedule(self, official, tmp_path):
        def change(contents):
            contents["ema"]["ema_model.betas"] = contents["ema"]["ema_model.betas"] * 1.1

        self.check(official, tmp_path, change, "noise schedule in the checkpoint")

    def test_no_average(self, official, tmp_path):
        self.check(official, tmp_path, lambda contents: contents.pop("ema"), "no moving average.*--no-ema")

    def test_average_not_started(self, official, tmp_path):
        def stop(contents):
            contents["ema"]["initted"] = torch.tensor(False)

        self.check(official, tmp_path, stop, "not been started.*--no-ema")


class TestConfig:
    @pytest.mark.parametrize(
        ("domain", "edit", "message"),
        [
            (
                "image",
                ("model", "params", "ddconfig", "ch_mults", [1]),
                r"ddconfig has the unknown keys \['ch_mults'\]",
            ),
            ("image", ("model", "params", "unetconfig", "depth", 2), r"unetconfig has the unknown keys \['depth'\]"),
            ("image", ("model", "params", "ddpmconfig", "zero_snr", True), "ddpmconfig has the unknown keys"),
            ("image", ("model", "guidance", 1), "model has the unknown keys"),
            ("image", ("model", "DiT", True), "model.DiT is True; only False"),
            ("image", ("model", "embed_dim", ...), "model.embed_dim is missing"),
            ("image", ("model", "params", "ddconfig", "tanh_out", True), "ddconfig.tanh_out is True"),
            ("image", ("model", "params", "ddconfig", "attn_resolutions", [16]), r"attention at \[16\]"),
            ("image", ("model", "params", "ddconfig", "attn_type", "linear"), "attn_type` is 'linear'"),
            ("image", ("model", "params", "ddconfig", "hdbf_resolutions", [8]), r"hdbf_resolutions` \[8\]"),
            ("image", ("model", "params", "ddconfig", "hdbf_resolutions", [16]), "gives 2 basis fields"),
            ("image", ("model", "params", "mlpconfig", "latent_dim", 8), "latent_dim is 8.*16"),
            ("image", ("model", "params", "unetconfig", "in_channels", 8), "in_channels` is 8.*4 channels"),
            ("image", ("model", "params", "unetconfig", "num_classes", 10), "num_classes is 10"),
            ("image", ("model", "params", "ddpmconfig", "parameterization", "v"), "parameterization is 'v'"),
            ("image", ("model", "params", "ddpmconfig", "beta_schedule", "sqrt"), "beta_schedule` is 'sqrt'"),
            ("image", ("model", "params", "ddpmconfig", "linear_end", 0.02), "noise schedule in the checkpoint"),
            ("image", ("model", "params", "unetconfig", ...), "first-stage configuration"),
            ("image", ("data", "domain", "audio"), "`data.domain` is 'audio'"),
            ("image", ("data", ...), "section `data` is missing"),
            ("video", ("data", "frames", "4"), "data.frames is '4'"),
            ("video", ("model", "params", "unetconfig", "size3", 5), r"\(4, 4, 5\).*\(4, 4, 4\)"),
            ("video", ("model", "params", "ddconfig", "patch_size", 4), "patch_size is 4"),
            ("nerf", ("model", "params", "mlpconfig", "in_channels_xyz", 159), "in_channels_xyz is 159.*111"),
            ("occupancy", ("data", "conv_config", ...), "data.conv_config"),
        ],
    )
    def test_refused(self, official, tmp_path, domain, edit, message):
        config = edited_config(official, domain, tmp_path, *edit)
        with pytest.raises(ConversionError, match=message):
            convert(official / domain / "ldm-last.pt", config, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_sizes_of_another_network(self, official, tmp_path):
        config = edited_config(official, "image", tmp_path, "model", "params", "ddconfig", "ch_mult", [2, 2, 1])
        with pytest.raises(ConversionError, match=r"vae: the tensor 'vaemodel\..*' has shape"):
            convert(official / "image" / "ldm-last.pt", config, tmp_path / "out")

    def test_point_configuration_is_found_above_the_file(self, official, tmp_path):
        nested = tmp_path / "configs" / "ldm"
        nested.mkdir(parents=True)
        config = edited_config(official, "occupancy", nested, "data", "conv_config", "convocc/points.yaml")
        with pytest.raises(FileNotFoundError, match=r"convocc/points\.yaml"):
            read_official_config(config)
        (tmp_path / "convocc").mkdir()
        (nested / "encoder.yaml").rename(tmp_path / "convocc" / "points.yaml")
        assert read_official_config(config).points["n_blocks"] == 3

    def test_numbers_as_omegaconf_reads_them(self, official, tmp_path):
        text = (
            files(official, "image")[1]
            .read_text()
            .replace("timesteps: 1000", "timesteps: 1000\n      linear_start: 15e-4")
        )
        (tmp_path / "config.yaml").write_text(text)
        assert read_official_config(tmp_path / "config.yaml").diffusion["linear_start"] == 0.0015

    def test_repeated_keys(self, official, tmp_path):
        text = files(official, "image")[1].read_text()
        (tmp_path / "config.yaml").write_text(text + "\ndata:\n  domain: video\n")
        with pytest.raises(ConversionError, match=r"\['data'\] are given twice"):
            read_official_config(tmp_path / "config.yaml")

    def test_neither_file_nor_preset(self):
        with pytest.raises(FileNotFoundError, match=r"ffhq.*presets afhq, celebahq"):
            read_official_config("ffhq")

    def test_first_stage_file_needs_no_denoiser(self, official, tmp_path):
        config = edited_config(official, "image", tmp_path, "model", "params", "unetconfig", ...)
        convert(official / "image" / "model-last.pt", config, tmp_path / "out", dry_run=True)


@pytest.mark.parametrize(
    ("preset", "vae", "readout", "points", "denoiser"),
    [
        ("afhq", 57_201_088, 1_880_021, 0, 519_220_416),
        ("celebahq", None, 1_880_021, 0, 1_014_986_816),
        ("shapenet", 124_110_464, 629_825, 2_307_616, 678_673_600),
        ("skytimelapse", 88_634_240, 858_819, 0, 767_856_704),
        ("srn_cars", 124_067_296, 554_116, 2_309_152, 678_673_600),
    ],
)
def test_published_sizes(preset, vae, readout, points, denoiser):
    official = read_official_config(preset)
    with torch.device("meta"):
        autoencoder = AutoencoderD2C(**autoencoder_config(official, ENCODER_PLANES.get((official.domain, 2))))
        model_class, config = denoiser_config(official, autoencoder.latent_shape)
        unet = model_class(**config)

    def count(module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(autoencoder.readout) == readout
    found_points = count(autoencoder.encoder.points) if points else 0
    assert found_points == points
    if vae is not None:
        assert count(autoencoder) - readout - points == vae
    assert count(unet) - unet.mixing.logit.numel() == denoiser


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    assert "--no-ema" in capsys.readouterr().out
