"""The cost of an embedder."""

import pytest
import torch

from trainables.evaluation.cost import milliseconds, parameters
from trainables.network.embedder import NetworkConfig, SequenceEmbedder


@pytest.fixture
def embedder():
    config = {"encoder": {"name": "residual", "features": 16}, "rnn": {"hidden_size": 8}}
    return SequenceEmbedder(NetworkConfig.model_validate(config | {"height": 32, "width": 16}))


def test_parameters_counts_those_of_every_layer(embedder):
    assert parameters(embedder) == sum(value.numel() for _, value in embedder.named_parameters())


def test_milliseconds_leaves_threads_and_embedder_as_they_were(embedder):
    threads, training = torch.get_num_threads(), embedder.training
    torch.set_num_threads(2)
    seen = []
    embedder.recurrence.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    try:
        assert milliseconds(embedder, 4) > 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert embedder.training == training
    assert set(seen) == {1}
