"""Names of classes, compared without regard to how they are spelled."""

import unicodedata

_SAME = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""Names of PASCAL VOC and of Darknet's list of COCO's classes -> those of COCO."""


def class_key(name: str) -> str:
    """Return a name without case, spaces, hyphens and underscores; names with equal keys are one class."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    key = "".join(letter for letter in folded if not letter.isspace() and letter not in "-_‐‑–—")
    return _SAME.get(key, key)
