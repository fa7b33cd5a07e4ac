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
"""Kills training runs at random moments, resumes them, and compares what they end in with an uninterrupted run.

    python tests/training/killing.py --kills 100 --output_dir /tmp/kills

does so for both stages, half of the kills each, and prints a tally.
"""

import argparse
import dataclasses
import os
import random
import time
from collections.abc import Callable
from multiprocessing import Process
from pathlib import Path

from running import STAGE_1, STAGE_2, assert_same_run, draw_pictures, start, start_ranks, wait_for


# When a process is killed: at any time after its start, once it trains, or while it writes a checkpoint.
MOMENTS = ("starting", "training", "writing")


@dataclasses.dataclass
class Tally:
    """Real kills, those of them that left a half-written checkpoint behind, and the runs that were compared."""

    kills: int = 0
    half_written: int = 0
    finished: int = 0

    def __str__(self) -> str:
        return f"{self.kills} kills, {self.half_written} inside a save, {self.finished} runs finished, all equal"


class Killer:
    """One training command, killed and resumed again and again.

    Args:
        script: name of the training script. options: its flags, without those of output and resuming.
        reference: what an uninterrupted run of the same flags has left.
        folder: gets the runs and their output. seed: of the moments. ranks: processes of a run, killed together.
    """

    def __init__(self, script: str, options: dict, reference: Path, folder: Path, seed: int, ranks: int = 1):
        self.script, self.options, self.reference, self.folder, self.ranks = script, options, reference, folder, ranks
        self.random = random.Random(seed)
        self.tally = Tally()
        folder.mkdir(parents=True, exist_ok=True)

    def kill(self, count: int) -> Tally:
        """Kills `count` living runs. Each run that reaches its end is compared, and the next begins anew."""
        while self.tally.kills < count:
            begun = time.time_ns()
            group = self._launch()
            self._wait(group, begun)
            alive = any(process.is_alive() for process in group)
            for process in group:
                process.kill()
            self._join(group)
            if alive:
                self.tally.kills += 1
                self.tally.half_written += self._is_writing(begun)
            else:  # it has been faster
                self._compare(group)
        group = self._launch()
        self._join(group)
        self._compare(group)
        return self.tally

    @property
    def _run(self) -> Path:
        return self.folder / f"run-{self.tally.finished}"

    def _launch(self) -> list[Process]:
        output = self._run.with_suffix(".output")
        options = {
            **self.options,
            "output_dir": self._run,
            "resume_from_checkpoint": "latest",
            "checkpoints_total_limit": 2,
        }
        if self.ranks == 1:
            return [start(self.script, output, **options)]
        return start_ranks(self.script, self.ranks, output, **options)

    def _wait(self, group: list[Process], begun: int) -> None:
        """Until a random moment of the run, or its end."""
        moment, delay = self.random.choice(MOMENTS), self.random.random()
        if moment == "starting":
            time.sleep(2 * delay)
        elif moment == "training":
            self._wait_for(lambda: _is_newer(self._run / "log.jsonl", begun), group)  # a resumed run cuts its log
            time.sleep(delay)
        else:
            self._wait_for(lambda: self._is_writing(begun), group)
            time.sleep(0.1 * delay)

    @staticmethod
    def _wait_for(condition: Callable[[], bool], group: list[Process]) -> None:
        wait_for(lambda: condition() or not any(process.is_alive() for process in group), pause=0.001)

    def _is_writing(self, begun: int) -> bool:
        """Whether there is an unfinished checkpoint, other than those that earlier kills have left."""
        return any(_is_newer(path, begun) for path in self._run.glob(".incomplete-checkpoint-*"))

    @staticmethod
    def _join(group: list[Process]) -> None:
        for process in group:
            process.join()

    def _compare(self, group: list[Process]) -> None:
        messages = "".join(path.read_text() for path in self.folder.glob(f"{self._run.name}*.output*"))
        assert [process.exitcode for process in group] == [0] * self.ranks, messages
        assert_same_run(self._run, self.reference)
        self.tally.finished += 1


def _is_newer(path: Path, nanoseconds: int) -> bool:
    try:
        return path.stat().st_ctime_ns > nanoseconds
    except FileNotFoundError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=12, help="Updates of a run.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    shared = {"train_data_dir": draw_pictures(args.output_dir / "pictures"), "max_train_steps": args.steps}
    references = {1: args.output_dir / "vae", 2: args.output_dir / "ddmi-test"}
    stages = {
        1: ("train_d2c_vae", {**STAGE_1, **shared}),
        2: ("train_ldm", {**STAGE_2, **shared, "pretrained_vae": references[1]}),
    }
    for stage, (script, options) in stages.items():
        uninterrupted = start(script, args.output_dir / "output", **options, output_dir=references[stage])
        uninterrupted.join()
        assert uninterrupted.exitcode == 0, (args.output_dir / "output").read_text()
        killer = Killer(script, options, references[stage], args.output_dir / f"stage-{stage}", args.seed + stage)
        kills = args.kills // 2 if stage == 1 else args.kills - args.kills // 2
        print(f"stage {stage}: {killer.kill(kills)}", flush=True)


if __name__ == "__main__":
    main()
