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
from miri_steps.steps.base import table_path

__all__ = ["STAGES", "Hook", "Stage", "read"]

#: Pipeline of each stage, and the parameter file it has if none is given.
STAGES = {"detector1": "Detector1Pipeline", "image2": "Image2Pipeline", "image3": "Image3Pipeline"}

_CLASSES = {alias: name.rpartition(".")[2] for name, alias, _ in get_steps()}
_HOOK = re.compile(r"\s*miri_steps\.(?:steps\.\w+\.)?(\w+)\s*(?:\((.*)\))?\s*", re.DOTALL)
_KINDS = "pre_hooks", "post_hooks"
# Parameters that name files.
_FILES = {
    *("source_mask", "source_catalog", "corrections", "reference_catalog", "skylist"),
    *("mask_image", "regions", "background_file", "background_files", "abs_refcat", "catfile"),
    *("user_supplied_dq", "user_mask", "user_supplied_reffile", "persistence_array_file"),
    *("user_supplied_flat", "output_wcs"),
}
# Those whose files are found by the chain, or are folders.
_PLACES = {"rateints"}
# What such a parameter may hold that is no file: catalogues that tweakreg fetches begin with GAIA.
_NO_FILE = re.compile(r"None|N/A||GAIA\w*")
# Where and how a run is kept is up to the reduction.
_RESERVED = {"output_dir", "output_file", "save_results", "suffix", "output_ext", "pre_hooks", "post_hooks"}
# What a process that is itself a worker of a cluster cannot start.
_PROCESSES = {"maximum_cores", "executor"}


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

    def elsewhere(self) -> Hook:
        """
        Say the same to a worker of a cluster.

        Returns
        -------
        Hook
            One that names files by absolute paths and keeps to one process.
        """
        return Hook(self.alias, _elsewhere(self.parameters))


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

    def all_hooks(self) -> list[Hook]:
        """List the Steps of this package that are hooked in."""
        listed = (hook for step in self.steps.values() for kind in _KINDS for hook in step.get(kind, ()))
        return [hook for hook in listed if isinstance(hook, Hook)]

    def hooks(self) -> dict[str, Hook]:
        """List them by alias."""
        return {hook.alias: hook for hook in self.all_hooks()}

    def with_defaults(self, defaults: Mapping[str, Mapping]) -> Stage:
        """
        Give hooks parameters that they do not have yet.

        Parameters
        ----------
        defaults : dict
            Parameters by alias.

        Returns
        -------
        Stage
            A new one.
        """
        return self._with_hooks(
            lambda hook: Hook(hook.alias, {**defaults.get(hook.alias, {}), **hook.parameters})
        )

    def named_files(self) -> dict[str, Path]:
        """List the files that parameters name, by step, parameter and number."""
        told = [*self.steps.items(), *((hook.alias, hook.parameters) for hook in self.all_hooks())]
        found = {}
        for number, (name, values) in enumerate(told):
            for parameter, value in values.items():
                for k, path in enumerate(_files_of(parameter, value)):
                    found[f"{number} {name}.{parameter} {k}"] = path
        return {key: path for key, path in found.items() if path.is_file()}

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
        if step not in _CLASSES:
            steps = self.steps | {step: self.steps.get(step, {}) | values}
            return Stage(self.name, self.parameters, steps)
        return self._with_hooks(lambda hook: _changed(hook, values) if hook.alias == step else hook)

    def elsewhere(self) -> Stage:
        """
        Say the same to a worker of a cluster.

        Returns
        -------
        Stage
            One that names files by absolute paths and keeps to one process.
        """
        steps = {name: _elsewhere(values) for name, values in self.steps.items()}
        return Stage(self.name, self.parameters, steps)._with_hooks(Hook.elsewhere)

    def _with_hooks(self, change):
        """Change hooks that are Steps of this package; those that become None are taken out."""
        steps = {}
        for name, given in self.steps.items():
            steps[name] = dict(given)
            for kind in _KINDS:
                if kind in given:
                    changed = (change(hook) if isinstance(hook, Hook) else hook for hook in given[kind])
                    steps[name][kind] = [hook for hook in changed if hook is not None]
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
    # What is taken out comes last, so that other changes to it are no mistake.
    for key, value in sorted((changes or {}).items(), key=lambda item: str(item[0]).endswith(".skip")):
        _change(stages, key, value)
    return {name: _checked(stage) for name, stage in stages.items()}


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
    return Stage(name, _without_reserved(config, path), steps)


def _with_hooks(values, path):
    """Read the hooks of a step that are Steps of this package; what else is hooked in stays as it is."""
    values = {key: value for key, value in values.items() if key not in ("class", "name")}
    hooks = {kind: values.pop(kind) or [] for kind in _KINDS if kind in values}
    for kind, listed in hooks.items():
        hooks[kind] = [_read_hook(text, path) for text in ([listed] if isinstance(listed, str) else listed)]
    return _without_reserved(values, path) | hooks


def _without_reserved(values, path):
    """Leave out what is up to the reduction: files that strun has saved name it, without a value."""
    for key in _RESERVED & set(values):
        if values[key] not in (None, "", False, [], ".fits"):
            raise ValueError(f"{key} is up to the reduction and cannot be set, got {values[key]} in {path}")
    return {key: value for key, value in values.items() if key not in _RESERVED}


def _read_hook(text, path):
    found = _HOOK.fullmatch(str(text))
    if not found:
        return text
    alias = next((alias for alias, name in _CLASSES.items() if name == found[1]), None)
    if alias is None:
        raise ValueError(f"hooks in {path} must be one of {', '.join(_CLASSES.values())}, got {found[1]}")
    try:
        call = ast.parse(f"dict({found[2] or ''}\n)", mode="eval").body
        words = [word.arg for word in call.keywords]
        if call.args or None in words or len(set(words)) < len(words):
            raise ValueError("parameters are given once each, by name")
        told = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"hook in {path} must be a class with parameters, got {text!r}") from error
    return Hook(alias, _without_reserved(told, path))


def _changed(hook, values):
    """Change the parameters of a hook; None if it is told to skip."""
    told = {key: value for key, value in (hook.parameters | values).items() if value is not None}
    skip = _validated(hook.alias, hook.step, {"skip": told.pop("skip", False)})["skip"]
    return None if skip else Hook(hook.alias, told)


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
        if step in _CLASSES:
            raise ValueError(f"{key} changes a step that takes no part: no parameter file hooks {step} in")
        known = sorted({known for name in names for known in _known_steps(stages[name])})
        raise ValueError(f"the step of a change must be one of {', '.join(known)}, got {key!r}")
    stages[having[-1]] = stages[having[-1]].changed(step, **{parameter: value})


def _known_steps(stage):
    """Name the steps of a stage, and those that are hooked in."""
    return [*stage.pipeline.step_defs, *stage.hooks()]


def _checked(stage):
    """Refuse parameters that are not known or make no sense; give the others as their step reads them."""
    known = stage.pipeline.step_defs
    unknown = sorted(set(stage.steps) - set(known))
    if unknown:
        raise ValueError(f"steps of {stage.name} must be among {', '.join(known)}, got {', '.join(unknown)}")
    steps = {}
    for name, values in stage.steps.items():
        plain = {key: value for key, value in values.items() if key not in _KINDS}
        steps[name] = values | _validated(name, known[name], plain)
    checked = Stage(stage.name, _validated(stage.name, stage.pipeline, stage.parameters), steps)
    return checked._with_hooks(
        lambda hook: Hook(hook.alias, _validated(hook.alias, hook.step, hook.parameters))
    )


def _validated(name, step, values):
    validated = {}
    for parameter, value in values.items():
        try:
            config = config_parser.config_from_dict({parameter: value}, step.load_spec_file())
        except config_parser.ValidationError as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"{name}.{parameter}={value} cannot be: {reason}") from error
        validated[parameter] = config[parameter]
        for path in _files_of(parameter, value):
            # It would be missed only after hours.
            if not path.is_file():
                raise FileNotFoundError(f"{name}.{parameter} must name a file, but there is no {path}")
    return validated


def _files_of(parameter, value):
    """List the files that a parameter names; those of tables may be named without their end."""
    if parameter not in _FILES and not parameter.startswith("override_"):
        return []
    listed = value if isinstance(value, list | tuple) else [value]
    return [table_path(str(text)) for text in listed if not _NO_FILE.fullmatch(str(text))]


def _elsewhere(values):
    """Name files as they are found from any folder, and leave out what asks for more processes."""
    return {key: _absolute(key, value) for key, value in values.items() if key not in _PROCESSES}


def _absolute(parameter, value):
    if parameter not in _FILES | _PLACES and not parameter.startswith("override_"):
        return value
    if isinstance(value, list | tuple):
        return [_absolute(parameter, item) for item in value]
    if not isinstance(value, str | Path) or _NO_FILE.fullmatch(str(value)):
        return value
    return str(Path(value).expanduser().absolute())
