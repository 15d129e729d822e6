"""Small values behind a sigmoid are the model's and not the runtime's rounding, whatever is done with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from converter.export.sigmoids import with_sigmoids_written_out
from converter.graph.canonical import canonical
from converter.plan import InputOption
from converter.program.programs import onnx_program
from converter.verify.columns import compare
from converter.verify.kinds import endings_of
from edge.contract.bundle import Bundle
from edge.inference.onnx_session import OnnxSession
from tests.converter.models import convert, export, plan
from tests.converter.verify.test_measure import normal

LEAST_DB = 80.0


class Behind(nn.Module):
    """Logits about -1, -12, -17 and -22, and what is done with them."""

    def __init__(self, end: Callable[[Tensor], Tensor] = torch.sigmoid) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.last, self.end = nn.Linear(6, 8), nn.Linear(8, 4), end
        with torch.no_grad():
            self.last.bias.add_(torch.tensor([-1.0, -12.0, -17.0, -22.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.last(torch.relu(self.hidden(x))))


def test_what_is_done_with_a_small_share_keeps_its_digits() -> None:
    """Against the same network in float64."""
    x = normal(64, 6)
    ends: dict[str, Callable[[Tensor], Tensor]] = {
        "share": torch.sigmoid,
        "percent": lambda z: 100 * torch.sigmoid(z),
        "logarithm": lambda z: torch.log(torch.sigmoid(z)),
        "product": lambda z: torch.sigmoid(z[:, :1]) * torch.sigmoid(z[:, 1:]),
        "root": lambda z: torch.sqrt(torch.sigmoid(z)).unsqueeze(-1),
        "behind_others": lambda z: torch.cat([z * 10, torch.sigmoid(z)], dim=-1),
        "opposite": lambda z: 2.0 * torch.sigmoid(z) / (1 + torch.exp(-z)),
        "information": lambda z: -torch.sigmoid(z) * torch.log(torch.sigmoid(z)),
    }
    for name, end in ends.items():
        network = Behind(end).eval()
        with torch.no_grad():
            wanted = network.double()(torch.tensor(x).double()).numpy()
        graph = canonical(export(network.float(), (6,)))
        exact = with_sigmoids_written_out(graph)
        assert exact is not None, name
        axis = 1
        plain, found = (next(iter(onnx_program(m, name)({"input": x}).values())) for m in (graph, exact))
        with np.errstate(all="ignore"):
            assert compare(wanted, plain, axis).noise_db.min() < 40, name
        assert compare(wanted, found, axis).noise_db.min() > LEAST_DB, name
        assert (list(endings_of(exact).values()) == ["Sigmoid"]) == (name == "share"), name


def test_a_logarithm_of_a_sigmoid_that_torch_has_as_one_keeps_its_digits_at_once() -> None:
    x, network = normal(64, 6), Behind(logsigmoid).eval()
    with torch.no_grad():
        wanted = network.double()(torch.tensor(x).double()).numpy()
    graph = canonical(export(network.float(), (6,)))
    found = next(iter(onnx_program(graph, "it")({"input": x}).values()))
    assert compare(wanted, found, 1).noise_db.min() > LEAST_DB


def test_sigmoids_before_a_sum_of_products_stay_as_they_are() -> None:
    gates = nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 3)).eval()
    assert with_sigmoids_written_out(canonical(export(gates, (6,)))) is None


def test_a_bundle_gives_what_the_model_gives_also_where_that_is_small(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.hidden, self.last = nn.Linear(6, 8), nn.Linear(8, 4)\n\n"
        "    def forward(self, x):\n        z = self.last(torch.relu(self.hidden(x)))\n"
        "        return torch.sigmoid(z), nn.functional.logsigmoid(z)\n"
    )
    network, source, shape = Behind().eval(), tmp_path / "net.pth", (InputOption(name="", shape=("batch", 6)),)
    torch.save(network.state_dict(), source)
    made = convert(plan(source, arch=f"{tmp_path / 'net.py'}:Net", inputs=shape, quantize="none"))
    assert any("sigmoids are written out" in note for note in made.report["notes"])
    x = normal(50, 6, seed=3)
    found = OnnxSession(Bundle.open(source.with_suffix(".edge"))).run({"input": x})
    with torch.no_grad():
        z = network.last(torch.relu(network.hidden(torch.tensor(x)))).double()
    for wanted, got in zip((torch.sigmoid(z), logsigmoid(z)), found.values(), strict=True):
        assert compare(wanted.numpy(), got, 1).noise_db.min() > LEAST_DB
