"""fl_shield at the edge to Flower: a shield around any strategy, client mods, one converter."""
