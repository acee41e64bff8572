"""How the documentation is built: `make docs`. The source folder is the clone, so that links work as they do in it."""

import sama_mega

project = "sama-mega"
version = release = sama_mega.__version__
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "kernels/sama_kernels/*/README.md", "slurm/README.md", "README.md", "CONTRIBUTING.md"]
exclude_patterns = [".*", "build", "dist", "runs", "tests", "shared", "*.egg-info"]  # not walked through

myst_heading_anchors = 4

html_theme = "furo"
html_title = "sama-mega"
html_extra_path = ["site"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
