"""What is timed. `catalogue.py` lists it; the other modules have the functions."""
