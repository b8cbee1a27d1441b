"""Scripts that make what is served: fetch, build, train. Each runs alone and can be imported."""
