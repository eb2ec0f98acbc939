"""What should run: packages, definitions, desired state, chores."""
