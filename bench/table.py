"""The tables: medians over the rounds, beside the limits and beside torch.save with the right protocol."""

import statistics

from loaders import LOADERS
from perdure_savers import SAVERS

RIGHT = "torch-right"


def good(results: list[dict]) -> list[dict]:
    return [r for r in results if "unavailable" not in r and "failed" not in r]


def median(values) -> float | None:
    values = [v for v in values if v is not None]
    return statistics.median(values) if values else None


def ratio(value, base) -> float | None:
    return value / base if value is not None and base else None


def save_medians(results: list[dict]) -> dict:
    """The first save of a process stands alone; "again" is the median of those behind it."""
    results = good(results)

    def first(key):
        return median(r["saves"][0][key] for r in results)

    def again(key):
        return median(median(s[key] for s in r["saves"][1:]) for r in results)

    row = {f"{key} first": first(key) for key in ("stall", "fence", "durable")}
    row |= {f"{key} again": again(key) for key in ("stall", "fence", "durable", "cpu")}
    return row | {key: median(r[key] for r in results) for key in ("extra", "prepare")}


def limit_medians(limits: list[dict]) -> dict:
    return {key: median(r.get(key) for r in good(limits)) for key in ("memcpy", "fio write", "fio read")}


def load_medians(results: dict) -> dict:
    row = {kind: median(r["seconds"] for r in good(results[kind])) for kind in ("cold", "warm")}
    return row | {"extra": median(r["extra"] for r in good(results["cold"]))}


def train_medians(results: list[dict]) -> dict:
    """Over the steps of all runs of a contender together."""
    results = good(results)
    steps = sorted(s for r in results for s in r["steps"])
    if not steps:
        return {"runs": 0, "mean": None, "p98": None, "stall": None, "cpu": None}
    return {
        "runs": len(results),
        "mean": statistics.fmean(steps),
        "p98": steps[min(len(steps) - 1, int(0.98 * len(steps)))],
        "stall": median(s for r in results for s in r["stalls"]),
        "cpu": sum(r["cpu"] for r in results) / len(steps),
    }


def problems(results: list[dict]) -> str:
    """Why there is no figure; "" where there is one."""
    bad = [r for r in results if r not in good(results)]
    if not bad:
        return ""
    kind = "unavailable" if "unavailable" in bad[0] else "failed"
    return f"{kind}: {bad[0][kind]}"


def seconds(value) -> str:
    if value is None:
        return "-"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def times(value) -> str:
    return "-" if value is None else f"{value:.2f}"


def megabytes(value) -> str:
    return "-" if value is None else f"{value / 1e6:,.0f} MB"


def render(title: str, rows: list[dict[str, str]], notes: list[str] = ()) -> str:
    """A table in Markdown, aligned, so that it reads well as plain text too. All rows have the same keys."""
    lines = ["", title, ""]
    if rows:
        table = [list(rows[0]), *(list(row.values()) for row in rows)]
        widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
        cells = [
            [
                text.rjust(width) if i else text.ljust(width)
                for i, (text, width) in enumerate(zip(row, widths, strict=True))
            ]
            for row in table
        ]
        rule = ["-" * (width - 1) + ":" if i else "-" * width for i, width in enumerate(widths)]
        lines += [f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]]] + [""]
    return "\n".join(lines + [f"- {note}" for note in notes])


def limits_note(limits: dict, size: int) -> str:
    parts = [
        f"{name} {seconds(value)} ({size / value / 1e9:.2f} GB/s)" if value else f"{name} -"
        for name, value in limits.items()
    ]
    return "limits for the same bytes: " + ", ".join(parts)


def save_table(title: str, bench: dict) -> str:
    limits = limit_medians(bench["limits"])
    rows, notes = [], [limits_note(limits, bench["bytes"])]
    right = save_medians(bench["contenders"].get(RIGHT, []))
    for name, results in bench["contenders"].items():
        if problem := problems(results):
            notes.append(f"{SAVERS[name].title}: {problem}")
        m = save_medians(results)
        if m["stall first"] is not None:
            rows.append(_save_row(SAVERS[name].title, m, limits, right))
    return render(title, rows, notes)


def _save_row(title: str, m: dict, limits: dict, right: dict) -> dict[str, str]:
    return {
        "engine": title,
        "stall first": seconds(m["stall first"]),
        "stall again": seconds(m["stall again"]),
        "fence": seconds(m["fence again"]),
        "durable first": seconds(m["durable first"]),
        "durable again": seconds(m["durable again"]),
        "stall / memcpy": times(ratio(m["stall again"], limits["memcpy"])),
        "durable / fio": times(ratio(m["durable again"], limits["fio write"])),
        "durable / right": times(ratio(m["durable again"], right["durable again"])),
        "CPU": seconds(m["cpu again"]),
        "extra memory": megabytes(m["extra"]),
    }


def load_table(title: str, bench: dict) -> str:
    limits = limit_medians(bench["limits"])
    rows, notes = [], [limits_note(limits, bench["bytes"])]
    base = load_medians(bench["contenders"].get("torch", {"cold": [], "warm": []}))
    for name, results in bench["contenders"].items():
        if problem := problems(results["cold"] + results["warm"]):
            notes.append(f"{LOADERS[name].title}: {problem}")
        m = load_medians(results)
        if m["cold"] is not None:
            rows.append(_load_row(LOADERS[name], m, limits, base))
    return render(title, rows, notes)


def _load_row(loader, m: dict, limits: dict, base: dict) -> dict[str, str]:
    return {
        "engine": loader.title,
        "cold": seconds(m["cold"]),
        "warm": seconds(m["warm"]),
        "cold / fio": times(ratio(m["cold"], limits["fio read"])),
        "warm / memcpy": times(ratio(m["warm"], limits["memcpy"])),
        "cold / torch.load": times(ratio(m["cold"], base["cold"])),
        "warm / torch.load": times(ratio(m["warm"], base["warm"])),
        "extra memory": megabytes(m["extra"]),
        "verified": loader.verified,
    }


def train_table(title: str, bench: dict) -> str:
    rows, notes = [], []
    bare = train_medians(bench["contenders"]["bare"])
    for name, results in bench["contenders"].items():
        label = "no saves" if name == "bare" else SAVERS[name].title
        if problem := problems(results):
            notes.append(f"{label}: {problem}")
        m = train_medians(results)
        if m["mean"] is not None:
            rows.append(_train_row(label, m, bare))
    return render(title, rows, notes)


def _train_row(label: str, m: dict, bare: dict) -> dict[str, str]:
    return {
        "engine": label,
        "runs": str(m["runs"]),
        "mean step": seconds(m["mean"]),
        "p98 step": seconds(m["p98"]),
        "mean / bare": times(ratio(m["mean"], bare["mean"])),
        "p98 / bare": times(ratio(m["p98"], bare["p98"])),
        "stall": seconds(m["stall"]),
        "CPU a step": seconds(m["cpu"]),
    }


def drift_table(title: str, results: dict) -> str:
    rows = [
        {
            "engine": SAVERS[name].title,
            "saves": str(len(result["saves"])),
            "extra memory": megabytes(result["extra"]),
            "staging_bytes": megabytes(result["staging"]),
            "grown since the second": megabytes(result["drift"]),
        }
        for name, result in results.items()
        if good([result])
    ]
    return render(title, rows)
