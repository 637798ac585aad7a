"""Images in prompts: their tokens, where they are kept, how a model sees them."""
