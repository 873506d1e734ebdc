"""LeRobot's datasets of versions 2.1 and 3.0, made by the tests in these layouts; and such that are not right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mbrl.cli.main import main
from mbrl.data.convert import parquet
from mbrl.data.dataset import DataSet, EpisodeCache, read_card
from tests.data import lerobot_layout as layout
from tests.data.lerobot_layout import CAMERA, FPS
from tests.data.test_foreign import convert, explained

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install pyarrow")

ON_FOOTERS = ("every_cut", "pyarrow_ends_the_process", "every_action_explains")
"""The tests in which another process looks at the footers first; it takes half a second each time."""


@pytest.fixture(autouse=True)
def footers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not any(part in request.node.name for part in ON_FOOTERS):
        monkeypatch.setattr(parquet, "fatal", lambda paths: set())


KINDS = [(version, image) for version in ("v2.1", "v3.0") for image in (True, False)]
NAMES = ["2.1, pictures", "2.1, video", "3.0, pictures", "3.0, video"]
both = pytest.mark.parametrize("version", ["v2.1", "v3.0"])


def recorded(number: int, length: int = 12, **other: Any) -> dict[str, Any]:
    """An episode of a block that each action moves left or right; as many actions as frames, as LeRobot records."""
    random = np.random.default_rng(number)
    action = np.stack([random.choice([-1, 1], length), np.full(length, number)], axis=1).astype(np.float32)
    frames = np.full((length, 64, 64, 3), 40 + number, np.uint8)
    for frame, x in zip(frames, 32 + 2 * np.cumsum([0, *action[:-1, 0]]).astype(int), strict=True):
        frame[28:36, x : x + 8] = 250
    members = {"frames": frames, "action": action, "observation.state": random.normal(size=(length, 3))}
    members |= {"next.reward": np.arange(length, dtype=np.float32), "next.done": np.arange(length) == length - 1}
    return {name: value for name, value in (members | other).items() if value is not None}


def sets(tmp_path: Path, version: str, image: bool, **other: Any) -> tuple[Path, list[dict[str, Any]]]:
    """A dataset of four episodes of several lengths."""
    if not image:
        pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed: pip install imageio-ffmpeg")
    episodes = [recorded(number, 9 + 3 * number, **other) for number in range(4)]
    return layout.write(tmp_path / "in", episodes, version, image=image), episodes


@pytest.mark.parametrize(("version", "image"), KINDS, ids=NAMES)
def test_every_action_explains_the_frame_it_leads_into(
    version: str, image: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, episodes = sets(tmp_path, version, image)
    assert convert(source, tmp_path / "out", "format=lerobot") == 0
    data = DataSet(tmp_path / "out", cache=EpisodeCache(0))
    assert len(data) == 4 and (data.card.action_dim, data.card.rewards, data.card.rate) == (2, True, FPS)
    for place, made in enumerate(episodes):
        found = data.episode(place)
        assert (found.pixels == made["frames"].transpose(0, 3, 1, 2)).all(), "known pixels, all of them and no others"
        assert (found.action == made["action"][:-1]).all() and explained(found)
        assert (found.reward == made["next.reward"][:-1]).all() and found.truncated[-1]
    told = capsys.readouterr().out
    assert "4 items  the last of action and next.reward led to a frame that is not stored" in told
    assert "not read: observation.state" in told
    assert main(["data", "check", str(tmp_path / "out")]) == 0
    assert main(["data", "preview", str(tmp_path / "out"), f"out={tmp_path / 'p.png'}"]) == 0
    assert convert(source, tmp_path / "out", "format=lerobot") == 0, "the same words again"
    assert "holds 4 episodes, 0 of them new" in capsys.readouterr().out


@both
def test_lists_of_one_number_videos_without_actions_and_words_that_choose(version: str, tmp_path: Path) -> None:
    one = [recorded(n, action=np.arange(12, dtype=np.float64)[:, None], **{"next.reward": None}) for n in range(2)]
    source = layout.write(tmp_path / "in", one, version, image=True)
    assert convert(source, tmp_path / "a", "format=lerobot", f"key={CAMERA}", "image=8", "rate=3", "limit=1") == 0
    data = DataSet(tmp_path / "a", cache=EpisodeCache(0))
    assert len(data) == 1 and (data.card.rewards, data.card.image, data.card.rate) == (False, (8, 8), 3.0)
    assert data.episode(0).action.tolist() == [[float(i)] for i in range(11)]
    assert convert(source, tmp_path / "b", "format=lerobot", "action=none") == 0
    assert read_card(tmp_path / "b").action_dim == 0
    assert convert(source, tmp_path / "c", "format=lerobot", "action=observation.state") == 0
    assert (DataSet(tmp_path / "c", cache=EpisodeCache(0)).episode(1).action == one[1]["observation.state"][:-1]
            .astype(np.float32)).all()  # fmt: skip


@pytest.mark.parametrize(
    ("done", "truncated", "ended"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_the_task_ended_where_done_and_not_truncated_say_so(
    done: bool, truncated: bool, ended: bool, tmp_path: Path
) -> None:
    flags = {"next.done": np.full(12, False), "next.truncated": np.full(12, False), "next.success": np.full(12, False)}
    flags["next.done"][10:], flags["next.truncated"][10:], flags["next.success"][4] = done, truncated, True
    source = layout.write(tmp_path / "in", [recorded(n, **flags) for n in range(2)], "v3.0", image=True)
    assert convert(source, tmp_path / "out", "format=lerobot") == 0
    found = DataSet(tmp_path / "out", cache=EpisodeCache(0)).episode(0)
    assert bool(found.terminated[-1]) is ended and np.flatnonzero(found.success).tolist() == [4]


def test_a_camera_is_asked_for_where_there_are_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = layout.write(tmp_path / "in", [recorded(0), recorded(1)], "v2.1", image=True)
    said = json.loads((source / "meta" / "info.json").read_text())
    said["features"]["observation.images.wrist"] = said["features"][CAMERA]
    said["features"]["observation.images.depth"] = said["features"][CAMERA] | {"info": {"video.is_depth_map": True}}
    (source / "meta" / "info.json").write_text(json.dumps(said))
    assert convert(source, tmp_path / "out", "format=lerobot") == 2
    assert f"{source} has {CAMERA}, observation.images.wrist" in capsys.readouterr().err
    assert convert(source, tmp_path / "out", "format=lerobot", "key=observation.images.depth") == 2
    assert convert(source, tmp_path / "out", "format=lerobot", f"key={CAMERA}", "action=actions") == 2
    assert "action=actions is not in meta/info.json; it has action, " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert convert(source, tmp_path / "out", "format=lerobot", f"key={CAMERA}") == 0


# -- what is not right -------------------------------------------------------------------------------------------------

INFOS: dict[str, tuple[Any, str]] = {
    "another version": ({"codebase_version": "v1.6"}, "codebase_version must be one of v2.0, v2.1, v3.0 (got v1.6)"),
    "a path out": ({"data_path": "../in/data/chunk-000/file-000.parquet"}, "data_path must be a path in the folder"),
    "a path from the root": ({"data_path": "/etc/passwd"}, "data_path must be a path in the folder"),
    "a path that looks into objects": ({"data_path": "data/{chunk_index.__class__}"}, "data_path must be a path"),
    "a path of any width": ({"data_path": "data/{chunk_index:0999999999d}"}, "data_path must be a path"),
    "a path with a zero byte": ({"data_path": "data/\0"}, "data_path must be a path"),
    "a video out": ({"video_path": "videos/../../{video_key}.mp4"}, "video_path must be a path in the folder, or null"),
    "no frames a second": ({"fps": None}, "fps must be a number > 0 (got None)"),
    "endless frames a second": ({"fps": float("inf")}, "fps must be a number > 0 (got inf)"),
    "features that are a list": ({"features": [1]}, "features must be names, each with a dtype"),
    "a feature without a type": ({"features": {"action": {}}}, "features must be names, each with a dtype"),
    "chunks of none": ({"chunks_size": 0}, "chunks_size must be a whole number > 0"),
}


def refused(err: str, to: Path) -> None:
    """That one line says so (beside how far it came), and that nothing stays but the lock."""
    said = [line for line in err.splitlines() if " s left" not in line]
    assert len(said) == 1 and said[0].startswith("error: ") and len(said[0]) < 400
    assert not to.exists() or not [path.name for path in to.iterdir() if path.name != "run.lock"]


@pytest.mark.parametrize("name", INFOS)
def test_an_info_that_is_not_right_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, words = INFOS[name]
    source = layout.write(tmp_path / "in", [recorded(0), recorded(1)], "v3.0", image=True, **change)
    assert convert(source, tmp_path / "out", "format=lerobot") == 3
    err = capsys.readouterr().err
    assert words in err
    refused(err, tmp_path / "out")


def test_a_field_that_an_info_lacks_is_one_line_unless_it_may_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = layout.write(tmp_path / "in", [recorded(0), recorded(1)], "v3.0", image=True)
    whole = json.loads((source / "meta" / "info.json").read_text())
    needed = {"codebase_version", "fps", "features", "data_path"}
    for name in whole:
        (source / "meta" / "info.json").write_text(json.dumps({key: whole[key] for key in whole if key != name}))
        assert convert(source, tmp_path / name, "format=lerobot") == (3 if name in needed else 0)
        err = capsys.readouterr().err
        assert f"{name} must be" in err or name not in needed


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"[" * 100_000, b"\xff\xfe", b" " * 2**21])
def test_an_info_that_is_no_group_is_one_line(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = layout.write(tmp_path / "in", [recorded(0), recorded(1)], "v3.0", image=True)
    (source / "meta" / "info.json").write_bytes(content)
    assert convert(source, tmp_path / "out", "format=lerobot") == 3
    refused(capsys.readouterr().err, tmp_path / "out")
    (source / "meta" / "info.json").unlink()
    assert convert(source, tmp_path / "out", "format=lerobot") == 2
    assert "it is no LeRobot dataset" in capsys.readouterr().err


COLUMNS: dict[str, tuple[dict[str, Any], str]] = {
    "no action": ({"action": None}, "it has no column action; it has episode_index"),
    "an action that is no number": ({"action": np.full((12, 2), np.nan)}, "action must be finite"),
    "an action beyond": ({"action": np.full((12, 2), 1e300)}, "action must be finite"),
    "actions as text": ({"action": [["left", "right"]] * 12}, "action must be numbers, or lists of numbers (got list<"),
    "actions of several sizes": ({"action": [[1.0]] * 11 + [[1.0, 2.0]]}, "action changes its size"),
    "an action that is missing": ({"action": [None] + [[1.0, 2.0]] * 11}, "action must have a value in every row"),
    "lists of lists": ({"action": [[[1.0]]] * 12}, "action must be numbers, or lists of numbers"),
    "one reward in a list of two": ({"next.reward": np.zeros((12, 2))}, "next.reward must have one number a row"),
    "rows that skip": ({"frame_index": np.arange(12) * 2}, "frame_index must count its rows from 0"),
    "rows in another order": ({"frame_index": np.arange(12)[::-1].copy()}, "frame_index must count its rows from 0"),
    "rows of another episode": ({"episode_index": np.full(12, 7)}, "it must have 12 rows one after the other"),
    "rows of two episodes": ({"episode_index": np.repeat([0, 7], 6)}, "12 rows one after the other (there are 6)"),
    "an episode that is no number": ({"episode_index": np.full(12, 0.5)}, "episode_index must be whole numbers"),
    "pictures as numbers": ({CAMERA: np.zeros(12)}, f"{CAMERA} must be pictures in bytes (got double)"),
    "pictures in other files": ({CAMERA: [{"bytes": None, "path": "/etc/passwd"}] * 12}, "its pictures lie in other"),
    "pictures that are none": ({CAMERA: [{"bytes": b"no picture", "path": None}] * 12}, "it is no picture"),
}


@both
@pytest.mark.parametrize("name", COLUMNS)
def test_a_column_that_is_not_right_is_one_row_and_nothing_stays(
    name: str, version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words = COLUMNS[name]
    source = layout.write(tmp_path / "in", [recorded(0), recorded(1)], version, image=True)
    path = sorted((source / "data").rglob("*.parquet"))[0]
    rows = pq.read_table(path)
    for column, values in change.items():
        rows = rows.drop_columns([column])
        if values is not None:
            kind = pa.struct({"bytes": pa.binary(), "path": pa.string()}) if isinstance(values[0], dict) else None
            made = layout.column(values)
            rows = rows.append_column(column, pa.array(made, kind) if isinstance(made, list) else made)
    pq.write_table(rows, path)
    assert convert(source, tmp_path / "out", "format=lerobot", "limit=1") == 3
    captured = capsys.readouterr()
    row = next(line for line in captured.out.splitlines() if line.startswith("  episode 0"))
    assert words in row and len(row) < 300
    refused(captured.err, tmp_path / "out")


def test_lengths_that_differ_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed: pip install imageio-ffmpeg")
    source = layout.write(tmp_path / "a", [recorded(n) for n in range(3)], "v2.1", image=False)
    videos = source / "videos" / "chunk-000" / CAMERA
    layout.encode(videos / "episode_000000.mp4", recorded(0)["frames"][:-1])
    (videos / "episode_000001.mp4").unlink()
    (videos / "episode_000002.mp4").write_text("#EXTM3U\n#EXTINF:1,\nepisode_000000.mp4\n#EXT-X-ENDLIST\n")
    assert convert(source, tmp_path / "out", "format=lerobot") == 3
    told = capsys.readouterr().out
    assert f"episode 0  {CAMERA} has 11 frames, and there are 12 rows" in told
    assert f"episode 1  videos/chunk-000/{CAMERA}/episode_000001.mp4 is not there" in told
    assert "episode 2  it is no video that ffmpeg reads" in told, "a playlist leads to other files"
    source = layout.write(tmp_path / "b", [recorded(n) for n in range(3)], "v3.0", image=False)
    video = source / "videos" / CAMERA / "chunk-000"
    layout.encode(video / "file-000.mp4", np.concatenate([recorded(0)["frames"], recorded(1)["frames"]]), fps=7)
    layout.encode(video / "file-001.mp4", recorded(2)["frames"][:5])
    assert convert(source, tmp_path / "out", "format=lerobot") == 3
    told = capsys.readouterr().out
    assert "frames, and there are 12 rows" in told.split("episode 0")[1].splitlines()[0], "another rate than it says"
    assert f"episode 2  {CAMERA} has 5 frames, and there are 12 rows" in told


def _episodes(source: Path, **change: Any) -> None:
    path = source / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    rows = pq.read_table(path)
    for name, values in change.items():
        name = name.replace("__", "/")
        rows = rows.drop_columns([name])
        rows = rows if values is None else rows.append_column(name, pa.array(values))
    pq.write_table(rows, path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"episode_index": [0, 0]}, "episode 0 is listed twice"),
        ({"length": None}, "it has no column length"),
        ({"length": ["12", "12"]}, "length must be numbers"),
        ({"data__file_index": [-1, 0]}, "data/file_index must be whole numbers >= 0"),
        ({"data__chunk_index": [0.5, 0.5]}, "data/chunk_index must be whole numbers >= 0"),
    ],
)
def test_a_list_of_episodes_that_is_not_right_is_one_line(
    change: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = layout.write(tmp_path / "in", [recorded(0), recorded(1)], "v3.0", image=True)
    _episodes(source, **change)
    assert convert(source, tmp_path / "out", "format=lerobot") == 3
    err = capsys.readouterr().err
    assert words in err
    refused(err, tmp_path / "out")


@pytest.mark.parametrize("content", [None, b"{}\n", b"[]\n", b"no json\n", b'{"episode_index": -1, "length": 3}\n'])
def test_lines_of_episodes_that_are_not_right_are_one_line(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = layout.write(tmp_path / "in", [recorded(0), recorded(1)], "v2.1", image=True)
    path = source / "meta" / "episodes.jsonl"
    path.unlink() if content is None else path.write_bytes(content)
    assert convert(source, tmp_path / "out", "format=lerobot") == 3
    err = capsys.readouterr().err
    assert "episodes.jsonl" in err
    refused(err, tmp_path / "out")


def test_declared_sizes_are_looked_at_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mbrl.data.convert.parquet.MOST_VALUES", 20)
    source = layout.write(tmp_path / "in", [recorded(0), recorded(1)], "v2.1", image=True)
    assert convert(source, tmp_path / "out", "format=lerobot") == 3
    assert "action says 24 values" in capsys.readouterr().out
    said = (source / "meta" / "episodes.jsonl").read_text().replace('"length": 12', f'"length": {2**60}')
    (source / "meta" / "episodes.jsonl").write_text(said)
    assert convert(source, tmp_path / "out", "format=lerobot") == 3
    assert f"it must have {2**60} rows one after the other (there are 12)" in capsys.readouterr().out


def test_every_cut_and_changed_byte_of_a_parquet_file_is_read_or_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = layout.write(tmp_path / "in", [recorded(0, 4), recorded(1, 4)], "v2.1", image=True)
    path = source / "data" / "chunk-000" / "episode_000000.parquet"
    good, random = path.read_bytes(), np.random.default_rng(0)
    for place in range(8):
        bad = bytearray(good)
        if place % 2:
            bad[random.integers(len(good))] ^= int(random.integers(1, 256))
        else:
            bad = bad[: random.integers(len(good))]
        path.write_bytes(bytes(bad))
        assert convert(source, tmp_path / f"out{place}", "format=lerobot", "limit=1") in (0, 3)
        err = capsys.readouterr().err
        assert "Traceback" not in err and err.count("error: ") <= 1


@both
def test_a_file_on_which_pyarrow_ends_the_process_is_a_row_and_the_others_are_read(
    version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = layout.write(tmp_path / "in", [recorded(n) for n in range(3)], version, image=True)
    path = sorted((source / "data").rglob("*.parquet"))[-1]
    looks = "        metadata = pq.read_metadata(json.loads(line))\n"
    assert looks in parquet.FOOTERS
    dies = f"        if {path.name!r} in line: __import__('os').abort()\n"
    monkeypatch.setattr(parquet, "FOOTERS", parquet.FOOTERS.replace(looks, dies + looks))
    assert convert(source, tmp_path / "out", "format=lerobot") == 3
    captured = capsys.readouterr()
    assert "  episode 2  its file is damaged, so that pyarrow cannot go on after it" in captured.out
    assert "error: 1 of 3 items cannot be converted" in captured.err
    assert convert(source, tmp_path / "out", "format=lerobot", "damaged=skip") == 0
    if version == "v2.1":
        return
    hangs = f"        if {path.name!r} in line: __import__('time').sleep(60)\n"
    monkeypatch.setattr(parquet, "FOOTERS", parquet.FOOTERS.replace(dies, "").replace(looks, hangs + looks))
    monkeypatch.setattr(parquet, "PATIENCE_S", 3.0)
    assert parquet.fatal((source / "data").rglob("*.parquet")) == {path}, "nobody waits for it"
    dies = "        if 'meta' in line: __import__('os').abort()\n"
    monkeypatch.setattr(parquet, "FOOTERS", parquet.FOOTERS.replace(looks, dies + looks))
    assert convert(source, tmp_path / "b", "format=lerobot") == 3
    refused = "file-000.parquet is damaged, so that pyarrow cannot go on after it"
    assert (refused in capsys.readouterr().err) is (version == "v3.0")
