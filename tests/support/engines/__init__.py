"""Container engines and image registries that tests use or start themselves."""
