"""Annotation files: what they say, how it is checked, and the image files that they name."""
