"""Declared padding as places: the user's mapping from arguments to pad ids, lengths or masks, over b and n."""

from __future__ import annotations

from collections.abc import Sequence

import torch.fx as fx

from gr_compile.analysis.element import Elements
from gr_compile.analysis.expr import TRUE, Expr, add, cast, compare, const, index, load, mul, or_, sub, substitute
from gr_compile.analysis.implies import project
from gr_compile.analysis.inputs import argument_name
from gr_compile.analysis.layout import TokenLayout
from gr_compile.analysis.region import Region
from gr_compile.analysis.region_support import support
from gr_compile.config import Config, Padding
from gr_compile.declare import as_padding
from gr_compile.graph_pass import Miss


def declared_places(pull: Elements, layout: TokenLayout, graph_module: fx.GraphModule, config: Config) -> Expr | None:
    """The places that declarations call valid, for the raggedness of `layout`; None where none is declared."""
    inputs = {argument_name(node): node for node in graph_module.graph.find_nodes(op="placeholder")}
    found = []
    for name, declared in config.declared.items():
        node = inputs.get(name)
        if node is None or not _has_places(layout, node):
            continue
        named = inputs.get(declared) if isinstance(declared, str) else None
        padding = as_padding(declared, None, named.meta["val"] if named is not None else None)
        places = _places(pull, layout, node, padding, inputs)
        if places is not None:
            found.append(places)
    return or_(*found) if found else None


def declared_masks(graph_module: fx.GraphModule, config: Config) -> list[fx.Node]:
    """The inputs that declarations call masks."""
    inputs = {argument_name(node): node for node in graph_module.graph.find_nodes(op="placeholder")}
    found = []
    for name, declared in config.declared.items():
        if name not in inputs:
            continue
        named = inputs.get(declared) if isinstance(declared, str) else None
        mask = as_padding(declared, None, named.meta["val"] if named is not None else None).mask
        node = inputs.get(name if mask == "self" else mask) if mask is not None else None
        if node is not None:
            found.append(node)
    return found


def unread_declarations(graph_module: fx.GraphModule, config: Config) -> list[Miss]:
    """A declaration by an argument that the model never reads says nothing in the graph."""
    inputs = {argument_name(node) for node in graph_module.graph.find_nodes(op="placeholder")}
    found = []
    for name, declared in config.declared.items():
        padding = declared if isinstance(declared, Padding) else None
        others = [padding.mask, padding.lengths] if padding else [declared if isinstance(declared, str) else None]
        for used in (name, *others):
            if used not in (None, "self") and used not in inputs:
                found.append(Miss(f"padding is declared by {used!r}, which this graph does not read"))
    return found


def _has_places(layout: TokenLayout, node: fx.Node) -> bool:
    return layout.dims.known(node) and layout.dims.of(node)[:2] == ((layout.batch,), (layout.sequence,))


def _places(
    pull: Elements, layout: TokenLayout, node: fx.Node, padding: Padding, inputs: dict[str, fx.Node]
) -> Expr | None:
    here = (index("b"), index("n"))
    if padding.pad_id is not None:
        if node.meta["val"].dim() != 2:
            return None
        return compare("ne", load(node.name, here, pull.dtype(node)), const(padding.pad_id), pull.ranges)
    if padding.mask is not None:
        mask = node if padding.mask == "self" else inputs.get(padding.mask)
        if mask is None or mask.meta["val"].dim() != 2:
            return None
        return cast(load(mask.name, here, pull.dtype(mask)), "b")
    lengths = inputs.get(str(padding.lengths))
    if lengths is None:
        return None
    length = load(lengths.name, (index("b"),), "i")
    if padding.side == "right":
        return compare("lt", index("n"), length)
    first = sub(pull._symbolic(layout.sequence.size), length)
    return compare("ge", add(index("n"), mul(const(-1), first)), const(0))


def detected_places(regions: Sequence[Region], pull: Elements, layout: TokenLayout) -> Expr:
    """Without a declaration: the keys that attention's own masks admit; every place where nothing bounds them."""
    found = []
    for region in regions:
        for name, extent in region.extents.items():
            pull.bind(name, extent)
        keys = project(pull.ranges, substitute(support(region), region.definitions), frozenset({"b", "j"}))
        if keys is not TRUE:
            found.append(substitute(keys, {index("j"): index("n")}))
    return or_(*found) if found else TRUE
