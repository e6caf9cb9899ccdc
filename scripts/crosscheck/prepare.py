"""Write what every trial is given: the uncompressed model as a plain folder, and the tokens as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from squeeze.models.load import load_baseline
from squeeze.request.expand import cells
from squeeze.sources.corpora import calibration_tokens, tokens

REQUEST = ("technique=gptq", "protocol=smoke")  # model and calibration by default; evaluation as in the smoke sweep


@dataclass(frozen=True)
class Inputs:
    """Read a folder that ``prepare`` wrote; each part is read from it anew whenever it is asked for."""

    folder: Path

    @property
    def model_folder(self) -> Path:
        """Return the folder of configuration, bfloat16 safetensors and tokenizer, which any library loads."""
        return self.folder / "model"

    @property
    def calibration(self) -> torch.Tensor:
        """Return the tokens of calibration, (128, 512) int64."""
        return torch.from_numpy(np.load(self.folder / "calibration.npy"))

    @property
    def evaluation(self) -> torch.Tensor:
        """Return the tokens of evaluation, (8, 1024) int64: consecutive, none of it in the calibration's articles."""
        return torch.from_numpy(np.load(self.folder / "evaluation.npy"))

    def model(self, **options: Any) -> PreTrainedModel:
        """Return the uncompressed model in bfloat16; options: of ``from_pretrained``."""
        options = {"dtype": torch.bfloat16, **options}
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(self.model_folder, **options)
        return loaded.eval().requires_grad_(False)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the model's own tokenizer."""
        return AutoTokenizer.from_pretrained(self.model_folder)


def prepare(folder: Path) -> Inputs:
    """Write model and tokens to ``folder``. Raises whatever fetching them raises."""
    [cell] = cells(REQUEST)
    subject = load_baseline({**cell.model, "dtype": "bfloat16"})
    inputs = Inputs(folder)
    folder.mkdir(parents=True, exist_ok=True)
    subject.model.save_pretrained(inputs.model_folder)  # type: ignore[operator]
    subject.tokenizer.save_pretrained(inputs.model_folder)
    text = cell.protocol["perplexity"]
    evaluation = tokens(text["corpus"], subject.tokenizer, text["tokens"]).view(-1, text["window"])
    np.save(folder / "calibration.npy", calibration_tokens(cell.calibration, subject.tokenizer).numpy())
    np.save(folder / "evaluation.npy", evaluation.numpy())
    return inputs
