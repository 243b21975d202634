"""Panels on the command line: the members of a jury or a cascade made into one judge, and what each did and cost."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from palate.cli.styles import policy_of

if TYPE_CHECKING:
    from palate.cli.judging import Opened
    from palate.judging.panels import PanelSettings
    from palate.judging.verdicts import Winner


def read_members(options: argparse.Namespace) -> tuple[PanelSettings, list[argparse.Namespace]]:
    """(the panel, the flags of each member: those of the command line where its own are not set)."""
    from palate.errors import ConfigError
    from palate.judging.panels import read_panel

    if options.style != "pairwise" or options.votes != 1:
        raise ConfigError(f"{options.judge}: a panel compares pairs, and its members have `votes` of their own; leave --style and --votes out")
    panel = read_panel(options.judge.removeprefix("panel:"))
    members = []
    for member in panel.judges:
        if member.model.startswith("panel:"):
            raise ConfigError(f"{options.judge}: {member.model} is a panel itself; name its judges here")
        own = {name: value for name, value in member.model_dump(exclude={"model", "name", "weight"}).items() if value is not None}
        if member.base_url is not None:  # the key of the command line is not for other addresses
            own["api_key_env"] = member.api_key_env
        members.append(argparse.Namespace(**{**vars(options), **own, "judge": member.model}))
    return panel, members


def panel_of(options: argparse.Namespace, panel: PanelSettings, flags: Sequence[argparse.Namespace], members: Sequence[Opened]) -> tuple[Any, dict[str, Any]]:
    """(the judge made of all members, its provenance). A jury asks each about everything; those of a cascade each see what the one before left in doubt."""
    from palate.judging.combining import BothOrders, Cascade, Jury

    names = [member.label for member in panel.judges]
    judge: Any
    if panel.mode == "jury":
        judge = Jury([one.judge for one in members], weights=[member.weight for member in panel.judges], names=names)
    else:
        *others, judge = [BothOrders(one.judge, policy_of(own)) for one, own in zip(members, flags, strict=True)]
        for cheaper in reversed(others):
            judge = Cascade(cheaper, judge, doubtful=panel.doubtful)
    provenance = {
        "judge": (" + " if panel.mode == "jury" else " > ").join(names),
        "kind": panel.mode,
        "policy": policy_of(options),
        "doubtful": panel.doubtful,
        "members": [{"name": member.label, **one.provenance, "weight": member.weight} for one, member in zip(members, panel.judges, strict=True)],
    }
    return judge, provenance


def panel_figures(opened: Opened, right: Sequence[Winner] | None = None) -> dict[str, Any] | None:
    """What the members said and cost, for a card or an audit; None of a judge that is no panel. `right`: winners of the last call, where they are known."""
    from palate.judging.combining import Cascade, Jury, jury_figures

    if not opened.members:
        return None
    calls = [one.caller.spent.as_dict(one.caller.budget) if one.caller else None for one in opened.members]
    figures: dict[str, Any] = {"mode": opened.provenance["kind"], "calls": calls}
    if isinstance(opened.judge, Jury):
        return figures | jury_figures(opened.judge, right)
    assert isinstance(opened.judge, Cascade)
    return figures | {"members": [{"name": one["name"]} for one in opened.provenance["members"]]} | {"cascade": opened.judge.figures()}
