"""Write one page that an engineer would forward, from bundles, benchmark rows and per-layer profiles.

    files -> rows with letters (entries) -> sections of blocks -> HTML or Markdown

A newcomer's trap: sections never make HTML; they make blocks (``blocks``), so that both formats say the same.
"""

from .page import html_from_results, markdown_from_results
from .writing import FORMATS, check_report_paths, format_of, write_report

__all__ = ["FORMATS", "check_report_paths", "format_of", "html_from_results", "markdown_from_results", "write_report"]
