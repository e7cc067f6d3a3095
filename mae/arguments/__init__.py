"""Flags and recipes, as dataclasses."""
