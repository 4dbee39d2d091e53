"""The shipped weights that judge inputs of models, with their model card."""
