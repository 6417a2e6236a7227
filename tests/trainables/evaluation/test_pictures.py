"""Pictures of trained networks: the right queries and neighbours, and files that show something."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.recorder import Recorder
from trainables.data import sources
from trainables.data.parts import Part
from trainables.evaluation import pictures
from trainables.evaluation.embedding import EvaluationConfig
from trainables.evaluation.retrieval import FILE, Retrieval, read_summaries, write_summaries
from trainables.methods import build_method
from trainables.network.embedder import NetworkConfig, SequenceEmbedder

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def packs(tiny, prepared):
    config = tiny()
    return {name: sources.resolve(config.data, name) for name in config.data.sets}


def everything(pack):
    return Part(pack, np.arange(len(pack)))


@pytest.fixture(scope="module")
def retrieval(packs):
    pack = packs["walkers"]
    split = pack.splits[0]
    query, gallery = (Part(pack, np.asarray(part, np.int64)) for part in (split.query, split.gallery))
    torch.manual_seed(0)
    embedder = SequenceEmbedder(NetworkConfig(height=32, width=16))
    return Retrieval.of(embedder, query, gallery, CPU, EvaluationConfig(), crop=0.0)


def test_extreme_queries_come_with_their_nearest_tracklets(retrieval):
    worst, best = retrieval.worst_and_best_queries(extremes=3, top=5)
    precision = np.sort(retrieval.score.average_precision)
    assert [ranked.average_precision for ranked in worst] == precision[:3].tolist()
    assert [ranked.average_precision for ranked in best] == precision[:-4:-1].tolist()
    assert len({ranked.query for ranked in (*worst, *best)}) == 6
    pack = retrieval.query.pack
    for ranked in (*worst, *best):
        place = retrieval.query.tracklets.tolist().index(ranked.query)
        away = np.linalg.norm(retrieval.features[1] - retrieval.features[0][place], axis=1)
        shown = [candidate.distance for candidate in ranked.candidates]
        assert shown == pytest.approx(np.sort(away)[:5], abs=1e-6)
        for rank, candidate in enumerate(ranked.candidates, 1):
            assert candidate.right == (pack.identities[candidate.tracklet] == pack.identities[ranked.query])
            assert candidate.right == (ranked.first_rank == rank)


def test_few_queries_are_worst_or_best_but_never_both(retrieval):
    worst, best = retrieval.worst_and_best_queries(extremes=99, top=1)
    queries = [ranked.query for ranked in (*worst, *best)]
    assert sorted(queries) == sorted(retrieval.query.tracklets.tolist())


def test_nearest_frame_of_a_real_frame_is_itself(packs):
    torch.manual_seed(0)
    embedder, pack = SequenceEmbedder(NetworkConfig(height=32, width=16)).eval(), packs["walkers"]
    real = everything(pack)
    wanted = [(3, 0), (40, 5)]
    frames = torch.from_numpy(np.stack([pack.frames(tracklet)[frame] for tracklet, frame in wanted]))
    steps = embedder.encode(frames.movedim(-1, 1) / 255).detach().unsqueeze(1)
    neighbours = [neighbour for (neighbour,) in pictures.nearest_frames(embedder, steps, real)]
    assert [(neighbour.tracklet, neighbour.frame) for neighbour in neighbours] == wanted
    assert all(neighbour.distance == pytest.approx(0, abs=1e-3) for neighbour in neighbours)


def draw(method, packs, path, seed=0):
    """Draw pseudo sequences of stills, and of frames of the walkers; return the picture."""
    parts = {name: everything(pack) for name, pack in packs.items()}
    walkers = parts["walkers"]
    pictures.draw_pseudo(method, [parts["stills"]], walkers, walkers, "title", path, seed=seed)
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("level", ["feature", "pixel"])
def test_pseudo_sequences_of_equal_seeds_are_drawn_alike(level, tiny, packs, tmp_path):
    config = tiny(alignment={"level": level})
    torch.manual_seed(0)
    method = build_method("alignment", config.method_config, 10, 10).eval()
    for generator in (method.alignment.mgm, method.alignment.cgm):  # they start at 0
        torch.nn.init.normal_(getattr(generator, "amounts", generator).output.weight)
    one, two = (draw(method, packs, tmp_path / f"{name}.png") for name in ("one", "two"))
    other = draw(method, packs, tmp_path / "other.png", seed=1)
    assert one.shape[0] > (pictures.STILLS + 2 * pictures.SEQUENCES) * 100
    assert np.array_equal(one, two) and not np.array_equal(one, other)


def test_generated_flow_is_drawn_below_real_flow(tiny, packs, tmp_path):
    config = tiny(
        alignment={"level": "pixel"},
        data={"flow": "dis", "sets": {"walkers": {"generate": {"identities": 8}}}},
    )
    flowing = {name: sources.resolve(config.data, name) for name in ("walkers", "stills")}
    with_flow = build_method("alignment", config.method_config, 10, 10).eval()
    without = build_method("alignment", tiny(alignment={"level": "pixel"}).method_config, 10, 10).eval()
    tall, short = draw(with_flow, flowing, tmp_path / "a.png"), draw(without, packs, tmp_path / "b.png")
    assert tall.shape[0] - short.shape[0] > 2 * pictures.SEQUENCES * 100


def test_flow_is_drawn_in_the_colour_of_its_direction():
    flow = np.array([[[0, 0], [4, 0], [-4, 0], [2, 0], [8, 0]]], np.float32)
    still, right, left, slow, fast = pictures._flow_picture(flow, 4)[0].tolist()
    assert still == [255, 255, 255] and right == fast == [255, 0, 0]
    assert left == [0, 255, 255] and slow == [255, 128, 128]


def test_summaries_read_equal_those_written(retrieval, tmp_path):
    summaries = {"walkers": retrieval.summary()}
    write_summaries(summaries, tmp_path)
    assert read_summaries(tmp_path) == summaries


def test_summaries_of_another_version_are_not_read(tmp_path):
    assert read_summaries(tmp_path) == {}
    (tmp_path / FILE).write_text('{"walkers": {"curve": [1.0]}}')
    assert read_summaries(tmp_path) == {}


def illustrate(trainable, runs, folder):
    folder.mkdir()
    results = {
        name: [
            trainable.illustrate_run(name, number, *run, directory=folder)
            for number, run in enumerate(of_variant)
        ]
        for name, of_variant in runs.items()
    }
    trainable.illustrate_comparison(results, folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def runs(tiny, prepared, tmp_path_factory):
    """The first of two variants has two runs, which are the same."""
    folder = tmp_path_factory.mktemp("runs")
    runs = {}
    for name in ("static", "alignment"):
        config, recorder = tiny(epochs=1, method=name), Recorder(folder / name)
        prepared.fit(config, recorder)
        runs[name] = [(config, recorder.restore())]
    return {**runs, "static": runs["static"] * 2}


def test_illustrate_draws_a_picture_of_each_kind(prepared, runs, tmp_path):
    folder = tmp_path / "pictures"
    assert illustrate(prepared, runs | {"unfinished": []}, folder).keys() == {
        "cmc-walkers.png",
        "cmc-others.png",
        "pseudo-alignment.png",
        *(
            f"retrieval-{name}-{target}.png"
            for name in ("static", "alignment")
            for target in ("walkers", "others")
        ),
    }
    for path in folder.iterdir():
        picture = np.asarray(Image.open(path).convert("L"))
        assert min(picture.shape) > 300 and picture.std() > 10, f"{path.name} shows nothing"


def test_illustrate_scored_runs_embeds_no_test_part(prepared, runs, tmp_path, monkeypatch):
    for of_variant in runs.values():
        for _, checkpoint in of_variant:
            (checkpoint / FILE).unlink(missing_ok=True)
    unscored = illustrate(prepared, runs, tmp_path / "unscored")
    monkeypatch.setattr("trainables.evaluation.retrieval.embed_sides", None)
    assert illustrate(prepared, runs, tmp_path / "scored") == unscored
