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
"""`python -m diffusers_ddmi.conversion --checkpoint ldm-last.pt --config shapenet.yaml --output_dir ddmi-shapenet`."""

import argparse
from collections.abc import Sequence

from diffusers_ddmi.conversion import ConversionError, convert
from diffusers_ddmi.conversion.convert import DTYPES
from diffusers_ddmi.conversion.presets import PRESETS


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m diffusers_ddmi.conversion",
        description="Converts a checkpoint of the official DDMI code (ldm-last.pt or model-last.pt) to a diffusers folder.",
    )
    parser.add_argument("--checkpoint", required=True, help="the .pt file; nothing in it is run")
    parser.add_argument("--config", required=True, help=f"its official YAML file, or one of {', '.join(PRESETS)}")
    parser.add_argument("--output_dir", required=True, help="the folder to write")
    parser.add_argument("--point_config", help="the point encoder's YAML file, if not the one that --config names")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32", help="precision of the saved weights")
    parser.add_argument(
        "--no-ema", "--no_ema", dest="ema", action="store_false", help="take the denoiser as last trained"
    )
    parser.add_argument("--max_shard_size", default="10GB", help="size of one weights file")
    parser.add_argument("--overwrite", action="store_true", help="replace the output folder")
    parser.add_argument("--dry_run", "--dry-run", action="store_true", help="check and map everything, write nothing")
    parser.add_argument(
        "--encoder_planes",
        type=lambda planes: planes.split(","),
        help="for shapes: the encoder's planes in the order in which they fill the latents, such as xy,xz,yz",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_args(arguments)
    try:
        report = convert(
            args.checkpoint,
            args.config,
            args.output_dir,
            dtype=args.dtype,
            use_ema=args.ema,
            max_shard_size=args.max_shard_size,
            overwrite=args.overwrite,
            dry_run=args.dry_run,
            point_config=args.point_config,
            encoder_planes=args.encoder_planes,
            progress=True,
        )
    except (ConversionError, OSError) as error:
        raise SystemExit(f"Not converted: {error}") from error
    print(report)
    print(f"Nothing was written (dry run): {report.output_dir}" if args.dry_run else f"Written: {report.output_dir}")


if __name__ == "__main__":
    main()
