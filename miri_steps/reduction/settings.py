"""What the stages of a reduction are told: parameter files, and changes to them."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path

from stpipe import config_parser

import miri_steps
from miri_steps import parameters
from miri_steps.plugin import get_steps

__all__ = ["STAGES", "Hook", "Stage", "read"]

#: Pipeline of each stage, and the parameter file it has if none is given.
STAGES = {"detector1": "Detector1Pipeline", "image2": "Image2Pipeline", "image3": "Image3Pipeline"}

_CLASSES = {alias: name.rpartition(".")[2] for name, alias, _ in get_steps()}
_HOOK = re.compile(r"\s*miri_steps\.(\w+)\s*(?:\((.*)\))?\s*", re.DOTALL)
_KINDS = "pre_hooks", "post_hooks"
# Parameters of our Steps that name files.
_FILES = {
    *("source_mask", "source_catalog", "corrections", "reference_catalog", "skylist"),
    *("mask_image", "regions", "background_file", "background_files"),
}
# Where and how a run is kept is up to the reduction.
_RESERVED = {"output_dir", "output_file", "save_results", "suffix", "output_ext", "pre_hooks", "post_hooks"}


@dataclass(frozen=True)
class Hook:
    """
    A Step of this package, hooked into a stock pipeline.

    Parameters
    ----------
    alias : str
        Its alias.
    parameters : dict
        Its parameters.
    """

    alias: str
    parameters: dict = field(default_factory=dict)

    @property
    def step(self) -> type:
        """The class."""
        return getattr(miri_steps, _CLASSES[self.alias])


@dataclass(frozen=True)
class Stage:
    """
    A stock pipeline and its parameters.

    Parameters
    ----------
    name : str
        One of `STAGES`.
    parameters : dict
        Parameters of the pipeline itself.
    steps : dict
        Parameters of its steps by alias; hooks are `Hook` where they are Steps of this package.
    """

    name: str
    parameters: dict
    steps: dict[str, dict]

    @property
    def pipeline(self) -> type:
        """The class."""
        return getattr(import_module("jwst.pipeline"), STAGES[self.name])

    def hooks(self) -> dict[str, Hook]:
        """List the Steps of this package that are hooked in, by alias."""
        listed = (hook for step in self.steps.values() for kind in _KINDS for hook in step.get(kind, ()))
        return {hook.alias: hook for hook in listed if isinstance(hook, Hook)}

    def changed(self, step: str, **values: object) -> Stage:
        """
        Change parameters of a step or of a hook.

        Parameters
        ----------
        step : str
            Its alias; a hook that is told to skip is taken out.
        **values
            The parameters; None takes one of a hook back.

        Returns
        -------
        Stage
            A new one.
        """
        if step in _CLASSES:
            steps = {name: _changed_hooks(given, step, values) for name, given in self.steps.items()}
        else:
            steps = self.steps | {step: self.steps.get(step, {}) | values}
        return Stage(self.name, self.parameters, steps)


def read(given: Sequence[str | Path] = (), changes: Mapping[str, object] | None = None) -> dict[str, Stage]:
    """
    Read what each stage is told.

    Parameters
    ----------
    given : sequence of str or Path
        Parameter files, or names of those that come with the package, one per stage at most; stages
        without one get ``detector1``, ``image2`` and ``image3``.
    changes : dict, optional
        Values by ``"step.parameter"``. A step that several stages have is that of the last;
        ``"image2.resample.skip"`` names another, ``"image3.in_memory"`` a parameter of the pipeline itself.

    Returns
    -------
    dict
        Stages by name.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or none that a parameter names.
    ValueError
        If a file is for no stage or for the same as another, or a step, parameter or value is not known.
    """
    stages = {}
    for item in given:
        stage = _read_file(item)
        if stage.name in stages:
            raise ValueError(
                f"there must be one parameter file per stage, but {item} is another for {stage.name}"
            )
        stages[stage.name] = stage
    stages = {name: stages.get(name) or _read_file(name) for name in STAGES}
    for key, value in (changes or {}).items():
        _change(stages, key, value)
    for stage in stages.values():
        _check(stage)
    return stages


def _read_file(item):
    """Read a parameter file by path or by name."""
    if Path(item).is_file():
        return _read_path(Path(item))
    try:
        name = parameters.file_name(str(item))
    except ValueError as error:
        raise FileNotFoundError(
            f"{item} must be a parameter file; there is no such file, and {error}"
        ) from None
    with as_file(files(parameters) / name) as path:
        return _read_path(path)


def _read_path(path):
    try:
        config = config_parser.load_config_file(str(path)).dict()
    except Exception as error:
        # asdf, yaml and configobj raise errors of their own, none that names the file.
        raise ValueError(
            f"{path} cannot be read as a parameter file: {str(error).splitlines()[0]}"
        ) from error
    pipeline = str(config.pop("class", "")).rpartition(".")[2]
    name = next((stage for stage, known in STAGES.items() if known == pipeline), None)
    if name is None:
        raise ValueError(
            f"class of {path} must be one of {', '.join(STAGES.values())}, got {pipeline or None}"
        )
    steps = {step: _with_hooks(dict(values), path) for step, values in config.pop("steps", {}).items()}
    config.pop("name", None)
    return Stage(name, config, steps)


def _with_hooks(values, path):
    """Read the hooks of a step that are Steps of this package; what else is hooked in stays as it is."""
    values = {key: value for key, value in values.items() if key not in ("class", "name")}
    for kind in _KINDS:
        if kind in values:
            values[kind] = [_read_hook(text, path) for text in values[kind]]
    return values


def _read_hook(text, path):
    found = _HOOK.fullmatch(str(text))
    if not found:
        return text
    alias = next((alias for alias, name in _CLASSES.items() if name == found[1]), None)
    if alias is None:
        raise ValueError(f"hooks in {path} must be one of {', '.join(_CLASSES.values())}, got {found[1]}")
    try:
        call = ast.parse(f"dict({found[2] or ''}\n)", mode="eval").body
        return Hook(alias, {word.arg: ast.literal_eval(word.value) for word in call.keywords})
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"hook in {path} must be a class with parameters, got {text!r}") from error


def _changed_hooks(given, alias, values):
    """Change the parameters of a hook among those of a step."""
    changed = dict(given)
    for kind in _KINDS:
        hooks = []
        for hook in given.get(kind, ()):
            if isinstance(hook, Hook) and hook.alias == alias:
                told = {key: value for key, value in (hook.parameters | values).items() if value is not None}
                if _is_true(told.pop("skip", False)):
                    continue
                hook = Hook(alias, told)
            hooks.append(hook)
        if kind in given:
            changed[kind] = hooks
    return changed


def _change(stages, key, value):
    """Apply one change."""
    *where, parameter = str(key).split(".")
    if parameter in _RESERVED:
        raise ValueError(f"{parameter} is up to the reduction and cannot be set, got {key}")
    if len(where) == 1 and where[0] in STAGES:
        stage = stages[where[0]]
        stages[stage.name] = Stage(stage.name, stage.parameters | {parameter: value}, stage.steps)
        return
    if len(where) == 2 and where[0] in STAGES:
        names, step = [where[0]], where[1]
    elif len(where) == 1:
        names, step = list(STAGES), where[0]
    else:
        raise ValueError(f"a change must be step.parameter or stage.step.parameter, got {key!r}")
    having = [name for name in names if step in _known_steps(stages[name])]
    if not having:
        known = sorted({known for name in names for known in _known_steps(stages[name])})
        raise ValueError(f"the step of a change must be one of {', '.join(known)}, got {key!r}")
    stages[having[-1]] = stages[having[-1]].changed(step, **{parameter: value})


def _known_steps(stage):
    """Name the steps of a stage, and those that are hooked in."""
    return [*stage.pipeline.step_defs, *stage.hooks()]


def _check(stage):
    """Refuse parameters that are not known or make no sense."""
    unknown = sorted(set(stage.steps) - set(stage.pipeline.step_defs))
    if unknown:
        known = ", ".join(stage.pipeline.step_defs)
        raise ValueError(f"steps of {stage.name} must be among {known}, got {', '.join(unknown)}")
    _validate(stage.name, stage.pipeline, stage.parameters)
    for name, values in stage.steps.items():
        plain = {key: value for key, value in values.items() if key not in _KINDS}
        _validate(name, stage.pipeline.step_defs[name], plain)
    for hook in stage.hooks().values():
        _validate(hook.alias, hook.step, hook.parameters)


def _validate(name, step, values):
    for parameter, value in values.items():
        try:
            config_parser.config_from_dict({parameter: value}, step.load_spec_file())
        except config_parser.ValidationError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{name}.{parameter}={value} cannot be: {reason}") from error
        if parameter in _FILES or parameter.startswith("override_"):
            _check_named(f"{name}.{parameter}", value)


def _check_named(parameter, value):
    """Refuse a file that is not there now: it would be missed only after hours."""
    for text in value if isinstance(value, list | tuple) else [value]:
        path = Path(str(text))
        # Names of tables may come without their end; N/A is how CRDS says that none is needed.
        if text not in (None, "", "N/A") and not path.exists() and not path.with_suffix(".ecsv").exists():
            raise FileNotFoundError(f"{parameter} must name a file, but there is no {text}")


def _is_true(value):
    return str(value).strip().lower() in ("true", "yes", "on", "1")
