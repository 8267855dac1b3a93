"""Every model of the zoo is one graph, for the loss and for the scores, and imports torch alone."""

import ast
from pathlib import Path

import pytest
import torch

import gr_compile.model_zoo as zoo

CASES = {
    "hstu": (zoo.HSTU, zoo.HSTUConfig, ("item_ids", "timestamps")),
    "fuxi": (zoo.FuXi, zoo.FuXiConfig, ("item_ids", "timestamps")),
    "stu": (zoo.STU, zoo.STUConfig, ("item_ids", "timestamps", "lengths")),
    "sasrec": (zoo.SASRec, zoo.SASRecConfig, ("item_ids",)),
}


@pytest.mark.parametrize("name", CASES)
def test_one_graph_without_breaks(name):
    model_class, config_class, arguments = CASES[name]
    torch.manual_seed(0)
    model = model_class(config_class(num_items=20, max_seq_len=6, embedding_dim=8, dropout=0.0))
    item_ids = torch.tensor([[3, 1, 0, 0], [5, 6, 7, 8]])
    batch = {"item_ids": item_ids, "timestamps": item_ids * 1000, "lengths": torch.tensor([2, 4])}
    inputs = [batch[argument] for argument in arguments]
    targets = torch.tensor([[1, 0, 0, 0], [6, 7, 8, 0]])
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs, targets=targets), model(*inputs, targets=targets))
    torch.testing.assert_close(compiled(*inputs), model(*inputs))


def test_imports_torch_alone():
    for path in Path(zoo.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            for module in modules:
                allowed = ("torch", "dataclasses", "__future__", "gr_compile.model_zoo")
                assert module.startswith(allowed), f"{path.name} imports {module}"
