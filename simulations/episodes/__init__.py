"""Meta-learning tasks from simulated victims and federated rounds, and the cache they live in."""
