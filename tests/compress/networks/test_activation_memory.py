"""How many samples fit into memory at once, and that a batch in parts is trained on as a whole one is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.networks.activation_memory import bytes_of_one, samples_at_once
from compress.tasks.datasets import Split
from compress.training.distilling import make_teacher, predict
from compress.training.finetuning import finetune
from compress.training.objectives import make_objective
from compress.training.training_modes import TrainingMode
from compress.values.configs import FinetuneSettings
from targets.machine import memory


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 250), nn.ReLU(), nn.Linear(250, 3)).eval()


def test_what_operators_put_out_is_added_up() -> None:
    # 250 numbers of the first layer, as many of the activation, 3 of the last layer; the weights' views are nobody's.
    assert bytes_of_one(_network(), (torch.randn(5, 4),)) == 4 * (250 + 250 + 3)


def test_as_many_samples_as_fit() -> None:
    network, inputs = _network(), (torch.randn(5, 4),)
    assert samples_at_once(network, inputs) is None, "of a small network, any number"
    with memory.bounded(8 * 2012 * 20):
        assert samples_at_once(network, inputs) == 16
        assert samples_at_once(network, inputs, copies_held=2) == 8
        assert torch.allclose(predict(network, (torch.ones(37, 4),), TrainingMode())[0], network(torch.ones(37, 4)))
    with memory.bounded(8):
        assert samples_at_once(network, inputs) == 1


def test_a_teacher_that_says_too_much_is_asked_anew_each_time() -> None:
    train = Split((torch.randn(40, 4),), torch.zeros(40, dtype=torch.long), "")
    teacher = make_teacher(_network(), train, TrainingMode())
    with memory.bounded(8 * 400):
        assert teacher.table is None
    few = tuple(x[:3] for x in train.inputs)
    assert teacher.outputs(torch.arange(3), few, torch.device("cpu"))[0].shape == (3, 3)


@pytest.mark.parametrize("at_once", [2, 5, 16])
def test_a_batch_in_parts_gives_the_same_weights(at_once: int) -> None:
    train = Split((torch.randn(33, 4),), torch.arange(33) % 3, "")
    settings = FinetuneSettings(epochs=2, batch_size=16, lr=0.01)
    found = []
    for mode in (TrainingMode(), TrainingMode(at_once=at_once)):
        network = _network()
        objective = make_objective(None, "cross_entropy", "accuracy")
        finetune(network, train, settings, objective, mode=mode, seed=0)
        found.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.allclose(found[0], found[1], atol=1e-5)


def test_parts_cover_a_batch_and_none_is_a_single_sample() -> None:
    assert TrainingMode().parts(7) == [slice(0, 7)]
    assert TrainingMode(at_once=3).parts(7) == [slice(0, 3), slice(3, 7)]
    assert TrainingMode(at_once=4).parts(12) == [slice(0, 4), slice(4, 8), slice(8, 12)]
