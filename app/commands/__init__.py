"""The commands of `lethe`, one module per group."""
