"""Small models with random weights, family by family, and the script that takes each through the whole line."""
