"""The code path of a host with an NPU, as far as it goes without one: torchair's own backend up to the loading of a graph.

It runs in a process of its own, where a stand-in is torchair's native module. `debug.run_eagerly` makes torchair run the
FX graph of the GE graph that it has built. Nothing here shows that GE loads or runs the graph.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from gr_compile.lowering.torchair import convert, device, files

SCRIPT = """
import json, logging, signal, sys
import torch
from cases import Case
from gr_compile.lowering.torchair import device, standin

standin.install()
before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], logging.getLoggerClass()
torchair = device.imported()
kept = before == ([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)], logging.getLoggerClass())

class Target:
    name = "ascend"
    def supports(self, operator):
        return True
    def compile(self, graph_module, inputs):
        return device.compiled(graph_module, inputs, "max-autotune", "generated", run_eagerly=True)

from gr_compile.backend import Backend, Session
from gr_compile.config import Config
from gr_compile.pipeline import Pipeline

model, batch = Case("sasrec", True, True).build()
session = Session(Config(model="m"), Pipeline.parse("default"))
settings = dict(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True)
with torch._dynamo.config.patch(**settings):
    loss = torch.compile(model, backend=Backend(session, Target()), dynamic=True)(**batch)
loss.backward()
ours = [p.grad.clone() for p in model.parameters()]
model.zero_grad()
expected = model(**batch)
expected.backward()
gaps = [float((g - p.grad).abs().max()) for g, p in zip(ours, model.parameters())]
print(json.dumps({"kept": kept, "loss": float(loss - expected), "gradients": max(gaps)}))
"""


def test_the_backend_compiles_and_trains_as_eager_does(request):
    try:
        found = files.fetch()
    except files.TorchairMissing as error:
        pytest.skip(str(error))
    environment = convert._environment(found)
    environment["PYTHONPATH"] += ":" + str(request.path.parent)
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["kept"] and abs(said["loss"]) < 1e-5 and said["gradients"] < 1e-5


def test_handlers_come_back():
    mine = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), device._handlers_kept():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is mine
