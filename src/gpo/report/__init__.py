"""`gpo report RUN`: one HTML file and PNG plots of a run directory, and what they say. No model is needed."""
