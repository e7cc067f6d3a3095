"""Evaluators: reconstruction, nearest neighbours, accuracy, features, figures."""
