"""Studies: a grid of runs from one TOML file, and the report on them."""
