"""Simulated federations: data sets, victims, attacks, engines, one description of an experiment."""
