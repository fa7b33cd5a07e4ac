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
"""What a saved pipeline folder carries beside weights: a model card, and on request code for `trust_remote_code`."""

import json
import os
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, ModelCardData, create_repo

from ..files import write_text


#: How the model card shows each modality, after `output = pipe(...)`.
_USAGE = {
    "image": ("height=512, width=512", 'output.images[0].save("image.png")'),
    "shape": ("resolution=128", 'output.meshes[0].export("shape.glb")'),
    "video": ("num_frames=16", 'diffusers.utils.export_to_gif(output.frames[0], "video.gif")'),
    "nerf": ("num_views=24", 'diffusers.utils.export_to_gif(output.frames[0], "turntable.gif")'),
}

_CARD = """# {name}

A [DDMI](https://arxiv.org/abs/2401.12517) pipeline: a latent diffusion model that generates {modality} signals as
continuous functions, read out at any resolution.

```python
{code}
```

| | |
|---|---|
| VAE | {vae} |
| denoiser | {unet} |
| scheduler | {scheduler} |
| text | {text} |
"""


def usage_example(pipe, model: str) -> str:
    """Code that loads `model` and generates, as the model card shows it."""
    options, show = _USAGE[pipe.modality]
    imports = "import diffusers\n" if "diffusers.utils" in show else ""
    prompt = '"a prompt", ' if pipe.takes_text else ""
    return (
        f"{imports}import diffusers_ddmi\nfrom diffusers import DiffusionPipeline\n\n"
        f'pipe = DiffusionPipeline.from_pretrained("{model}")\noutput = pipe({prompt}{options})\n{show}'
    )


def _component(component) -> str:
    """A component's class and size, for the card's table. Any may be missing: pipelines are also loaded in parts."""
    if component is None:
        return "none"
    size = f", {component.num_parameters() / 1e6:.1f} M parameters" if hasattr(component, "num_parameters") else ""
    return f"`{type(component).__name__}`{size}"


def write_model_card(pipe, folder: str | os.PathLike, repo_id: str) -> None:
    """Writes `README.md` into a pipeline folder, unless there is one."""
    path = Path(folder) / "README.md"
    if path.exists():
        return
    data = ModelCardData(library_name="diffusers", tags=["diffusers_ddmi", "ddmi", pipe.modality])
    text = _CARD.format(
        name=repo_id.split("/")[-1],
        modality=pipe.modality,
        code=usage_example(pipe, repo_id),
        vae=_component(pipe.vae) + ("" if pipe.vae is None else f", latents {tuple(pipe.vae.latent_shape)}"),
        unet=_component(pipe.unet),
        scheduler=_component(pipe.scheduler),
        text=_component(pipe.text_encoder),
    )
    write_text(path, str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")))


def strip_local_paths(folder: str | os.PathLike) -> None:
    """Removes the folder names that diffusers notes in the configs of components loaded from a local folder."""
    for path in (Path(folder) / "model_index.json", *Path(folder).glob("*/*config.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        origin = config.get("_name_or_path")
        if origin is not None and (os.path.isabs(origin) or os.path.exists(origin)):
            del config["_name_or_path"]
            write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_remote_code(pipe, folder: str | os.PathLike) -> None:
    """Turns a pipeline folder into one that a process loads without importing diffusers_ddmi first.

    diffusers then reads the classes from small modules in the folder, which needs `trust_remote_code=True`; without
    it such a folder cannot be loaded.
    """
    folder = Path(folder)
    index_path = folder / "model_index.json"
    index = json.loads(index_path.read_text(encoding="utf-8"))
    write_text(folder / "pipeline.py", f"from diffusers_ddmi import {type(pipe).__name__}  # noqa: F401\n")
    index["_class_name"] = ["pipeline", type(pipe).__name__]
    for component, entry in index.items():
        if isinstance(entry, list) and entry[0] == "diffusers_ddmi":
            module = f"modeling_{component}"
            write_text(folder / component / f"{module}.py", f"from diffusers_ddmi import {entry[1]}  # noqa: F401\n")
            index[component] = [module, entry[1]]
    write_text(index_path, json.dumps(index, indent=2, sort_keys=True) + "\n")


def full_repo_id(repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Creates a repository on the hub unless it is there, and returns its id with the owner's name."""
    return create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id


def upload(
    folder: str | os.PathLike,
    repo_id: str,
    commit_message: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
) -> str:
    """Uploads a pipeline folder to a repository on the hub and returns the commit's URL."""
    info = HfApi(token=token).upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        commit_message=commit_message or "Upload DDMI pipeline",
        create_pr=create_pr,
    )
    return str(info)
