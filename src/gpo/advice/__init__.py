"""`gpo advise`: what a run takes and which arm to choose, from a pilot."""
