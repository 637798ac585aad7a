"""Preference pairs and the data sets made of them."""
