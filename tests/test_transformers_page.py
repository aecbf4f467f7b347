"""The task file in docs/transformers.md: it is searched as it stands there, with a small random model.

With the library where that is installed, else with a hand-written stand-in that takes and gives the same.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import compress
from compress.tasks.loading import load_task
from targets.runtimes.fake.fake_target import FakeTarget

PAGE = Path(__file__).parent.parent / "docs" / "transformers.md"
WORDS = ["good", "bad", "film", "plot", "very", "not", "a", "the", "music", "long"]


class Tokenizer:
    """Whole words; pads as the library's do."""

    model_input_names = ("input_ids", "attention_mask")
    padding_side, pad_token_id, is_fast, deprecation_warnings = "right", 0, False, {}

    def __call__(self, text: str, truncation: bool, max_length: int) -> dict[str, list[int]]:
        assert truncation
        ids = [WORDS.index(word) + 1 for word in text.split()][:max_length]
        return {"input_ids": ids, "attention_mask": [1] * len(ids)}

    def pad(self, examples: list[dict[str, Any]], **_: Any) -> dict[str, Tensor]:
        width = max(len(one["input_ids"]) for one in examples)
        found = {
            name: torch.tensor([one[name] + [0] * (width - len(one[name])) for one in examples])
            for name in ("input_ids", "attention_mask")
        }
        return found | {"labels": torch.tensor([one["labels"] for one in examples])}


class Output(OrderedDict):  # type: ignore[type-arg]
    logits = property(lambda self: self["logits"])


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.classifier = nn.Embedding(20, 16), nn.Linear(16, 32), nn.Linear(32, 2)

    def forward(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Output:
        assert input_ids is not None
        assert attention_mask is not None
        mask = attention_mask.unsqueeze(-1).float()
        hidden = (torch.relu(self.up(self.embed(input_ids))) * mask).sum(1) / mask.sum(1)
        logits = self.classifier(hidden)
        return Output(logits=logits) if labels is None else Output(loss=logits.mean(), logits=logits)


def stand_in() -> ModuleType:
    """A module with what the task file imports."""
    made = ModuleType("transformers")
    made.AutoTokenizer = SimpleNamespace(from_pretrained=None)  # type: ignore[attr-defined]
    made.AutoModelForSequenceClassification = SimpleNamespace(from_pretrained=None)  # type: ignore[attr-defined]
    made.DataCollatorWithPadding = lambda tokenizer: tokenizer.pad  # type: ignore[attr-defined]
    return made


def small_model(library: Any) -> nn.Module:
    torch.manual_seed(0)
    if not hasattr(library, "DistilBertConfig"):
        return Classifier()
    config = library.DistilBertConfig(
        vocab_size=20, dim=32, n_layers=1, n_heads=4, hidden_dim=64, max_position_embeddings=64, num_labels=2
    )
    network: nn.Module = library.DistilBertForSequenceClassification(config)
    return network


def test_the_task_file_of_the_page_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("transformers") is None:
        monkeypatch.setitem(sys.modules, "transformers", stand_in())
    import transformers as library  # type: ignore[import-not-found, unused-ignore]

    monkeypatch.setattr(library.AutoTokenizer, "from_pretrained", lambda _: Tokenizer())
    monkeypatch.setattr(library.AutoModelForSequenceClassification, "from_pretrained", lambda _: small_model(library))
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code is not None
    (tmp_path / "sentences.py").write_text(code.group(1))
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(150):
        words = [
            WORDS[int(k)]
            for k in torch.randint(0, 10, (int(torch.randint(3, 9, (), generator=generator)),), generator=generator)
        ]
        rows.append(f"{' '.join(words)},{int('good' in words)}")
    (tmp_path / "reviews.csv").write_text("\n".join(rows))
    loaded = load_task(str(tmp_path / "sentences.py"), str(tmp_path / "reviews.csv"))
    space = compress.SearchSpace(epochs=1, prune_ratio=0.5, precision="fp32")
    result = compress.search(
        loaded.task, FakeTarget(), trials=1, space=space, out=tmp_path / "run", constraints=["quality_drop<=1"]
    )
    assert not result.report["failures"]
    assert len(result.candidates()) == 2
    for candidate in result.candidates():
        graph = onnx.load(candidate.path).graph
        assert [value.name for value in graph.input] == ["input_ids", "attention_mask"]
        assert [value.name for value in graph.output] == ["logits"]
