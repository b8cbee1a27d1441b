"""Composable LLM inference: plan a query, run its sub-queries on experts, compose the answer."""
