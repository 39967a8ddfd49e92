"""The report of a run as HTML, Markdown and JSON."""
