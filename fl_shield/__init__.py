"""fl_shield: a server-side backdoor defence for federated learning with Flower."""

__version__ = "0.1.0"
