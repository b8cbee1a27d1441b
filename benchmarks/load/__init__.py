"""Engines and path under a load of many queries."""
