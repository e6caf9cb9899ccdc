"""Configure Sphinx, which `nox -s docs` runs: Markdown pages, and a warning for each dead link."""

project = "squeeze"
extensions = ["myst_parser"]
myst_heading_anchors = 3
html_theme = "alabaster"
html_theme_options = {"description": "Which compression of language models really helps", "fixed_sidebar": True}
html_copy_source = False
