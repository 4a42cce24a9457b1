"""Figures as they stand in the report and in the README: rounded, with their units, intervals and origin."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

SPACE = "\N{NO-BREAK SPACE}"


def number(value: float | None, digits: int = 3) -> str:
    """A figure to so many places that count, thousands apart; "–" for none.

    >>> number(65536), number(0.07642), number(3.69), number(None)
    ('65,536', '0.0764', '3.69', '–')
    """
    if value is None:
        return "–"
    value += 0.0  # -0.0 is 0
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) or float(value).is_integer() else f"{value:.{digits}g}"


def seconds(value: float | None) -> str:
    """Seconds, or milliseconds where these are fewer than a hundred; number and unit stay in one line.

    >>> seconds(0.0125), seconds(0.315), seconds(4.36), seconds(None)
    ('12.5\\xa0ms', '0.315\\xa0s', '4.36\\xa0s', '–')
    """
    if value is None:
        return "–"
    return f"{number(1000 * value)}{SPACE}ms" if value < 0.1 else f"{number(value)}{SPACE}s"


def times(row: dict[str, Any]) -> str:
    """A ratio with its interval, where one was kept.

    >>> times({"ratio": 2.283}), times({"ratio": 142.06, "ratio low": 99.8, "ratio high": 145.02})
    ('2.28', '142 [99.8, 145]')
    """
    if row.get("ratio") is None:
        return "–"
    if row.get("ratio low") is None:
        return number(row["ratio"])
    return f"{number(row['ratio'])} [{number(row['ratio low'])}, {number(row['ratio high'])}]"


def share(value: float, digits: int = 0) -> str:
    """A share in per cent.

    >>> share(0.9285), share(0.075, 1)
    ('93%', '7.5%')
    """
    return f"{100 * value:.{digits}f}%"


def bounds(interval: dict[str, float]) -> str:
    """The bounds of an interval of shares.

    >>> bounds({"low": 0.9014, "high": 0.9542})
    '[90%, 95%]'
    """
    return f"[{share(interval['low'])}, {share(interval['high'])}]"


_WHOLE = ["no", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def minutes(value: float) -> str:
    """Seconds as minutes and halves in words, up to ten.

    >>> minutes(95), minutes(205), minutes(62), minutes(40)
    ('a minute and a half', 'three and a half minutes', 'a minute', 'half a minute')
    """
    whole_ones, half = divmod(round(value / 30), 2)
    name = _WHOLE[whole_ones]
    if whole_ones < 2:
        return ("half a minute" if not whole_ones else "a minute and a half") if half else f"{name} minute"
    return f"{name} and a half minutes" if half else f"{name} minutes"


def day(date: str) -> str:
    """A date as it is spoken.

    >>> day("2026-11-21")
    '21 November 2026'
    """
    return f"{datetime.fromisoformat(date):%-d %B %Y}"


def machine(of: dict[str, Any]) -> str:
    """The machine of a result in a few words.

    >>> machine({"cores": 2, "processor": "AMD EPYC", "bfloat16": True, "accelerator": None, "threads": 1, "load": 0.1})
    '2 cores of AMD EPYC with bfloat16, threads: 1, load before: 0.1'
    """
    said = (
        f"{of['cores']} cores"
        + (f" of {of['processor']}" if of.get("processor") else "")
        + " with bfloat16" * bool(of.get("bfloat16"))
    )
    said += f", {of['accelerator']}" if of.get("accelerator") else ""
    return said + "".join(f", {word}: {of[key]}" for key, word in (("threads", "threads"), ("load", "load before")) if key in of)


def used(versions: dict[str, str]) -> str:
    """Versions in a line.

    >>> used({"python": "3.11.7", "torch": "2.13.0"})
    'python 3.11.7, torch 2.13.0'
    """
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def origin(of: dict[str, Any]) -> str:
    """Which result it is, and what is to be said of it.

    >>> origin({"section": "sae", "measured": "2026-11-21", "commit": "abc1234", "note": "In a hurry."})
    '*Section `sae`, 21 November 2026.* In a hurry.'
    """
    said = f"*Section `{of['section']}`, {day(of['measured'])}.*"
    return f"{said} {of['note']}" if of.get("note") else said


def compared(rows: list[dict[str, Any]], labels: dict[str, str]) -> str:
    """Rows of `case.measured` as a table; `labels` say what the cases are.

    >>> row = {"name": "sae-code", "model": "tiny", "peer": "loop", "ours s": 2, "peer s": 9, "ratio": 4.5, "difference": 1e-7}
    >>> print(compared([row], {"sae-code": "encode + decode"}))
    | what | on | beside | ours | theirs | times as long | largest difference |
    | --- | --- | --- | --- | --- | --- | --- |
    | encode + decode | tiny | loop | 2 s | 9 s | 4.5 | 1e-07 |
    """
    return listed([_comparison(row, labels) for row in rows])


def _comparison(row: dict[str, Any], labels: dict[str, str]) -> dict[str, Any]:
    def given(name: str, worded: Callable[[Any], str]) -> str | None:
        return None if row.get(name) is None else worded(row[name])

    columns: dict[str, Any] = {"what": labels.get(row["name"], row["name"]), "on": row["model"], "beside": row["peer"]}
    columns |= {
        "ours": given("ours s", seconds),
        "theirs": given("peer s", seconds),
        "times as long": given("ratio", lambda _: times(row)),
    }
    columns |= {
        "largest difference": given("difference", lambda apart: f"{apart:.0e}" if apart else "0"),
        "cells timed": row.get("cells timed"),
    }
    return columns | {"memory, ours": given("peak MiB", _mib), "memory, theirs": given("peer MiB", _mib)}


def _mib(value: float) -> str:
    return f"{number(value)}{SPACE}MiB"


def sizes(rows: list[dict[str, Any]]) -> str:
    """Rows of `real_sizes.py` as a table: of models with few layers only what was extrapolated from them."""
    whole = (
        [row for row in rows if row["extrapolated"] or not row["tower layers"]] if any(r["extrapolated"] for r in rows) else rows
    )
    return listed([_size(row) for row in whole])


def _size(row: dict[str, Any]) -> dict[str, Any]:
    columns = {
        "model": row["model"],
        "task": row["task"],
        "by": row["road"],
        "timed": row["timed"],
        "time": seconds(row["seconds"]),
    }
    columns |= {"planned": _range(row.get("planned s")), "peak GB": row["peak GB"], "planned GB": row.get("planned GB")}
    return columns | {"extrapolated": "yes" if row["extrapolated"] else None}


def _range(planned: str | None) -> str | None:
    """What `real_sizes.py` keeps of a plan, "21.4 - 53.4", in words."""
    return f"{' to '.join(number(float(end)) for end in planned.split(' - '))}{SPACE}s" if planned else None


def listed(rows: list[dict[str, Any]]) -> str:
    """Any rows as a table of Markdown, with the columns that a row has a value in."""
    columns = [name for name in dict.fromkeys(key for row in rows for key in row) if any(row.get(name) is not None for row in rows)]
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(name)) for name in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "–" if value is None else str(value).replace("|", "\\|")
    return number(value)


def keyed(rows: list[dict[str, Any]], key: str, value: str) -> dict[str, Any]:
    """One column of rows by another."""
    return {row[key]: row[value] for row in rows}


FILTERS: dict[str, Callable] = {
    one.__name__: one
    for one in (number, seconds, times, share, bounds, minutes, machine, used, keyed, origin, compared, sizes, listed)
}
