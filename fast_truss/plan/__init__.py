"""Find the settings that fit a model's traffic, by simulating how long users wait and what a month costs."""
