"""The random models that the cells of the benchmark on a GPU share, made once on the device."""

import os
import time
from pathlib import Path

import torch
from bench_gpu_device import Device
from bench_reward import reward_model
from bench_work import BEGIN, END, MODELS, PAD, SPECIAL, Work
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lit_pref.models.word_tokenizer import save_word_tokenizer

REFERENCES = 3


def make_model(work: Work, seed: int, folder: Path, device: Device) -> Path:
    """Write a model with weights drawn from `seed`, in bf16, which both sides read in fp32; unless it is there."""
    path = folder / f"{work.model}-{seed}"
    if path.is_dir():
        return path
    tokenizer_folder = folder / f"tokenizer-{work.vocabulary}"
    if not tokenizer_folder.is_dir():
        save_word_tokenizer(tokenizer_folder, work.words, *SPECIAL)
    ids = {"bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": PAD, "vocab_size": work.vocabulary}
    config = AutoConfig.for_model(**MODELS[work.model], **ids)
    torch.manual_seed(seed)
    with device.torch:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    unfinished = folder / f"{path.name}.{os.getpid()}"
    model.to(torch.bfloat16).save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(unfinished)
    unfinished.rename(path)
    return path


def make_models(works: list[Work], folder: Path, device: Device) -> dict[str, float]:
    """Return the seconds that each model takes."""
    seconds = {}
    for work in works:
        start = time.perf_counter()
        make_model(work, 0, folder, device)
        seconds[work.model] = time.perf_counter() - start
    return seconds


def link_models(
    work: Work, models: Path, folder: Path, device: Device, references: int = 1, reward: bool = False
) -> None:
    """Put `policy/`, further `reference-1/`, ..., and `reward/` into a cell's folder, as `Work.write` does."""
    for seed, name in enumerate(["policy", *(f"reference-{k}" for k in range(1, references))]):
        (folder / name).symlink_to(make_model(work, seed, models, device).resolve())
    if reward:
        reward_model(folder)
