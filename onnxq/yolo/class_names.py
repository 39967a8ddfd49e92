"""Names of a model's classes, as metadata spells them."""

import ast
import json
import re


def parse_names(text: str) -> tuple[str, ...]:
    """Return the names of classes in their order; none if the text does not give them.

    Args:
        text: a list of names, or a mapping from number to name, as Python or as JSON; or names between commas or lines.
    """
    match _parsed(text):
        case dict(names):
            by_number = {int(key): name for key, name in names.items() if re.fullmatch(r"[0-9]+", str(key))}
            if len(by_number) == len(names) and set(by_number) == set(range(len(names))):
                return tuple(str(by_number[number]) for number in range(len(names)))
        case list(names) | tuple(names):
            return tuple(str(name) for name in names)
        case None if not re.search(r"[\[\]{}]", text) and len(parts := re.split(r"[,\n]", text.strip())) > 1:
            return tuple(part.strip() for part in parts)
    return ()


def _parsed(text: str) -> object:
    """Return the value that the text is in Python or in JSON; None if it is neither."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
