"""What each pass did, as rows: in order, with what kept a graph from the passes in front."""

from gr_compile.graph_pass import GraphReport, Match, Miss, PassRecord
from gr_compile.training.passes import pass_rows


def record(name, matches=(), misses=()):
    return PassRecord(name, name, "forward", "bitwise", True, matches, misses, 1.5, 0.1, 10, 8, {}, {})


def test_rows_keep_order_reasons_and_counts():
    passes = [
        record("a", matches=(Match("linear", detail="x2"),)),
        record("b", misses=(Miss("dense", hint="pad"),)),
    ]
    rows = pass_rows([GraphReport("M", "0_0", 0, "eager", "a,b", passes, training=True)])
    assert [(row.graph, row.name) for row in rows] == [("M 0_0 training", "a"), ("M 0_0 training", "b")]
    assert rows[0].matches == ["linear x2"] and rows[1].misses == ["dense -> pad"]
    assert (rows[0].nodes_before, rows[0].nodes_after, rows[0].milliseconds) == (10, 8, 1.5)


def test_a_graph_that_was_not_captured_has_a_row_that_says_why():
    report = GraphReport("M", "1_0", 0, "eager", "", not_captured=Miss("input mutation"), captured_nodes=4)
    (row,) = pass_rows([report])
    assert (row.name, row.misses, row.nodes_after, row.changed) == ("capture", ["input mutation"], 4, False)
