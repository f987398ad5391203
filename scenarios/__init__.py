"""The scenarios that come with pacbench: one TOML file each."""
