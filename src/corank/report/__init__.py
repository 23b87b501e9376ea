"""Reports: what was done to a model, as data, text, JSON, Markdown and HTML."""

from .report import Report, SiteRow, versions

__all__ = ["Report", "SiteRow", "versions"]
