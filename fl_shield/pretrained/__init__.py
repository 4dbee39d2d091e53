"""The shipped detector and its model card."""
