"""Lethe on one machine: Postgres and Redis from wheels, and a supervisor for all processes."""
