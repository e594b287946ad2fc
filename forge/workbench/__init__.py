"""The page in a browser over run directories: `python -m forge workbench`."""
