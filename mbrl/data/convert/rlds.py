"""RLDS data sets such as Open X-Embodiment: through tensorflow-datasets where it is there, or a reader like it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mbrl.data.convert.clip import Clip, Item, Unreadable, collected, rows_of

Step = Mapping[str, Any]


class Reader(Protocol):
    """What of a data set is asked: its episodes in an order that is the same each time.

    An episode is `{"steps": steps}`; a step is `{"observation": {key: u8 [h, w, 3], ...}, "action": [A], "reward": x}`,
    with numbers, arrays, or tensors that NumPy takes. The action of a step is taken in its observation.
    """

    def episodes(self) -> Iterable[Mapping[str, Any]]:
        """All of them, from the first."""
        ...


class TensorFlowDatasets:
    """One split of a prepared data set on disk (`<name>/<version>/` with its features.json)."""

    def __init__(self, folder: Path, split: str) -> None:
        """Raises: ValueError without tensorflow-datasets, or where the folder is no data set."""
        try:
            import tensorflow_datasets as tfds
        except ImportError as error:
            raise ValueError(
                "RLDS data sets need tensorflow-datasets: pip install tensorflow tensorflow-datasets"
            ) from error
        try:
            builder = tfds.builder_from_directory(str(folder))
        except Exception as error:
            raise ValueError(f"from={folder} is no data set that tensorflow-datasets can open ({error})") from error
        if split not in builder.info.splits:
            raise ValueError(f"split must be one of {', '.join(builder.info.splits)} (got {split})")
        self._dataset = builder.as_dataset(split=split, shuffle_files=False)

    def episodes(self) -> Iterator[Mapping[str, Any]]:
        """See `Reader`."""
        yield from self._dataset


def rlds(reader: Reader, *, image_key: str, action_key: str, row: str = "from") -> Iterator[Item]:
    """Every episode of a reader.

    Args:
        action_key: empty for no actions (as in the paper), usually `action`.
        row: RLDS has the action that was taken `from` an observation beside it; `into` for who packed it otherwise.
    """
    for place, episode in enumerate(reader.episodes()):
        yield Item(
            f"episode {place}",
            lambda episode=episode: clip_of(episode, image_key=image_key, action_key=action_key, row=row),  # type: ignore[misc]
        )


def clip_of(episode: Mapping[str, Any], *, image_key: str, action_key: str, row: str) -> Clip:
    """One episode. Raises: Unreadable."""
    if "steps" not in episode:
        raise Unreadable("it has no steps: it is no episode of RLDS")
    actions: list[np.ndarray] = []

    def frames() -> Iterator[np.ndarray]:
        for step in episode["steps"]:
            observation = step.get("observation", {})
            if image_key not in observation:
                raise Unreadable(f"a step has no observation {image_key}; it has {', '.join(sorted(observation))}")
            if action_key:
                if action_key not in step:
                    raise Unreadable(f"a step has no {action_key}; it has {', '.join(sorted(step))}")
                actions.append(np.asarray(step[action_key]).reshape(-1))
            yield np.asarray(observation[image_key])

    found = collected(frames(), what=image_key)
    if len({len(action) for action in actions}) > 1:
        raise Unreadable(f"{action_key} changes its size")
    action = rows_of(np.stack(actions), len(found), what=action_key, row=row) if action_key else None
    return Clip(frames=found, action=action)
