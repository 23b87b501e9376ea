"""Applying a recipe to a model: budget, plan, rewriting, rolling back, summing up."""
