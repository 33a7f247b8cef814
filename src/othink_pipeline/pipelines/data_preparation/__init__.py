"""The data_preparation pipeline."""
