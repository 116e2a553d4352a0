"""Small breakages of the product, each of which the tests must notice."""
