"""A frame that is played from a record is the frame that is drawn anew: what a CUDA graph needs of its surroundings.

There is no GPU here. The record of these tests repeats the work on the tensors it was recorded with, into the tensors
that it gave first, as a graph does; that CUDA records and plays what it is given is not tested.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.twins.test_decoding import DECODINGS as QUERYING
from tests.twins.test_engine import ACTIONS, make_model, make_start
from worldmodel.rollout import SamplingConfig, TokenEngine
from worldmodel.rollout.graphs import Graphs
from worldmodel.transformer.decoding import AUTOREGRESSIVE

ROWS, FRAMES = 5, 3
DECODINGS = {"autoregressive": AUTOREGRESSIVE, **QUERYING}
SAMPLED = SamplingConfig(temperature=1.0, top_k=0, codes_only=True)
Given = tuple[Tensor, ...]


class Recorder:
    """Counts what it records and plays; a graph that plays moves nothing on the host."""

    def __init__(self, engine: TokenEngine) -> None:
        self.engine, self.records, self.plays = engine, 0, 0

    def __call__(self, work: Callable[[], Given]) -> tuple[Callable[[], None], Given]:
        self.records += 1
        results = work()

        def play() -> None:
            self.plays += 1
            cache = self.engine._cache
            assert cache is not None
            position = cache.position
            for held, new in zip(results, work(), strict=True):
                held.copy_(new)
            cache.rewind(position)

        return play, results


def pair(decoding: str) -> tuple[TokenEngine, TokenEngine, Recorder]:
    """An engine that plays records, its twin of the same model, and what counts."""
    model = make_model(torch.float64, decoding=DECODINGS[decoding])
    engine, twin = (TokenEngine(model, rows=ROWS, frames=FRAMES, sampling=SAMPLED) for _ in range(2))
    recorder = Recorder(engine)
    engine.graphs = Graphs(recorder)
    return engine, twin, recorder


def check_dream(engine: TokenEngine, twin: TokenEngine, seed: int, rows: int = ROWS) -> None:
    """The same dream in both, from reading its starts."""
    generator = torch.Generator().manual_seed(seed)
    start = make_start(rows, 1, torch.float64, generator)
    for one in (engine, twin):
        one.prefill(*start)
    check_frames(engine, twin, generator, rows, FRAMES - 1)


def check_frames(engine: TokenEngine, twin: TokenEngine, generator: torch.Generator, rows: int, frames: int) -> None:
    for _ in range(frames):
        action = torch.randn(rows, ACTIONS, generator=generator, dtype=torch.float64)
        numbers = engine.uniform(generator)
        found, wanted = (one.sample_frame(action, numbers) for one in (engine, twin))
        assert torch.equal(found.ids_BK, wanted.ids_BK) and torch.equal(found.hidden_BD, wanted.hidden_BD)


@pytest.mark.parametrize("decoding", DECODINGS)
def test_what_is_played_is_what_is_drawn(decoding: str) -> None:
    engine, twin, recorder = pair(decoding)
    for seed in range(3):
        check_dream(engine, twin, seed)
    assert recorder.records == FRAMES - 1, "one for each number of frames before, in the first dream"
    assert recorder.plays == 3 * (FRAMES - 1), "one to compare, and one in each later dream"


def test_frames_that_were_given_away_stay_as_they_were() -> None:
    engine, twin, _ = pair("autoregressive")
    check_dream(engine, twin, 0)
    generator = torch.Generator().manual_seed(7)
    engine.prefill(*make_start(ROWS, 1, torch.float64, generator))
    frame = engine.sample_frame(torch.zeros(ROWS, ACTIONS, dtype=torch.float64), engine.uniform(generator))
    ids, hidden = frame.ids_BK.clone(), frame.hidden_BD.clone()
    check_dream(engine, twin, 8)
    assert torch.equal(frame.ids_BK, ids) and torch.equal(frame.hidden_BD, hidden)


def test_a_rewound_dream_other_rows_forks_and_changed_weights() -> None:
    engine, twin, recorder = pair("autoregressive")
    generator = torch.Generator().manual_seed(1)
    check_dream(engine, twin, 1)
    for one in (engine, twin):
        one.rewind(1)
    check_frames(engine, twin, generator, ROWS, 1)
    check_dream(engine, twin, 2, rows=3)
    known = recorder.records
    with torch.no_grad():
        for parameter in engine._model.parameters():
            parameter.mul_(1.1)
    check_dream(engine, twin, 3)
    assert recorder.records == known, "weights are refreshed where they are"
    start = make_start(2, 1, torch.float64, generator)
    for one in (engine, twin):
        one.prefill(*start, copies=2)
    known = recorder.records, recorder.plays
    check_frames(engine, twin, generator, 4, FRAMES - 1)
    assert (recorder.records, recorder.plays) == known, "rows that share a prefix are drawn without records"
    check_dream(engine, twin, 4)


@pytest.mark.parametrize("fault", ["raises", "differs"])
def test_what_cannot_be_recorded_or_gives_something_else_is_drawn_without(
    fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    engine, twin, _ = pair("autoregressive")

    def wrong(work: Callable[[], Given]) -> tuple[Callable[[], None], Given]:
        if fault == "raises":
            raise RuntimeError("operation not permitted\nwhen stream is capturing")
        return lambda: None, tuple(x + 1 for x in work())

    engine.graphs = Graphs(wrong)
    with caplog.at_level("WARNING"):
        check_dream(engine, twin, 0)
        check_dream(engine, twin, 1)
    said = [record.getMessage() for record in caplog.records if "CUDA graphs" in record.getMessage()]
    assert len(said) == 1 and "\n" not in said[0] and engine.graphs.failed
