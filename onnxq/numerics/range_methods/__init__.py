"""Range methods: they choose the interval that the integers of an activation cover. One module per method.

Each module of this package must define `METHOD`, a `RangeMethod`; a new file is enough to add one. The choices of
`--method`, its help, and the comparison in reports follow from `METHODS`.

Two other rules choose ranges. They are not methods, because they need more than a histogram and a scheme, or because no
option selects them:

- `onnxq.numerics.before_silu`: for the input of a SiLU, with every method.
- `output-error`: reconstruction adjusts the fitted range of a layer's input by the error of the layer's outputs
  (`onnxq.reconstruction`); it starts from the ranges of a method.
"""

import importlib
import pkgutil
from collections.abc import Iterable

from onnxq.numerics.range_method import FitRange, RangeMethod


def _find_methods(modules: Iterable[str]) -> dict[str, RangeMethod]:
    """Return the methods of the modules by name.

    Raises:
        TypeError: a module defines no `METHOD`.
        ValueError: two modules define methods of one name.
    """
    methods: dict[str, RangeMethod] = {}
    for module in sorted(modules):
        method = getattr(importlib.import_module(f"{__name__}.{module}"), "METHOD", None)
        if not isinstance(method, RangeMethod):
            raise TypeError(f"{__name__}.{module}: METHOD is not a RangeMethod; define it as in percentile.py")
        if method.name in methods:
            raise ValueError(f"{__name__}.{module}: there is a method {method.name!r} already; choose another name")
        methods[method.name] = method
    return methods


METHODS = _find_methods(module.name for module in pkgutil.iter_modules(__path__))
"""The range methods by name, in the order of their modules."""


def method_for(name: str, silu_output: bool) -> FitRange:
    """Return the function of a method, for tensors that are or are not x * sigmoid(x).

    Raises:
        KeyError: there is no such method.
    """
    return METHODS[name].fit_for(silu_output)
