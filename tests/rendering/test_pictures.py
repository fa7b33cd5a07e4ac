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
"""Sheets and files of pictures."""

import numpy as np
import pytest
from PIL import Image

from diffusers_ddmi.rendering.pictures import contact_sheet, save_gif, save_image


def test_contact_sheet_places_pictures_row_by_row():
    images = [np.full((10, 20, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = contact_sheet(images, columns=2, padding=4)
    assert sheet.shape == (4 + 2 * 14, 4 + 2 * 24, 3)
    assert (sheet[4:14, 4:24] == 10).all() and (sheet[4:14, 28:48] == 20).all() and (sheet[18:28, 4:24] == 30).all()
    assert (sheet[18:28, 28:48] == 255).all()
    captioned = contact_sheet(images, columns=2, captions=["one", "two", "a caption too long for its narrow picture"])
    assert captioned.shape[0] > sheet.shape[0]
    with pytest.raises(ValueError, match="Got 1 captions for 3 images"):
        contact_sheet(images, captions=["one"])
    with pytest.raises(ValueError, match="empty"):
        contact_sheet([])


def test_files_are_written_whole_or_not_at_all(tmp_path):
    frames = [np.full((8, 8, 3), value, np.uint8) for value in (0, 120, 255)]
    save_image(frames[1], tmp_path / "new" / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "a.png")), frames[1])
    save_gif(frames, tmp_path / "a.gif", fps=10)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 3 and gif.info["duration"] == 100 and gif.info["loop"] == 0
    before = (tmp_path / "a.gif").read_bytes()
    with pytest.raises(TypeError):
        save_gif([frames[0], "not a picture"], tmp_path / "a.gif")
    with pytest.raises(ValueError, match="one size"):
        save_gif([frames[0], frames[0][:4]], tmp_path / "a.gif")
    with pytest.raises(ValueError, match=r"'a\.mesh'"):
        save_image(frames[0], tmp_path / "a.mesh")
    assert (tmp_path / "a.gif").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif", "new"]
