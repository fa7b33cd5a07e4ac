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
"""Text for stage 2: a pretrained CLIP text encoder, or a small one of our own with a tokenizer made from the captions."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers, trainers
from torch.utils.data import Dataset, IterableDataset
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def load_text_encoder(name_or_path: str) -> tuple[CLIPTokenizer, CLIPTextModel]:
    """A pretrained CLIP tokenizer and text encoder, from a folder or the hub; also from the folder of a pipeline."""
    parts = {"tokenizer": name_or_path, "text_encoder": name_or_path}
    for part in parts:
        if Path(name_or_path, part).is_dir():
            parts[part] = str(Path(name_or_path, part))
    tokenizer = CLIPTokenizer.from_pretrained(parts["tokenizer"])
    # Weights that are stored in half precision would be computed, and trained, in it.
    return tokenizer, CLIPTextModel.from_pretrained(parts["text_encoder"], dtype=torch.float32)


def build_tokenizer(captions: Iterable[str], max_length: int, vocabulary_size: int = 4096) -> CLIPTokenizer:
    """CLIP's tokenizer with byte pairs that are learned from the captions; the same captions give the same tokens.

    Args:
        captions: those of the training data. max_length: tokens of a prompt, start and end included.
        vocabulary_size: at most so many tokens; few captions give fewer.
    """
    backend = CLIPTokenizer().backend_tokenizer  # it splits text into words as CLIP does
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # The trainer numbers the ends of words in an order that changes from call to call, unless they are given.
    given = [START, END, *alphabet, *(letter + WORD_END for letter in alphabet)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size, special_tokens=given, end_of_word_suffix=WORD_END, show_progress=False
    )
    backend.train_from_iterator(captions, trainer)
    model = json.loads(backend.to_str())["model"]
    return CLIPTokenizer(
        vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]], model_max_length=max_length
    )


def captions_of(dataset: Dataset) -> Iterator[str]:
    """The captions of a part of a `SignalDataset`, all of an item that has several; the signals are not read.

    Raises:
        ValueError: it has none, or is a stream, which is not read twice.
    """
    if isinstance(dataset, IterableDataset):
        raise ValueError("A tokenizer cannot be made from a stream's captions: give --text_encoder_name_or_path.")
    rows = dataset.dataset.dataset.select(dataset.indices)
    if "caption" not in rows.column_names:
        raise ValueError("Training with text needs captions, and these data have none (see --caption_column).")
    for caption in rows.select_columns("caption")["caption"]:
        yield from caption if isinstance(caption, list) else [caption or ""]


def create_text_encoder(config: dict[str, Any], tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A new CLIPTextModel of a preset's size for this tokenizer's vocabulary."""
    config = {k: v for k, v in config.items() if not k.startswith("_")}
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return CLIPTextModel(
        CLIPTextConfig(**{**config, "vocab_size": len(tokenizer), **{f"{k}_token_id": v for k, v in ids.items()}})
    )
