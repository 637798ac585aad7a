"""Where people mark the step that they find most critical, and what they marked."""
