import dataclasses

import pytest
import yaml

from mbrl.envs.protocol import FreeCamera, NamedCamera, NumberedCamera, ProtocolConfig
from tests.envs.worlds import CONFIGS, config

NAMES = sorted(path.stem for path in (CONFIGS / "protocol").glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_protocol_file_states_every_field_and_carries_its_own_name(name):
    plain = yaml.safe_load((CONFIGS / "protocol" / f"{name}.yaml").read_text())
    assert set(plain) == {"_target_"} | {field.name for field in dataclasses.fields(ProtocolConfig)}
    protocol = config("protocol", name)
    assert isinstance(protocol, ProtocolConfig) and protocol.name == name
    assert isinstance(protocol.camera, NamedCamera | NumberedCamera | FreeCamera | None)


def test_the_promised_protocols_are_there():
    assert {"default", "ivideogpt", "mwm", "r2dreamer", "tdmpc2", "toy"} <= set(NAMES)


def test_the_literatures_protocols_differ_where_the_papers_do():
    episodes = {name: config("protocol", name) for name in NAMES}
    assert [episodes[n].decisions for n in ("ivideogpt", "mwm", "r2dreamer", "tdmpc2")] == [100, 250, 250, 100]
    assert [n for n in NAMES if episodes[n].success_bonus] == ["ivideogpt"]
    assert [n for n in NAMES if episodes[n].success == "last"] == ["tdmpc2"]
    assert all(episodes[n].deviations for n in ("ivideogpt", "mwm", "r2dreamer", "tdmpc2"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image", 12),
        ("image", 0),
        ("flip", "upside-down"),
        ("quality", "best"),
        ("success", "first"),
        ("action_repeat", 0),
        ("decisions", 0),
        ("success_bonus", -1.0),
    ],
)
def test_a_value_out_of_range_is_refused_by_its_name(field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*got '?{value}"):
        config("protocol", "default", **{field: value})


@pytest.mark.parametrize("change", [{"lookat": (0.0, 1.0)}, {"distance": 0.0}, {"elevation": 91.0}])
def test_an_impossible_camera_is_refused(change):
    camera = {"lookat": (0.0, 0.7, 0.19), "distance": 1.15, "azimuth": 148.0, "elevation": -35.0}
    with pytest.raises(ValueError, match=f"{next(iter(change))} must be"):
        FreeCamera(**(camera | change))
