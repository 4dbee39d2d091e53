"""Weights for client updates that learned from the attacks of the arena, with their card."""
