"""Inputs by name, ragged examples, outputs with ``.logits``: models as libraries of language models have them."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import compress
from compress.results import Result
from targets.errors import CompressError
from targets.runtimes.fake.fake_target import FakeTarget

WORDS, LONGEST = 40, 10


class Output(OrderedDict):  # type: ignore[type-arg]
    loss = property(lambda self: self.get("loss"))
    logits = property(lambda self: self["logits"])


class Language(nn.Module):
    """Takes its inputs by name, others among them; computes a loss where it is given labels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.head = nn.Embedding(WORDS, 16), nn.Linear(16, 32), nn.Linear(32, 2)

    def forward(
        self, input_ids: Tensor | None = None, past: Any = None, attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Output:  # fmt: skip
        assert input_ids is not None
        assert attention_mask is not None
        assert past is None
        mask = attention_mask.unsqueeze(-1).float()
        hidden = torch.relu(self.up(self.embed(input_ids)))
        logits = self.head((hidden * mask).sum(1) / mask.sum(1).clamp(min=1))
        found = Output(hidden=hidden.mean(1), logits=logits)
        return found if labels is None else Output(loss=F.cross_entropy(logits, labels), **found)


def sentences(count: int, seed: int) -> list[dict[str, Any]]:
    """Of 4 to 10 words, labelled by whether one of two is among them."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        length = int(torch.randint(4, LONGEST + 1, (), generator=generator))
        ids = torch.randint(1, WORDS, (length,), generator=generator)
        found.append({"input_ids": ids, "labels": int(((ids == 7) | (ids < 4)).any())})
    return found


def pad(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    ids = nn.utils.rnn.pad_sequence([one["input_ids"] for one in examples], batch_first=True)
    labels = torch.tensor([one["labels"] for one in examples])
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}


TRAIN, VAL, TEST = sentences(300, 0), sentences(100, 1), sentences(100, 2)


def trained() -> Language:
    torch.manual_seed(0)
    network, batch = Language(), pad(TRAIN)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        network(**batch).loss.backward()
        optimizer.step()
    return network.eval()


def searched(folder: Path, space: compress.SearchSpace, model: Any = None, **changes: Any) -> Result:
    given = {"train": TRAIN, "val": VAL, "test": TEST, "collate": pad, **changes}
    task = compress.Task("language", model or trained(), **given)
    limits = ["quality_drop<=0.5"]
    result = compress.search(task, FakeTarget(), trials=1, space=space, out=folder / "run", constraints=limits)
    assert not result.report["failures"]
    return result


def test_it_is_searched_like_any_other(tmp_path: Path) -> None:
    space = compress.SearchSpace(
        epochs=1, prune_ratio=0.5, distill_weight=0.5, feature_weight=0.5, precision=compress.Choice("fp32", "int8"),
    )  # fmt: skip
    result = searched(tmp_path, space)
    whole = pad(VAL)
    expected = float((trained()(**whole).logits.argmax(1) == whole["labels"]).float().mean())
    assert result.baseline.quality.value == pytest.approx(expected)
    for candidate in result.candidates():
        graph = onnx.load(candidate.path).graph
        assert [value.name for value in graph.input] == ["input_ids", "attention_mask"]
        assert [value.name for value in graph.output] == ["hidden", "logits"]
    small = next(
        one for one in result.candidates() if one.config["precision"]["scheme"] == "fp32" and one.config["widths"]
    )
    module = small.module()
    found = module(**whole)
    assert set(found) == {"loss", "hidden", "logits"}
    assert float((found.logits.argmax(1) == whole["labels"]).float().mean()) == pytest.approx(
        small.quality.value, abs=0.02
    )
    assert not module._forward_pre_hooks, "handed out as its class has it"


def test_the_users_own_loop_gets_data_and_module_as_they_are(tmp_path: Path) -> None:
    seen = []

    def finetune(module: nn.Module, train: Any, settings: Any) -> None:
        seen.append(type(train[0]))
        optimizer = torch.optim.Adam(module.parameters(), settings.lr)
        for _ in range(settings.epochs):
            optimizer.zero_grad()
            module(**pad(list(train))).loss.backward()
            optimizer.step()

    space = compress.SearchSpace(epochs=1, prune_ratio=0.5, precision="fp32")
    searched(tmp_path, space, finetune=finetune)
    assert seen
    assert set(seen) == {dict}


def test_a_run_is_continued(tmp_path: Path) -> None:
    space = compress.SearchSpace(epochs=1, prune_ratio=0.5, precision="fp32")
    first = searched(tmp_path, space)
    again = searched(tmp_path, space)
    assert [one.id for one in first.candidates()] == [one.id for one in again.candidates()]
    with pytest.raises(CompressError, match="another val data"):
        searched(tmp_path, space, val=VAL[:50])


def test_stages_take_a_dict_of_examples(tmp_path: Path) -> None:
    network = trained()
    inputs = {name: x[:4] for name, x in pad(VAL).items() if name != "labels"}
    groups = compress.find_groups(network, inputs)
    small = compress.prune(network, inputs, 0.5, groups=groups)
    assert {row[0] for row in small.pruned} == {"embed"}, "the hidden values are an output"
    assert small.module(**inputs).logits.shape == (4, 2)
    assert compress.export(small.module, inputs, tmp_path / "m.onnx").max_abs < 1e-5
    assert compress.find_blocks(network, inputs).removable == ()
    turned = dict(reversed(list(inputs.items())))
    assert compress.prune(network, turned, 0.5).removed == small.removed


def test_names_that_forward_lacks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CompressError, match="'token_type_ids' are no arguments of the forward of Language"):
        compress.prune(
            Language(), {"input_ids": torch.ones(2, 3, dtype=torch.long), "token_type_ids": torch.ones(2, 3)}
        )
    more = [{**one, "attention_mask": torch.ones_like(one["input_ids"]), "idx": 3} for one in VAL]
    longer = [
        {**one, "input_ids": torch.ones(LONGEST, dtype=torch.long), "attention_mask": torch.ones(LONGEST)}
        for one in more
    ]
    space = compress.SearchSpace(epochs=1, precision="fp32")
    with pytest.raises(CompressError, match="'idx' are no arguments"):
        searched(tmp_path, space, Language(), train=longer, val=longer, test=None, collate=None)


def test_train_and_val_of_two_lengths_are_refused_in_one_line(tmp_path: Path) -> None:
    def whole(width: int) -> Any:
        return [
            {"input_ids": torch.arange(1, width + 1) + k, "attention_mask": torch.ones(width), "labels": k % 2}
            for k in range(12)
        ]

    space = compress.SearchSpace(epochs=1, precision="fp32")
    with pytest.raises(CompressError, match=r"shape .9,. in train and .7,. in val.*one length"):
        searched(tmp_path, space, Language(), train=whole(9), val=whole(7), test=None, collate=None)
