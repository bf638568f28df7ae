"""Runs in, one self-contained HTML page out: curves, a comparison, rollouts token by token, settings and the method's parts."""

from selfdistill.report.page import render, write_page
from selfdistill.report.selection import Selection
from selfdistill.report.watching import follow

__all__ = ["Selection", "follow", "render", "write_page"]
