"""The arena: every attack against every defence, on the same recorded federations."""
