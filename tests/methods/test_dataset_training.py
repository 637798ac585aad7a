"""The data set in trainers that are not ours: TRL's own, on the text columns."""

import copy
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_dataset
from tiny_policy import make_model, make_pairs, make_tokenizer, same, state
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

import gpo
from gpo.preferences.dataset import form_rows, to_table, write_dataset
from gpo.types import PrefixIn

SETTINGS = {
    "max_steps": 1,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "max_length": None,
    "bf16": False,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
}


@pytest.mark.parametrize(("config", "trainer"), [(DPOConfig, DPOTrainer), (KTOConfig, KTOTrainer)])
@pytest.mark.parametrize("prefix_in", ["prompt", "completion"])
def test_a_stock_trainer_takes_the_text_columns(
    tmp_path: Path, config: Any, trainer: Any, prefix_in: PrefixIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pairs, model = make_pairs(8), make_model()
    write_dataset(pairs, tmp_path / "set", prefix_in)
    form = "pairs" if trainer is DPOTrainer else "unpaired"
    dataset = load_dataset(str(tmp_path / "set"), form, split="train", cache_dir=str(tmp_path / "cache"))
    before = state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TRL and accelerate, whatever they deprecate
        stock = trainer(
            model=model,
            ref_model=copy.deepcopy(model),
            args=config(output_dir=str(tmp_path / "out"), **SETTINGS),
            processing_class=make_tokenizer(),
            train_dataset=dataset,
        )
        stock.train()
    assert not same(before, state(model))
    assert all(torch.isfinite(weights).all() for weights in state(model))


@pytest.mark.parametrize("trainer", ["DPOTrainer", "KTOTrainer"])
def test_the_trainers_of_the_page_train(tmp_path: Path, trainer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    [code] = [block for block in re.findall(r"```python\n(.*?)```", page, re.S) if trainer in block]
    monkeypatch.chdir(tmp_path)
    rows = partial(form_rows, make_pairs(8), "prompt", seed=0)
    monkeypatch.setattr(gpo, "load_pairs", lambda run, arm, form="pairs": Dataset(to_table(list(rows(form=form)))))
    for part in (make_model(), make_tokenizer()):
        part.save_pretrained("MODEL")
    code = code.replace('Config("trained"', 'Config("trained", max_steps=1, report_to="none", disable_tqdm=True')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TRL and accelerate, whatever they deprecate
        exec(code, {"gpo": gpo})
    assert (tmp_path / "trained/checkpoint-1/model.safetensors").exists()


def test_ids_come_back_as_they_were_sampled(tmp_path: Path) -> None:
    """Text does not: two line breaks that meet where a completion begins are one token of the tokenizer."""
    pairs, tokenizer = make_pairs(8), make_tokenizer()
    write_dataset(pairs, tmp_path / "set")
    dataset = load_dataset(str(tmp_path / "set"), "pairs", split="train", cache_dir=str(tmp_path / "cache"))
    for pair, row in zip(pairs, dataset, strict=True):
        assert tuple(row["prompt_ids"]) == pair.prompt_ids
        assert tuple(row["prefix_ids"]) == pair.prefix_ids
        assert tuple(row["chosen_ids"]) == pair.chosen_ids
        assert tuple(row["rejected_ids"]) == pair.rejected_ids
        ids = [*row["prompt_ids"], *row["prefix_ids"], *row["chosen_ids"]]
        assert len(tokenizer.encode(row["prompt"] + row["chosen"])) < len(ids)


def test_two_folders_of_one_name_are_two_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` keeps what it has loaded by the folder's name and its card."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for run, count in (("one", 4), ("two", 8)):
        write_dataset(make_pairs(count), tmp_path / run / "dataset")
        folder = str(tmp_path / run / "dataset")
        assert len(load_dataset(folder, "pairs", split="train", cache_dir=str(tmp_path / "cache"))) == count
        assert len(load_dataset(folder, "unpaired", split="train", cache_dir=str(tmp_path / "cache"))) == 2 * count
