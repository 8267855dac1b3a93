"""The most memory that activations take at once: a walk over both graphs that frees a value after its last reader."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch.fx as fx

from gr_compile.lowering.roofline.work import Step, base_of, size_of


def peak_activations(forward: fx.Graph, backward: fx.Graph, steps: Sequence[Iterable[Step]]) -> int:
    """Bytes. `steps` are those of the two graphs: what no step writes takes no memory. Gradients of inputs are results
    and not counted, nor are the inputs themselves."""
    kept = _saved(forward)
    first, held = _walk(forward, steps[0], {}, set(kept.values()))
    given = {name: (f"saved {base}", held[base]) for name, base in kept.items() if base in held}
    second, _ = _walk(backward, steps[1], given, set())
    return max(first, second)


def _saved(forward: fx.Graph) -> dict[str, str]:
    """What the forward hands on, by name, and whose memory it is."""
    return {x.name: base_of(x).name for x in forward.output_node().all_input_nodes}


def _walk(
    graph: fx.Graph, steps: Iterable[Step], given: dict[str, tuple[str, int]], kept: set[str]
) -> tuple[int, dict[str, int]]:
    """(the peak, what is held in the end), by the name of the memory."""
    written = {node for step in steps for node in step.writes}
    held = dict(given.values())
    owner = {node: given[node.name][0] if node.name in given else node.name for node in map(base_of, graph.nodes)}
    last = {owner[base_of(x)]: node for node in graph.nodes for x in node.all_input_nodes}
    results = {owner[base_of(x)] for x in graph.output_node().all_input_nodes} if not kept else set()
    peak = sum(held.values())
    for node in graph.nodes:
        if node in written and node.name not in results:
            held[node.name] = size_of(node)
            peak = max(peak, sum(held.values()))
        for operand in {owner[base_of(x)] for x in node.all_input_nodes}:
            if last[operand] is node and operand not in kept:
                held.pop(operand, None)
    return peak, held
