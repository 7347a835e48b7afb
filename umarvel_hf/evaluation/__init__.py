"""How well an encoder retrieves: hit rates beside baselines, with paired tests over queries."""
