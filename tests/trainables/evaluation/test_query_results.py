"""Results of every query: kept beside a checkpoint, and the same for the exported model."""

import mlflow.pyfunc
import numpy as np
import pytest

from tests.support.recorder import Recorder
from trainables.errors import DataError
from trainables.evaluation.query_results import FILE, metric_names, read_results


@pytest.fixture(scope="module")
def scored(tiny, prepared, tmp_path_factory):
    """Config, checkpoint, its scores, and the folder of its exported model."""
    folder = tmp_path_factory.mktemp("scored")
    config = tiny(epochs=1)
    recorder = Recorder(folder / "run")
    prepared.fit(config, recorder)
    checkpoint = recorder.restore()
    scores = prepared.evaluate(config, checkpoint)
    exported = prepared.export(config, checkpoint, folder / "files")
    mlflow.pyfunc.save_model(folder / "model", **exported)
    return config, checkpoint, scores, folder / "model"


def test_means_of_query_results_are_the_scores(prepared, scored):
    config, checkpoint, scores, _ = scored
    results = prepared.query_results(config, checkpoint)
    means = {
        f"test/{name}/{metric}": np.mean([value for value in values if value is not None])
        for name, each in results.items()
        for metric, values in each.metrics.items()
    }
    assert means == pytest.approx(scores)


def test_target_metrics_are_those_of_the_results(prepared, scored):
    config, checkpoint, _, _ = scored
    results = prepared.query_results(config, checkpoint)
    assert prepared.target_metrics(config) == {name: list(each.metrics) for name, each in results.items()}


def test_query_results_are_made_again_where_they_are_lost(prepared, scored):
    config, checkpoint, _, _ = scored
    before = prepared.query_results(config, checkpoint)
    (checkpoint / FILE).unlink()
    assert prepared.query_results(config, checkpoint) == before == read_results(checkpoint)


def test_exported_model_has_the_results_of_its_checkpoint(prepared, scored):
    config, checkpoint, _, model = scored
    expected, found = prepared.query_results(config, checkpoint), prepared.score_model(config, model)
    assert found.keys() == expected.keys()
    for name, results in found.items():
        assert (results.data, results.protocol) == (expected[name].data, expected[name].protocol)
        assert results.queries == expected[name].queries
        assert np.mean(results.metrics["mAP"]) == pytest.approx(np.mean(expected[name].metrics["mAP"]))


def test_model_of_another_frame_size_is_scored_on_the_same_data(tiny, prepared, scored):
    config, _, _, model = scored
    larger = tiny(epochs=1, data={"height": 48, "width": 24})
    prepared.prepare(larger)
    found = prepared.score_model(larger, model)
    assert found == prepared.score_model(config, model)


def test_folder_without_a_model_is_refused_in_one_line(tiny, prepared, tmp_path):
    with pytest.raises(DataError, match=r"^model: .* holds no model of this project"):
        prepared.score_model(tiny(), tmp_path)


def test_cmc_only_protocol_keeps_ranks_alone():
    assert metric_names("single-gallery-shot") == ["rank1", "rank5", "rank10", "rank20"]
