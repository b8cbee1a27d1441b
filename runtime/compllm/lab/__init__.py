"""Tools that explain and measure.

explain          the bound report: where a query's time went, and what the graph would have allowed
replay           known query graphs through the real path, under several policies
simulate         a load of queries on a modelled engine
scenario         the TOML file that says what `replay` and `simulate` run
engine_profile   how long an engine's steps and the host's ways take
"""
