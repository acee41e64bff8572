"""What training will see of a dataset, drawn for people: `cards` gathers it, `png_sheet` and `html_sheet` show it."""
