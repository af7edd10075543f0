"""What perdure is to reach, as ratios in one run, beside what was measured."""

import ranks
import table

MB = 1e6


class CheckList:
    """One line a target. A target whose figures are missing is neither met nor missed."""

    def __init__(self):
        self.lines = []

    def at_most(self, what: str, measured: float | None, target: float, unit: str = "x") -> None:
        self.lines.append(
            {
                "what": what,
                "target": f"<= {target:.4g} {unit}",
                "measured": "-" if measured is None else f"{measured:.3g} {unit}",
                "": "not measured" if measured is None else "met" if measured <= target else "NOT MET",
            }
        )

    def render(self) -> str:
        return table.render("Targets", self.lines)


def check(results: dict) -> str:
    targets = CheckList()
    if "save" in results:
        _saves(targets, results["save"])
    if "small" in results:
        _small(targets, results["small"])
    for name, result in results.get("drift", {}).items():
        _memory(targets, f"{name}, many saves", [result])
    if "load" in results:
        _loads(targets, results["load"])
    if "train" in results:
        _training(targets, results["train"])
    if "ranks" in results:
        ranks.check(targets, results["ranks"])
    if "command" in results:
        _command(targets, results["command"])
    return targets.render()


def _saves(targets: CheckList, bench: dict) -> None:
    limits = table.limit_medians(bench["limits"])
    found = {name: table.save_medians(r) for name, r in bench["contenders"].items()}
    eager, streaming, overlapped = (
        found.get(n, {}) for n in ("perdure", "perdure-256", "perdure-overlapped")
    )
    for when in ("first", "again"):
        key = f"stall {when}"
        targets.at_most(
            f"1. eager stall {when} / memcpy", table.ratio(eager.get(key), limits["memcpy"]), 1.25
        )
        targets.at_most(f"1. overlapped stall {when}", _ms(overlapped.get(key)), 10, "ms")
    streamed = table.ratio(streaming.get("stall again"), streaming.get("durable again"))
    targets.at_most("1. 256 MiB: eager stall / durable", streamed, 1.0)
    for title, row in (("eager", eager), ("256 MiB", streaming), ("overlapped", overlapped)):
        durable = table.ratio(row.get("durable again"), limits["fio write"])
        targets.at_most(f"2. {title}: durable / fio write", durable, 1.10)
    for name in ("perdure", "perdure-256", "perdure-overlapped"):
        _memory(targets, name, bench["contenders"].get(name, []))


def _small(targets: CheckList, bench: dict) -> None:
    limits = table.limit_medians(bench["limits"])
    found = {name: table.save_medians(r) for name, r in bench["contenders"].items()}
    stall = found.get("perdure-overlapped", {}).get("stall again")
    targets.at_most("1. small tensors: overlapped stall", _ms(stall), 30, "ms")
    for name in ("perdure", "perdure-overlapped"):
        durable = table.ratio(found.get(name, {}).get("durable again"), limits["fio write"])
        targets.at_most(f"2. small tensors: {name}, durable / fio write", durable, 1.5)


def _memory(targets: CheckList, name: str, results: list[dict]) -> None:
    targets.at_most(f"2. {name}: memory above staging_bytes", _above_staging(results), 32, "MB")


def _loads(targets: CheckList, bench: dict) -> None:
    limits = table.limit_medians(bench["limits"])
    for name in ("perdure-restore", "perdure-restore-256"):
        results = bench["contenders"].get(name, {"cold": [], "warm": []})
        row = table.load_medians(results)
        targets.at_most(f"3. {name}: cold / fio read", table.ratio(row["cold"], limits["fio read"]), 1.10)
        targets.at_most(f"3. {name}: warm / memcpy", table.ratio(row["warm"], limits["memcpy"]), 2.5)
        above = _above_staging(results["cold"] + results["warm"])
        targets.at_most(f"3. {name}: memory above live + staging_bytes", above, 0, "MB")


def _training(targets: CheckList, bench: dict) -> None:
    bare = table.train_medians(bench["contenders"]["bare"])
    row = table.train_medians(bench["contenders"].get("perdure-overlapped", []))
    targets.at_most("4. training, overlapped: mean step / bare", table.ratio(row["mean"], bare["mean"]), 1.08)
    targets.at_most("4. training, overlapped: p98 step / bare", table.ratio(row["p98"], bare["p98"]), 1.25)


def _command(targets: CheckList, bench: dict) -> None:
    for name, target in (("verify", 1.10), ("diff of two", 1.20)):
        targets.at_most(f"5. {name}, cold / plain reads", bench["cold"][name]["ratio"], target)
    memory = max(row.get("memory", 0) for row in bench["cold"].values()) / MB
    targets.at_most("5. memory of a command", memory, 300, "MB")
    targets.at_most("5. show of one tensor of 100,000", _ms(bench["quick"]["show one"]), 20, "ms")
    targets.at_most("5. start of the command", _ms(bench["quick"]["start"]), 10, "ms")


def _above_staging(results: list[dict]) -> float | None:
    """Of the worst process, in MB."""
    return max(((r["extra"] - r["staging"]) / MB for r in table.good(results)), default=None)


def _ms(value: float | None) -> float | None:
    return None if value is None else value * 1e3
