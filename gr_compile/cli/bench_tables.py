"""The result of `gr-compile bench` for people: tables of rows and of processes, and what has no row."""

from __future__ import annotations

from typing import Any

from gr_compile.cli.output import Output


def show(output: Output, payload: dict[str, Any]) -> None:
    """The same for people."""
    rows: list[dict[str, Any]] = payload["rows"]
    output.line()
    output.line(title_of(payload))
    if rows:
        columns = [name for name in rows[0] if name not in ("mode", "fill")]
        table = [
            (f"{row.get('mode', '')} {row['fill']:.0%}".strip(), *(number(row[name]) for name in columns))
            for row in rows
        ]
        output.table("Medians; MB are 2^20 bytes", ("", *columns), table)
    columns = ["step_ms", "compile_s", "mfu", "peak_mb", "steady_peak_mb", "deviation"]
    table = [
        (
            f"{run['mode']} {run['fill']:.0%} {run['contender']}{'' if run['cold'] else ' (warm cache)'}",
            *(number(run[name]) for name in columns),
        )
        for run in payload["runs"]
    ]
    output.table("Every process", ("", *columns), table)
    for run in payload["runs"]:
        if run["reason"]:
            output.line(f"{run['contender']}, {run['mode']} {run['fill']:.0%}: {run['status']}: {run['reason']}")
    for absence in payload["absent"]:
        output.line(f"no row: {absence['contender']}, {absence['mode']}: {absence['reason']}")
    if payload["what"] in ("speed", "turbogr"):
        output.line(payload["definition"])
    output.line(f"{payload['seconds']:.0f} s in all")


def title_of(payload: dict[str, Any]) -> str:
    """What was measured, in one line."""
    sizes = payload["settings"]
    if payload["what"] == "turbogr":
        processor = payload["machine"]["processor"]
        return f"turbogr: {sizes['dtype']}, {sizes['threads']} threads, B={sizes['batch_size']}; {processor}"
    if payload["what"] in ("loss", "offload"):
        return (
            f"{payload['what']}: {sizes['dtype']}, {sizes['threads']} threads, B={sizes['batch_size']}, "
            f"N={sizes['max_seq_len']}, D={sizes['embedding_dim']}; {payload['machine']['processor']}"
        )
    return (
        f"{payload['what']}: {sizes['model']}, {sizes['dtype']}, {sizes['threads']} threads, "
        f"B={sizes['batch_size']}, N={'/'.join(lengths_of(payload))}, D={sizes['embedding_dim']}, "
        f"H={sizes['num_heads']}, dqk=dv={sizes['head_dim']}, {sizes['num_layers']} layers, "
        f"V={sizes['items']}; {payload['machine']['processor']}"
    )


def lengths_of(payload: dict[str, Any]) -> list[str]:
    """The padded lengths that occur."""
    return list(dict.fromkeys(str(run["max_seq_len"]) for run in payload["runs"]))


def number(value: Any) -> str:
    """A number with three figures or so."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, str):
        return value
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
