"""Weights as people have them: what torch loads is loaded, what is unclear is asked for, what differs is listed."""

from __future__ import annotations

import argparse
import enum
import json
import warnings
from collections import OrderedDict, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import parametrizations

from converter.load.contents import arrays_beside
from converter.load.inputs import Given
from converter.load.load import load_source
from converter.load.safetensors_file import read_index, read_safetensors
from converter.load.torch_file import read_document
from converter.load.weights import Rules, load_into
from converter.load.wrapped import check_size, how_to_name_the_architecture, unwrapped
from converter.plan import InputOption, ModelOptions
from edge.contract.errors import ConfigError, ConversionError
from tests.converter.models import plan


def net(hidden: int = 6) -> nn.Sequential:
    torch.manual_seed(hidden)
    return nn.Sequential(OrderedDict(a=nn.Linear(4, hidden), bn=nn.BatchNorm1d(hidden), o=nn.Linear(hidden, 3))).eval()


def other(seed: int = 9) -> nn.Module:
    """The same network with other weights."""
    torch.manual_seed(seed)
    made = nn.Sequential(OrderedDict(a=nn.Linear(4, 6), bn=nn.BatchNorm1d(6), o=nn.Linear(6, 3))).eval()
    nn.init.normal_(made.bn.running_mean)
    return made


def saved(document: Any, folder: Path, *, legacy: bool = False) -> Any:
    """The document as it is read from a file."""
    path = folder / "w.pth"
    torch.save(document, path, _use_new_zipfile_serialization=not legacy)
    return read_document(path, trust=False, arch=None)


def loaded(model: nn.Module, document: Any, **rules: Any) -> tuple[str, ...]:
    key = rules.pop("key", None)
    return load_into(model, unwrapped(document, "w.pth", key), Path("w.pth"), Rules(**rules))


def assert_same(model: nn.Module, wanted: nn.Module) -> None:
    x = torch.randn(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), wanted.eval()(x))


def test_older_names_and_missing_counters_are_torchs_own_business(tmp_path: Path) -> None:
    def norm(new: bool) -> nn.Module:
        torch.manual_seed(1)
        wrap = parametrizations.weight_norm if new else nn.utils.weight_norm
        if not new:
            warnings.simplefilter("ignore", FutureWarning)  # of torch, about the old one
        return nn.Sequential(OrderedDict(c=wrap(nn.Linear(4, 5)), o=nn.Linear(5, 3)))

    old = norm(new=False)
    model = norm(new=True)
    nn.init.zeros_(model.o.weight)
    assert loaded(model, saved(old.state_dict(), tmp_path)) == ()
    assert_same(model, old)

    def spectral() -> nn.Module:
        return nn.Sequential(OrderedDict(c=nn.utils.spectral_norm(nn.Linear(4, 4)), o=nn.Linear(4, 3)))

    wanted, model = spectral(), spectral()
    wanted(torch.randn(3, 4))
    loaded(model, saved({f"module.{k}": v for k, v in wanted.state_dict().items()}, tmp_path))
    assert_same(model, wanted)
    wanted, model = other(), net()
    no_counter = {name: value for name, value in wanted.state_dict().items() if "num_batches" not in name}
    loaded(model, saved(no_counter, tmp_path))
    assert_same(model, wanted)
    with_versions = wanted.state_dict()  # which say that the counter should be there
    del with_versions["bn.num_batches_tracked"]
    loaded(net(), saved(with_versions, tmp_path))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 3)
        self.b.weight = self.a.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(self.b(self.a(x)))


def test_tied_weights_may_stand_once_in_the_file_and_not_twice_with_two_values(tmp_path: Path) -> None:
    wanted, model = Tied(), Tied()
    safetensors.torch.save_model(wanted, str(tmp_path / "t.safetensors"))
    held = read_safetensors(tmp_path / "t.safetensors")
    assert len(held) == 3
    loaded(model, held)
    assert_same(model, wanted)
    without = {name: value for name, value in held.items() if not name.endswith(("a.weight", "b.weight"))}
    with pytest.raises(ConversionError, match=r"missing    a\.weight"):
        loaded(Tied(), without, allow_missing=True)
    with pytest.raises(ConversionError, match="one tensor in the model"):
        loaded(Tied(), wanted.state_dict() | {"b.weight": torch.randn(4, 4)})


class WithState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.o, self.offset = nn.Linear(4, 3), 0.0
        self.register_buffer("ids", torch.arange(3.0), persistent=False)
        self.register_buffer("scale", torch.ones(3))

    def get_extra_state(self) -> dict[str, float]:
        return {"offset": self.offset}

    def set_extra_state(self, state: dict[str, float]) -> None:
        self.offset = state["offset"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(x) * self.scale + self.offset + self.ids


def test_extra_state_and_buffers_that_are_not_kept(tmp_path: Path) -> None:
    wanted, model = WithState(), WithState()
    wanted.offset = 2.5
    weights = wanted.state_dict()
    loaded(model, saved(weights, tmp_path))
    assert_same(model, wanted)
    loaded(WithState(), weights | {"ids": torch.arange(3.0)})  # from when it was kept
    with pytest.raises(ConversionError, match="unexpected ids"):
        loaded(WithState(), weights | {"ids": torch.ones(3)})
    for gone in ("scale", "_extra_state"):
        less = {name: value for name, value in weights.items() if name != gone}
        with pytest.raises(ConversionError, match="--allow-missing"):
            loaded(WithState(), less)
        assert gone in loaded(WithState(), less, allow_missing=True)[0]
    with pytest.raises(ConversionError, match=r"missing    o\.bias"):
        loaded(WithState(), {k: v for k, v in weights.items() if k != "o.bias"}, allow_missing=True)


def test_prefixes_of_wrappers_and_training_modules_are_found_and_said(tmp_path: Path) -> None:
    weights = other().state_dict()
    for wrap in (
        lambda k: f"module.{k}",
        lambda k: f"_orig_mod.module.{k}",
        lambda k: f"model.{k}",
        lambda k: f"net.encoder.{k}",
        lambda k: k.replace("a.", "a._orig_mod.").replace("o.", "o.module."),
    ):
        model = net()
        loaded(model, {wrap(name): value for name, value in weights.items()})
        assert_same(model, other())
    lightning = {f"model.{k}": v for k, v in weights.items()} | {"loss.weight": torch.ones(3)}
    model = net()
    (note,) = loaded(model, {"state_dict": lightning, "hyper_parameters": {"lr": 0.1}})[1:]
    assert "loss.weight" in note
    twice = {f"student.{k}": v for k, v in weights.items()} | {f"other.{k}": v for k, v in net().state_dict().items()}
    with pytest.raises(ConversionError, match=r"--strip PREFIX, one of other\., student\."):
        loaded(net(), twice)
    loaded(model := net(), twice, strip="student")
    assert_same(model, other())
    with pytest.raises(ConfigError, match=r"--strip teacher"):
        loaded(net(), twice, strip="teacher")
    averaged = {f"model.{k}": v for k, v in weights.items()} | {f"ema_model.{k}": v * 2 for k, v in weights.items()}
    loaded(model := net(), averaged)
    assert_same(model, other())


class Colour(enum.Enum):
    """Settings of a kind that torch does not read."""

    RED = 1


class Settings(dict):
    """As omegaconf's or mmengine's: a dictionary of its own class."""


def test_what_training_loops_leave_around_the_weights_is_not_run_and_not_in_the_way(tmp_path: Path) -> None:
    weights = other().state_dict()
    optimizer = torch.optim.AdamW(other().parameters())
    checkpoint = {
        "args": argparse.Namespace(lr=1e-3, path=tmp_path),
        "cfg": Settings(width=3, colour=Colour.RED, more=defaultdict(list, a=[1])),
        "best": np.float64(0.93),
        "history": np.arange(5.0),
        "epoch": 7,
        "optimizer": optimizer.state_dict(),
        "rng_state": torch.get_rng_state(),
        "model": {f"module.{name}": value for name, value in weights.items()},
    }
    for legacy in (False, True):
        document = saved(checkpoint, tmp_path, legacy=legacy)
        model = net()
        notes = loaded(model, document)
        assert "'model'" in notes[0]
        assert_same(model, other())
    arrays = saved({name: value.numpy() for name, value in weights.items()}, tmp_path)
    loaded(model := net(), arrays)
    assert_same(model, other())


class OfAnEarlyPython:
    """Pickled as Python 3.11.2 of Debian 12 pickles the member of an enum."""

    def __reduce__(self) -> tuple[object, tuple[object, str]]:
        return getattr, (Colour, "RED")


def test_an_enum_of_an_early_python_is_not_in_the_way_and_its_attribute_is_not_looked_up(tmp_path: Path) -> None:
    document = saved({"cfg": OfAnEarlyPython(), "model": other().state_dict()}, tmp_path)
    loaded(model := net(), document)
    assert_same(model, other())


def test_a_whole_model_in_a_pickle_is_refused_by_name_and_nothing_is_run(tmp_path: Path) -> None:
    for document, words in (
        (net(), ("torch.nn.modules.container.Sequential", "--trust-pickle", "torch.save(model.state_dict(), PATH)")),
        ({"epoch": 3, "model": net()}, ("torch.nn.modules.container.Sequential", "epoch", "int 3")),
    ):
        with pytest.raises(ConversionError) as caught:
            unwrapped(saved(document, tmp_path), "w.pth")
        assert all(word in str(caught.value) for word in words), caught.value


def test_several_networks_are_shown_as_a_tree_and_asked_for(tmp_path: Path) -> None:
    generator, judge = other(), nn.Linear(3, 1)
    document = saved({"generator": generator.state_dict(), "discriminator": judge.state_dict(), "step": 5}, tmp_path)
    notes = loaded(model := net(), document)
    assert "'generator' of the file, the only ones that fit" in notes[0]
    assert_same(model, generator)
    with pytest.raises(ConversionError) as caught:
        loaded(nn.Linear(7, 7, bias=False), document)
    for word in ("--weights KEY, one of generator, discriminator", "9 tensors", "(1, 3) torch.float32", "int 5"):
        assert word in str(caught.value), caught.value
    both = {"A2B": other(1).state_dict(), "B2A": other(2).state_dict()}
    with pytest.raises(ConversionError, match="--weights KEY, one of A2B, B2A"):
        loaded(net(), both)
    assert "several networks" in str(how_to_name_the_architecture(unwrapped(both, "w.pth"), Path("w.pth")))
    loaded(model := net(), {"nets": both}, key="nets.B2A")
    assert_same(model, other(2))
    with pytest.raises(ConfigError, match=r"no such key; it holds\n  A2B"):
        loaded(net(), both, key="C")


def test_networks_in_lists_and_whole_models_in_nests_are_shown_and_asked_for(tmp_path: Path) -> None:
    listed = saved({"epoch": 3, "nets": [net().state_dict(), other().state_dict()]}, tmp_path)
    model = net()
    loaded(model, listed, key="nets.1")
    assert_same(model, other())
    with pytest.raises(ConversionError, match=r"(?s)--weights KEY, one of nets\.0, nets\.1\n.*bn\.running_mean"):
        loaded(net(), listed)
    with pytest.raises(ConversionError, match="one of 0, 1"):
        loaded(net(), saved([net().state_dict(), other().state_dict()], tmp_path))
    path, beside = (
        tmp_path / "m.pth",
        {"optimizer": torch.optim.SGD(net().parameters(), 0.1), "criterion": nn.MSELoss()},
    )
    for document, key in (
        ({"generator": net(), "discriminator": net(7)}, "generator"),
        ({"state": {"generator": net(), "discriminator": net(7)}}, "state.generator"),
        ([net(), net(7)], "0"),
    ):
        rest = {**document, **beside} if isinstance(document, dict) else document
        torch.save(rest, path)
        given = Given(options=plan(path, trust_pickle=True, inputs=(InputOption(name="", shape=("batch", 4)),)))
        with pytest.raises(ConversionError, match=rf"(?s)several networks: .*{key}.*a module of 63 numbers"):
            load_source(given)
        source = load_source(replace(given, options=replace(given.options, weights=key)))
        assert isinstance(source.model, nn.Module)
        assert_same(source.model, net())
        untrusted = replace(given, options=replace(given.options, trust_pickle=False))
        with pytest.raises(ConversionError, match=r"(?s)nothing of it was run.*--weights KEY.*not read"):
            load_source(untrusted)
    torch.save({"net_g": net(), **beside}, path)  # the only one
    only = load_source(replace(given, options=replace(given.options, source=path))).model
    assert isinstance(only, nn.Module)
    assert_same(only, net())


def test_running_means_are_taken_only_when_asked_for() -> None:
    for name in ("ema", "model_ema", "state_dict_ema", "ema_state_dict", "swa_model"):
        document = {name: other(1).state_dict(), "state_dict": other(2).state_dict()}
        notes = loaded(model := net(), document)
        assert_same(model, other(2))
        assert f"not from {name}" in notes[0]
        loaded(model, document, key=name)
        assert_same(model, other(1))
    loaded(model := net(), {"model_ema": other(1).state_dict(), "epoch": 1})
    assert_same(model, other(1))
    part = dict(list(other(2).state_dict().items())[:2])
    document = {"model": part, "ema": other(1).state_dict()}
    with pytest.raises(ConversionError, match="--weights KEY"):
        loaded(net(), document)
    loaded(model := net(), document, key="ema")
    assert_same(model, other(1))
    loaded(model := net(), {"critic": {"c.weight": torch.ones(2)}, "ema": other(1).state_dict()})  # of no other network
    assert_same(model, other(1))


def test_a_teacher_beside_a_wrapped_model_is_left_by_its_prefix() -> None:
    weights = {f"module.{k}": v for k, v in other(1).state_dict().items()}
    document = weights | {f"teacher.{k}": v for k, v in other(2).state_dict().items()}
    with pytest.raises(ConversionError, match="--strip module"):
        loaded(net(), document)
    loaded(model := net(), document, strip="module")
    assert_same(model, other(1))


def test_all_that_differs_is_listed_at_once() -> None:
    weights = other().state_dict()
    wrong = {
        "a.weight": torch.zeros(7, 4),
        "bm.bias": weights["bn.bias"],
        "o.bias": torch.zeros(5),
        "extra": weights["o.bias"],
    }
    document = {k: v for k, v in weights.items() if k not in ("bn.bias", "a.weight", "o.bias")} | wrong
    with pytest.raises(ConversionError) as caught:
        loaded(net(), document)
    for line in (
        "missing    bn.bias   (the file has bm.bias)", "unexpected bm.bias   (the model has bn.bias)",
        "unexpected extra",
        "a.weight: (7, 4) in the file, (6, 4) in the model", "o.bias: (5) in the file, (3) in the model",
    ):  # fmt: skip
        assert line in str(caught.value), caught.value
    with pytest.raises(ConversionError, match="--allow-unexpected leaves them out"):
        loaded(net(), weights | {"aux.weight": torch.ones(2)})
    notes = loaded(model := net(), weights | {"aux.weight": torch.ones(2)}, allow_unexpected=True)
    assert "aux.weight" in notes[0]
    assert_same(model, other())


def test_other_types_of_numbers_and_tensors_that_hold_none() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int32):
        weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in other().state_dict().items()}
        notes = loaded(model := net(), weights)
        assert str(dtype)[6:] in notes[-1]
        assert model.a.weight.dtype == torch.float32
        if dtype.is_floating_point:
            torch.testing.assert_close(model.a.weight.data, other().a.weight.data, rtol=1e-2, atol=1e-2)
    assert loaded(net(), other().state_dict()) == ()
    weights = other().state_dict()
    warnings.simplefilter("ignore", UserWarning)  # of torch, about quantized tensors
    for strange, words in (
        (torch.eye(6, 4).to_sparse(), "sparse_coo"),
        (torch.quantize_per_tensor(torch.eye(6, 4), 0.1, 0, torch.qint8), "qint8"),
        (torch.empty(6, 4, device="meta"), "on meta"),
    ):
        with pytest.raises(ConversionError, match=f"a.weight is not a plain tensor.*{words}"):
            loaded(net(), weights | {"a.weight": strange})
    with torch.device("meta"):
        model = net()
    loaded(model, weights)
    assert_same(model, other())


def test_names_with_blanks_umlauts_line_ends_and_escapes_are_shown_on_one_line() -> None:
    strange = "größe \x1b[2J\nerror: all is well\udcff.weight"
    with pytest.raises(ConversionError) as caught:
        loaded(net(), other().state_dict() | {strange: torch.ones(1)})
    text = str(caught.value)
    assert "\x1b" not in text
    assert "\\x1b[2J\\nerror: all is well\\udcff.weight" in text
    assert not any(line.startswith("error") for line in text.splitlines())


def test_more_than_two_gibibytes_are_refused_from_shapes_alone() -> None:
    with torch.device("meta"):
        large = nn.Linear(30_000, 20_000)
    with pytest.raises(ConversionError, match=r"2\.2 GiB in float32"):
        check_size(large.parameters(), "w.pth")
    half = torch.empty(30_000, 20_000, dtype=torch.float16, device="meta")
    with pytest.raises(ConversionError, match=r"2\.2 GiB in float32"):
        check_size([half], "w.pth")
    check_size([half[:20_000]] * 9, "w.pth")


def test_samples_in_a_checkpoint_are_found(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(20, 4)), np.arange(20) % 3
    for names in (("images", "labels"), ("x", "y"), ("Inputs", "targets")):
        document = saved({"model": other().state_dict(), names[0]: x, names[1]: torch.from_numpy(y)}, tmp_path)
        found = arrays_beside(document)
        assert found is not None
        assert (found.x_name, found.y_name) == names
        np.testing.assert_array_equal(found.x, x)
        np.testing.assert_array_equal(found.y, y)
    assert arrays_beside(other().state_dict()) is None
    assert arrays_beside({"x": torch.ones(4, 4), "y": torch.ones(4)}) is None  # a network of its own


FORGOTTEN = """
import torch
from torch import nn

class Forgotten(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.linear, self.how = nn.Linear(4, 3), how
        if how == "tensor":
            self.scale = torch.randn(3)
        elif how == "buffer":
            self.register_buffer("scale", torch.randn(3), persistent=False)
        elif how == "list":
            self.layers = [nn.Linear(3, 3)]
        else:
            self.scale = torch.full((3,), 2.0)

    def forward(self, x):
        y = self.linear(x)
        return self.layers[0](y) if self.how == "list" else y * self.scale
"""


def test_what_a_state_dict_does_not_hold_is_not_drawn_at_random(tmp_path: Path) -> None:
    net, weights = tmp_path / "net.py", tmp_path / "m.pth"
    net.write_text(FORGOTTEN)
    torch.save({f"linear.{name}": tensor for name, tensor in nn.Linear(4, 3).state_dict().items()}, weights)
    for how in ("tensor", "buffer", "list", "constant"):
        options = ModelOptions(source=weights, arch=f"{net}:Forgotten", arch_arguments={"how": how})
        if how == "constant":
            load_source(Given(options=options))
            continue
        with pytest.raises(ConversionError, match=r"builds another network each time: .* does not hold"):
            load_source(Given(options=options))


def test_weights_in_several_files_are_read_by_their_index(tmp_path: Path) -> None:
    tensors, names = net().state_dict(), ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    where = {name: names[i % 2] for i, name in enumerate(tensors)}
    for file in names:
        own = {name: tensors[name] for name in tensors if where[name] == file}
        safetensors.torch.save_file(own, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    model = other()
    loaded(model, read_index(index))
    assert_same(model, net())
    with pytest.raises(ConfigError, match=r"holds a part of the weights: give .*index\.json"):
        load_source(Given(options=ModelOptions(source=tmp_path / names[0])))
    for odd in (
        {"weight_map": {"a": "../other.safetensors"}},
        {"weight_map": [1]},
        {},
        {"weight_map": {"q": names[0]}},
    ):
        index.write_text(json.dumps(odd))
        with pytest.raises(ConversionError, match=r"no index|is not the name of a file|is not in"):
            load_source(Given(options=ModelOptions(source=index)))


def test_a_state_dict_of_quantized_layers_is_named_as_that(tmp_path: Path) -> None:
    document = OrderedDict({"l.scale": torch.tensor(1.0), "l._packed_params._packed_params": (torch.ones(2), None)})
    for held, words in ((document, "torch.ao has quantized"), (OrderedDict(), "without a tensor")):
        with pytest.raises(ConversionError, match=words):
            unwrapped(held, "w.pth")
