"""Which settings fit the traffic of a model: simulates what users would wait and what a month would cost."""
