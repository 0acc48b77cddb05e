"""
The directive ``.. step-parameters:: package.SomeStep``.

It makes a table of a Step's parameters from the spec of the class itself, so that
what the documentation says and what ``strun --help`` says cannot differ.
"""

import ast

from configobj import ConfigObj
from docutils import nodes
from docutils.parsers.rst import Directive, directives
from docutils.statemachine import StringList
from stpipe import Step
from stpipe.config_parser import load_spec_file, merge_config
from stpipe.utilities import import_class

_TYPES = {
    "boolean": "bool",
    "float": "float",
    "float_list": "list of float",
    "force_list": "list",
    "input_file": "file",
    "int_list": "list of int",
    "integer": "int",
    "list": "list",
    "output_file": "file",
    "string": "str",
    "string_list": "list of str",
}
_HEADINGS = ("Parameter", "Type", "Default", "Description")
_WIDTHS = (22, 20, 14, 44)


def spec_of(step_class, *, inherited=False):
    """
    Collect the parameters a Step adds to those every Step of jwst has.

    Parameters
    ----------
    step_class : type
        The Step.
    inherited : bool, optional
        Collect instead what it keeps unchanged from a Step of another package.

    Returns
    -------
    configobj.ConfigObj
        Spec lines with their comments.
    """
    package = step_class.__module__.partition(".")[0]
    own, kept = ConfigObj(), ConfigObj()
    for base in reversed(step_class.mro()):
        if base.__module__.startswith(("stpipe.", "jwst.stpipe.")):
            continue
        lines = load_spec_file(base)
        if lines is not None:
            merge_config(own if base.__module__.partition(".")[0] == package else kept, lines)
    for name in own.scalars:
        kept.pop(name, None)
    spec = kept if inherited else own
    if not spec.scalars:
        raise ValueError(
            f"{step_class.__name__} has no parameters {'it inherits' if inherited else 'of its own'}"
        )
    return spec


def describe_check(check):
    """
    Put a spec's check into words.

    Parameters
    ----------
    check : str
        For instance ``"float(min=0.0, default=3.0)"``.

    Returns
    -------
    kind, default : str
        Here ``"float, at least 0.0"`` and ``"3.0"``, in reStructuredText.
    """
    call = ast.parse(check.strip(), mode="eval").body
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    default = "required" if "default" not in options else f"``{_value(options['default'])}``"
    if call.func.id == "option":
        return " | ".join(f"``{_value(choice)}``" for choice in call.args), default
    limits = zip(("min", "max"), call.args, strict=False)  # float(0, 1) is float(min=0, max=1)
    options = dict(limits) | options
    words = [_TYPES[call.func.id]]
    unit = " values" if "list" in call.func.id else ""  # a list's limits are those of its length
    if "min" in options:
        words.append(f"at least {_value(options['min'])}{unit}")
    if "max" in options:
        words.append(f"at most {_value(options['max'])}{unit}")
    return ", ".join(words), default


def _value(node):
    if isinstance(node, ast.Call):  # list() is how a spec writes an empty list
        return "[]"
    return ast.unparse(node)


def rows_of(step_class, *, inherited=False):
    """
    Write the rows of a Step's parameter table.

    Parameters
    ----------
    step_class : type
        The Step.
    inherited : bool, optional
        Write instead those it keeps unchanged from a Step of another package.

    Returns
    -------
    list of (str, str, str, str)
        Name, type, default and description of each parameter, in reStructuredText.

    Raises
    ------
    ValueError
        If a parameter has no comment in the spec.
    """
    spec = spec_of(step_class, inherited=inherited)
    rows = []
    for name in spec.scalars:
        comment = (spec.inline_comments[name] or "").lstrip("#").strip()
        if not comment:
            raise ValueError(f"parameter {name!r} of {step_class.__name__} has no comment in its spec")
        rows.append((f"``{name}``", *describe_check(spec[name]), comment[0].upper() + comment[1:]))
    return rows


class StepParameters(Directive):
    """
    Table of the parameters of the Step named in the argument.

    With ``:inherited:``, of those it keeps unchanged from the stock Step it is derived from.
    """

    required_arguments = 1
    option_spec = {"inherited": directives.flag}

    def run(self):
        """Make the table."""
        step_class = import_class(self.arguments[0], subclassof=Step)
        rows = rows_of(step_class, inherited="inherited" in self.options)
        group = nodes.tgroup(cols=len(_WIDTHS))
        group += [nodes.colspec(colwidth=width) for width in _WIDTHS]
        group += nodes.thead("", self._row(_HEADINGS))
        group += nodes.tbody("", *[self._row(row) for row in rows])
        return [nodes.table("", group, classes=["colwidths-given"])]

    def _row(self, cells):
        row = nodes.row()
        for cell in cells:
            entry = nodes.entry()
            self.state.nested_parse(StringList([cell], source="spec"), self.content_offset, entry)
            row += entry
        return row


def setup(app):
    """Register the directive with Sphinx."""
    app.add_directive("step-parameters", StepParameters)
    return {"parallel_read_safe": True}
