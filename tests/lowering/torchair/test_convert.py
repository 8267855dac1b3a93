"""The process that converts: it starts before there is a graph, and never outlives who started it."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from gr_compile.lowering.torchair.convert import ConversionFailed, converter
from gr_compile.lowering.torchair.files import TorchairFiles
from gr_compile.lowering.torchair.request import Request

NOTHING = TorchairFiles((), "unknown", "a test")


def request():
    x = torch.zeros(2)
    traced = make_fx(lambda y: (y + 1,), tracing_mode="fake", pre_dispatch=True)(x)
    return Request("graph_0", traced, [x], training=False, dynamic=False, run=False)


def test_its_last_words_are_the_reason(tmp_path):
    with (
        converter(NOTHING, tmp_path) as child,
        pytest.raises(ConversionFailed, match="failed: ModuleNotFoundError: No module named 'torchair'"),
    ):
        child.convert([request()])
    assert child.process.returncode == 1


def test_without_graphs_nothing_is_waited_for(tmp_path):
    with converter(NOTHING, tmp_path) as child:
        assert child.convert([]) == []
    assert child.process.returncode is not None and not list(tmp_path.iterdir())


def test_where_there_is_no_graph_it_ends_with_the_error(tmp_path):
    with pytest.raises(KeyError), converter(NOTHING, tmp_path) as child:
        raise KeyError
    assert child.process.returncode is not None
