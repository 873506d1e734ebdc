import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from mbrl.envs import back_end as choice
from mbrl.envs.back_end import NoRendering, back_end, unfit_variables
from mbrl.envs.make import frames_per_second
from mbrl.envs.protocol import NamedCamera
from tests.envs.worlds import CONFIGS, config, metaworld, simulator_of


def test_a_machine_without_gl_is_told_what_to_install(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(choice, "_egl_answers", lambda: False)
    monkeypatch.setattr(choice, "_osmesa_answers", lambda: False)
    with pytest.raises(NoRendering, match=r"libegl1 libgl1-mesa-dri.*libosmesa6") as raised:
        back_end()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("egl", "osmesa", "chosen"), [(True, True, "egl"), (False, True, "osmesa")])
def test_egl_is_taken_before_osmesa(monkeypatch, egl, osmesa, chosen):
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM"):  # MuJoCo itself sets the latter
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(choice, "_egl_answers", lambda: egl)
    monkeypatch.setattr(choice, "_osmesa_answers", lambda: osmesa)
    assert back_end() == chosen


def test_a_back_end_that_was_asked_for_is_never_overruled(monkeypatch):
    monkeypatch.setattr(choice, "_egl_answers", lambda: True)
    monkeypatch.setattr(choice, "_osmesa_answers", lambda: False)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    with pytest.raises(NoRendering, match="MUJOCO_GL=osmesa does not work here"):
        back_end()
    monkeypatch.setenv("MUJOCO_GL", "disabled")
    with pytest.raises(NoRendering, match="MUJOCO_GL=disabled forbids drawing"):
        back_end()
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    monkeypatch.setenv("DISPLAY", ":0")
    assert back_end() == "native"


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            "MUJOCO_GL=glfw",
            "MUJOCO_GL=glfw draws on a screen, and there is none (DISPLAY is not set): unset it, egl ans",
        ),
        ("MUJOCO_GL=elg", "MUJOCO_GL=elg is no back end: unset it, egl answers here"),
        ("MUJOCO_GL=OSMesa", "MUJOCO_GL=OSMesa does not work here: unset it, egl answers here"),
        ("PYOPENGL_PLATFORM=glx", "PYOPENGL_PLATFORM=glx shuts out egl, which answers here: unset it"),
        ("MUJOCO_GL=egl PYOPENGL_PLATFORM=osmesa", "PYOPENGL_PLATFORM=osmesa shuts out egl"),
        ("MUJOCO_GL=EGL", ""),
        ("MUJOCO_GL=on", ""),
        ("MUJOCO_GL=", ""),
    ],
)
def test_a_variable_that_does_not_work_is_named_with_the_mend(monkeypatch, variables, said):
    for name in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(choice, "_egl_answers", lambda: True)
    monkeypatch.setattr(choice, "_osmesa_answers", lambda: False)
    for word in variables.split():
        monkeypatch.setenv(*word.split("="))
    told = list(unfit_variables())
    assert len(told) == bool(said) and all(line.startswith(said) for line in told)
    assert list(config("task", "metaworld").complaints(config("protocol", "default"))) == told
    assert list(config("task", "dmc").complaints(config("protocol", "dmc_vision"))) == told


@pytest.mark.metaworld
@pytest.mark.parametrize("word", ["MUJOCO_EGL_DEVICE_ID=99", "MUJOCO_EGL_DEVICE_ID=first", "MUJOCO_GL=elg"])
def test_a_run_under_a_variable_that_does_not_work_ends_in_one_line(word, tmp_path):
    line = [
        "train",
        "experiment=debug",
        "task=metaworld",
        "protocol=default",
        "protocol.image=32",
        f"run_dir={tmp_path}/x",
    ]
    line += ["protocol.decisions=25", "task.name=reach-v3"]
    name, _, value = word.partition("=")
    ran = subprocess.run(
        [sys.executable, "-m", "mbrl", *line],
        capture_output=True,
        text=True,
        cwd=CONFIGS.parent,
        env=os.environ | {name: value},
        check=False,
    )
    assert ran.returncode == 2, ran.stderr
    assert [said for said in ran.stderr.splitlines() if said.startswith("error: ") and word in said], ran.stderr


def finger_row(frame_CHW) -> float:
    """Mean row of the cyan finger."""
    red, green, blue = frame_CHW.int()
    rows = torch.nonzero((red < 110) & (green > 130) & (blue > 130) & (blue - red > 60))[:, 0]
    assert len(rows) > 2, "the finger is in the picture"
    return rows.float().mean().item()


@pytest.mark.metaworld
@pytest.mark.parametrize("name", ["default", "ivideogpt", "mwm", "tdmpc2"])
def test_a_hand_that_is_lifted_goes_up_in_the_picture(name):
    env = metaworld("reach-v3", protocol=name, quality="fast")
    rows = {}
    for lift in (-1.0, 1.0):
        now = env.reset()
        for _ in range(5):
            _, now = env.step_and_maybe_reset(now.set("action", torch.tensor([[0.0, 0.0, lift, 0.0]])))
        rows[lift] = finger_row(now["pixels"][0])
    env.close()
    assert rows[1.0] < rows[-1.0] - 3


@pytest.mark.metaworld
def test_flips_turn_the_raw_picture_as_they_say():
    frames = {}
    for flip in ("none", "vertical", "rot180"):
        env = metaworld("drawer-close-v3", flip=flip)
        frames[flip] = env.reset()["pixels"][0]
        env.close()
    assert frames["none"].float().std() > 20, "there is something to see"
    assert torch.equal(frames["vertical"], frames["none"].flip(1))
    assert torch.equal(frames["rot180"], frames["none"].flip(1, 2))


@pytest.mark.metaworld
def test_worlds_that_share_a_painter_or_a_process_do_not_show_in_each_others_frames():
    a = metaworld("reach-v3", rows=2)
    a.reset()
    first, second = (simulator_of(a, row) for row in range(2))
    alone = [first.draw(), second.draw()]
    b = metaworld("drawer-close-v3", quality="full", image=48)
    b.reset()
    other = simulator_of(b)
    before = [first.draw(), second.draw(), other.draw()]
    assert np.array_equal(before[0], alone[0]) and np.array_equal(before[1], alone[1])
    again = [first.draw(), other.draw(), second.draw(), first.draw()]
    assert np.array_equal(before[0], again[0]) and np.array_equal(before[0], again[3])
    assert np.array_equal(before[1], again[2]) and np.array_equal(before[2], again[1])
    assert not np.array_equal(before[0], before[1])
    b.close()
    assert np.array_equal(first.draw(), before[0]), "closing one world leaves the others drawing"
    a.close()


@pytest.mark.metaworld
def test_a_camera_that_the_model_does_not_have_is_refused_with_the_ones_it_has():
    with pytest.raises(ValueError, match=r"one of .*corner4.*got corner9"):
        config("task", "metaworld").build(
            protocol=config(
                "protocol", "default", camera={"_target_": f"{NamedCamera.__module__}.NamedCamera", "name": "corner9"}
            ),
            rows=1,
        )


@pytest.mark.metaworld
def test_fast_drawing_is_several_times_faster_than_full_drawing():
    task = config("task", "metaworld")
    fast = frames_per_second(task, config("protocol", "default", quality="fast"), decisions=20)
    full = frames_per_second(task, config("protocol", "default", quality="full"), decisions=4)
    assert fast > 4 * full, "about 10 times on an idle machine"


@pytest.mark.metaworld
def test_a_process_that_never_closed_its_worlds_ends_without_a_word():
    code = (
        "import yaml; from pathlib import Path; from mbrl.rundir.build import make\n"
        "read = lambda path: make(yaml.safe_load(Path('configs', path).read_text()), path, trusted=True)\n"
        "world, = read('task/metaworld.yaml').build(protocol=read('protocol/default.yaml'), rows=1)\n"
        "world.reset(0); print(world.draw().shape)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CONFIGS.parent, check=True)
    assert (ran.stdout, ran.stderr) == ("(3, 64, 64)\n", "")
