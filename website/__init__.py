"""The documentation as a site: pages of `docs/`, those of the root, and the API from docstrings."""
