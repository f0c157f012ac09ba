"""The stages and glue of each notebook, over the other sub-packages."""
