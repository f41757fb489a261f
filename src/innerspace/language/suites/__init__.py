"""Prompts with known variables: what is written, in pairs that differ in one thing."""
