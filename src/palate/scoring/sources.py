"""What can be measured, by one string: a checkpoint, adapter or hub id, `dpo:POLICY,REFERENCE`, `ensemble:A,B`, `average:A,B`, `lower:A`, or the address of an
endpoint.

`open_scorer` loads it and says who it is, so that rewards can be cached and results can name their model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from palate.errors import ConfigError
from palate.models.checkpoints import CONTRACT_NAME, find_beside
from palate.scoring.adapters import load_adapters, member_folders, share_a_backbone
from palate.scoring.averaging import load_average
from palate.scoring.ensemble import Ensemble
from palate.scoring.gated import GATE_NAME, GATE_WEIGHTS, load_gate
from palate.scoring.generative import load_generative_scorer
from palate.scoring.implicit import ImplicitScorer, load_implicit_scorer
from palate.scoring.input_formats import FormattedScorer, format_of
from palate.scoring.laplace import LAPLACE_NAME, LaplaceScorer, read_posterior
from palate.scoring.local import LocalScorer, describe_model, load_scorer
from palate.scoring.remote import RemoteScorer
from palate.scoring.uncertainty import COMBINE, STRENGTHENED, HeadScorer, LowerBound, UncertainScorer, deviation_reader, has_members
from palate.types import Scorer

DECIDING = (".safetensors", ".bin", ".pt", ".model", ".py", ".jinja")
MODEL_FILES = (
    *("config.json", "adapter_config.json", "modules.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
)
"""Files that decide rewards, by suffix and by name; results and cards that are written beside them later do not."""

ASIDE = (GATE_WEIGHTS, LAPLACE_NAME)
"""Files that change no output of the model; where they change the reward, they stand in the identity by themselves."""

NEUTRAL = ("packing", "token_budget", "device", "dtype", "max_length")
"""Options that change no reward, or stand in the identity as what came of them."""


class Opened(NamedTuple):
    scorer: Scorer
    description: dict[str, Any]  # for results and reports
    identity: dict[str, Any] | None  # what decides its rewards; None: not known, so nothing may be cached
    local: LocalScorer | None = None  # the scorer itself, where it is one checkpoint in this process


def open_scorer(source: str, *, input_format: str | None = None, protocol: str | None = None, api_key: str | None = None, **options: Any) -> Opened:
    """Load what `source` names. `options` go to `load_scorer`: packing, token_budget, max_length, device, dtype, trust_remote_code.

    A checkpoint with a gate gives its gated reward; one whose outputs or `laplace.safetensors` state an uncertainty is an UncertainScorer.
    `dpo:POLICY,REFERENCE` is the implicit reward (without a reference: mean log-probability); `ensemble:A,B[,C]`, `ensemble-worst:`, `ensemble-lower:`
    and `ensemble-variance:` combine members, or the member heads of one checkpoint; `average:A,B` averages weights; `lower:SOURCE` takes its uncertainty
    off a reward (`ensemble-lower=0.5:`, `ensemble-variance=0.5:` and `lower=2:`: that many times, 1 otherwise); `genrm:MODEL` reads
    log P(Yes) - log P(No) from a language model; `http://HOST:PORT` is an endpoint that speaks `protocol` (palate, vllm,
    sglang, openrlhf, tei; by default it is asked which), and may want an `api_key`.
    """
    kind, colon, rest = source.partition(":")
    kind, equals, number = kind.partition("=") if colon else ("", "", "")  # a folder may be called ensemble-1
    endpoint, ensemble = kind in ("http", "https"), kind == "ensemble" or kind.startswith("ensemble-")
    if not endpoint and (protocol is not None or api_key is not None):
        raise ConfigError(f"{f'protocol {protocol}' if protocol else 'an API key'} is for an endpoint (http://...), not for {source}")
    if input_format is not None and (endpoint or kind in ("dpo", "genrm", "average")):
        raise ConfigError(f"input format {input_format} is for a reward model in this process, not for {source}")
    if options.get("trust_remote_code") and (endpoint or kind in ("dpo", "genrm")):
        raise ConfigError(f"code that comes with a model is run for reward models in this process alone, not for {source}")
    name = format_of(source, input_format)
    if endpoint:
        remote = RemoteScorer(source, protocol=protocol or "auto", api_key=api_key)
        return Opened(remote, {"name": remote.model or source, "architecture": f"endpoint ({remote.protocol_name})", "url": source}, None)
    if kind == "dpo":
        return _implicit(rest, options)
    if kind == "genrm":
        return _generative(rest, options)
    if kind == "average":
        return _average(source, rest, options)
    if ensemble or kind == "lower":
        strength = _strength(source, kind, number) if equals else 1.0
        return (_ensemble if ensemble else _lower)(source, kind, rest, strength, input_format, options)
    return _checkpoint(source, name, options)


def _checkpoint(source: str, input_format: str | None, options: Mapping[str, Any]) -> Opened:
    """A checkpoint, behind the gate or with the uncertainty that its folder holds."""
    if member_folders(source):
        raise ConfigError(f"{source}: holds adapters that were trained as members; read them together as ensemble:{source}, or give one of them")
    local = load_scorer(source, **options)
    gate, posterior = (find_beside(source, name, options.get("revision")) for name in (GATE_NAME, LAPLACE_NAME))
    if input_format and gate:
        raise ConfigError(f"{source} has a gate, which reads prompts under the checkpoint's own template; leave input format {input_format} out")
    identity, description = _identity(source, local, input_format, options), describe_model(local)
    scorer: Scorer = local
    if input_format:
        scorer, description = FormattedScorer(local, input_format), description | {"input_format": input_format}
    elif gate:
        identity |= {"gate": [_stamp(gate), _stamp(gate.with_name(GATE_WEIGHTS))]}
        scorer, description = load_gate(gate.parent, local, verify=options.get("verify", True)), description | {"gate": ", ".join(local.readout.outputs)}
    elif posterior:
        scorer = LaplaceScorer(local, read_posterior(posterior.parent, local))
    elif deviation_reader(local.readout):
        scorer = HeadScorer(local)
    return Opened(scorer, description, identity, local)


def _strength(source: str, kind: str, number: str) -> float:
    if kind != "lower" and kind.partition("-")[2] not in STRENGTHENED:
        raise ConfigError(f"{source}: nothing is taken off by {kind}; a number goes with {', '.join(f'ensemble-{how}' for how in STRENGTHENED)} and lower")
    try:
        return float(number)
    except ValueError:
        raise ConfigError(f"{source}: {number!r} is no number; expected e.g. {kind}=0.5:") from None


def _lower(source: str, kind: str, rest: str, strength: float, input_format: str | None, options: Mapping[str, Any]) -> Opened:
    opened = open_scorer(rest, input_format=input_format, **options)
    if not isinstance(opened.scorer, UncertainScorer):
        raise ConfigError(
            f"{source}: {rest} states no uncertainty; ensembles do, and checkpoints with members, quantiles, Gaussians or a {LAPLACE_NAME} "
            "(palate attributes --bound)"
        )
    posterior = Path(rest) / LAPLACE_NAME
    stamp = _stamp(posterior) if posterior.is_file() else None
    identity = None if opened.identity is None else {"kind": "lower", "strength": strength, "of": opened.identity, "posterior": stamp}
    description = opened.description | {"name": f"{opened.description['name']}, less {strength:g} of its uncertainty"}
    return Opened(LowerBound(opened.scorer, strength), description, identity)


def _average(source: str, rest: str, options: Mapping[str, Any]) -> Opened:
    names = [name for name in rest.split(",") if name]
    if len(names) < 2:
        raise ConfigError(f"{source}: an average is over two checkpoints at least; expected average:A,B[,C]")
    scorer = load_average(names, **options)
    whole = _identity(names[0], scorer, None, options)
    identity = whole | {"kind": "average", "model": [_weights(name, scorer.model) for name in names]}
    return Opened(scorer, describe_model(scorer) | {"name": f"average of {', '.join(names)}"}, identity)


def _generative(rest: str, options: Mapping[str, Any]) -> Opened:
    """A generative reward model. Its rewards depend on the wording of what it is asked, which is part of its identity."""
    known = {key: value for key, value in options.items() if key in ("max_length", "device", "dtype") and value is not None}
    scorer = load_generative_scorer(rest, **known)
    identity = {"kind": "generative", "model": _weights(rest, scorer.reader.model), **scorer.identity(), "palate": version("palate")}
    return Opened(scorer, {"name": rest, "architecture": "language model asked for yes or no"}, identity)


def _implicit(rest: str, options: Mapping[str, Any]) -> Opened:
    names = [name for name in rest.split(",") if name]
    if len(names) not in (1, 2):
        raise ConfigError(f"dpo:{rest}: expected dpo:POLICY,REFERENCE, or dpo:POLICY without a reference")
    known = {key: value for key, value in options.items() if key in ("max_length", "token_budget", "device", "dtype") and value is not None}
    scorer: ImplicitScorer = load_implicit_scorer(*names, **known)
    identity: dict[str, Any] = {"kind": "implicit", "models": [_weights(name, model) for name, model in zip(names, scorer.models, strict=True)]}
    identity |= {"norm": scorer.length_norm, "template": scorer.encoder.template_hash(), "max_length": scorer.encoder.max_length, "palate": version("palate")}
    identity |= {"separator": scorer.encoder.separator, "dtype": str(scorer.models[0].dtype)}
    description = {"name": " against ".join(names), "architecture": "implicit reward (DPO)" if len(names) == 2 else "implicit reward (mean log-probability)"}
    return Opened(scorer, description, identity)


def _ensemble(source: str, kind: str, rest: str, strength: float, input_format: str | None, options: Mapping[str, Any]) -> Opened:
    how = kind.partition("-")[2] or "mean"
    if how not in COMBINE:
        known = ", ".join(f"ensemble-{name}:" if name != "mean" else "ensemble:" for name in COMBINE)
        raise ConfigError(f"{source}: an ensemble combines by {', '.join(COMBINE)} ({known})")
    names = [name for name in rest.split(",") if name]
    if nested := [name for name in names if name.startswith(("dpo:", "genrm:", "average:", "ensemble:", "ensemble-")) and ":" in name]:
        raise ConfigError(f"{source}: {nested[0]} has members of its own, so its commas are ambiguous; an ensemble takes checkpoints and endpoints")
    called = f"{how} ({strength:g})" if how in STRENGTHENED and strength != 1 else how
    settings = {"how": how, "strength": strength if how in STRENGTHENED else None}
    if len(names) == 1 and (Path(names[0]) / CONTRACT_NAME).is_file():
        return _member_heads(source, names[0], called, settings, input_format, options)
    if len(names) == 1:
        names = member_folders(names[0]) or names
    if len(names) < 2:
        raise ConfigError(
            f"{source}: an ensemble has two members at least; expected {kind}:A,B[,C], or one folder that was trained with loss.members or model.members"
        )
    members = _members(names, input_format, options)
    scales = [_scale(member) for member in members]
    fixed = [scale for scale in scales if scale is not None]
    scorer = Ensemble([member.scorer for member in members], how=how, strength=strength, scales=fixed if len(fixed) == len(members) else None)
    identities = [member.identity for member in members]
    identity: dict[str, Any] | None = {"kind": "ensemble", "members": identities, "scales": fixed, **settings}
    if None in identities or scorer.scales is None:  # z-scored over what is scored first: no fixed property of a text, so nothing may be cached
        identity = None
    shown = ", ".join(str(member.description["name"]) for member in members)
    return Opened(scorer, {"name": f"{called} of {shown}", "architecture": "ensemble"}, identity)


def _members(names: Sequence[str], input_format: str | None, options: Mapping[str, Any]) -> list[Opened]:
    """Each by itself, or, where they are adapters of one base, on one backbone."""
    aside = (GATE_NAME, LAPLACE_NAME)
    if input_format or any((Path(name) / file).is_file() for name in names for file in aside) or not share_a_backbone(names):
        return [open_scorer(name, input_format=input_format, **options) for name in names]
    return [
        Opened(scorer, describe_model(scorer.local) | {"name": name}, _identity(name, scorer.local, None, options), scorer.local)
        for name, scorer in zip(names, load_adapters(names, **options), strict=True)
    ]


def _member_heads(source: str, name: str, called: str, settings: Mapping[str, Any], input_format: str | None, options: Mapping[str, Any]) -> Opened:
    """The heads of one checkpoint as members."""
    opened = open_scorer(name, input_format=input_format, **options)
    if opened.local is None or not has_members(opened.local.readout):
        raise ConfigError(f"{source}: an ensemble has two members at least, and {name} was not trained with loss.members; expected two names or more")
    if input_format:
        raise ConfigError(f"{source}: heads are combined under the checkpoint's own template; leave input format {input_format} out")
    heads = HeadScorer(opened.local, how=settings["how"], strength=settings["strength"] or 0.0)
    identity = {"kind": "heads", "of": opened.identity, **settings}
    return Opened(heads, opened.description | {"name": f"{called} of the heads of {opened.description['name']}"}, identity)


def _scale(member: Opened) -> tuple[float, float] | None:
    """Mean and deviation of a member's rewards as its contract has them from held-out comparisons; None where nothing was recorded."""
    contract = member.local.contract if member.local and "input_format" not in member.description else None
    if contract is None or contract.rewards is None or not contract.rewards.std > 0:
        return None
    return contract.rewards.mean, contract.rewards.std


def _identity(source: str, scorer: LocalScorer, input_format: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides a reward of this scorer."""
    return {
        "kind": "local",
        "model": _weights(source, scorer.model),
        "contract": scorer.contract.sha256() if scorer.contract else None,
        "template": scorer.encoder.template_hash(),
        "separator": scorer.encoder.separator,
        "max_length": scorer.encoder.max_length,
        "cut_prompts": scorer.cut_prompts,
        "dtype": str(scorer.model.dtype),
        "input_format": input_format,
        "options": {name: str(value) for name, value in options.items() if name not in NEUTRAL and value is not None},
        "palate": version("palate"),
    }


def _weights(source: str, model: Any) -> Any:
    """Which weights: the files of a folder by path, size and time of writing (of an adapter, those of its base as well), or the commit of a hub id.

    The path belongs to it: archives give all files one time, and fine-tunes of one model all have one size.
    """
    folder = Path(source)
    if not folder.is_dir():
        return [source, getattr(model.config, "_commit_hash", None)]
    files = sorted(path for path in folder.resolve().iterdir() if (path.suffix in DECIDING or path.name in MODEL_FILES) and path.name not in ASIDE)
    found: list[Any] = [_stamp(path) for path in files]
    adapter = folder / "adapter_config.json"
    if adapter.is_file():
        found.append(_weights(str(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]), model))
    return found


def _stamp(path: Path) -> tuple[str, int, int]:
    return str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns
