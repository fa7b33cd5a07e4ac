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
"""Pictures: every mode becomes the same RGB, targets lie where their coordinates say, bad files cost only themselves."""

import logging
import warnings

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from diffusers_ddmi.data import load_signals
from diffusers_ddmi.data.images import ImageExamples, load_digits, load_image_dataset, load_procedural_images
from diffusers_ddmi.data.pictures import decode_picture


def gradient(width: int, height: int) -> np.ndarray:
    """Float RGB in [0, 255], affine in the pixel centres, so that resizing keeps it away from the borders."""
    x = (2 * np.arange(width) + 1) / width - 1
    y = (2 * np.arange(height) + 1) / height - 1
    x, y = np.meshgrid(x, y)
    return np.stack([127 + 100 * x, 127 + 100 * y, 127 + 50 * x - 50 * y], -1)


def save(array: np.ndarray, path, **options):
    Image.fromarray(np.rint(array).astype(np.uint8)).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    (root / "cats").mkdir(parents=True)
    save(gradient(40, 30), root / "b.png")
    save(gradient(30, 40), root / "a.png")
    save(gradient(33, 33), root / "cats" / "c.jpg")
    return root


class TestModes:
    @pytest.fixture
    def grey(self):
        return np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))

    @pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "1"])
    def test_eight_bit(self, tmp_path, grey, mode):
        picture = Image.fromarray(grey).convert(mode)
        picture.save(tmp_path / "x.png")
        expected = np.where(grey > 127, 255, 0) if mode == "1" else grey
        if mode == "1":
            picture = Image.fromarray(expected.astype(np.uint8)).convert("1")
            picture.save(tmp_path / "x.png")
        decoded = decode_picture(tmp_path / "x.png")
        assert decoded.mode == "RGB"
        np.testing.assert_array_equal(np.asarray(decoded), np.repeat(expected[..., None], 3, -1))

    @pytest.mark.parametrize("suffix", ["png", "tif"])
    def test_sixteen_bit_is_scaled_not_clipped(self, tmp_path, grey, suffix):
        Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / f"x.{suffix}")
        np.testing.assert_array_equal(np.asarray(decode_picture(tmp_path / f"x.{suffix}"))[..., 1], grey)

    def test_float(self, tmp_path, grey):
        Image.fromarray((grey / 255).astype(np.float32)).save(tmp_path / "x.tif")
        np.testing.assert_array_equal(np.asarray(decode_picture(tmp_path / "x.tif"))[..., 1], grey)
        Image.fromarray(np.full((4, 4), 3.0, np.float32)).save(tmp_path / "y.tif")
        with pytest.raises(ValueError, match=r"y\.tif.*\[0, 1\], got \[3, 3\]"):
            decode_picture(tmp_path / "y.tif")

    def test_transparency_lies_over_white(self, tmp_path):
        rgba = np.zeros((2, 2, 4), np.uint8)
        rgba[0, 0] = [255, 0, 0, 255]
        rgba[0, 1] = [255, 0, 0, 0]
        rgba[1, 0] = [0, 0, 0, 51]
        Image.fromarray(rgba).save(tmp_path / "x.png")
        decoded = np.asarray(decode_picture(tmp_path / "x.png"))
        np.testing.assert_array_equal(decoded[:, :, 1], [[0, 255], [204, 255]])
        palette = Image.fromarray(np.array([[0, 1]], np.uint8))
        palette.putpalette([10, 20, 30, 40, 50, 60])
        palette.save(tmp_path / "p.png", transparency=1)
        np.testing.assert_array_equal(np.asarray(decode_picture(tmp_path / "p.png"))[0], [[10, 20, 30], [255] * 3])

    def test_cmyk(self, tmp_path):
        Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "x.jpg", quality=100)
        np.testing.assert_allclose(np.asarray(decode_picture(tmp_path / "x.jpg"))[4, 4], [255, 0, 0], atol=3)

    def test_exif_orientation_is_applied(self, tmp_path):
        array = np.zeros((4, 6, 3), np.uint8)
        array[0, 0] = 255
        exif = Image.Exif()
        exif[0x0112] = 6  # turn by 90° clockwise to view: the first pixel goes to the upper right
        Image.fromarray(array).save(tmp_path / "x.png", exif=exif)
        decoded = np.asarray(decode_picture(tmp_path / "x.png"))
        assert decoded.shape == (6, 4, 3)
        assert decoded[0, 3, 0] == 255

    def test_wrong_type(self):
        with pytest.raises(TypeError, match=r"a path, a Pillow image or a dict.*got int"):
            decode_picture(7)


class TestFolder:
    def test_subfolders_sorted_without_captions(self, folder):
        rows = load_image_dataset(folder)
        assert [row["image"]["path"] for row in rows] == [
            str(folder / name) for name in ("a.png", "b.png", "cats/c.jpg")
        ]
        assert rows.column_names == ["image"]

    def test_captions_beside_the_pictures(self, folder):
        (folder / "metadata.csv").write_text("file_name,caption,extra\na.png,an A,1\ncats/c.jpg,,2\n")
        (folder / "cats" / "metadata.jsonl").write_text('{"file_name": "c.jpg", "caption": "a cat, \\"seen\\""}\n')
        assert load_image_dataset(folder)["caption"][:] == ["an A", "", 'a cat, "seen"']
        (folder / "cats" / "metadata.jsonl").unlink()
        assert load_image_dataset(folder, caption_column="extra")["caption"][:] == ["1", "", "2"]
        with pytest.raises(ValueError, match="no column title; it has caption, extra, file_name"):
            load_image_dataset(folder, caption_column="title")

    def test_pictures_without_captions_are_counted(self, folder, caplog):
        (folder / "metadata.csv").write_text("file_name,text\nA.PNG,an A\nb.png,a B\n")
        assert load_image_dataset(folder)["caption"][:] == ["", "a B", ""]
        assert "2 of 3 items" in caplog.text

    @pytest.mark.parametrize("line", ['{"file_name": "a.png"', "[1]", "7"])
    def test_damaged_metadata(self, folder, line):
        (folder / "metadata.jsonl").write_text(line)
        with pytest.raises(
            ValueError, match=r"metadata\.jsonl (cannot be read as jsonl|must hold one JSON object a line)"
        ):
            load_image_dataset(folder)

    def test_bad_files_are_named_skipped_and_counted(self, folder, caplog):
        (folder / "empty.png").touch()
        (folder / "text.jpg").write_text("not a picture")
        with caplog.at_level(logging.WARNING):
            assert len(load_image_dataset(folder)) == 3
        text = caplog.text
        assert "empty.png: the file is empty" in text
        assert "text.jpg" in text
        assert "skipped 2 of 5" in text
        with pytest.raises(ValueError, match=r"empty\.png"):
            load_image_dataset(folder, strict=True)

    def test_truncated_pixels_are_named_when_decoded(self, folder):
        data = (folder / "a.png").read_bytes()
        (folder / "a.png").write_bytes(data[: len(data) // 2])
        row = load_image_dataset(folder)[0]
        with pytest.raises(ValueError, match=r"unreadable picture .*a\.png"):
            ImageExamples(8)(row, np.random.default_rng(0))

    def test_empty_and_missing(self, tmp_path):
        with pytest.raises(ValueError, match=r"no pictures in .*expected files with one of"):
            load_image_dataset(tmp_path)
        with pytest.raises(FileNotFoundError, match="no such folder"):
            load_image_dataset(tmp_path / "nowhere")
        (tmp_path / "x.png").touch()
        with pytest.raises(ValueError, match="none of 1 picture"):
            load_image_dataset(tmp_path)

    def test_split_subfolders(self, tmp_path, caplog):
        for split, number in (("train", 3), ("test", 2)):
            (tmp_path / split).mkdir()
            for i in range(number):
                save(gradient(4, 4), tmp_path / split / f"{i}.png")
        assert len(load_image_dataset(tmp_path)) == 3
        assert len(load_image_dataset(tmp_path, split="test")) == 2
        with pytest.raises(FileNotFoundError, match=r"no split 'validation'.*test, train"):
            load_image_dataset(tmp_path, split="validation")
        (tmp_path / "dogs").mkdir()
        assert len(load_image_dataset(tmp_path)) == 3, "with other folders beside it, what is held out stays held out"
        assert "left out: dogs" in caplog.text

    def test_several_captions_of_a_picture(self, tmp_path):
        for name in ("a", "b"):
            save(gradient(4, 4), tmp_path / f"{name}.png")
        (tmp_path / "metadata.csv").write_text("file_name,caption\na.png,one\na.png,two\nb.png,three\n")
        rows = load_image_dataset(tmp_path)
        assert rows["caption"][:] == [["one", "two"], ["three"]]
        examples = ImageExamples(resolution=4)
        assert {examples(rows[0], np.random.default_rng(seed))["caption"] for seed in range(20)} == {"one", "two"}
        assert examples(rows[1], np.random.default_rng(0))["caption"] == "three"

    def test_one_source(self, folder):
        for arguments in ({}, {"train_data_dir": folder, "dataset_name": "digits"}):
            with pytest.raises(ValueError, match="either train_data_dir or dataset_name"):
                load_image_dataset(**arguments)

    def test_streaming_gives_the_same_rows(self, folder):
        stream = load_image_dataset(folder, streaming=True)
        assert isinstance(stream, datasets.IterableDataset)
        assert list(stream) == list(load_image_dataset(folder))

    def test_a_stream_is_shuffled_anew_in_every_epoch(self):
        def captions(epoch, **options):
            stream = load_signals("image", "digits", split="test", streaming=True, resolution=8, **options)
            stream.set_epoch(epoch)
            return [example["caption"] for example in stream]

        stored = captions(0)
        first, again, second = (captions(epoch, shuffle_buffer_size=16) for epoch in (0, 0, 1))
        assert first == again
        assert len({tuple(order) for order in (stored, first, second)}) == 3
        assert sorted(stored) == sorted(first) == sorted(second)


class TestNamed:
    @pytest.fixture
    def saved(self, tmp_path):
        digits = load_digits(size=16).select(range(4))
        digits = digits.rename_columns({"image": "scan", "caption": "text"}).add_column("more", range(4))
        digits.cast_column("scan", datasets.Image()).save_to_disk(str(tmp_path / "set"))
        return str(tmp_path / "set")

    @pytest.mark.parametrize("streaming", [False, True])
    def test_columns_are_found_and_renamed(self, saved, streaming):
        rows = list(load_image_dataset(dataset_name=saved, streaming=streaming))
        assert [set(row) for row in rows] == [{"image", "caption"}] * 4
        assert rows[2]["caption"] == "a handwritten two"
        assert decode_picture(rows[2]["image"]).size == (16, 16)

    def test_clear_errors(self, saved, tmp_path):
        with pytest.raises(ValueError, match="no column 'picture'; it has more, scan, text"):
            load_image_dataset(dataset_name=saved, image_column="picture")
        with pytest.raises(ValueError, match="no caption column 'title'"):
            load_image_dataset(dataset_name=saved, caption_column="title")
        with pytest.raises(FileNotFoundError, match="no data set"):
            load_image_dataset(dataset_name=str(tmp_path / "nothing"))


class TestGenerated:
    def test_digits(self):
        train, test = load_digits(size=32), load_digits("test", size=32)
        assert (len(train), len(test)) == (1500, 297)
        assert train["caption"][:3] == ["a handwritten zero", "a handwritten one", "a handwritten two"]
        zero = np.asarray(decode_picture(train[0]["image"])) / 255.0
        assert zero[16, 16].max() < 0.1 < 0.9 < zero[:, 8:13].max(), "a ring of ink about an empty middle"
        assert zero[0].max() == 0.0
        for arguments in ({"split": "valid"}, {"size": 9}):
            with pytest.raises(ValueError, match=r"splits|at least 10"):
                load_digits(**arguments)

    def test_procedural_follows_from_seed_and_index(self):
        first, more = load_procedural_images(num_images=3), load_procedural_images(num_images=5)
        assert list(first) == list(more)[:3]
        other, held_out = load_procedural_images(num_images=3, seed=1), load_procedural_images("test", num_images=3)
        examples = ImageExamples(16, scales=(1,))
        pictures = [examples(row, np.random.default_rng(0))["inputs"] for row in [*more, *other, *held_out]]
        assert len({tuple(picture.flatten().tolist()) for picture in pictures}) == 11
        for arguments in ({"num_images": 0}, {"split": "dev"}):
            with pytest.raises(ValueError, match=r"at least 1|splits"):
                load_procedural_images(**arguments)

    def test_procedural_pictures_have_every_scale(self):
        row, examples, rng = load_procedural_images(num_images=1)[0], ImageExamples(24), np.random.default_rng(0)
        drawn = [examples(row, rng) for _ in range(20)]
        assert {round(1 / float(example["scale"]), 4) for example in drawn} == {1.0, 1.5, 2.0}
        assert all(example["caption"] == row["caption"] for example in drawn)

    def test_loader_knows_both(self):
        assert "caption" in load_image_dataset(dataset_name="digits", split="test").column_names
        assert len(load_image_dataset(dataset_name="procedural")) == 2048


class TestExamples:
    def test_affine_picture_agrees_with_its_coordinates(self, tmp_path):
        """The picture's colours are an affine function of position, so each target must be that function of its coords."""
        row = {"image": str(save(gradient(128, 128), tmp_path / "x.png"))}
        examples = ImageExamples(32)
        scales = []
        for seed in range(40):
            example = examples(row, np.random.default_rng(seed))
            coords, targets = example["coords"].double(), (example["targets"].double() + 1) * 127.5
            expected = 127 + torch.stack(
                [100 * coords[:, 0], 100 * coords[:, 1], 50 * coords[:, 0] - 50 * coords[:, 1]], 1
            )
            inner = coords.abs().amax(1) < 0.9
            torch.testing.assert_close(targets[inner], expected[inner], atol=1.5, rtol=0)
            assert coords.abs().max() <= 1 - 1 / 64
            scales.append(round(1 / float(example["scale"]), 4))
            # Neighbouring pixel centres of the window are 2/(sR) apart.
            step = coords.reshape(32, 32, 2)[0, 1, 0] - coords[0, 0]
            assert float(step) == pytest.approx(2 / (32 * scales[-1]), rel=1e-5)
        assert set(scales) == {1.0, 1.5, 2.0}

    def test_window_is_a_part_of_the_enlarged_whole(self, tmp_path):
        noise = np.random.default_rng(0).uniform(0, 255, (150, 131, 3))
        row = {"image": str(save(noise, tmp_path / "x.png"))}
        whole = ImageExamples(64, scales=(1,))(row, np.random.default_rng(0))
        lookup = whole["inputs"].permute(1, 2, 0).numpy()
        for seed in range(5):
            example = ImageExamples(32, scales=(1, 2), probabilities=(0, 1))(row, np.random.default_rng(seed))
            index = np.rint((example["coords"].numpy() + 1) * 32 - 0.5).astype(int)
            np.testing.assert_allclose(example["targets"], lookup[index[:, 1], index[:, 0]], atol=2.1 / 127.5)

    def test_whole_picture_at_scale_one(self, tmp_path):
        row = {"image": str(save(gradient(128, 128), tmp_path / "x.png")), "caption": "a gradient"}
        example = ImageExamples(16, scales=(1,))(row, np.random.default_rng(0))
        assert example["inputs"].shape == (3, 16, 16)
        assert example["inputs"].dtype == example["coords"].dtype == example["targets"].dtype == torch.float32
        assert example["scale"].shape == () and example["scale"] == 1
        assert example["caption"] == "a gradient"
        torch.testing.assert_close(example["targets"], example["inputs"].flatten(1).T)
        torch.testing.assert_close(example["coords"][0], torch.tensor([-15 / 16, -15 / 16]))
        torch.testing.assert_close(example["coords"][1], torch.tensor([-13 / 16, -15 / 16]))  # x is fastest

    def test_scales_are_drawn_with_their_probabilities(self, tmp_path):
        row = {"image": str(save(gradient(16, 16), tmp_path / "x.png"))}
        examples, rng = ImageExamples(8), np.random.default_rng(0)
        scales = [round(1 / float(examples(row, rng)["scale"]), 4) for _ in range(1000)]
        shares = [scales.count(scale) / 1000 for scale in (1.0, 1.5, 2.0)]
        np.testing.assert_allclose(shares, (0.3, 0.3, 0.4), atol=0.06)

    @pytest.mark.parametrize(("side", "allowed"), [(20, {1.0}), (32, {1.0}), (48, {1.0, 1.5}), (64, {1.0, 1.5, 2.0})])
    def test_no_scale_beyond_the_pictures_own_pixels(self, tmp_path, side, allowed):
        row = {"image": str(save(gradient(side, side + 40), tmp_path / "x.png"))}
        rng, examples = np.random.default_rng(0), ImageExamples(32)
        assert {round(1 / float(examples(row, rng)["scale"]), 4) for _ in range(40)} == allowed

    def test_reducing_does_not_alias(self, tmp_path):
        checks = 255.0 * (np.indices((256, 256)).sum(0) % 2)
        row = {"image": str(save(np.repeat(checks[..., None], 3, -1), tmp_path / "x.png"))}
        example = ImageExamples(16, scales=(1,))(row, np.random.default_rng(0))
        assert example["inputs"].abs().max() < 0.05, "one-pixel checks average to grey"

    def test_crops(self, tmp_path):
        array = np.zeros((32, 96, 3))
        array[:, 24:72] = 255
        row = {"image": str(save(array, tmp_path / "x.png"))}
        assert ImageExamples(8, scales=(1,))(row, np.random.default_rng(0))["inputs"].min() == 1
        rng, examples = np.random.default_rng(0), ImageExamples(8, scales=(1,), center_crop=False)
        assert len({float(examples(row, rng)["inputs"].mean()) for _ in range(8)}) > 4

    def test_flip_mirrors_inputs_and_targets_alike(self, tmp_path):
        row = {"image": str(save(gradient(16, 16), tmp_path / "x.png"))}
        examples, rng = ImageExamples(16, scales=(1,), random_flip=True), np.random.default_rng(0)
        slopes = []
        for _ in range(20):
            example = examples(row, rng)
            torch.testing.assert_close(example["targets"], example["inputs"].flatten(1).T)
            slopes.append(bool(example["inputs"][0, 0, 0] < example["inputs"][0, 0, -1]))
        assert set(slopes) == {True, False}

    def test_subset_of_coordinates(self, tmp_path):
        row = {"image": str(save(gradient(16, 16), tmp_path / "x.png"))}
        whole = ImageExamples(16, scales=(1,))(row, np.random.default_rng(0))
        part = ImageExamples(16, scales=(1,), num_coords=50)(row, np.random.default_rng(0))
        assert part["coords"].shape == (50, 2) and part["targets"].shape == (50, 3)
        assert len(part["coords"].unique(dim=0)) == 50
        table = {tuple(c): v for c, v in zip(whole["coords"].tolist(), whole["targets"].tolist())}
        assert [table[tuple(c)] for c in part["coords"].tolist()] == part["targets"].tolist()

    def test_same_generator_same_example(self, folder):
        row, examples = (
            load_image_dataset(folder)[0],
            ImageExamples(8, num_coords=9, random_flip=True, center_crop=False),
        )
        one, two = (examples(row, np.random.default_rng(5)) for _ in range(2))
        assert all(torch.equal(one[key], two[key]) for key in one)

    def test_captions(self, tmp_path):
        image = str(save(gradient(8, 8), tmp_path / "x.png"))
        examples, rng = ImageExamples(8), np.random.default_rng(0)
        drawn = {examples({"image": image, "caption": ["one", "two"]}, rng)["caption"] for _ in range(20)}
        assert drawn == {"one", "two"}
        assert examples({"image": image, "caption": None}, rng)["caption"] == ""
        assert "caption" not in examples({"image": image}, rng)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"resolution": 0}, "resolution must be a positive whole number of pixels, got 0"),
            ({"resolution": 8.0}, "resolution must be a positive whole number of pixels, got 8.0"),
            ({"resolution": 8, "scales": (2,)}, r"scales must hold 1 and none below 1, got \(2,\)"),
            ({"resolution": 8, "scales": (0.5, 1)}, "none below 1"),
            ({"resolution": 8, "probabilities": (1.0,)}, "as many, got 3 and 1"),
            ({"resolution": 8, "probabilities": (0.5, 0.5, 0.5)}, "sum 1"),
            ({"resolution": 8, "num_coords": 65}, r"\[1, 64\].*got 65"),
        ],
    )
    def test_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            ImageExamples(**arguments)

    def test_no_warnings_on_odd_files(self, folder):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for row in load_image_dataset(folder):
                ImageExamples(8)(row, np.random.default_rng(0))
