"""From a problem to graded trajectories cut into steps."""
