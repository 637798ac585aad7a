"""Settings of a run: components by name, options, registries, presets."""
