"""Small trained models and the recipes that made them."""
